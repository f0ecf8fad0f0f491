"""The engine: losses of the rows of a pair matrix, block by block, and one weighted product as their gradient.

The loss of row i depends on row i of the scores only, so the derivative of all losses by the scores is a matrix W whose
row i belongs to loss i: the pair weights. The forward pass computes scores, losses and W in blocks of rows that stay in
the cache; the backward pass scales row i of W by the incoming g_i and multiplies:

    references = batch   dL/dA = (V + V^T) A             V_ij = g_i dL_i / d<a_i, a_j>
    otherwise            dL/dA = V R,   dL/dR = V^T A

with A and R the (normalised) embeddings and references. V is W for inner products; for distances, as
D^2 = |a|^2 + |r|^2 - 2 <a, r>, it carries the derivative of the score by the inner product, and a row sum is added.
"""

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

# So many scores are computed at a time: a block of them and its temporaries stay in a core's cache.
BLOCK = 1 << 17


class Geometry(NamedTuple):
    """How scores come from embeddings: <a, r>, or -|a - r|^power, of embeddings normalised or as they are."""

    normalize: bool
    euclidean: bool
    power: int


class Sparse(NamedTuple):
    """Pair weights of which each row has a few: columns [b, k] and weights [b, k]; those of equal columns add up."""

    columns: Tensor
    weights: Tensor


class Weighed(NamedTuple):
    """Losses [b], their derivative by the scores, [b, m] or a few of each row, and the rows' part of the divisor."""

    losses: Tensor
    weights: Tensor | Sparse
    counts: Tensor


class Rows(Protocol):
    """What the engine asks of a loss."""

    def weigh(self, sim: Tensor, start: int) -> Weighed:
        """Losses and pair weights of the rows start, start + 1, ... with scores sim [b, m]."""
        ...

    def plain(self, embeddings: Tensor, references: Tensor | None) -> Tensor:
        """The losses [n] by ordinary autograd, for a derivative of the derivative."""
        ...


def row_losses(
    embeddings: Tensor, references: Tensor | None, geometry: Geometry, rows: Rows, chunk_size: int | None
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


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ref: Tensor | None, geometry: Geometry, rows: Rows, chunk_size: int | None, learns: bool
    ) -> tuple[Tensor, Tensor]:
        space = _Space(geometry, *_vectors(x, ref, geometry))
        keep = chunk_size is None and learns and any(ctx.needs_input_grad[:2])
        kept = _Kept(len(space.a), len(space.r))
        # Written into one tensor each: small results kept between large temporaries would pin these in the heap.
        losses, counts = x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
        for start, stop in space.blocks(chunk_size):
            weighed, v = space.weigh(rows, start, stop, keep)
            losses[start:stop], counts[start:stop] = weighed.losses, weighed.counts
            del weighed
            if v is not None:
                kept.put(v, start, stop)
        # Saved, not put into ctx: so the backward pass frees them, however long the loss itself is kept.
        ctx.save_for_backward(x, ref, *((*space.vectors, *kept.tensors()) if keep else ()))
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
                gradients = _Space(geometry, *done[:4]).gradients(done[4:], grad, needed)
            else:
                gradients = _Space(geometry, *_vectors(x, ref, geometry)).recomputed(rows, grad, chunk_size)
        return *gradients, None, None, None, None


class _Kept:
    """V of all rows, dense or sparse, put together block by block."""

    def __init__(self, n: int, m: int) -> None:
        self.shape = n, m
        self.dense: Tensor | None = None
        self.few: list[tuple[int, Sparse]] = []

    def put(self, v: Tensor | Sparse, start: int, stop: int) -> None:
        if isinstance(v, Sparse):
            self.few.append((start, v))
            return
        if self.dense is None:
            self.dense = v.new_empty(self.shape)
        self.dense[start:stop] = v

    def tensors(self) -> list[Tensor]:
        """V, or its columns and weights if all blocks have few."""
        if self.dense is None:
            return [torch.cat(parts) for parts in zip(*(few for _, few in self.few), strict=True)]
        for start, few in self.few:
            self.dense[start : start + len(few.columns)].zero_().scatter_add_(1, few.columns, few.weights)
        return [self.dense]


class _Space:
    """Vectors in the form in which they are multiplied, their scores, and the way back from V to a gradient."""

    def __init__(
        self, geometry: Geometry, a: Tensor, a_norm: Tensor | None, r: Tensor | None, r_norm: Tensor | None
    ) -> None:
        self.geometry = geometry
        self.vectors = a, a_norm, r, r_norm
        self.same = r is None
        refs = a if r is None else r
        # Squares of unit vectors' distances are exact enough as they are: nothing is divided by them.
        self.centred = geometry.euclidean and not (geometry.normalize and geometry.power == 2)
        if self.centred and len(refs):
            # Distances do not change with the origin, but their rounding errors do: of a batch that has all but
            # collapsed, far from 0, nothing else would be left.
            origin = refs.mean(0)
            self.a = a - origin
            self.r = self.a if r is None else r - origin
        else:
            self.a, self.r = a, refs

    @cached_property
    def squares(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared lengths [n, 1] and [1, m], and which squared distances of each row are no more than rounding error.

        These are 0, and have a gradient of 0.
        """
        of_a = self.a.square().sum(1, keepdim=True)
        of_r = (of_a if self.same else self.r.square().sum(1, keepdim=True)).t()
        return of_a, of_r, 8 * torch.finfo(of_a.dtype).eps * (of_a + of_r.amax())

    def blocks(self, chunk_size: int | None) -> list[tuple[int, int]]:
        n, m = len(self.a), len(self.r)
        size = min(chunk_size or n, max(32, BLOCK // m))
        return [(start, min(start + size, n)) for start in range(0, n, size)]

    def weigh(self, rows: Rows, start: int, stop: int, keep: bool) -> tuple[Weighed, Tensor | Sparse | None]:
        """What the loss makes of some rows, and their V if it is to be kept."""
        a = self.a[start:stop]
        if not self.geometry.euclidean:
            weighed = rows.weigh(a @ self.r.t(), start)
            return weighed, weighed.weights if keep else None
        a_square, r_square, smallest = self.squares
        if self.geometry.power == 2:
            sim = torch.addmm(r_square.neg(), a, self.r.t(), alpha=2).sub_(a_square[start:stop])
            weighed = rows.weigh(sim.clamp_max_(0), start)
            return weighed, _scaled(weighed.weights, 2.0) if keep else None
        square = torch.addmm(r_square, a, self.r.t(), alpha=-2).add_(a_square[start:stop])
        # Compared into numbers: a product with booleans is thirty times slower.
        square.mul_(torch.gt(square, smallest[start:stop], out=torch.empty_like(square)))
        distance = square.sqrt()
        weighed = rows.weigh(-distance, start)
        if not keep:
            return weighed, None
        # d(-D) / d<a, r> = 1 / D, and 0 where D is.
        slope = distance.div_(square.clamp_min_(torch.finfo(square.dtype).tiny))
        return weighed, _scaled(weighed.weights, slope)

    def gradients(
        self, kept: list[Tensor], grad: Tensor, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of sum_i grad_i L_i, by embeddings and references; from V as it was kept."""
        grad = grad.unsqueeze(1)
        if len(kept) == 2:
            columns, weights = kept
            return self._of_few(columns, weights * grad)
        (dense,) = kept
        if self.same:
            both = torch.empty_like(dense).copy_(dense.t()).mul_(grad.t()).addcmul_(dense, grad)
            return self._back(self._moved(both @ self.a, both, 1, self.a)), None
        v = dense * grad
        ga = self._back(self._moved(v @ self.r, v, 1, self.a)) if needed[0] else None
        gr = self._back_ref(self._moved(v.t() @ self.a, v, 0, self.r)) if needed[1] else None
        return ga, gr

    def recomputed(self, rows: Rows, grad: Tensor, chunk_size: int) -> tuple[Tensor, Tensor | None]:
        """The same, with V computed again block by block: memory grows with a block, not with n * m."""
        ga, gr = torch.zeros_like(self.a), torch.zeros_like(self.r)
        for start, stop in self.blocks(chunk_size):
            v = self.weigh(rows, start, stop, keep=True)[1]
            if isinstance(v, Sparse):
                v = grad.new_zeros(stop - start, len(self.r)).scatter_add_(1, v.columns, v.weights)
            assert v is not None
            v = v * grad[start:stop, None]
            ga[start:stop] = self._moved(v @ self.r, v, 1, self.a[start:stop])
            gr += self._moved(v.t() @ self.a[start:stop], v, 0, self.r)
        if self.same:
            return self._back(ga.add_(gr)), None
        return self._back(ga), self._back_ref(gr)

    def _of_few(self, columns: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        ga = torch.nn.functional.embedding_bag(columns, self.r, per_sample_weights=v, mode="sum")
        gr, col_sum = torch.zeros_like(self.r), v.new_zeros(len(self.r), 1)
        for column, weight in zip(columns.t(), v.t(), strict=True):
            gr.index_add_(0, column, self.a * weight.unsqueeze(1))
            col_sum.index_add_(0, column, weight.unsqueeze(1))
        if self.centred:
            ga = ga.addcmul_(v.sum(1, keepdim=True), self.a, value=-1)
            gr = gr.addcmul_(col_sum, self.r, value=-1)
        if self.same:
            return self._back(ga.add_(gr)), None
        return self._back(ga), self._back_ref(gr)

    def _moved(self, product: Tensor, v: Tensor, dim: int, own: Tensor) -> Tensor:
        """V R, less the rows' own share for distances; a normalisation removes that share by itself."""
        if self.centred:
            product.addcmul_(v.sum(dim).unsqueeze(1), own, value=-1)
        return product

    def _back(self, grad: Tensor) -> Tensor:
        a, a_norm, *_ = self.vectors
        return _denormalised(grad, a, a_norm)

    def _back_ref(self, grad: Tensor) -> Tensor:
        *_, r, r_norm = self.vectors
        assert r is not None
        return _denormalised(grad, r, r_norm)


def _scaled(weights: Tensor | Sparse, slope: Tensor | float) -> Tensor | Sparse:
    if isinstance(weights, Sparse):
        factor = slope.gather(1, weights.columns) if isinstance(slope, Tensor) else slope
        return Sparse(weights.columns, weights.weights * factor)
    return weights.mul_(slope)


def _vectors(
    x: Tensor, ref: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What a `_Space` is made of: the (normalised) vectors and their norms, of references None if there are none."""
    of_ref = (None, None) if ref is None else _normalised(ref, geometry.normalize)
    return *_normalised(x, geometry.normalize), *of_ref


def _normalised(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    if not normalize:
        return x, None
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-12)  # the epsilon of F.normalize
    return x / norm, norm


def _denormalised(grad: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    """The gradient by the vectors from that by their normalised form; overwrites it."""
    if norm is None:
        return grad
    radial = torch.linalg.vecdot(grad, unit).unsqueeze(1)
    return grad.addcmul_(unit, radial, value=-1).div_(norm)
