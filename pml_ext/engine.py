"""The engine: losses of the rows of a pair matrix, block by block, and one weighted product as their gradient.

The loss of row i depends on row i of the scores only, so the derivative of all losses by the scores is a matrix W whose
row i belongs to loss i: the pair weights. The forward pass computes scores, losses and W in blocks of rows that stay in
the cache; the backward pass scales row i of W by the incoming g_i and multiplies:

    references = batch   dL/dA = (V + V^T) A             V_ij = g_i dL_i / d<a_i, a_j>
    otherwise            dL/dA = V R,   dL/dR = V^T A

with A and R the (normalized) embeddings and references. V is W for inner products; for distances, as
D^2 = |a|^2 + |r|^2 - 2 <a, r>, it carries the derivative of the score by the inner product, and a row sum is added.
The scores of a batch with itself are symmetric: half of them are computed, and the others copied.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.by_autograd import PerAnchor, PerBatch, defined_loss, defined_losses
from pml_ext.closed_form import Sides, SideWeights
from pml_ext.kept_weights import Kept, Sparse, scattered
from pml_ext.masked import Counted, Needs, are_numbers, defined_rows, looks_are_free
from pml_ext.pairs import Pairs
from pml_ext.scores import Space
from pml_ext.similarity import Similarity
from pml_ext.similarity import disabled as disabled
from pml_ext.similarity import is_enabled as is_enabled
from pml_ext.vectors import without_autocast

# A closed form with its hyperparameters.
Form = Callable[[Sides], SideWeights | None]
# Losses [b], their derivative by the scores, [b, m] or a few of each row, and what each adds to the divisor.
Weighed = tuple[Tensor, Tensor | Sparse, Tensor | int]
# Makes the scores of a block again.
Again = Callable[[], Tensor]
# Scores [b, m] of the rows from one on, that row, whether the scores are known to be numbers, and None, or how to make
# them again: then they may be overwritten.
Weigh = Callable[[Tensor, int, bool | None, Again | None], Weighed]


def row_losses(
    x: Tensor,
    ref: Tensor | None,
    similarity: Similarity,
    weigh: Weigh,
    plain: Callable[[Tensor, Tensor | None], Counted],
    pairs: Pairs,
    chunk_size: int | None = None,
    together: bool = False,
) -> tuple[Tensor, Tensor | int]:
    """Losses and counts of all rows, [n] each or one count for each; the losses are differentiable by both sets.

    Args:
        x: the embeddings [n, d].
        ref: the references [m, d], or None for the embeddings themselves.
        similarity: how scores come from them.
        weigh: losses, pair weights and counts of some rows from their scores.
        plain: all losses and counts [n] by ordinary autograd, for a derivative of the derivative.
        pairs: which of them count.
        chunk_size: None to keep W, n * m numbers; a number to compute it again, at most so many rows at a time.
        together: whether the rows are to be asked for all at once, because they depend on one another.
    """
    with without_autocast(x):
        found: tuple[Tensor, Tensor | int] = _RowLosses.apply(
            x, ref, similarity, weigh, plain, pairs, chunk_size, together, torch.is_grad_enabled()
        )
    return found


def rows_weighed(
    sim: Tensor,
    start: int,
    known: bool | None,
    again: Again | None = None,
    *,
    pairs: Pairs,
    form: Form | None,
    per_anchor: PerAnchor,
    needs: Needs,
) -> Weighed:
    """What a loss of rows makes of the rows start, start + 1, ... with scores sim [b, m]: losses, weights, counts.

    Args:
        sim: the scores.
        start: the first row.
        known: whether the scores are all numbers, None where nobody has looked.
        again: None, or how to make the scores again: then they are overwritten.
        pairs: which of them count.
        form: the closed form, or None. Where it gives None, and where a score is no number, autograd takes over.
        per_anchor: losses of rows from scores and masks, by operations that autograd follows.
        needs: which pairs define an anchor.
    """
    if form is not None and known is not False:
        sides = pairs.sides(sim, start, known is not None, again is not None)
        found = form(sides)
        if found is not None:
            return _of_sides(sides, found, known is True, None if pairs.complete else needs)
        sim = again() if again is not None and sides.neg is sim else sim
    counts: list[Tensor] = []

    def losses(leaf: Tensor) -> Tensor:
        of_rows = defined_losses(per_anchor, leaf, *pairs.masks(sim, start), needs)
        counts.append(of_rows.counts)
        return of_rows.losses

    values, weights = _differentiated(sim, losses)
    return values, weights, counts[0]


def batch_weighed(
    sim: Tensor,
    start: int,
    known: bool | None,
    _: Again | None = None,
    *,
    pairs: Pairs,
    form: Form | None,
    per_batch: PerBatch,
    needs: Needs,
) -> Weighed:
    """What a loss of the whole batch makes of all scores, as `rows_weighed`: each row has the n-th part of it.

    The closed form is asked where a batch is compared with itself by its labels.
    """
    if form is not None and pairs.mirrored and known:
        sides = pairs.sides(sim, start, True)
        found = form(sides) if sides.columns is not None else None
        if found is not None and sides.columns is not None:
            return _parts(found.losses, len(sim)), found.neg.scatter_add_(1, sides.columns, found.pos), 1
    masks = pairs.masks(sim, start)
    loss, weights = _differentiated(sim, partial(defined_loss, per_batch, pos=masks.pos, neg=masks.neg, needs=needs))
    return _parts(loss, len(sim)), weights, 1


def _parts(loss: Tensor, n: int) -> Tensor:
    return (loss / n).expand(n)


def _differentiated(sim: Tensor, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Value of a function of scores, and the derivative of its sum by them."""
    with torch.enable_grad():
        leaf = sim.detach().requires_grad_()
        values = function(leaf)
        total = values.sum()
    if not total.requires_grad:
        return values, torch.zeros_like(sim)
    (weights,) = torch.autograd.grad(total, leaf)
    return values.detach(), weights


def _of_sides(sides: Sides, found: SideWeights, known: bool, needs: Needs | None) -> Weighed:
    """The answer of a closed form by all columns or a few; needs is None where every anchor is known to be defined."""
    losses, pos, neg, counts, neg_column = found
    columns, m = sides.columns, sides.neg.shape[1]
    if not known:
        # Where a score is no number the loss of its row is none, and here the weights.
        pos = torch.add(pos, losses.unsqueeze(1), alpha=0)
    defined = None if needs is None else defined_rows(sides.has_pos, sides.has_neg, needs)
    if defined is not None and not (known and bool(defined.all())):
        losses = torch.where(defined.squeeze(1), losses, 0.0)
        counts = defined.squeeze(1).long() * (1 if counts is None else counts)
        if columns is None and neg_column is None:
            return losses, torch.where(defined, neg.add_(pos), 0.0), counts
        pos, neg = torch.where(defined, pos, 0.0), torch.where(defined, neg, 0.0)
    count: Tensor | int = 1 if counts is None else counts
    if neg_column is None:
        return losses, neg.add_(pos) if columns is None else neg.scatter_add_(1, columns, pos), count
    few = max(thresholds.FEW_COLUMNS, thresholds.FEW_SHARE * m)
    if columns is not None and m > thresholds.FEW_FROM and columns.shape[1] + neg_column.shape[1] <= few:
        return losses, Sparse(torch.cat((columns, neg_column), 1), torch.cat((pos, neg), 1)), count
    dense = torch.zeros_like(sides.neg).scatter_add_(1, neg_column, neg)
    return losses, dense.add_(pos) if columns is None else dense.scatter_add_(1, columns, pos), count


def all_scores(embeddings: Tensor, references: Tensor | None, similarity: Similarity) -> Tensor:
    """Scores of all pairs, without a gradient: embeddings [n, d], references [m, d] or None for the batch -> [n, m]."""
    space = Space(similarity, embeddings, references, False, looks_are_free(embeddings))
    return space.symmetric_scores() if space.is_symmetric else space.scores(0, len(embeddings))


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ref: Tensor | None,
        similarity: Similarity,
        weigh: Weigh,
        plain: Callable[[Tensor, Tensor | None], Counted],
        pairs: Pairs,
        chunk_size: int | None,
        together: bool,
        learns: bool,
    ) -> tuple[Tensor, Tensor | int]:
        space = Space(similarity, x, ref, pairs.private, looks_are_free(x))
        keep = chunk_size is None and learns and any(ctx.needs_input_grad[:2])
        scores = space.symmetric_scores() if keep and space.is_symmetric else None
        kept: tuple[Tensor, ...] = ()
        blocks = space.blocks(chunk_size, together)
        if len(blocks) == 1:
            sim = space.scores(0, len(x)) if scores is None else scores
            is_known = space.is_known or (are_numbers(sim) if space.looks else None)
            again = None if space.needs_scores else partial(space.scores, 0, len(x))
            losses, v, counts = weigh(sim, 0, is_known, again)
            if keep:
                v = space.by_products(v, sim, 0)
                kept = tuple(v) if isinstance(v, Sparse) else (v,)
        else:
            # Into one tensor each: small results kept between large temporaries would pin these in the heap.
            losses, counts = x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
            whole, is_known = Kept(scores), True
            for start, stop in blocks:
                sim = space.scores(start, stop) if scores is None else scores[start:stop]
                known = space.is_known or (are_numbers(sim) if space.looks else None)
                again = None if space.needs_scores else partial(space.scores, start, stop)
                losses[start:stop], v, counts[start:stop] = weigh(sim, start, known, again)
                is_known = known if is_known else is_known
                if keep:
                    whole.put(space.by_products(v, sim, start), start, len(x), v is sim and scores is not None)
                del v, sim
            kept = whole.tensors() if keep else ()
        # Saved, not put into ctx: so the backward pass frees them, however long the loss itself is kept.
        ctx.save_for_backward(x, ref, *((*space.tensors, *kept) if keep else ()))
        ctx.plain, ctx.is_precise, ctx.keeps = plain, space.is_precise, keep
        # Vectors all of whose scores are numbers are so themselves; and of one that is not no weight here is a number.
        ctx.is_known = is_known is True or (is_known is None and pairs.mirrored and pairs.complete)
        ctx.space = partial(Space, similarity, private=pairs.private, looks=space.looks)
        ctx.weigh, ctx.blocks = weigh, blocks
        if isinstance(counts, Tensor):
            ctx.mark_non_differentiable(counts)
        return losses, counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, ref, *done = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # a second derivative is wanted
            # By names of their own: the references may have been made of the embeddings, whose gradient is autograd's.
            x, ref = x.view_as(x), None if ref is None else ref.view_as(ref)
            inputs = [vectors for vectors, wanted in zip((x, ref), needed, strict=True) if wanted]
            found = iter(torch.autograd.grad(ctx.plain(x, ref).losses, inputs, grad, create_graph=True))
            gradients = tuple(next(found) if wanted else None for wanted in needed)
        else:
            with without_autocast(x):
                space = ctx.space(x, ref, tensors=done[:6] or None)
                is_precise = ctx.is_precise and grad.dtype == torch.float32
                back = space.doubled if is_precise else space
                back = back if ctx.is_known else back.known()
                grad = grad.to(back.shared.dtype)
                if ctx.keeps:
                    gradients = back.gradients(done[6:], grad, needed)
                else:
                    gradients = _recomputed(space, back, ctx.weigh, ctx.blocks, back.of_rows(grad), needed)
                if is_precise:
                    gradients = tuple(None if each is None else each.float() for each in gradients)
        return *gradients, *(None,) * 7


def _recomputed(
    space: Space,
    back: Space,
    weigh: Weigh,
    blocks: Sequence[tuple[int, int]],
    grad: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, with V computed again block by block: memory grows with a block, not with n * m.

    Args:
        space: the vectors, from which scores are computed.
        back: the same for the way back.
        weigh: losses, pair weights and counts of some rows from their scores.
        blocks: the ranges of rows.
        grad: by each loss, with the `factor` of the space [n, 1].
        needed: whether the gradients by embeddings and by references are.
    """
    ga, gr = back.empty((True, True) if space.r is None else needed)
    for start, stop in blocks:
        sim = space.scores(start, stop)
        known = space.is_known or (are_numbers(sim) if space.looks else None)
        again = None if space.needs_scores else partial(space.scores, start, stop)
        v = space.by_products(weigh(sim, start, known, again)[1], sim, start)
        if isinstance(v, Sparse):
            v = scattered(v, torch.empty_like(sim))
        back.add(v * grad[start:stop], start, ga, gr)
    return back.back(ga, gr)
