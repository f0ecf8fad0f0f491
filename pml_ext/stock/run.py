"""The value and the gradient of one stock loss for one batch, computed together block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext.stock.forms import Form
from pml_ext.stock.incidence import blocks
from pml_ext.stock.scores import Scores, is_row_wise


class Share(NamedTuple):
    """Which rows of a batch this process computes; other processes compute the others.

    Args:
        start: the index in the batch of the first of these rows.
        of_all: gathers the results of all rows from the results of these.
    """

    start: int
    of_all: Callable[[Tensor], Tensor]


WHOLE = Share(0, lambda rows: rows)


def run(form: Form, scores: Scores, chunk_size: int | None, share: Share = WHOLE) -> Tensor:
    """The value of a form over all rows; the gradients of the rows of `share` are left in `scores` and `form`."""
    rows, first = len(scores.embeddings), share.start
    if chunk_size is None or chunk_size >= rows or form.needs_whole or not is_row_wise(scores.distance):
        return _whole(form, scores, share)
    starts = range(0, rows, chunk_size)
    parts = [(start, min(start + chunk_size, rows)) for start in starts]

    def distances(start: int, stop: int) -> Tensor:
        found = scores.plain(start, stop)
        return _signed(found, scores.sign) if scores.known is None else found * scores.sign

    if form.looks_first:
        form.look(_of_rows(lambda a, b: form.first(distances(a, b), first + a), parts, share))
    found = _of_rows(lambda a, b: form.summarize(distances(a, b), first + a, keep=False), parts, share)
    value = _total(form.combine(found), scores.embeddings)
    if any(scores.needed):
        for start, stop in parts:
            block, way = scores.block(start, stop)
            by_distance = form.gradient(block * scores.sign, first + start, kept=False)
            way.back(_signed(by_distance, scores.sign))
    return value


def _whole(form: Form, scores: Scores, share: Share) -> Tensor:
    """With all scores in memory; they are processed in blocks of rows that fit into the cache."""
    found, way = scores.whole()
    (rows, columns), first = found.shape, share.start
    parts = [(0, rows)] if form.needs_whole else blocks(rows, columns)
    work = torch.empty_like(found) if way.keeps_scores or scores.known is not None else found
    for start, stop in parts:
        if work is found:
            _signed(work[start:stop], scores.sign)
        else:
            torch.mul(found[start:stop], scores.sign, out=work[start:stop])
    wanted = any(scores.needed)
    if form.looks_first:
        form.look(_of_rows(lambda a, b: form.first(work[a:b], first + a), parts, share))
    summaries = _of_rows(lambda a, b: form.summarize(work[a:b], first + a, keep=wanted), parts, share)
    value = _total(form.combine(summaries), scores.embeddings)
    if wanted:
        for start, stop in parts:
            block = work[start:stop]
            by_distance = _signed(form.gradient(block, first + start, kept=True), scores.sign)
            if by_distance.data_ptr() != block.data_ptr():
                block.copy_(by_distance)
        way.back(work)
    return value


def _signed(values: Tensor, sign: float) -> Tensor:
    return values.neg_() if sign < 0 else values


def _of_rows(
    make: Callable[[int, int], tuple[Tensor, ...]], parts: Sequence[tuple[int, int]], share: Share
) -> tuple[Tensor, ...]:
    """The results of `make` for the rows of each part, put together for all rows."""
    out: tuple[Tensor, ...] = ()
    for part in parts:
        out = _put(make(*part), out, part, parts[-1][1])
    return tuple(share.of_all(each) for each in out)


def _put(made: tuple[Tensor, ...], into: tuple[Tensor, ...], part: tuple[int, int], rows: int) -> tuple[Tensor, ...]:
    """Copy the results for some rows into those for all rows.

    Small tensors kept among large ones that are freed would fragment the memory that the next large ones need.
    """
    into = into or tuple(each.new_empty(rows, *each.shape[1:]) for each in made)
    for all_rows, each in zip(into, made, strict=True):
        all_rows[slice(*part)] = each
    return into


def _total(values: dict[str, Tensor], like: Tensor) -> Tensor:
    total = like.new_zeros(())
    for value in values.values():
        total = total + value.to(like.dtype)
    return total


class Value(torch.autograd.Function):
    """The value, with the gradient that was computed together with it.

    Second derivatives are those of the stock loss: `stock` computes its graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        make: Callable[[Tensor, Tensor | None, tuple[bool, ...]], tuple[Tensor, list[Tensor | None]]],
        stock: Callable[[Tensor, Tensor | None], Tensor],
        embeddings: Tensor,
        references: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        """The value; `make` returns the gradients, too."""
        value, gradients = make(embeddings, references, ctx.needs_input_grad[2:])
        ctx.stock, ctx.gradients = stock, gradients
        ctx.save_for_backward(embeddings, references, *parameters)
        return value

    @staticmethod
    def backward(ctx: Any, *by_value: Tensor) -> tuple[Any, ...]:
        """The gradients times the gradient of the value."""
        (by_value_,) = by_value
        if torch.is_grad_enabled():
            embeddings, references, *parameters = ctx.saved_tensors
            inputs = [embeddings, references, *parameters]
            asked = [each for each, need in zip(inputs, ctx.needs_input_grad[2:], strict=True) if need]
            found = iter(torch.autograd.grad(ctx.stock(embeddings, references), asked, by_value_, create_graph=True))
            return None, None, *(next(found) if need else None for need in ctx.needs_input_grad[2:])
        return None, None, *(None if each is None else each * by_value_.to(each.dtype) for each in ctx.gradients)
