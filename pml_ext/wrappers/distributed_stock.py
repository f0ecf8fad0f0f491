"""PML's own losses by own rows: their forms without tuples need of each row some sums, which the processes exchange."""

from typing import Any

import torch
from torch import Tensor, nn

from pml_ext.ranks import Ranks
from pml_ext.stock.checks import why_stock
from pml_ext.stock.forms import FORMS, Form
from pml_ext.stock.loss import AcceleratedLoss, ContradictionError, accelerated_loss
from pml_ext.stock.run import Share, Value, run
from pml_ext.stock.scores import Scores, is_finite, is_row_wise
from pml_ext.wrappers.distributed_batch import AllPairs, GivenPairs, OwnPairs, Shard, all_masks

KINDS: tuple[type, ...] = (AcceleratedLoss, *FORMS)


def by_own_rows(loss: nn.Module, shard: Shard, pairs: GivenPairs) -> Tensor | None:
    """The loss of the batch of all processes, or None where it takes every process the whole batch."""
    twin: Any = loss
    if not isinstance(loss, AcceleratedLoss):
        if type(loss) not in FORMS:  # what a subclass computes is not known
            return None
        twin = accelerated_loss(loss, chunk_size=None, strict=False)
    if shard.more or any(p is not None and p.requires_grad for p in twin._parameters.values()):
        return None
    every, labels = shard.anchors.rows, shard.anchors.labels
    refs = ref_labels = None
    if shard.references is not None:
        refs, ref_labels = shard.references.rows, shard.references.labels
    indices = _indices(shard, pairs)
    if why_stock(twin, every, labels, indices, refs, ref_labels) is not None or not is_row_wise(twin.distance):
        return None
    try:
        form = twin._form(every, labels, indices, refs, labels if refs is None else ref_labels, refs is None)
    except ContradictionError:
        return None
    if form.needs_whole:
        return None
    total = every.new_zeros(()) if form.is_empty() else _value(twin, form, shard)
    if not is_finite(total):
        return None
    if twin.embedding_regularizer is not None:
        total = total + twin.embedding_regularizer(shard.anchors.same()) * twin.embedding_reg_weight
    return total


def _value(twin: Any, form: Form, shard: Shard) -> Tensor:
    ranks: Ranks = shard.ranks

    def make(own: Tensor, references: Tensor | None, needed: tuple[bool, ...]) -> tuple[Tensor, list[Tensor | None]]:
        assert references is not None
        if len(own):
            scores = Scores(twin.distance, own, references, (needed[0], needed[1]))
            return run(form, scores, twin._chunk_size, Share(ranks.offset, ranks.all_rows)), list(scores.gradients())
        # What is exchanged has the shapes of another row.
        scores = Scores(twin.distance, references[:1], references, (False, False))
        value = run(form, scores, None, Share(0, lambda rows: ranks.all_rows(rows[:0])))
        return value, [torch.zeros_like(own), torch.zeros_like(references)]

    def again(own: Tensor, references: Tensor | None) -> Tensor:
        raise RuntimeError("a loss of several processes has one derivative")

    value: Tensor = Value.apply(make, again, shard.own, shard.refs)
    return value


def _indices(shard: Shard, pairs: GivenPairs) -> tuple[Tensor, ...] | None:
    """Pairs of all as PML's lists."""
    if pairs is None:
        return None
    if isinstance(pairs, OwnPairs):
        return tuple(all_masks(shard, pairs).indices())
    assert isinstance(pairs, AllPairs)  # a selection is made by losses of rows only
    return tuple(each.to(shard.own.device) for each in pairs)
