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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext.similarity import Similarity
from pml_ext.similarity import disabled as disabled
from pml_ext.similarity import is_enabled as is_enabled
from pml_ext.space import Space, Sparse, scattered, single


class Weighed(NamedTuple):
    """Losses [b], their derivative by the scores, [b, m] or a few of each row, and what each adds to the divisor."""

    losses: Tensor
    weights: Tensor | Sparse
    counts: Tensor | int


# Scores [b, m] of the rows start, start + 1, ..., not to be written to -> losses and pair weights.
Weigh = Callable[[Tensor, int], Weighed]


def row_losses(
    x: Tensor,
    ref: Tensor | None,
    similarity: Similarity,
    weigh: Weigh,
    plain: Callable[[Tensor, Tensor | None], Tensor],
    *,
    chunk_size: int | None = None,
    private: bool = False,
    together: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses and counts of all rows, [n] each; the losses are differentiable by both sets of vectors.

    Args:
        x: the embeddings [n, d].
        ref: the references [m, d], or None for the embeddings themselves.
        similarity: how scores come from them.
        weigh: losses and pair weights of the rows start, start + 1, ... from their scores.
        plain: all losses [n] by ordinary autograd, for a derivative of the derivative.
        chunk_size: None to keep W, n * m numbers; a number to compute it again, at most so many rows at a time.
        private: whether the last n references belong to one row each, and are the last of its scores: [b, m - n + 1].
        together: whether the rows are to be asked for all at once, because they depend on one another.
    """
    job = _Job(similarity, weigh, plain, chunk_size, private, together)
    losses, counts = _RowLosses.apply(x, ref, job, torch.is_grad_enabled())
    return losses, counts


def all_scores(embeddings: Tensor, references: Tensor | None, similarity: Similarity) -> Tensor:
    """Scores of all pairs, without a gradient: embeddings [n, d], references [m, d] or None for the batch -> [n, m]."""
    space = Space(similarity, embeddings, references, private=False)
    return space.symmetric_scores() if space.is_symmetric else space.scores(0, len(embeddings))


class _Job(NamedTuple):
    similarity: Similarity
    weigh: Weigh
    plain: Callable[[Tensor, Tensor | None], Tensor]
    chunk_size: int | None
    private: bool
    together: bool


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ref: Tensor | None, job: _Job, learns: bool) -> tuple[Tensor, Tensor]:
        space = Space(job.similarity, x, ref, job.private)
        keep = job.chunk_size is None and learns and any(ctx.needs_input_grad[:2])
        scores = space.symmetric_scores() if keep and space.is_symmetric else None
        kept = _Kept(scores)
        # Written into one tensor each: small results kept between large temporaries would pin these in the heap.
        losses, counts = x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
        for start, stop in space.blocks(job.chunk_size, job.together):
            sim = space.scores(start, stop) if scores is None else scores[start:stop]
            weighed = job.weigh(sim, start)
            losses[start:stop], counts[start:stop] = weighed.losses, weighed.counts
            if keep:
                kept.put(space.by_products(weighed.weights, sim), start, len(x))
            del weighed, sim
        # Saved, not put into ctx: so the backward pass frees them, however long the loss itself is kept.
        ctx.save_for_backward(x, ref, *((*space.tensors(), *kept.tensors()) if keep else ()))
        ctx.job, ctx.is_precise = job, space.is_precise
        ctx.mark_non_differentiable(counts)
        return losses, counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, ref, *done = ctx.saved_tensors
        job, needed = ctx.job, ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # a second derivative is wanted
            # By names of their own: the references may have been made of the embeddings, whose gradient is autograd's.
            x, ref = x.view_as(x), None if ref is None else ref.view_as(ref)
            inputs = [vectors for vectors, wanted in zip((x, ref), needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(job.plain(x, ref), inputs, grad, create_graph=True))
            return *(next(found) if wanted else None for wanted in needed), None, None
        with torch.autocast(x.device.type, enabled=False):
            space = Space(job.similarity, x, ref, job.private, done[:6] or None)
            if done:
                gradients = space.gradients(done[6:], grad, needed, ctx.is_precise)
            else:
                gradients = _recomputed(space, job, grad, needed, ctx.is_precise)
        return *gradients, None, None


def _recomputed(
    space: Space, job: _Job, grad: Tensor, needed: Sequence[bool], is_precise: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients with V computed again block by block: memory grows with a block, not with n * m."""
    is_precise = is_precise and grad.dtype == torch.float32
    back = (space.doubled if is_precise else space).known()
    ga, gr = back.empty((True, True) if space.r is None else needed)
    grad = (grad * space.factor).unsqueeze(1)
    for start, stop in space.blocks(job.chunk_size, job.together):
        sim = space.scores(start, stop)
        v = space.by_products(job.weigh(sim, start).weights, sim)
        if isinstance(v, Sparse):
            v = scattered(v, torch.empty_like(sim))
        v = v * grad[start:stop]
        back.add(v.double() if is_precise else v, start, ga, gr)
    return single(back.back(ga, gr)) if is_precise else back.back(ga, gr)


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
            scattered(few, self.dense[start : start + len(few.columns)])
        return [self.dense]
