"""Whether one threshold of the distance suits all classes equally."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pml_ext import arguments
from pml_ext.evaluation.sphere import directions
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.potential import squared_distances

# Distances lie in 0..2: among so many intervals the one of a quantile is looked for first.
_INTERVALS = 1 << 16


@dataclass(frozen=True)
class ThresholdConsistency:
    """How much the classes differ at common thresholds.

    Args:
        opis: variance of the classes' utilities, averaged over the thresholds, from 0 (all equal) to 0.25; NaN without
            any class.
        gap: mean over the thresholds of the squared difference between the best tenth of the classes and the worst.
        low: the smallest threshold, a Euclidean distance of embeddings of unit length.
        high: the largest.
        classes: how many classes have positive and negative pairs.
        left_out: how many classes lack either.
        utilities: [classes, thresholds].
    """

    opis: float
    gap: float
    low: float
    high: float
    classes: int
    left_out: int
    utilities: Tensor = field(repr=False)


def threshold_consistency(
    embeddings: Array,
    labels: Array,
    references: Array | None = None,
    reference_labels: Array | None = None,
    *,
    far: tuple[float, float] = (0.01, 0.1),
    limits: tuple[float, float] | None = None,
    steps: int = 101,
    share: float = 0.1,
) -> ThresholdConsistency:
    r"""Operating-point inconsistency score (OPIS): how much the classes differ at one threshold.

    A pair is accepted at a threshold if its distance is at most that. With the share :math:`a_k` of the positive pairs
    of class k that are accepted and the share :math:`r_k` of its negative pairs that are rejected, its utility is
    their harmonic mean, and

    .. math::

        U_k &= \frac{2 a_k r_k}{a_k + r_k} , \qquad
        \text{OPIS} = \text{mean}_\tau \; \text{mean}_k (U_k(\tau) - \text{mean}_l U_l(\tau))^2

    Time n * m, memory of classes times thresholds and a block of distances.

    Args:
        embeddings: [n, d]; they are normalized to unit length. The pairs of a class are those of its embeddings.
        labels: [n] numbers or strings.
        references: [m, d] (default ``None``: the embeddings, without pairs of one with itself).
        reference_labels: [m].
        far: two false accept rates, shares of all negative pairs; the thresholds lie between the distances that give
            these rates. They depend on the embeddings, so that two models are compared at equal false accept rates, not
            at equal distances.
        limits: the smallest and the largest threshold, instead of `far`.
        steps: the number of equally spaced thresholds, both ends included; at least 1.
        share: the share of the classes that are the best, and the worst, in `gap`; above 0.

    Source:
        Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024, arXiv
        2307.04047. `gap` is ours: the paper defines its measure of the extremes in another way. `gap` varies by a
        quarter between seeds: report several seeds.

    Raises:
        TypeError, ValueError: arguments of another shape, kind or order.

    Example:
        >>> x = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]]
        >>> threshold_consistency(x, ["a", "a", "b", "b"], limits=(0.7, 1.1), steps=5).opis
        0.0734...
    """
    for name, pair in (("far", far), ("limits", limits)):
        if pair is not None and not arguments.finite(name, pair[0]) <= arguments.finite(name, pair[1]):
            raise ValueError(f"{name} must be the lesser and the greater number, got {pair!r}")
    arguments.count("steps", steps)
    share = arguments.positive("share", arguments.fraction("share", share))
    if limits is None:
        for each in far:
            arguments.fraction("far", each)
    if (references is None) != (reference_labels is None):
        raise ValueError("references and reference_labels belong together: one of them is None")
    pairs = _Pairs.of(embeddings, labels, references, reference_labels)
    low, high = limits if limits is not None else pairs.accepted(far)
    levels = torch.linspace(low, high, steps, dtype=pairs.x.dtype, device=pairs.x.device)
    utilities, known = pairs.utilities(levels)
    left_out = len(known) - int(known.sum())
    utilities = utilities[known]
    if not len(utilities):
        return ThresholdConsistency(math.nan, math.nan, low, high, 0, left_out, utilities)
    opis = (utilities - utilities.mean(0)).square().mean().item()
    ordered, tenth = utilities.sort(0).values, max(1, math.ceil(share * len(utilities)))
    gap = (ordered[-tenth:].mean(0) - ordered[:tenth].mean(0)).square().mean().item()
    return ThresholdConsistency(opis, gap, low, high, len(utilities), left_out, utilities.cpu())


@dataclass(frozen=True)
class _Pairs:
    """Vectors of unit length with the numbers of their classes, compared with others, or with themselves."""

    x: Tensor
    classes: Tensor
    references: Tensor
    reference_classes: Tensor
    same_set: bool

    @staticmethod
    def of(embeddings: Array, labels: Array, references: Array | None, reference_labels: Array | None) -> "_Pairs":
        x = directions("embeddings", embeddings)
        known = checked_labels("labels", labels, len(x))
        if references is None or reference_labels is None:
            classes = class_ids(known)[0].to(x.device)
            return _Pairs(x, classes, x, classes, True)
        others = directions("references", references).to(x)
        if others.shape[1] != x.shape[1]:
            raise ValueError(f"references must have {x.shape[1]} dimensions as the embeddings, got {others.shape[1]}")
        both = class_ids(known, checked_labels("reference_labels", reference_labels, len(others)))
        return _Pairs(x, both[0].to(x.device), others, both[1].to(x.device), False)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The classes of some rows [b], their distances [b, m], positives and negatives [b, m]."""
        for start, squares in squared_distances(self.x, self.references):
            rows = self.classes[start : start + len(squares)]
            pos = rows[:, None] == self.reference_classes
            neg = ~pos
            if self.same_set:
                pos.diagonal(start).fill_(False)
            yield rows, squares.sqrt_(), pos, neg

    def utilities(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The utility of every class at every level [k, t], and which classes have one [k]."""
        k = int(max(self.classes.max(), self.reference_classes.max())) + 1 if len(self.classes) else 0
        width = len(levels) + 1
        counts = torch.zeros(2, k * width, dtype=torch.long, device=levels.device)
        for rows, distances, *sides in self.blocks():
            place = torch.searchsorted(levels, distances) + rows[:, None] * width
            for count, side in zip(counts, sides, strict=True):
                count += torch.bincount(place[side], minlength=k * width)
        accepted = counts.view(2, k, width).cumsum(-1).double()
        total = accepted[..., -1:]
        pos, neg = accepted[..., :-1] / total.clamp(min=1)
        specificity = 1 - neg
        both = pos + specificity
        known = (total > 0).all(0)[:, 0]
        # A class of the references only has no pairs of its own.
        own = torch.zeros(k, dtype=torch.bool, device=levels.device).index_fill_(0, self.classes, True)
        return torch.where(both > 0, 2 * pos * specificity / both.clamp(min=1e-300), 0.0)[own], known[own]

    def accepted(self, shares: tuple[float, float]) -> tuple[float, float]:
        """The least thresholds that accept at least these shares of all negative pairs."""
        counts = torch.zeros(_INTERVALS + 1, dtype=torch.long, device=self.x.device)
        for _, distances, _, neg in self.blocks():
            counts += torch.bincount(_interval(distances[neg]), minlength=_INTERVALS + 1)
        total = int(counts.sum())
        if total == 0:
            return 0.0, 0.0
        until = counts.cumsum(0)
        ranks = [max(1, math.ceil(share * total)) for share in shares]
        places = [int(torch.searchsorted(until, rank)) for rank in ranks]
        inside: dict[int, list[Tensor]] = {place: [] for place in places}
        for _, distances, _, neg in self.blocks():
            negatives = distances[neg]
            interval = _interval(negatives)
            for place, found in inside.items():
                found.append(negatives[interval == place])
        before = [int(until[place] - counts[place]) for place in places]
        low, high = (
            torch.cat(inside[place]).kthvalue(rank - already).values.item()
            for place, rank, already in zip(places, ranks, before, strict=True)
        )
        return low, high


def _interval(distances: Tensor) -> Tensor:
    return (distances * (_INTERVALS / 2)).long().clamp_(max=_INTERVALS)
