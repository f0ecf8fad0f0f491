"""Losses of own rows: the one place that knows how the shell computes the rows of a loss.

Row i of the pair matrix of all samples is row i - offset of the block of this process, whose references are all: the
engine is asked for that block, with the relation of the whole matrix from row `offset` on.
"""

from typing import NamedTuple

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from pml_ext import _pml
from pml_ext.base import RowLoss
from pml_ext.by_autograd import PerAnchor
from pml_ext.engine import Form
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import ByLabels, ByMasks, Narrowed, Pairs
from pml_ext.vectors import in_full
from pml_ext.wrappers.anchor_weighted import AnchorWeightedLoss
from pml_ext.wrappers.base import runs_by_rows
from pml_ext.wrappers.distributed_batch import AllPairs, GivenPairs, OwnPairs, Shard, own_pairs
from pml_ext.wrappers.mined import shares_scores


class Rows(NamedTuple):
    """A loss of rows that are computed each by itself, or what is made of it anchor by anchor.

    Args:
        loss: whose scores, needs and chunks they have.
        per_anchor: losses of rows from scores and masks.
        form: the closed form, or None.
    """

    loss: RowLoss
    per_anchor: PerAnchor
    form: Form | None


def as_rows(loss: BaseMetricLossFunction) -> Rows | None:
    """The loss as one of rows that are computed each by itself, or None if it is none."""
    if runs_by_rows(loss):
        rows: RowLoss = loss
        return Rows(rows, rows.per_anchor, rows.form())
    if isinstance(loss, AnchorWeightedLoss) and runs_by_rows(loss.loss):
        return Rows(loss.loss, *loss.of_rows(loss.loss))
    return None


def selection(miner: PairMiner, loss: BaseMetricLossFunction, shard: Shard) -> Narrowed | None:
    """A miner's selection, to be made by a loss of rows among its own scores; None if it cannot."""
    if not shares_scores(miner, loss):
        return None
    miner.embedding_size = shard.own.shape[1]
    return Narrowed(_by_labels(shard), miner.narrow)


def mined_rows(miner: PairMiner, shard: Shard) -> OwnPairs:
    """What a miner finds for own rows among all references."""
    _pml.reset_stats(miner)
    found = miner.masks(shard.own, None, shard.refs, None, own_pairs(shard, None))
    miner.output_assertion(found)
    return OwnPairs(*found)


def own_losses(rows: Rows, shard: Shard, pairs: GivenPairs) -> tuple[Tensor, Tensor]:
    """Losses of own rows [n_r], differentiable by own embeddings and references, and what each adds to the divisor."""
    x, refs = in_full(shard.own, shard.refs)
    n = len(x)
    if n == 0:
        return x.sum(-1), torch.zeros(0, dtype=torch.long, device=x.device)
    of_rows: Pairs
    if isinstance(pairs, Pairs):
        of_rows = pairs
    elif isinstance(pairs, (AllPairs, OwnPairs)):
        of_rows = ByMasks(own_pairs(shard, pairs))
    else:
        of_rows = _by_labels(shard)
    losses, counts = rows.loss.counted(of_rows, x, refs, rows.per_anchor, rows.form)
    return losses, torch.full((n,), counts, device=x.device) if isinstance(counts, int) else counts


def _by_labels(shard: Shard) -> ByLabels:
    """All pairs of own rows, without those of a sample with itself."""
    labels, ref_labels = shard.labels, shard.ref_labels
    if labels is None or ref_labels is None:
        raise ValueError("labels or an indices_tuple must be given, got None for both")
    own = None if shard.offset is None else torch.arange(len(labels), device=labels.device) + shard.offset
    return ByLabels(labels, ref_labels, own=own)
