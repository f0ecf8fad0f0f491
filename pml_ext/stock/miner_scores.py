"""The scores by which a miner chooses: kept, or computed again for the rows that are needed."""

from __future__ import annotations

import copy
import weakref

import torch
from pytorch_metric_learning import distances
from torch import Tensor

from pml_ext.stock.incidence import blocks
from pml_ext.stock.scores import is_row_wise, scores


class MinerScores:
    """Scores [n, m] as a distance computes them.

    Args:
        distance: one of PML's.
        embeddings: [n, d].
        references: [m, d], or None: the batch.
        chunk_size: how many rows of scores are in memory at once, if the distance computes each row without the others.
            A copy of the vectors is kept instead of the scores. Default None: all scores are kept.
    """

    def __init__(
        self,
        distance: distances.BaseDistance,
        embeddings: Tensor,
        references: Tensor | None,
        chunk_size: int | None = None,
    ) -> None:
        others = embeddings if references is None else references
        self.shape = len(embeddings), len(others), embeddings.dtype, embeddings.device
        self.sign = -1.0 if distance.is_inverted else 1.0
        self._kept: Tensor | None = None
        self._vectors: tuple[Tensor, Tensor] | None = None
        self._block: tuple[int, Tensor] | None = None
        self._step = len(embeddings)
        if chunk_size is None or chunk_size >= len(embeddings) or not is_row_wise(distance):
            self._kept = scores(distance, embeddings, others)
            self.shape = (*self.shape[:2], self._kept.dtype, self.shape[3])
        else:
            self._step, self._distance = chunk_size, copy.copy(distance)
            rows = embeddings.detach().clone()
            self._vectors = rows, rows if references is None else references.detach().clone()
        is_known = references is None and not embeddings.is_inference()
        self._traits = traits(distance) if is_known else None
        self._of = (weakref.ref(embeddings), embeddings._version) if is_known else None

    @property
    def parts(self) -> list[tuple[int, int]]:
        """The ranges of rows that are computed together, the cheapest to ask for."""
        if self._kept is not None:
            return blocks(*self._kept.shape)
        return [(start, min(start + self._step, self.shape[0])) for start in range(0, self.shape[0], self._step)]

    @property
    def are_kept(self) -> bool:
        """Whether all scores are in memory."""
        return self._kept is not None

    def are_of(self, distance: distances.BaseDistance, embeddings: Tensor) -> bool:
        """Whether a distance would compute these scores for this batch with itself."""
        if self._of is None or self._traits is None or self._traits != traits(distance):
            return False
        seen, version = self._of
        return seen() is embeddings and embeddings._version == version

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> Tensor:
        """Scores of some rows, not to be overwritten. They are always computed in the same blocks of rows."""
        if self._kept is not None:
            return self._kept[start:stop]
        first = start - start % self._step
        found = [self._rows_from(at) for at in range(first, stop, self._step)]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole[start - first : stop - first]

    def distances(self, start: int, stop: int) -> Tensor:
        """Distances of some rows, newly allocated; smaller is nearer."""
        return self.rows(start, stop) * self.sign

    def _rows_from(self, start: int) -> Tensor:
        if self._block is not None and self._block[0] == start:
            return self._block[1]
        assert self._vectors is not None
        rows, references = self._vectors
        self._block = None  # before the next one is made
        found = scores(self._distance, rows[start : start + self._step], references)
        self._block = start, found
        return found


def traits(distance: distances.BaseDistance) -> tuple[object, ...] | None:
    """The attributes that determine the scores of a distance; None if others may, or if loss and miner differ.

    They do for SNRDistance, whose ratios a loss computes by matrix products.
    """
    if not is_row_wise(distance) or type(distance) is distances.SNRDistance:
        return None
    return type(distance), distance.p, distance.power, distance.normalize_embeddings
