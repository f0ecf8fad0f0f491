"""Scores by a distance of PML, and the backward pass from a derivative by scores to the vectors."""

from __future__ import annotations

from typing import Protocol

import torch
from pytorch_metric_learning import distances
from torch import Tensor, nn

from pml_ext.masked import are_numbers, looks_are_free
from pml_ext.mirrored import plus_mirror_image
from pml_ext.scores import Space
from pml_ext.similarity import Similarity
from pml_ext.stock.incidence import blocks
from pml_ext.vectors import SHORTEST

# Distances that compute a block of rows without the other rows.
ROW_WISE = (
    distances.CosineSimilarity,
    distances.DotProductSimilarity,
    distances.LpDistance,
    distances.SNRDistance,
)


def is_row_wise(distance: distances.BaseDistance) -> bool:
    """Whether rows of the scores can be computed without the others."""
    return type(distance) in ROW_WISE and not distance.collect_stats and not has_hooks(distance)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run when the module is called, forward or backward."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def is_finite(vectors: Tensor) -> bool:
    """Whether all numbers are finite."""
    return are_numbers(vectors) or bool(torch.isfinite(vectors.detach()).all())


def scores(distance: distances.BaseDistance, rows: Tensor, references: Tensor) -> Tensor:
    """Scores [r, m] as PML computes them."""
    found: Tensor = distance(rows, references)
    return found


class Known(Protocol):
    """Scores that have been computed before."""

    def rows(self, start: int, stop: int) -> Tensor:
        """The scores of some rows; they must not be overwritten."""


class Scores:
    """The scores of a batch with its references, by the distance's own calls.

    Args:
        distance: one of PML's.
        embeddings: [n, d], without a graph.
        references: [m, d], or None: the batch.
        needed: which gradients will be needed: those of the embeddings, those of the references.
        known: the scores of the batch with itself, if they have been computed before.
    """

    def __init__(
        self,
        distance: distances.BaseDistance,
        embeddings: Tensor,
        references: Tensor | None,
        needed: tuple[bool, bool],
        known: Known | None = None,
    ) -> None:
        self.distance = distance
        self.embeddings = embeddings
        self.references = embeddings if references is None else references
        self.is_batch = references is None
        self.needed = needed
        self.sign = -1.0 if distance.is_inverted else 1.0
        self._symmetric = self.is_batch and _Symmetric.serves(distance)
        self._signal = _Signal(self) if _Signal.serves(self) else None
        self.known = known if self._signal is None else None
        self._of_embeddings = torch.zeros_like(embeddings) if needed[0] else None
        self._of_references = torch.zeros_like(references) if references is not None and needed[1] else None

    @torch.no_grad()
    def plain(self, start: int, stop: int) -> Tensor:
        """Scores of some rows, without a graph; newly allocated unless they are known."""
        if self._signal is not None:
            return self._signal.scores(start, stop)
        if self.known is not None:
            return self.known.rows(start, stop)
        return scores(self.distance, self._rows(start, stop), self.references)

    def whole(self) -> tuple[Tensor, Back]:
        """All scores, and their backward pass."""
        rows = len(self.embeddings)
        if not any(self.needed):
            return self.plain(0, rows), Back()
        if self._symmetric:
            way = _Symmetric(self)
            return way.scores, way
        return self.block(0, rows)

    def block(self, start: int, stop: int) -> tuple[Tensor, Back]:
        """Scores of some rows, and their backward pass."""
        way = _ByAutograd(self, start, stop) if self._signal is None else _ToSignal(self._signal, start, stop)
        return way.scores.detach(), way

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the embeddings and of the references, summed over all calls of `back`."""
        if self._signal is not None:
            self._signal.finish()
        return self._of_embeddings, self._of_references

    def add(self, start: int, stop: int, of_rows: Tensor | None, of_references: Tensor | None) -> None:
        """Add gradients of some rows and of all references."""
        if of_rows is not None and self._of_embeddings is not None:
            self._of_embeddings[start:stop] += of_rows
        if of_references is not None:
            target = self._of_embeddings if self.is_batch else self._of_references
            if target is not None:
                target += of_references

    def _rows(self, start: int, stop: int) -> Tensor:
        whole = start == 0 and stop == len(self.embeddings)
        return self.embeddings if whole else self.embeddings[start:stop]


class Back:
    """The backward pass from a derivative by scores to the gradients of the vectors; here of no scores."""

    keeps_scores = False  # whether the scores must not be overwritten before `back`

    def back(self, by_score: Tensor) -> None:
        """Add to the gradients in `Scores`; `by_score` may be overwritten."""


class _ByAutograd(Back):
    keeps_scores = True

    def __init__(self, of: Scores, start: int, stop: int) -> None:
        self.of, self.start, self.stop = of, start, stop
        with torch.enable_grad():
            self.rows = of._rows(start, stop).detach().requires_grad_(of.needed[0])
            if of.is_batch and self.rows.shape == of.embeddings.shape:
                self.references = self.rows
            else:
                self.references = of.references.detach().requires_grad_(of.needed[0] if of.is_batch else of.needed[1])
            self.scores = scores(of.distance, self.rows, self.references)

    def back(self, by_score: Tensor) -> None:
        leaves = [self.rows] if self.references is self.rows else [self.rows, self.references]
        asked = [each for each in leaves if each.requires_grad]
        if not asked or not self.scores.requires_grad:
            return
        found = dict(zip(map(id, asked), torch.autograd.grad(self.scores, asked, by_score), strict=True))
        second = None if self.references is self.rows else found.get(id(self.references))
        self.of.add(self.start, self.stop, found.get(id(self.rows)), second)


class _Symmetric(Back):
    """A batch with itself: the gradient is one product, of the derivative plus its transpose with the vectors."""

    @staticmethod
    def serves(distance: distances.BaseDistance) -> bool:
        kind = type(distance)
        if distance.collect_stats or has_hooks(distance) or distance.p != 2:
            return False
        if kind is distances.LpDistance:
            return distance.power in (1, 2)
        return kind in (distances.CosineSimilarity, distances.DotProductSimilarity) and distance.power == 1

    def __init__(self, of: Scores) -> None:
        self.of, distance = of, of.distance
        self.is_distance = type(distance) is distances.LpDistance
        self.keeps_scores = self.is_distance and distance.power == 1
        self.normalized = _Normalized(distance, of.embeddings)
        self.scores: Tensor
        with torch.no_grad():
            vectors = self.normalized.vectors
            if of.known is not None:
                self.scores = of.known.rows(0, len(vectors))
            else:
                self.scores = distance.compute_mat(vectors, vectors)
                self.scores = self.scores if distance.power == 1 else self.scores.pow_(distance.power)

    def back(self, by_score: Tensor) -> None:
        vectors = self.normalized.vectors
        if self.keeps_scores:
            for start, stop in blocks(*by_score.shape):  # the gradient of a distance of 0 is 0
                by_score[start:stop].mul_(self.scores[start:stop].reciprocal().nan_to_num_(0.0, 0.0, 0.0))
        both = plus_mirror_image(by_score)
        if self.is_distance:
            at_vectors = torch.addmm(both.sum(1, keepdim=True) * vectors, both, vectors, alpha=-1)
            at_vectors = at_vectors if self.keeps_scores else at_vectors.mul_(2)
        else:
            at_vectors = both @ vectors
        self.of.add(0, len(vectors), self.normalized.back(at_vectors), None)


class _Normalized:
    """Vectors as a distance normalizes them, and the backward pass to the given vectors."""

    def __init__(self, distance: distances.BaseDistance, given: Tensor) -> None:
        self.distance, self.given = distance, given.detach()
        with torch.no_grad():
            self.vectors: Tensor = distance.maybe_normalize(self.given)

    def back(self, by_vector: Tensor) -> Tensor:
        """The gradient of the given vectors; overwrites `by_vector`."""
        if not self.distance.normalize_embeddings:
            return by_vector
        if self.distance.p != 2:
            with torch.enable_grad():
                leaf = self.given.requires_grad_()
                return torch.autograd.grad(self.distance.maybe_normalize(leaf), leaf, by_vector)[0]
        length = torch.linalg.vector_norm(self.given, dim=1, keepdim=True)
        radial = torch.linalg.vecdot(by_vector, self.vectors).unsqueeze(1)
        radial.masked_fill_(length < SHORTEST, 0)  # vectors that are divided by a constant
        return by_vector.addcmul_(self.vectors, radial, value=-1).div_(length.clamp_min_(SHORTEST))


class _Signal:
    """SNRDistance: `|a - r|^2 / |a|^2` of vectors from which their means are subtracted, by matrix products.

    PML forms all n * m * d differences.
    """

    @staticmethod
    def serves(of: Scores) -> bool:
        distance = of.distance
        if type(distance) is not distances.SNRDistance or distance.collect_stats or has_hooks(distance):
            return False
        return bool(distance.power == 1 and of.embeddings.shape[1] == of.references.shape[1])

    def __init__(self, of: Scores) -> None:
        self.of = of
        given = [of.embeddings] if of.is_batch else [of.embeddings, of.references]
        self.normalized = [_Normalized(of.distance, each) for each in given]
        centered = [each.vectors - each.vectors.mean(1, keepdim=True) for each in self.normalized]
        self.rows, self.columns = centered[0], centered[-1]
        self.power = self.rows.square().sum(1, keepdim=True)
        squares = Similarity(normalize=False, euclidean=True, power=2)
        looks = looks_are_free(self.rows)
        self.space = Space(squares, self.rows, None if of.is_batch else self.columns, False, looks)
        self.found = [torch.zeros_like(each) if need else None for each, need in zip(centered, of.needed, strict=False)]

    def scores(self, start: int, stop: int) -> Tensor:
        whole = self.space.is_symmetric and stop - start == len(self.rows)
        found = self.space.symmetric_scores() if whole else self.space.scores(start, stop)
        return found.div_(-self.power[start:stop])

    def add(self, by_score: Tensor, found: Tensor, start: int, stop: int) -> None:
        power, rows = self.power[start:stop], self.rows[start:stop]
        parts = zip(*(each.split(blocks(*found.shape)[0][1]) for each in (by_score, found)), strict=True)
        of_power = torch.cat([torch.linalg.vecdot(*part) for part in parts]).unsqueeze(1)
        weights = by_score.div_(power)
        of_rows, of_columns = self.found[0], self.found[-1]
        if self.of.is_batch and of_rows is not None and len(rows) == len(self.rows):
            both = plus_mirror_image(weights)
            own = (both.sum(1, keepdim=True) - of_power / power) * rows
            of_rows.add_(torch.addmm(own, both, rows, alpha=-1), alpha=2)
            return
        if of_rows is not None:
            own = (weights.sum(1, keepdim=True) - of_power / power) * rows
            of_rows[start:stop].add_(torch.addmm(own, weights, self.columns, alpha=-1), alpha=2)
        if of_columns is not None:
            own = weights.sum(0).unsqueeze(1) * self.columns
            of_columns.add_(torch.addmm(own, weights.mT, rows, alpha=-1), alpha=2)

    def finish(self) -> None:
        for normalized, found, whole in zip(self.normalized, self.found, (True, False), strict=False):
            if found is None:
                continue
            by_given = normalized.back(found.sub_(found.mean(1, keepdim=True)))
            rows, references = (by_given, None) if whole else (None, by_given)
            self.of.add(0, len(self.of.embeddings), rows, references)


class _ToSignal(Back):
    keeps_scores = True

    def __init__(self, of: _Signal, start: int, stop: int) -> None:
        self.of, self.start, self.stop = of, start, stop
        self.scores = of.scores(start, stop)

    def back(self, by_score: Tensor) -> None:
        self.of.add(by_score, self.scores, self.start, self.stop)
