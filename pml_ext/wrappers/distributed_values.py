"""The loss of the batch of all processes, from own rows if the loss allows it, else computed by every process.

`global_value(loss, shard, pairs)` is the same number on every process, and its gradient on each process is a part of
the whole gradient (`pml_ext.ranks`). A user-defined loss that needs only own rows may be registered with it:

    @global_value.register
    def _(loss: MyLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor: ...
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn
from torch.func import functional_call

from pml_ext import _pml, miners
from pml_ext.base import BatchLoss, RowLoss
from pml_ext.centers import Centers, CenterSource, LearnedCenters, RunningCenters, leave_one_out
from pml_ext.losses import CenterLoss
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import PairMasks, Pairs
from pml_ext.ranks import gather_same, own_random_numbers, same_random_numbers, scaled
from pml_ext.reducer import already_reduced
from pml_ext.seeded import Seeded
from pml_ext.similarity import normalized
from pml_ext.wrappers.anchor_weighted import AnchorWeightedLoss
from pml_ext.wrappers.base import has_only_directions, takes_masks
from pml_ext.wrappers.branch import BranchLoss
from pml_ext.wrappers.centers_as_references import CentersAsReferences, leave_one_out_masks
from pml_ext.wrappers.cross_batch_memory import CrossBatchMemory
from pml_ext.wrappers.distributed_batch import AllPairs, GivenPairs, OwnPairs, Shard, all_masks
from pml_ext.wrappers.distributed_rows import Rows, as_rows, mined_rows, own_losses, selection
from pml_ext.wrappers.distributed_sums import by_sums, sums_pay
from pml_ext.wrappers.mined import MinedLoss
from pml_ext.wrappers.queue_pairs import Queue, label_pairs
from pml_ext.wrappers.random_slice import RandomSliceLoss


@singledispatch
def global_value(loss: nn.Module, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    """The loss of the batch of all processes; of any loss, every process computes all of it."""
    return computed_by_all(loss, shard, pairs)


def computed_by_all(loss: nn.Module, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    """A loss of the same samples in the same order by the same random numbers on every process."""
    every = shard.anchors.same()
    refs = () if shard.references is None else (shard.references.same(), shard.references.labels)
    given: PairMasks | tuple[Tensor, ...] | None = None
    if isinstance(pairs, OwnPairs):
        masks = all_masks(shard, pairs)
        given = masks if takes_masks(loss) else masks.indices()
    elif pairs is not None:
        assert isinstance(pairs, AllPairs)  # a selection is made by losses of rows only
        given = tuple(pairs)
    args: tuple[Any, ...] = (every, shard.anchors.labels, *((given,) if given is not None or refs else ()), *refs)
    with same_random_numbers(shard.ranks.group, every.device), _of_all_samples(loss):
        # Every process has the whole gradient of its parameters, and they will be added up.
        share = 1 / shard.ranks.group.size
        parameters = {name: scaled(p, share) for name, p in loss.named_parameters() if p.requires_grad}
        value = functional_call(loss, parameters, args, shard.more) if parameters else loss(*args, **shard.more)
    return torch.as_tensor(value, device=every.device)


@contextmanager
def _of_all_samples(module: nn.Module) -> Iterator[None]:
    """Running centers are given the samples of all processes, and need not add up any."""
    sources = [part for part in module.modules() if isinstance(part, RunningCenters)]
    before = [source.all_reduce for source in sources]
    for source in sources:
        source.all_reduce = False
    try:
        yield
    finally:
        for source, own in zip(sources, before, strict=True):
            source.all_reduce = own


def of_anchors(losses: Tensor, counts: Tensor, shard: Shard) -> dict[str, Any]:
    """PML's loss dict of all anchors from those of own ones: as many numbers are sent."""
    part = {
        "losses": gather_same(losses, shard.ranks),
        "indices": torch.arange(shard.ranks.n, device=losses.device),
        "reduction_type": "element",
        "divisor": shard.ranks.group.all_reduce(counts.sum()),
    }
    return {"loss": part}


def finished(loss: BaseMetricLossFunction, loss_dict: dict[str, Any], shard: Shard) -> Tensor:
    """What PML makes of a loss dict, with regularizers and the reducer: of all losses, on every process."""
    every = shard.anchors.same()
    return torch.as_tensor(_pml.finish(loss, loss_dict, every, shard.anchors.labels), device=every.device)


def dict_of_rows(rows: Rows, shard: Shard, pairs: Any) -> dict[str, Any]:
    """PML's loss dict of a loss of rows."""
    possible = min(shard.ranks.n, 1) * (len(shard.refs) - int(shard.references is None))
    if possible < (2 if rows.loss.needs == "both" else 1):
        return dict(rows.loss.zero_losses())
    return of_anchors(*own_losses(rows, shard, pairs), shard)


@global_value.register
def _(loss: RowLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    rows = as_rows(loss)
    if rows is None:
        return computed_by_all(loss, shard, pairs)
    _pml.reset_stats(loss)
    return finished(loss, dict_of_rows(rows, shard, pairs), shard)


@global_value.register
def _(loss: BatchLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    if not sums_pay(loss, shard.ranks.n * len(shard.refs)) or shard.more or isinstance(pairs, Pairs):
        return computed_by_all(loss, shard, pairs)
    _pml.reset_stats(loss)
    return finished(loss, already_reduced(by_sums(loss, shard, pairs)), shard)


@global_value.register
def _(loss: AnchorWeightedLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    rows = as_rows(loss)
    if rows is None:
        return computed_by_all(loss, shard, pairs)
    _pml.reset_stats(loss)
    _pml.reset_stats(loss.loss)
    loss_dict = dict_of_rows(rows, shard, pairs)
    _pml.add_penalties(loss.loss, loss_dict, shard.anchors.same())
    return finished(loss, loss_dict, shard)


@global_value.register
def _(loss: MinedLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    if shard.labels is None:
        raise ValueError("MinedLoss needs labels, got None")
    if pairs is not None:
        raise ValueError("MinedLoss finds its pairs itself, got an indices_tuple")
    value = global_value(loss.loss, shard, mined(loss.miner, loss.loss, shard))
    return finished(loss, loss.reduced(value), shard)


@global_value.register
def _(loss: BranchLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    number = len(loss.slices(shard.own))
    branches = [shard.mapped(lambda x, b=b: loss.slices(x)[b]) for b in range(number)]  # type: ignore[misc]
    values = [global_value(loss.loss, branch, pairs) for branch in branches]
    return finished(loss, loss.reduced(torch.stack(values).mean()), shard)


@global_value.register
def _(loss: RandomSliceLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    own = shard.own
    with same_random_numbers(shard.ranks.group, own.device):
        order = torch.randperm(own.shape[1], generator=loss.generator(own.device), device=own.device)
    value = global_value(loss.loss, shard.mapped(lambda x: x[:, order]), pairs)
    return finished(loss, loss.reduced(value), shard)


def _of_several(loss: Any, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    if _pml.HAS_TERMS:  # where nothing is known of what is in it
        return computed_by_all(loss, shard, pairs)
    if loss.miners and pairs is not None:
        raise ValueError("MultipleLosses with miners finds its pairs itself, got an indices_tuple")
    total = shard.own.new_zeros(())
    for key, each in loss.losses.items() if loss.is_dict else enumerate(loss.losses):
        miner = None
        if loss.miners and (not loss.is_dict or key in loss.miners):
            miner = loss.miners[key]
        found = pairs if miner is None else mined(miner, each, shard)
        total = total + loss.weights[key] * global_value(each, shard, found)
    return total


for _kind in _pml.losses_named("MultipleLosses"):
    global_value.register(_kind, _of_several)


def _of_stock(loss: Any, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    value = by_own_rows(loss, shard, pairs)
    return computed_by_all(loss, shard, pairs) if value is None else value


if not _pml.HAS_TERMS:
    from pml_ext.wrappers.distributed_stock import KINDS, by_own_rows

    for _kind in KINDS:
        global_value.register(_kind, _of_stock)


@global_value.register
def _(loss: CentersAsReferences, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    inner = loss.loss.loss if isinstance(loss.loss, MinedLoss) else loss.loss
    by_rows = as_rows(inner) is not None and _is_known(loss.centers)
    if pairs is not None or shard.references is not None or shard.labels is None or not by_rows:
        return computed_by_all(loss, shard, pairs)  # which also refuses what does not fit
    samples, every = shard.own.to(shard.refs.dtype), shard.anchors.rows
    if loss._normalizes():
        samples, every = normalized(loss.distance, samples), normalized(loss.distance, every)
    centers = _centers(loss.centers, samples, every, shard)
    if shard.ranks.n == 0:
        return finished(loss, dict(loss.zero_losses()), shard)
    points, classes = centers.points, centers.labels
    found: Any = None
    if loss.leave_one_out:
        # Of all samples: the mean of the others of a group is made of theirs.
        means, has_others = leave_one_out(every, centers)
        own = shard.ranks.own
        here = centers._replace(group=centers.group[own])
        found = leave_one_out_masks(shard.labels, here, has_others[own])
        points, classes = torch.cat((points, means[own])), torch.cat((classes, shard.labels))
    anchors = shard.own if has_only_directions(loss.loss) else samples
    inside = shard._replace(own=anchors).against(points, classes)
    if not has_only_directions(loss.loss):
        inside = inside._replace(anchors=shard.anchors.mapped(lambda x: _as_anchors(loss, x)))
    return finished(loss, loss.reduced(global_value(loss.loss, inside, found)), shard)


def _as_anchors(loss: CentersAsReferences, x: Tensor) -> Tensor:
    return normalized(loss.distance, x) if loss._normalizes() else x


def _is_known(source: CenterSource) -> bool:
    """Whether every process makes the centers alike of all samples, or each moves their parameters by its own rows."""
    return source.of_batch or isinstance(source, (RunningCenters, LearnedCenters))


def _centers(source: CenterSource, own: Tensor, every: Tensor, shard: Shard) -> Centers:
    """The centers of own samples [n_r, d], or of all [n, d] if they are made of the batch."""
    labels, all_labels = shard.labels, shard.anchors.labels
    assert labels is not None
    assert all_labels is not None
    if isinstance(source, LearnedCenters):
        centers: Centers = source(own, labels)
    else:
        with _of_all_samples(source):
            centers = source(every if source.of_batch else every.detach(), all_labels)
    centers = centers._replace(points=centers.points.to(own.dtype))
    if source.of_batch:
        return centers.compact()
    group = centers.group if isinstance(source, LearnedCenters) else centers.group[shard.ranks.own]
    return centers._replace(group=group)


@global_value.register
def _(loss: CenterLoss, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    source = loss.centers
    if pairs is not None or shard.references is not None or shard.labels is None or not _is_known(source):
        return computed_by_all(loss, shard, pairs)  # which also refuses what does not fit
    _pml.reset_stats(loss)
    samples, every = shard.own.to(shard.refs.dtype), shard.anchors.rows
    if loss.distance.normalize_embeddings:
        samples, every = normalized(loss.distance, samples), normalized(loss.distance, every)
    centers = _centers(source, samples, every, shard)
    if shard.ranks.n == 0:
        return finished(loss, dict(loss.zero_losses()), shard)
    group = centers.group[shard.ranks.own] if source.of_batch else centers.group
    has_center = group >= 0
    own = centers.points[torch.where(has_center, group, 0)]
    losses = torch.where(has_center, (samples - own).square().sum(-1) / 2, 0.0)
    return finished(loss, of_anchors(losses, torch.ones_like(group), shard), shard)


@global_value.register
def _(loss: CrossBatchMemory, shard: Shard, pairs: GivenPairs = None) -> Tensor:
    """Own rows against a queue that every process fills alike: constants, for which nothing is sent back."""
    by_rows = as_rows(loss.loss) is not None and (loss.miner is None or _selects_by_rows(loss.miner))
    is_in_use = loss.training and loss.seen >= loss.start
    is_plain = pairs is None and not shard.more and shard.references is None
    every, labels = shard.anchors.rows.detach(), shard.anchors.labels
    if labels is None or shard.labels is None or not (by_rows and is_in_use and is_plain):
        return computed_by_all(loss, shard, pairs)
    loss.check(every, labels, None, None)
    _pml.reset_stats(loss)
    loss.add_to_memory(every, labels, len(every))
    used = loss.memory_size if loss.has_been_filled else loss.queue_idx
    memory, of_memory, place = loss.embedding_memory[:used], loss.label_memory[:used], loss.curr_batch_idx
    anchors = torch.arange(len(shard.own), device=place.device)
    given = label_pairs(shard.labels, Queue(memory, of_memory, place[shard.ranks.own], anchors))
    if isinstance(loss.miner, PairMiner):
        given = loss.miner.masks(shard.own, None, memory, None, given)
    found = OwnPairs(*given) if isinstance(given, PairMasks) else given
    value = global_value(loss.loss, shard.against(memory, of_memory), found)
    # A sample that is not finite was not enqueued.
    return value + torch.where((place >= 0).all(), 0.0, torch.nan).to(value)


def mined(miner: nn.Module, loss: nn.Module, shard: Shard) -> GivenPairs:
    """What a miner finds: for own rows where it selects row by row, and of all samples otherwise."""
    if shard.anchors.labels is None:
        raise ValueError("a miner needs labels, got None")
    device = shard.own.device
    if _selects_by_rows(miner):
        assert isinstance(miner, PairMiner)
        shared = selection(miner, loss, shard)
        return mined_rows(miner, shard) if shared is None else shared
    if _draws_by_rows(miner):
        assert isinstance(miner, PairMiner)
        with own_random_numbers(shard.ranks.group, device):
            return mined_rows(miner, shard)
    every, labels = shard.anchors.rows.detach().to(shard.anchors.given.dtype), shard.anchors.labels
    refs: tuple[Any, ...] = ()
    if shard.references is not None:
        refs = shard.references.rows.detach().to(shard.references.given.dtype), shard.references.labels
    with same_random_numbers(shard.ranks.group, device):
        if not isinstance(miner, PairMiner):
            found: Any = _pml.mine(miner, every, labels, *refs)
        else:
            found = miner.masks(every, labels, *(refs or (every, labels)))
            miner.output_assertion(found)
    if isinstance(found, PairMasks):
        return OwnPairs(*(mask[shard.ranks.own] for mask in found))
    return AllPairs(found)


def _selects_by_rows(miner: nn.Module) -> bool:
    return isinstance(miner, PairMiner) and miner.is_row_function


def _draws_by_rows(miner: nn.Module) -> bool:
    """Whether a miner draws for each row by itself, from no stream of its own, which would be that of one process."""
    if isinstance(miner, miners.ChainedMiner):
        return all(_selects_by_rows(each) or _draws_by_rows(each) for each in miner.miners)
    return isinstance(miner, _DRAWING_BY_ROWS) and isinstance(miner, Seeded) and miner.seed is None


_DRAWING_BY_ROWS = (miners.DistanceWeightedMiner, miners.ExponentialPositiveMiner, miners.InverseDensityMiner)
