"""The engine's scores, block by block, and their way back; `similarity.scores_of` is the same by autograd."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.kept_weights import Sparse, times, transposed_times
from pml_ext.masked import all_known
from pml_ext.mirrored import scaled_plus_mirror_image
from pml_ext.similarity import Similarity
from pml_ext.vectors import NOTHING, Vectors, differences, origin_of, squared_lengths


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
        m = len(points) - len(a.points)
        self.shared = points[:m] if private else points
        self.private = points[m:] if private else None
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
    def squares(self) -> tuple[Tensor, Tensor]:
        """The squared lengths [n, 1] and [m]."""
        power = None if self.similarity.normalize else self.similarity.power
        of_a = squared_lengths(self.a.points, power)
        return of_a.unsqueeze(1), of_a if self.r is None else squared_lengths(self.r.points, power)

    def blocks(self, chunk_size: int | None, together: bool) -> list[tuple[int, int]]:
        """Ranges of rows that are computed at a time."""
        n, m = len(self.a.points), len(self.shared)
        block = thresholds.BLOCK_CPU if self.shared.device.type == "cpu" else thresholds.BLOCK_GPU
        size = n if together else min(chunk_size or n, max(thresholds.BLOCK_ROWS, block // max(m, 1)))
        return [(start, min(start + size, n)) for start in range(0, n, size)]

    def scores(self, start: int, stop: int, first: int = 0) -> Tensor:
        """Scores of some rows, with the references from the first on."""
        is_whole = start == first == 0 and stop == len(self.a.points)
        a, shared = (self.a.points, self.shared) if is_whole else (self.a.points[start:stop], self.shared[first:])
        products = a @ shared.t()
        if self.private is not None:
            products = torch.cat((products, torch.linalg.vecdot(a, self.private[start:stop]).unsqueeze(1)), 1)
        if not self.similarity.euclidean:
            return products
        of_rows, of_columns = self.squares
        if self.private is not None:
            m = len(self.shared)
            of_own = of_columns[m + start : m + stop].unsqueeze(1)
            of_columns = torch.cat((of_columns[first:m].expand(len(a), -1), of_own), 1)
        elif not is_whole:
            of_columns = of_columns[first:]
        # Both squares at once: a pair and its mirror image are rounded alike.
        sums = of_columns + (of_rows if is_whole else of_rows[start:stop])
        squares = torch.sub(sums, products, alpha=2, out=products)  # D^2
        if self.similarity.power == 2 and not self.finds_near:
            return squares.neg_().clamp_max_(0)
        if self.finds_near and self._are_all_far(squares, start, first):
            return self._scored(squares)
        self.is_known = False
        roundings = thresholds.NEAR_ROUNDINGS if self.finds_near else NOTHING
        # Compared into numbers: a product with booleans is thirty times slower.
        is_some = torch.gt(squares, sums.mul_(roundings * torch.finfo(sums.dtype).eps), out=sums)
        near = self._near(squares, is_some, start, first) if self.finds_near else None
        if near is not None and len(near[0]) > thresholds.NEAR_SHARE * sums.numel() and sums.dtype == torch.float32:
            self.is_precise = True
            return self.doubled.scores(start, stop, first).float()
        scores = self._scored(squares.mul_(is_some))
        if near is not None:
            scores.index_put_(near, self._again(*near, start, first))
        return scores

    def _scored(self, squares: Tensor) -> Tensor:
        """The scores of pairs of these squared distances, which it overwrites."""
        return squares.neg_() if self.similarity.power == 2 else squares.sqrt_().neg_()

    def _is_far(self, least: float) -> bool:
        """Whether the least D^2 of a block is that of no near pair, nor of what is no number."""
        # Each coordinate of the origin is one of nine unit vectors', four of which have as large a one: its length is
        # at most 3 / 2. So the longest vectors need not be looked for where that suffices.
        by_bound = thresholds.NEAR_ROUNDINGS * torch.finfo(self.shared.dtype).eps * 2 * 2.5**2
        return (self.similarity.normalize and least > by_bound) or least > self.largest_near

    @cached_property
    def largest_near(self) -> float:
        """What no D^2 of a near pair of any block is above: by the longest vector of either set."""
        of_a, of_r = self.squares
        longest = of_a.max().item() + of_r.max().item() if self.r is not None else 2 * of_r.max().item()
        if not longest < torch.finfo(self.shared.dtype).max / 4:
            self.is_known = False  # the largest D^2 may be infinite
        return thresholds.NEAR_ROUNDINGS * torch.finfo(self.shared.dtype).eps * longest

    def _are_all_far(self, squares: Tensor, start: int, first: int) -> bool:
        """Whether the least D^2 shows that no two vectors of a block are near; a vector is not asked of itself.

        The distance of a vector from itself is made 0, or not a number.
        """
        if self.r is not None:
            return self._is_far(squares.min().item())
        own = squares.diagonal(start - first)
        own.fill_(torch.inf)
        is_far = self._is_far(squares.min().item())
        if is_far:
            own.zero_()
        else:
            torch.mul(self.squares[1][start : start + len(own)], 0, out=own)
        return is_far

    def _near(self, squares: Tensor, is_some: Tensor, start: int, first: int) -> tuple[Tensor, Tensor] | None:
        """The pairs of a block of which nothing is left, less those of a vector with itself."""
        own = len(is_some) if self.r is None else 0
        rows = (is_some.sum(1) != is_some.shape[1] - bool(own)).nonzero().squeeze(1)
        if not len(rows):
            return None
        # Of a queue that holds the batch these are all rows.
        each = slice(None) if len(rows) == len(is_some) else rows
        nothing = (is_some[each] == 0) & ~squares[each].isnan()
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

    def by_products(self, weights: Tensor | Sparse, sim: Tensor, start: int) -> Tensor | Sparse:
        """The derivative of the rows from a start on by the inner products, up to `factor`, from that by the scores.

        It overwrites the latter.
        """
        if not self.needs_scores:
            return weights
        if isinstance(weights, Sparse):
            return Sparse(weights.columns, weights.weights * self._inverse(sim.gather(1, weights.columns)))
        if not self.is_known:
            return weights.mul_(self._inverse(sim))
        weights.div_(sim)
        if self.r is None:  # only the distance of a vector from itself is 0
            weights.diagonal(start).zero_()
        return weights

    def _inverse(self, scores: Tensor) -> Tensor:
        """1 / score, and 0 for 0; 0, too, for what is no number: if its pair counts, its weight is none either."""
        square = scores.square().clamp_min_(torch.finfo(scores.dtype).tiny)
        inverse = torch.div(scores, square, out=square)
        return inverse if self.is_known or all_known(scores) else inverse.nan_to_num_(0.0)

    def gradients(
        self, kept: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of sum_i grad_i L_i, by embeddings and references; from V as it was kept, and grad [n]."""
        if self.r is None and len(kept) == 1:
            both, common = scaled_plus_mirror_image(kept[0].to(grad.dtype), grad, self.looks)
            factor = self.factor * common
            of_batch = torch.addmm(self.shared, both, self.shared, beta=0, alpha=factor)
            if self.centered:
                of_batch.addcmul_(both.sum(1, keepdim=True), self.shared, value=-factor)
            return self.a.back(of_batch), None
        of_rows = self.of_rows(grad)
        if len(kept) == 2:
            return self._of_few(kept[0], kept[1] * of_rows, needed)
        ga, gr = self.empty(needed)
        self.add(kept[0].to(grad.dtype) * of_rows, 0, ga, gr)
        return self.back(ga, gr)

    def of_rows(self, grad: Tensor) -> Tensor:
        """What the rows of V are to be multiplied with [n, 1]."""
        return grad.unsqueeze(1) if self.factor == 1 else grad.unsqueeze(1) * self.factor

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
        a, r, m = self.a.points, self.shared, len(self.shared)
        ga = times(Sparse(columns, v), r)
        if self.centered:
            ga.addcmul_(v.sum(1, keepdim=True), a, value=-1)
        if self.r is not None and not needed[1]:
            return self.back(ga, None)
        gr = transposed_times(Sparse(columns, v), a, m)
        if self.centered:
            gr.addcmul_(v.new_zeros(m).index_add_(0, columns.flatten(), v.flatten()).unsqueeze(1), r, value=-1)
        return self.back(ga, gr)

    def back(self, ga: Tensor | None, gr: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by the vectors that were given; those by the batch and by itself are one."""
        if self.r is None:
            assert ga is not None
            assert gr is not None
            return self.a.back(ga.add_(gr)), None
        return None if ga is None else self.a.back(ga), None if gr is None else self.r.back(gr)
