"""The result of `mine`: anchors with their positives and negatives, as indices of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MinedTuples:
    """Anchors with their positives and negatives, as indices of the data set that was mined; -1 where there is none.

    An anchor without a negative, or without a needed positive, keeps its row in the tensors, but is not a tuple:
    `complete` is False for it, and `pairs`, `triplets` and the batches leave it out.

    Args:
        anchors: [a], indices of the embeddings; with ``per="pair"`` an anchor occurs once for each of its positives.
        positives: [a, kp], indices of the references, in the order of ``positives=``.
        negatives: [a, kn], indices of the references, the hardest first or in random order.
        positive_scores: [a, kp], in the units of the distance; NaN where there is none.
        negative_scores: [a, kn], likewise.
        needs_positive: whether an anchor without positives is left out.
        dropped: for each filter, by name, the share of the considered negatives that it drops. Considered are the
            negatives in the range of ranks, down to the last one that was taken.
        looked_at: the number of considered negatives.

    Example:
        >>> import torch
        >>> from pml_ext.mining import mine
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> mine(embeddings, torch.tensor([0, 0, 1, 1]), num_negatives=1).triplets()
        (tensor([0, 1, 2, 3]), tensor([1, 0, 3, 2]), tensor([2, 2, 1, 1]))
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    positive_scores: Tensor
    negative_scores: Tensor
    needs_positive: bool
    dropped: dict[str, float]
    looked_at: int = 0

    @staticmethod
    def joined(parts: Sequence["MinedTuples"]) -> "MinedTuples":
        """Join the tuples of several parts of the anchors, as if mined together, in the order of the anchors.

        Each of several processes mines a part of the anchors (``anchors=``), with the same arguments, embeddings and
        state of the generator, and sends its tuples to the others.

        Args:
            parts: the tuples of each part, mined with the same settings.

        Raises:
            ValueError: there are no parts, or they were mined with different settings.
        """
        if not parts:
            raise ValueError("parts must not be empty")
        settings = {
            (each.needs_positive, each.positives.shape[1], each.negatives.shape[1], *each.dropped) for each in parts
        }
        if len(settings) > 1:
            raise ValueError(f"parts must be mined with the same settings, got {len(settings)} different ones")
        order = torch.cat([each.anchors for each in parts]).argsort(stable=True)
        tensors = [each.name for each in fields(MinedTuples) if isinstance(getattr(parts[0], each.name), Tensor)]
        of_all: dict[str, Any] = {name: torch.cat([getattr(each, name) for each in parts])[order] for name in tensors}
        looked_at = sum(each.looked_at for each in parts)
        dropped = {
            name: sum(each.dropped[name] * each.looked_at for each in parts if each.looked_at) / looked_at
            if looked_at
            else float("nan")
            for name in parts[0].dropped
        }
        return replace(parts[0], **of_all, dropped=dropped, looked_at=looked_at)

    def __len__(self) -> int:
        return int(self.complete.sum())

    def __repr__(self) -> str:
        kp, kn = self.positives.shape[1], self.negatives.shape[1]
        shares = ", ".join(f"{name} {value:.3g}" for name, value in self.statistics().items())
        return f"MinedTuples({len(self)} of {len(self.anchors)} anchors, {kp} positives, {kn} negatives; {shares})"

    @property
    def complete(self) -> Tensor:
        """Which anchors have a negative, and a positive if that is needed, [a]."""
        complete = (self.negatives >= 0).any(1)
        return complete & (self.positives >= 0).any(1) if self.needs_positive else complete

    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors, positives, anchors, negatives as PML's losses take them, as indices of the data set."""
        complete = self.complete.unsqueeze(1)
        sides = [(others, (others >= 0) & complete) for others in (self.positives, self.negatives)]
        (a, p), (b, n) = ((self.anchors.unsqueeze(1).expand_as(x)[kept], x[kept]) for x, kept in sides)
        return a, p, b, n

    def triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, positives, negatives: every positive of an anchor with every negative."""
        shape = (*self.positives.shape, self.negatives.shape[1])
        p, n = self.positives.unsqueeze(2).expand(shape), self.negatives.unsqueeze(1).expand(shape)
        kept = (p >= 0) & (n >= 0)
        return self.anchors.view(-1, 1, 1).expand(shape)[kept], p[kept], n[kept]

    def local(self, batch: Tensor | list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mined pairs with both samples in a batch, as positions in the batch: an `indices_tuple`.

        Args:
            batch: the indices of its samples in the data set, [n]; if an index occurs twice, its first position counts.

        Raises:
            ValueError: the batch is not one-dimensional.
        """
        batch = torch.as_tensor(batch, dtype=torch.long, device=self.anchors.device)
        if batch.ndim != 1:
            raise ValueError(f"batch must be a list of indices, got shape {tuple(batch.shape)}")
        ordered, places = batch.sort(stable=True)
        result: list[Tensor] = []
        a, p, b, n = self.pairs()
        for pair in ((a, p), (b, n)):
            at = [torch.searchsorted(ordered, index).clamp_max(max(len(batch) - 1, 0)) for index in pair]
            there = [
                ordered[place] == index if len(batch) else index < 0 for place, index in zip(at, pair, strict=True)
            ]
            kept = there[0] & there[1]
            result += [places[place[kept]] for place in at]
        return result[0], result[1], result[2], result[3]

    def statistics(self) -> dict[str, float]:
        """Statistics of the tuples, to follow from epoch to epoch.

        Returns:
            The shares of anchors ``without_positive`` and ``without_negative``; the mean score of the first positive
            and of the first negative, which is the hardest unless they are drawn at random; and for every filter the
            share of negatives ``dropped_by_..``. NaN where nothing was counted.
        """

        def mean(x: Tensor) -> float:
            return float(x.double().mean())

        def first(scores: Tensor) -> Tensor:
            column = scores[:, :1]
            return column[~column.isnan()]

        values = {
            "without_positive": mean(~(self.positives >= 0).any(1)),
            "without_negative": mean(~(self.negatives >= 0).any(1)),
            "positive_score": mean(first(self.positive_scores)),
            "negative_score": mean(first(self.negative_scores)),
        }
        return values | {f"dropped_by_{name}": share for name, share in self.dropped.items()}

    def to(self, device: torch.device | str) -> "MinedTuples":
        """The same on another device."""
        tensors = {
            each.name: getattr(self, each.name) for each in fields(self) if isinstance(getattr(self, each.name), Tensor)
        }
        moved: dict[str, Any] = {name: x.to(device) for name, x in tensors.items()}
        return replace(self, **moved)
