"""The engine: losses of the rows of a pair matrix, block by block, and one weighted product as their gradient.

The loss of row i depends on row i of the scores only, so the derivative of all losses by the scores is a matrix W whose
row i belongs to loss i: the pair weights. The forward pass computes scores, losses and W in blocks of rows that stay in
the cache; the backward pass scales row i of W by the incoming g_i and multiplies:

    references = batch   dL/dA = (V + V^T) A             V_ij = g_i dL_i / d<a_i, a_j>
    otherwise            dL/dA = V R,   dL/dR = V^T A

with A and R the (normalised) embeddings and references. V is W for inner products; for distances, as
D^2 = |a|^2 + |r|^2 - 2 <a, r>, it carries the derivative of the score by the inner product, and a row sum is added.
The scores of a batch with itself are symmetric: half of them are computed, and the others copied.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_ext import thresholds
from pml_ext.pairs import all_known, looks_are_free
from pml_ext.similarity import (
    NOTHING,
    Geometry,
    Vectors,
    differences,
    half_squares,
    is_centered,
    origin_of,
)

_is_enabled = True


@contextmanager
def disabled() -> Iterator[None]:
    """Until the end of the block, losses and miners of all threads compute by ordinary operations and autograd.

    Values and gradients are the same up to rounding: for tests, and to find out where a difference comes from.

    Example:
        >>> from pml_ext import engine
        >>> with engine.disabled():
        ...     engine.is_enabled()
        False
    """
    global _is_enabled
    before, _is_enabled = _is_enabled, False
    try:
        yield
    finally:
        _is_enabled = before


def is_enabled() -> bool:
    """Whether no `disabled` block is being run."""
    return _is_enabled


class Sparse(NamedTuple):
    """Pair weights of which each row has a few: columns [b, k] and weights [b, k]; those of equal columns add up."""

    columns: Tensor
    weights: Tensor


class Weighed(NamedTuple):
    """Losses [b], their derivative by the scores, [b, m] or a few of each row, and what each adds to the divisor."""

    losses: Tensor
    weights: Tensor | Sparse
    counts: Tensor | int


class Weighing(Protocol):
    """What the engine asks of a loss.

    Attributes:
        together: whether the rows are to be asked for all at once, because they depend on one another.
        private: whether the last n references belong to one row each, and are the last of its scores: [b, m - n + 1].
    """

    together: bool
    private: bool

    def weigh(self, sim: Tensor, start: int) -> Weighed:
        """Losses and pair weights of the rows start, start + 1, ... with scores sim [b, m], not to be written to."""
        ...

    def plain(self, embeddings: Tensor, references: Tensor | None) -> Tensor:
        """The losses [n] by ordinary autograd, for a derivative of the derivative."""
        ...


def row_losses(
    embeddings: Tensor, references: Tensor | None, geometry: Geometry, rows: Weighing, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    """Losses and counts of all rows, [n] each; the losses are differentiable by both sets of vectors.

    Args:
        embeddings: [n, d].
        references: [m, d], or None for the embeddings themselves.
        geometry: how scores come from them.
        rows: the loss.
        chunk_size: None to keep W, n * m numbers; a number to compute it again, at most so many rows at a time.
    """
    learns = torch.is_grad_enabled()
    losses, counts = _RowLosses.apply(embeddings, references, geometry, rows, chunk_size, learns)
    return losses, counts


def all_scores(embeddings: Tensor, references: Tensor | None, geometry: Geometry) -> Tensor:
    """Scores of all pairs, without a gradient: embeddings [n, d], references [m, d] or None for the batch -> [n, m]."""
    space = _Space(geometry, embeddings, references, private=False)
    return space.symmetric_scores() if space.is_symmetric else space.scores(0, len(embeddings))


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ref: Tensor | None,
        geometry: Geometry,
        rows: Weighing,
        chunk_size: int | None,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        space = _Space(geometry, x, ref, rows.private)
        keep = chunk_size is None and learns and any(ctx.needs_input_grad[:2])
        scores = space.symmetric_scores() if keep and space.is_symmetric else None
        kept = _Kept(scores)
        # Written into one tensor each: small results kept between large temporaries would pin these in the heap.
        losses, counts = x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
        for start, stop in space.blocks(chunk_size, rows.together):
            sim = space.scores(start, stop) if scores is None else scores[start:stop]
            weighed = rows.weigh(sim, start)
            losses[start:stop], counts[start:stop] = weighed.losses, weighed.counts
            if keep:
                kept.put(space.by_products(weighed.weights, sim), start, len(x))
            del weighed, sim
        # Saved, not put into ctx: so the backward pass frees them, however long the loss itself is kept.
        ctx.save_for_backward(x, ref, *((*space.tensors(), *kept.tensors()) if keep else ()))
        ctx.job = geometry, rows, chunk_size, space.is_precise
        ctx.mark_non_differentiable(counts)
        return losses, counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, ref, *done = ctx.saved_tensors
        geometry, rows, chunk_size, is_precise = ctx.job
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # a second derivative is wanted
            # By names of their own: the references may have been made of the embeddings, whose gradient is autograd's.
            x, ref = x.view_as(x), None if ref is None else ref.view_as(ref)
            inputs = [vectors for vectors, wanted in zip((x, ref), needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(rows.plain(x, ref), inputs, grad, create_graph=True))
            return *(next(found) if wanted else None for wanted in needed), None, None, None, None
        with torch.autocast(x.device.type, enabled=False):
            if done:
                space = _Space(geometry, x, ref, rows.private, done[:6])
                gradients = space.gradients(done[6:], grad, needed, is_precise)
            else:
                space = _Space(geometry, x, ref, rows.private)
                gradients = space.recomputed(rows, grad, chunk_size, needed, is_precise)
        return *gradients, None, None, None, None


class _Kept:
    """V of all rows, dense or sparse, put together block by block.

    Args:
        dense: None, or where to put it together: scores that nobody needs once there are weights.
    """

    def __init__(self, dense: Tensor | None) -> None:
        self.dense = dense
        self.is_dense = False
        self.few: list[tuple[int, Sparse]] = []

    def put(self, v: Tensor | Sparse, start: int, n: int) -> None:
        if isinstance(v, Sparse):
            self.few.append((start, v))
            return
        self.is_dense = True
        if len(v) == n:
            self.dense = v
            return
        if self.dense is None:
            self.dense = v.new_empty(n, v.shape[1])
        self.dense[start : start + len(v)] = v

    def tensors(self) -> list[Tensor]:
        """V, or its columns and weights if all blocks have few."""
        if not self.is_dense:
            return [torch.cat(parts) for parts in zip(*(few for _, few in self.few), strict=True)]
        assert self.dense is not None
        for start, few in self.few:
            _scattered(few, self.dense[start : start + len(few.columns)])
        return [self.dense]


class _Space:
    """Vectors in the form in which they are multiplied, their scores, and the way back from V to a gradient.

    Attributes:
        is_precise: whether scores were computed of pairs so near that single precision loses them also in the gradient.
        is_known: whether the scores that were computed are known to be numbers, all of them.

    Args:
        geometry: how scores come from them.
        x: the embeddings as they are given.
        ref: the references as they are given, None for the embeddings.
        private: whether the last n references belong to one row each.
        tensors: what `tensors` returned for the same, to spare computing it again.
        looks: whether to look for pairs that are near.
    """

    def __init__(
        self,
        geometry: Geometry,
        x: Tensor,
        ref: Tensor | None,
        private: bool,
        tensors: Sequence[Any] | None = None,
        looks: bool = True,
    ) -> None:
        self.geometry, self.given = geometry, (x, ref)
        self.centered = is_centered(geometry)
        if tensors is not None:
            a, r = Vectors(*tensors[:3]), None if tensors[3] is None else Vectors(*tensors[3:])
        else:
            a = Vectors.of(x, geometry.normalize)
            r = None if ref is None else Vectors.of(ref, geometry.normalize)
            a, r = a.bounded(geometry), None if r is None else r.bounded(geometry)
            references = (a if r is None else r).points
            if self.centered and len(references):
                origin = origin_of(references)
                a, r = a.about(origin), None if r is None else r.about(origin)
        self.a, self.r = a, r
        self.references = a if r is None else r
        points = self.references.points
        m = len(points) - len(a.points) if private else len(points)
        self.shared, self.private = points[:m], points[m:] if private else None
        self.looks = looks and self.centered and looks_are_free(self.shared)
        self.is_precise, self.is_known = False, self.looks

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What it consists of, six for the constructor."""
        return (*self.a, *((None, None, None) if self.r is None else self.r))

    @cached_property
    def doubled(self) -> "_Space":
        """The same in double precision, in which products lose nothing that single precision can tell apart."""
        x, ref = self.given
        private = self.private is not None
        return _Space(self.geometry, x.double(), None if ref is None else ref.double(), private, looks=False)

    def known(self) -> "_Space":
        """The same for the way back, with 0 for what is no number: its pairs have weights that are none, or none."""
        points = (self.a.points, self.references.points)
        if all(all_known(x) for x in points[: 1 if self.r is None else 2]):
            return self
        tensors = [None if x is None else x.nan_to_num(0.0, 0.0, 0.0) for x in self.tensors()]
        for place, vectors in ((2, self.a), (5, self.r)):
            if vectors is not None and vectors.norm is not None:
                tensors[place] = vectors.norm.nan_to_num(torch.inf, torch.inf)
        return _Space(self.geometry, *self.given, self.private is not None, tensors)

    @cached_property
    def half_squares(self) -> tuple[Tensor, Tensor]:
        """Half the squared lengths [n, 1] and [m]."""
        of_a = half_squares(self.a.points, self.geometry.power)
        of_r = of_a if self.r is None else half_squares(self.r.points, self.geometry.power)
        return of_a.unsqueeze(1), of_r

    @property
    def is_symmetric(self) -> bool:
        """Whether half of the scores are to be computed: not on a GPU, where many small products take longer."""
        return self.r is None and self.shared.device.type == "cpu"

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
        if not self.geometry.euclidean:
            return scores
        m = len(self.shared)
        of_a, of_r = self.half_squares
        of_columns = of_r[first:m]
        if self.private is not None:
            of_columns = torch.cat((of_columns.expand(len(a), -1), of_r[m + start : m + stop].unsqueeze(1)), 1)
        # Both squares at once: so a pair and its mirror image are rounded alike.
        squares = of_columns + of_a[start:stop]
        scores.sub_(squares)  # -D^2 / 2
        if self.geometry.power == 2 and not self.looks:
            return scores.mul_(2).clamp_max_(0)
        if self.looks and self._are_all_far(scores, start, first):
            return scores.mul_(2) if self.geometry.power == 2 else scores.mul_(-2).sqrt_().neg_()
        self.is_known = False
        roundings = thresholds.NEAR_ROUNDINGS if self.looks else NOTHING
        # Compared into numbers: a product with booleans is thirty times slower.
        is_some = torch.lt(scores, squares.mul_(-roundings * torch.finfo(squares.dtype).eps), out=squares)
        near = self._near(scores, is_some, start, first) if self.looks else None
        if near is not None and len(near[0]) > thresholds.NEAR_SHARE * scores.numel() and scores.dtype == torch.float32:
            self.is_precise = True
            return self.doubled.scores(start, stop, first).float()
        scores.mul_(is_some.mul_(-2))
        scores = scores.neg_() if self.geometry.power == 2 else scores.sqrt_().neg_()
        if near is not None:
            scores.index_put_(near, self._again(*near, start, first))
        return scores

    @cached_property
    def largest_near(self) -> float:
        """What no near pair of any block is below, as -D^2 / 2: by the longest vector of either set."""
        longest = sum(x.max().item() for x in self.half_squares)
        return -thresholds.NEAR_ROUNDINGS * torch.finfo(self.shared.dtype).eps * longest

    def _are_all_far(self, scores: Tensor, start: int, first: int) -> bool:
        """Whether the largest -D^2 / 2 shows that no two vectors of a block are near; a vector is not asked of itself.

        If none are, the distance of a vector from itself is made 0.
        """
        if self.r is not None:
            return bool(scores.max() < self.largest_near)  # not where one is no number
        own = scores.diagonal(start - first)
        before = own.clone()
        own.fill_(-torch.inf)
        is_far = bool(scores.max() < self.largest_near)
        own.copy_(torch.zeros_like(before) if is_far else before)
        return is_far

    def _near(self, scores: Tensor, is_some: Tensor, start: int, first: int) -> tuple[Tensor, Tensor] | None:
        """The pairs of a block of which nothing is left, less those of a vector with itself."""
        own = len(is_some) if self.r is None else 0
        # Numbers in single precision are counted up to 2^24.
        if is_some.numel() < 1 << 24 and is_some.sum().item() == is_some.numel() - own:
            return None
        rows = (is_some.sum(1) != is_some.shape[1] - bool(own)).nonzero().squeeze(1)
        nothing = (is_some[rows] == 0) & ~scores[rows].isnan()
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
        return distances.pow_(self.geometry.power).neg_()

    def symmetric_scores(self) -> Tensor:
        """Scores of the batch with itself [n, n]: blocks of rows from the diagonal on, mirrored."""
        n, size = len(self.shared), thresholds.SYMMETRIC_ROWS
        if n < 3 * size:
            return self.scores(0, n)
        scores = self.shared.new_empty(n, n)
        for start in range(0, n, size):
            stop = min(start + size, n)
            upper = self.scores(start, stop, start)
            scores[start:stop, start:] = upper
            scores[stop:, start:stop] = upper[:, stop - start :].t()
        return scores

    def by_products(self, weights: Tensor | Sparse, sim: Tensor) -> Tensor | Sparse:
        """The derivative by the inner products, up to `factor`, from that by the scores, which it overwrites."""
        if not self.geometry.euclidean or self.geometry.power == 2:
            return weights
        if isinstance(weights, Sparse):
            return Sparse(weights.columns, weights.weights * self._inverse(sim.gather(1, weights.columns)))
        return weights.mul_(self._inverse(sim))

    def _inverse(self, scores: Tensor) -> Tensor:
        """1 / score, and 0 for 0; 0, too, for what is no number: if its pair counts, its weight is none either."""
        square = scores.square().clamp_min_(torch.finfo(scores.dtype).tiny)
        inverse = torch.div(scores, square, out=square)
        return inverse if self.is_known or all_known(scores) else inverse.nan_to_num_(0.0)

    @property
    def factor(self) -> float:
        """What V lacks: d(-D^2) / d<a, r> = 2;  d(-D) / d<a, r> = 1 / D, of which it has 1 / -D."""
        if not self.geometry.euclidean:
            return 1.0
        return 2.0 if self.geometry.power == 2 else -1.0

    def gradients(
        self, kept: Sequence[Tensor], grad: Tensor, needed: Sequence[bool], is_precise: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of sum_i grad_i L_i, by embeddings and references; from V as it was kept."""
        if is_precise and grad.dtype == torch.float32:
            kept = [x.double() if x.is_floating_point() else x for x in kept]
            return _single(self.doubled.gradients(kept, grad.double(), needed, True))
        return self.known()._of_kept(kept, grad, needed)

    def _of_kept(
        self, kept: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        grad = (grad * self.factor).unsqueeze(1)
        if len(kept) == 2:
            return self._of_few(kept[0], kept[1] * grad)
        (dense,) = kept
        if self.r is None:
            both = torch.empty_like(dense).copy_(dense.t()).mul_(grad.t()).addcmul_(dense, grad)
            of_batch = both @ self.shared
            if self.centered:
                of_batch.addcmul_(both.sum(1, keepdim=True), self.shared, value=-1)
            return self.a.back(of_batch), None
        ga, gr = self._empty(needed)
        self._add(dense * grad, 0, ga, gr)
        return self._back(ga, gr)

    def recomputed(
        self, rows: Weighing, grad: Tensor, chunk_size: int | None, needed: Sequence[bool], is_precise: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The same, with V computed again block by block: memory grows with a block, not with n * m."""
        is_precise = is_precise and grad.dtype == torch.float32
        back = (self.doubled if is_precise else self).known()
        ga, gr = back._empty((True, True) if self.r is None else needed)
        grad = (grad * self.factor).unsqueeze(1)
        for start, stop in self.blocks(chunk_size, rows.together):
            sim = self.scores(start, stop)
            v = self.by_products(rows.weigh(sim, start).weights, sim)
            if isinstance(v, Sparse):
                v = _scattered(v, torch.empty_like(sim))
            v = v * grad[start:stop]
            back._add(v.double() if is_precise else v, start, ga, gr)
        return _single(back._back(ga, gr)) if is_precise else back._back(ga, gr)

    def _empty(self, needed: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        ga, gr = (
            torch.zeros_like(each.points) if wanted else None
            for each, wanted in zip((self.a, self.references), needed, strict=True)
        )
        return ga, gr

    def _add(self, v: Tensor, start: int, ga: Tensor | None, gr: Tensor | None) -> None:
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

    def _of_few(self, columns: Tensor, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, r, m, k = self.a.points, self.shared, len(self.shared), v.shape[1]
        ga = F.embedding_bag(columns, r, per_sample_weights=v, mode="sum")
        # The same from the other end: the entries of each column one after another.
        of_column, order = columns.flatten().sort(stable=True)
        begins = torch.searchsorted(of_column, torch.arange(m, device=v.device))
        rows, flat = order.div(k, rounding_mode="floor"), v.flatten()
        gr = F.embedding_bag(rows, a, begins, per_sample_weights=flat[order], mode="sum")
        if self.centered:
            ga.addcmul_(v.sum(1, keepdim=True), a, value=-1)
            gr.addcmul_(v.new_zeros(m).index_add_(0, columns.flatten(), flat).unsqueeze(1), r, value=-1)
        return self._back(ga, gr)

    def _back(self, ga: Tensor | None, gr: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by the vectors that were given; those by the batch and by itself are one."""
        if self.r is None:
            assert ga is not None
            assert gr is not None
            return self.a.back(ga.add_(gr)), None
        return None if ga is None else self.a.back(ga), None if gr is None else self.r.back(gr)


def _single(gradients: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    ga, gr = gradients
    return None if ga is None else ga.float(), None if gr is None else gr.float()


def _scattered(few: Sparse, out: Tensor) -> Tensor:
    return out.zero_().scatter_add_(1, few.columns, few.weights)
