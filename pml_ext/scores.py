"""The engine's scores, block by block, and their way back; `similarity.scores_of` is the same by autograd."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_ext import thresholds
from pml_ext.kept_weights import Sparse
from pml_ext.masked import all_known
from pml_ext.similarity import Similarity
from pml_ext.vectors import NOTHING, Vectors, differences, half_squares, origin_of


class Space:
    """Vectors in the form in which they are multiplied, their scores, and the way back from V to a gradient.

    Attributes:
        looks: whether to look at numbers is free.
        finds_near: whether pairs that are near are looked for.
        is_precise: whether scores were computed of pairs so near that single precision loses them also in the gradient.
        is_known: whether the scores that were computed are known to be numbers, all of them.
        is_symmetric: whether the scores are those of the batch with itself, of which half are to be computed.
        tensors: what it consists of, six for the constructor.
        needs_scores: whether V is made of scores and weights, not of weights alone: of a distance that is no square.
        factor: what V lacks: d(-D^2) / d<a, r> = 2;  d(-D) / d<a, r> = 1 / D, of which it has 1 / -D.

    Args:
        similarity: how scores come from them.
        x: the embeddings as they are given.
        ref: the references as they are given, None for the embeddings.
        private: whether the last n references belong to one row each.
        looks: whether to look at numbers is free.
        tensors: those of the same, to spare computing it again.
    """

    def __init__(
        self,
        similarity: Similarity,
        x: Tensor,
        ref: Tensor | None,
        private: bool,
        looks: bool,
        tensors: Sequence[Any] | None = None,
    ) -> None:
        self.similarity, self.given = similarity, (x, ref)
        self.centered = similarity.euclidean and similarity.is_centered
        if tensors is not None:
            a, r = Vectors(*tensors[:3]), None if tensors[3] is None else Vectors(*tensors[3:])
        else:
            a = Vectors.of(x, similarity.normalize)
            r = None if ref is None else Vectors.of(ref, similarity.normalize)
            if not (similarity.normalize or similarity.euclidean):
                a, r = a.bounded(), None if r is None else r.bounded()
            references = (a if r is None else r).points
            if self.centered and len(references):
                origin = origin_of(references)
                a, r = a.about(origin), None if r is None else r.about(origin)
        self.a, self.r = a, r
        self.references = a if r is None else r
        points = self.references.points
        m = len(points) - len(a.points) if private else len(points)
        self.shared, self.private = points[:m], points[m:] if private else None
        self.tensors = (*a, *((None, None, None) if r is None else r))
        self.factor = 1.0 if not similarity.euclidean else 2.0 if similarity.power == 2 else -1.0
        self.needs_scores = similarity.euclidean and similarity.power == 1
        self.looks, self.finds_near = looks, looks and self.centered
        self.is_precise, self.is_known = False, self.finds_near
        # Not on a GPU, where many small products take longer, nor for fewer than three blocks.
        is_large = len(points) >= 3 * thresholds.SYMMETRIC_ROWS
        self.is_symmetric = r is None and is_large and points.device.type == "cpu"

    @cached_property
    def doubled(self) -> "Space":
        """The same in double precision, in which products lose nothing that single precision can tell apart."""
        x, ref = self.given
        private = self.private is not None
        return Space(self.similarity, x.double(), None if ref is None else ref.double(), private, False)

    def known(self) -> "Space":
        """The same for the way back, with 0 for what is no number: its pairs have weights that are none, or none."""
        if all(all_known(vectors.points) for vectors in (self.a, self.r) if vectors is not None):
            return self
        tensors = [x for vectors in (self.a, self.r) for x in (3 * [None] if vectors is None else vectors.known())]
        return Space(self.similarity, *self.given, self.private is not None, self.looks, tensors)

    @cached_property
    def half_squares(self) -> tuple[Tensor, Tensor]:
        """Half the squared lengths [n, 1] and [m]."""
        of_a = half_squares(self.a.points, self.similarity.power)
        of_r = of_a if self.r is None else half_squares(self.r.points, self.similarity.power)
        return of_a.unsqueeze(1), of_r

    def blocks(self, chunk_size: int | None, together: bool) -> list[tuple[int, int]]:
        """Ranges of rows that are computed at a time."""
        n, m = len(self.a.points), len(self.shared)
        block = thresholds.BLOCK_CPU if self.shared.device.type == "cpu" else thresholds.BLOCK_GPU
        size = n if together else min(chunk_size or n, max(thresholds.BLOCK_ROWS, block // max(m, 1)))
        return [(start, min(start + size, n)) for start in range(0, n, size)]

    def scores(self, start: int, stop: int, first: int = 0) -> Tensor:
        """Scores of some rows, with the references from the first on."""
        a = self.a.points[start:stop]
        scores = a @ self.shared[first:].t()
        if self.private is not None:
            scores = torch.cat((scores, torch.linalg.vecdot(a, self.private[start:stop]).unsqueeze(1)), 1)
        if not self.similarity.euclidean:
            return scores
        m = len(self.shared)
        of_a, of_r = self.half_squares
        of_columns = of_r[first:m]
        if self.private is not None:
            of_columns = torch.cat((of_columns.expand(len(a), -1), of_r[m + start : m + stop].unsqueeze(1)), 1)
        # Both squares at once: so a pair and its mirror image are rounded alike.
        squares = of_columns + of_a[start:stop]
        scores.sub_(squares)  # -D^2 / 2
        if self.similarity.power == 2 and not self.finds_near:
            return scores.mul_(2).clamp_max_(0)
        if self.finds_near and self._are_all_far(scores, start, first):
            return scores.mul_(2) if self.similarity.power == 2 else scores.mul_(-2).sqrt_().neg_()
        self.is_known = False
        roundings = thresholds.NEAR_ROUNDINGS if self.finds_near else NOTHING
        # Compared into numbers: a product with booleans is thirty times slower.
        is_some = torch.lt(scores, squares.mul_(-roundings * torch.finfo(squares.dtype).eps), out=squares)
        near = self._near(scores, is_some, start, first) if self.finds_near else None
        if near is not None and len(near[0]) > thresholds.NEAR_SHARE * scores.numel() and scores.dtype == torch.float32:
            self.is_precise = True
            return self.doubled.scores(start, stop, first).float()
        scores.mul_(is_some.mul_(-2))
        scores = scores.neg_() if self.similarity.power == 2 else scores.sqrt_().neg_()
        if near is not None:
            scores.index_put_(near, self._again(*near, start, first))
        return scores

    @cached_property
    def largest_near(self) -> float:
        """What no near pair of any block is below, as -D^2 / 2: by the longest vector of either set."""
        of_a, of_r = self.half_squares
        longest = of_a.max().item() + of_r.max().item() if self.r is not None else 2 * of_r.max().item()
        return -thresholds.NEAR_ROUNDINGS * torch.finfo(self.shared.dtype).eps * longest

    def _are_all_far(self, scores: Tensor, start: int, first: int) -> bool:
        """Whether the largest -D^2 / 2 shows that no two vectors of a block are near; a vector is not asked of itself.

        If none are, the distance of a vector from itself is made 0.
        """
        if self.r is not None:
            return scores.max().item() < self.largest_near  # not where one is no number
        own = scores.diagonal(start - first)
        before = own.clone()
        own.fill_(-torch.inf)
        is_far = scores.max().item() < self.largest_near
        if is_far:
            own.zero_()
        else:
            own.copy_(before)
        return is_far

    def _near(self, scores: Tensor, is_some: Tensor, start: int, first: int) -> tuple[Tensor, Tensor] | None:
        """The pairs of a block of which nothing is left, less those of a vector with itself."""
        own = len(is_some) if self.r is None else 0
        rows = (is_some.sum(1) != is_some.shape[1] - bool(own)).nonzero().squeeze(1)
        if not len(rows):
            return None
        # Of a queue that holds the batch these are all rows.
        each = slice(None) if len(rows) == len(is_some) else rows
        nothing = (is_some[each] == 0) & ~scores[each].isnan()
        if own:
            nothing[torch.arange(len(rows), device=rows.device), rows + (start - first)] = False
        i, columns = nothing.nonzero(as_tuple=True)
        return (rows[i], columns) if len(i) else None

    def _again(self, rows: Tensor, columns: Tensor, start: int, first: int) -> Tensor:
        """The scores of some pairs of a block by the differences of their vectors."""
        m = len(self.shared) - first
        of = torch.where(columns < m, columns + first, len(self.shared) + start + rows)
        distances = differences(self.a.base, self.references.base, rows + start, of)
        self.is_precise = self.is_precise or bool(distances.any())
        return distances.pow_(self.similarity.power).neg_()

    def symmetric_scores(self) -> Tensor:
        """Scores of the batch with itself [n, n]: blocks of rows from the diagonal on, mirrored."""
        n, size = len(self.shared), thresholds.SYMMETRIC_ROWS
        scores = self.shared.new_empty(n, n)
        for start in range(0, n, size):
            stop = min(start + size, n)
            upper = self.scores(start, stop, start)
            scores[start:stop, start:] = upper
            scores[stop:, start:stop] = upper[:, stop - start :].t()
        return scores

    def by_products(self, weights: Tensor | Sparse, sim: Tensor) -> Tensor | Sparse:
        """The derivative by the inner products, up to `factor`, from that by the scores, which it overwrites."""
        if not self.needs_scores:
            return weights
        if isinstance(weights, Sparse):
            return Sparse(weights.columns, weights.weights * self._inverse(sim.gather(1, weights.columns)))
        return weights.mul_(self._inverse(sim))

    def _inverse(self, scores: Tensor) -> Tensor:
        """1 / score, and 0 for 0; 0, too, for what is no number: if its pair counts, its weight is none either."""
        square = scores.square().clamp_min_(torch.finfo(scores.dtype).tiny)
        inverse = torch.div(scores, square, out=square)
        return inverse if self.is_known or all_known(scores) else inverse.nan_to_num_(0.0)

    def gradients(
        self, kept: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of sum_i grad_i L_i, by embeddings and references; from V as it was kept, and grad [n, 1] with `factor`."""
        if len(kept) == 2:
            return self._of_few(kept[0], kept[1] * grad, needed)
        dense = kept[0].to(grad.dtype)
        if self.r is None:
            both = self._both_ways(dense, grad)
            of_batch = both @ self.shared
            if self.centered:
                of_batch.addcmul_(both.sum(1, keepdim=True), self.shared, value=-1)
            return self.a.back(of_batch), None
        ga, gr = self.empty(needed)
        self.add(dense * grad, 0, ga, gr)
        return self.back(ga, gr)

    def _both_ways(self, v: Tensor, grad: Tensor) -> Tensor:
        """V + V^T, with row i of V scaled by grad_i."""
        if self.looks:  # a CPU transposes much faster than it computes with a transposed matrix
            return torch.empty_like(v).copy_(v.t()).mul_(grad.t()).addcmul_(v, grad)
        return (v.t() * grad.t()).addcmul_(v, grad)

    def empty(self, needed: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of 0 by both sets of points, those of them that are needed."""
        ga, gr = (
            torch.zeros_like(each.points) if wanted else None
            for each, wanted in zip((self.a, self.references), needed, strict=True)
        )
        return ga, gr

    def add(self, v: Tensor, start: int, ga: Tensor | None, gr: Tensor | None) -> None:
        """Add what V [b, ..] of the rows from a start on does to both sets of points."""
        rows, m = slice(start, start + len(v)), len(self.shared)
        a, of_shared, of_private = self.a.points[rows], v[:, :m], v[:, m:]
        if ga is not None:
            ga[rows].addmm_(of_shared, self.shared)
            if self.private is not None:
                ga[rows].addcmul_(of_private, self.private[rows])
            if self.centered:
                ga[rows].addcmul_(v.sum(1, keepdim=True), a, value=-1)
        if gr is not None:
            gr[:m].addmm_(of_shared.t(), a)
            if self.centered:
                gr[:m].addcmul_(of_shared.sum(0).unsqueeze(1), self.shared, value=-1)
            if self.private is not None:
                gr[m:][rows].addcmul_(of_private, a - self.private[rows] if self.centered else a)

    def _of_few(self, columns: Tensor, v: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        a, r, m, k = self.a.points, self.shared, len(self.shared), v.shape[1]
        ga = F.embedding_bag(columns, r, per_sample_weights=v, mode="sum")
        if self.centered:
            ga.addcmul_(v.sum(1, keepdim=True), a, value=-1)
        if self.r is not None and not needed[1]:
            return self.back(ga, None)
        # The same from the other end: the entries of each column one after another.
        of_column, order = columns.flatten().sort(stable=True)
        begins = torch.searchsorted(of_column, torch.arange(m, device=v.device))
        rows, flat = order.div(k, rounding_mode="floor"), v.flatten()
        gr = F.embedding_bag(rows, a, begins, per_sample_weights=flat[order], mode="sum")
        if self.centered:
            gr.addcmul_(v.new_zeros(m).index_add_(0, columns.flatten(), flat).unsqueeze(1), r, value=-1)
        return self.back(ga, gr)

    def back(self, ga: Tensor | None, gr: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by the vectors that were given; those by the batch and by itself are one."""
        if self.r is None:
            assert ga is not None
            assert gr is not None
            return self.a.back(ga.add_(gr)), None
        return None if ga is None else self.a.back(ga), None if gr is None else self.r.back(gr)


def single(gradients: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in single precision."""
    ga, gr = gradients
    return None if ga is None else ga.float(), None if gr is None else gr.float()
