"""A choice among the triplets that the labels define, by the difference of their distances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.chosen import Batch
from pml_ext.stock.comparisons import Test, within
from pml_ext.stock.incidence import TRIPLETS, Incidence
from pml_ext.stock.mined import Lists, Mined
from pml_ext.stock.miner_scores import MinerScores
from pml_ext.stock.negatives import Counted, Made, Negatives


@dataclass(frozen=True)
class Triplets:
    """The triplets of the labels with `low < D_in - D_ip <= high`.

    Args:
        scores: those of the miner's distance.
        pairs: all pairs that the labels define.
        low: exclusive lower bound, or None.
        high: inclusive upper bound, or None.
    """

    scores: MinerScores
    pairs: Incidence
    low: float | None
    high: float | None

    @property
    def tests(self) -> list[Test]:
        """The bounds as comparisons of `D_ip - D_in`: changing the sign of a difference is exact."""
        found: list[Test] = [] if self.low is None else [(torch.lt, -self.low)]
        return found if self.high is None else [*found, (torch.ge, -self.high)]

    def sides(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Distances of the positives [r, k] and of all columns [r, m] of some rows, newly allocated."""
        far = self.scores.distances(start, stop)
        return far.gather(1, self.pairs.positives[start:stop]), far

    def masks(self, start: int, stop: int) -> Iterator[Tensor]:
        """For each slot of positives the chosen negatives of some rows, 1 or 0 [r, m], always in the same memory."""
        near, far = self.sides(start, stop)
        pairs = self.pairs.rows(start, stop)
        difference, spare = torch.empty_like(far), torch.empty_like(far)
        for slot, pair in enumerate(near.t().contiguous().unsqueeze(2)):
            chosen = within(torch.sub(pair, far, out=difference), self.tests, spare)
            yield pairs.negatives.blank(chosen.mul_(pairs.counts[:, slot, None]), 0)

    def incidence(self) -> Incidence:
        """How many chosen triplets contain each pair."""
        near = torch.zeros_like(self.pairs.counts)
        lengths = near.new_zeros(len(near))
        kept = near.new_zeros(len(near), self.pairs.columns) if self.scores.are_kept else None
        for start, stop in self.scores.parts:
            far = self._times(start, stop, near[start:stop])
            lengths[start:stop] = far.sum(1)
            if kept is not None:
                kept[start:stop] = far

        def make(start: int, stop: int) -> Negatives:
            return Counted(self._times(start, stop), True, lengths[start:stop])

        negatives = Made(make, 0, len(near), lengths) if kept is None else Counted(kept, True, lengths)
        return replace(self.pairs, kind=TRIPLETS, counts=near, negatives=negatives)

    def _times(self, start: int, stop: int, near: Tensor | None = None) -> Tensor:
        """How many chosen triplets contain each negative of some rows; writes those of each positive into `near`."""
        far = self.pairs.counts.new_zeros(stop - start, self.pairs.columns)
        for slot, mask in enumerate(self.masks(start, stop)):
            far += mask
            if near is not None:
                near[:, slot] = mask.sum(1)
        return far

    def lists(self) -> Lists:
        """The triplets, sorted by anchor, positive and negative."""
        parts = [torch.empty(3, 0, dtype=torch.long, device=self.pairs.counts.device)]
        for start, stop in self.scores.parts:
            masks = [mask > 0 for mask in self.masks(start, stop)]
            if masks:
                rows, slots, columns = torch.stack(masks, 1).nonzero(as_tuple=True)
                rows = rows + start
                parts.append(torch.stack([rows, self.pairs.positives[rows, slots], columns]))
        found = torch.cat(parts, 1)
        return found[0], found[1], found[2]


def triplet_margin(miner: Any, batch: Batch) -> Mined:
    """The triplets whose difference of distances is hard, semi-hard or easy, as `type_of_triplets` says."""
    kind, margin = miner.type_of_triplets, miner.margin
    low, high = {
        "hard": (None, min(margin, 0)),
        "semihard": (0, margin),
        "easy": (margin, None),
    }.get(kind, (None, margin))
    chosen = Triplets(batch.scores, batch.pairs, low, high)
    return Mined(3, batch.scores.shape, chosen.lists, chosen.incidence, batch.scores, chosen)
