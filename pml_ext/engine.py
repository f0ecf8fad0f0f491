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
from pml_ext.similarity import Geometry, Vectors

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
    space = _Space.of(geometry, embeddings, references, private=False)
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
        space = _Space.of(geometry, x, ref, rows.private)
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
        ctx.job = geometry, rows, chunk_size
        ctx.mark_non_differentiable(counts)
        return losses, counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, ref, *done = ctx.saved_tensors
        geometry, rows, chunk_size = ctx.job
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # a second derivative is wanted
            # By names of their own: the references may have been made of the embeddings, whose gradient is autograd's.
            x, ref = x.view_as(x), None if ref is None else ref.view_as(ref)
            inputs = [vectors for vectors, wanted in zip((x, ref), needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(rows.plain(x, ref), inputs, grad, create_graph=True))
            return *(next(found) if wanted else None for wanted in needed), None, None, None, None
        with torch.autocast(x.device.type, enabled=False):
            if done:
                space = _Space.from_tensors(geometry, done[:6], rows.private)
                gradients = space.gradients(done[6:], grad, needed)
            else:
                gradients = _Space.of(geometry, x, ref, rows.private).recomputed(rows, grad, chunk_size, needed)
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

    Args:
        geometry: how scores come from them.
        a: the embeddings.
        r: the references, None for the embeddings.
        private: whether the last n references belong to one row each.
    """

    def __init__(self, geometry: Geometry, a: Vectors, r: Vectors | None, private: bool) -> None:
        self.geometry, self.a, self.r = geometry, a, r
        references = (a if r is None else r).points
        m = len(references) - len(a.points) if private else len(references)
        self.shared, self.private = references[:m], references[m:] if private else None
        self.centred = _is_centred(geometry)

    @staticmethod
    def of(geometry: Geometry, x: Tensor, ref: Tensor | None, private: bool) -> "_Space":
        """The space of vectors as they are given."""
        a = Vectors.of(x, geometry.normalize)
        r = None if ref is None else Vectors.of(ref, geometry.normalize)
        references = (a if r is None else r).points
        if _is_centred(geometry) and len(references):
            # Distances do not change with the origin, but their rounding errors do: of a batch that has all but
            # collapsed, far from 0, nothing else would be left.
            origin = references.mean(0)
            a, r = a.about(origin), None if r is None else r.about(origin)
        return _Space(geometry, a, r, private)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What it consists of, six for `from_tensors`."""
        return (*self.a, *((None, None, None) if self.r is None else self.r))

    @staticmethod
    def from_tensors(geometry: Geometry, tensors: Sequence[Any], private: bool) -> "_Space":
        """The space again."""
        return _Space(geometry, Vectors(*tensors[:3]), None if tensors[3] is None else Vectors(*tensors[3:]), private)

    @cached_property
    def half_squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """Half the squared lengths [n, 1] and [m], and half the squared distances of each row that are 0 [n, 1].

        A squared distance no larger than that is no more than rounding error; it is 0, and has a gradient of 0.
        """
        of_a = _half_square(self.a.points)
        of_r = of_a if self.r is None else _half_square(self.r.points)
        return of_a.unsqueeze(1), of_r, (8 * torch.finfo(of_a.dtype).eps * (of_a + of_r.amax())).unsqueeze(1)

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
        of_a, of_r, smallest = self.half_squares
        of_columns = of_r[first:m]
        if self.private is not None:
            of_columns = torch.cat((of_columns.expand(len(a), -1), of_r[m + start : m + stop].unsqueeze(1)), 1)
        # -D^2 / 2. Both squares at once: so a pair and its mirror image are rounded alike.
        scores.sub_(of_columns + of_a[start:stop])
        if self.geometry.power == 2:
            return scores.mul_(2).clamp_max_(0)
        # Compared into numbers: a product with booleans is thirty times slower.
        is_some = torch.lt(scores, -smallest[start:stop], out=torch.empty_like(scores))
        return scores.mul_(is_some.mul_(-2)).sqrt_().neg_()

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
            return Sparse(weights.columns, weights.weights * _inverse(sim.gather(1, weights.columns)))
        return weights.mul_(_inverse(sim))

    @property
    def factor(self) -> float:
        """What V lacks: d(-D^2) / d<a, r> = 2;  d(-D) / d<a, r> = 1 / D, of which it has 1 / -D."""
        if not self.geometry.euclidean:
            return 1.0
        return 2.0 if self.geometry.power == 2 else -1.0

    def gradients(
        self, kept: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of sum_i grad_i L_i, by embeddings and references; from V as it was kept."""
        grad = (grad * self.factor).unsqueeze(1)
        if len(kept) == 2:
            return self._of_few(kept[0], kept[1] * grad)
        (dense,) = kept
        if self.r is None:
            both = torch.empty_like(dense).copy_(dense.t()).mul_(grad.t()).addcmul_(dense, grad)
            of_batch = both @ self.shared
            if self.centred:
                of_batch.addcmul_(both.sum(1, keepdim=True), self.shared, value=-1)
            return self.a.back(of_batch), None
        ga, gr = self._empty(needed)
        self._add(dense * grad, 0, ga, gr)
        return self._back(ga, gr)

    def recomputed(
        self, rows: Weighing, grad: Tensor, chunk_size: int | None, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The same, with V computed again block by block: memory grows with a block, not with n * m."""
        ga, gr = self._empty((True, True) if self.r is None else needed)
        grad = (grad * self.factor).unsqueeze(1)
        for start, stop in self.blocks(chunk_size, rows.together):
            sim = self.scores(start, stop)
            v = self.by_products(rows.weigh(sim, start).weights, sim)
            if isinstance(v, Sparse):
                v = _scattered(v, torch.empty_like(sim))
            self._add(v * grad[start:stop], start, ga, gr)
        return self._back(ga, gr)

    def _empty(self, needed: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        references = self.a if self.r is None else self.r
        ga, gr = (
            torch.zeros_like(each.points) if wanted else None
            for each, wanted in zip((self.a, references), needed, strict=True)
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
            if self.centred:
                ga[rows].addcmul_(v.sum(1, keepdim=True), a, value=-1)
        if gr is not None:
            gr[:m].addmm_(of_shared.t(), a)
            if self.centred:
                gr[:m].addcmul_(of_shared.sum(0).unsqueeze(1), self.shared, value=-1)
            if self.private is not None:
                gr[m:][rows].addcmul_(of_private, a - self.private[rows] if self.centred else a)

    def _of_few(self, columns: Tensor, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, r, m, k = self.a.points, self.shared, len(self.shared), v.shape[1]
        ga = F.embedding_bag(columns, r, per_sample_weights=v, mode="sum")
        # The same from the other end: the entries of each column one after another.
        of_column, order = columns.flatten().sort(stable=True)
        begins = torch.searchsorted(of_column, torch.arange(m, device=v.device))
        rows, flat = order.div(k, rounding_mode="floor"), v.flatten()
        gr = F.embedding_bag(rows, a, begins, per_sample_weights=flat[order], mode="sum")
        if self.centred:
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


def _is_centred(geometry: Geometry) -> bool:
    # Squares of unit vectors' distances are exact enough as they are: nothing is divided by them, and a normalisation
    # removes the share that a vector has in its own gradient by itself.
    return geometry.euclidean and not (geometry.normalize and geometry.power == 2)


def _half_square(points: Tensor) -> Tensor:
    # Without the squares in between, an [n, d] of its own.
    norm: Tensor = torch.linalg.vector_norm(points, dim=1)
    return norm.square_().div_(2)


def _inverse(scores: Tensor) -> Tensor:
    """1 / score, and 0 for 0."""
    square = scores.square().clamp_min_(torch.finfo(scores.dtype).tiny)
    return torch.div(scores, square, out=square)


def _scattered(few: Sparse, out: Tensor) -> Tensor:
    return out.zero_().scatter_add_(1, few.columns, few.weights)
