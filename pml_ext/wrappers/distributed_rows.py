"""Losses of own rows: the one place that knows how the shell computes the rows of a loss.

Row i of the pair matrix of all samples is row i - offset of the block of this process, whose references are all: the
engine is asked for that block, with the relation of the whole matrix from row `offset` on.
"""

from collections.abc import Callable
from functools import partial

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_ext.base import RowLoss, in_full
from pml_ext.blocks import GatheredSides, LabelSides, LossRows, MaskSides, Members, Sided
from pml_ext.closed_form import Sides
from pml_ext.engine import row_losses
from pml_ext.masked import Counted, looks_are_free, not_self
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import PairMasks, PrivateMasks, RowMasks, Selected, label_masks, relation_of, wide
from pml_ext.wrappers.anchor_weighted import AnchorWeightedLoss, _WeightedRows
from pml_ext.wrappers.base import is_row_loss
from pml_ext.wrappers.distributed_batch import AllPairs, OwnPairs, Shard, own_pairs
from pml_ext.wrappers.mined import shares_scores


def as_rows(loss: BaseMetricLossFunction) -> RowLoss | None:
    """The loss as one of rows that are computed each by itself, or None if it is none."""
    if is_row_loss(loss):
        rows: RowLoss = loss
        return rows
    if isinstance(loss, AnchorWeightedLoss) and is_row_loss(loss.loss):
        return _WeightedRows(loss.loss, alpha=loss.alpha)
    return None


def selection(miner: PairMiner, loss: BaseMetricLossFunction, dimension: int) -> Selected | None:
    """A miner's selection, to be made by a loss of rows among its own scores; None if it cannot."""
    if not shares_scores(miner, loss):
        return None
    miner.embedding_size = dimension
    return Selected(miner.narrow)


def mined_rows(miner: PairMiner, shard: Shard) -> OwnPairs:
    """What a miner finds for own rows among all references."""
    miner.reset_stats()
    found = miner.masks(shard.own, None, shard.refs, None, own_pairs(shard, None))
    miner.output_assertion(found)
    return OwnPairs(*found)


def own_losses(
    loss: RowLoss, shard: Shard, pairs: AllPairs | OwnPairs | Selected | PrivateMasks | None
) -> tuple[Tensor, Tensor]:
    """Losses of own rows [n_r], differentiable by own embeddings and references, and what each adds to the divisor."""
    x, refs = in_full(shard.own, shard.refs)
    assert refs is not None
    n, m = len(x), len(refs)
    if n == 0:
        return x.sum(-1), torch.zeros(0, dtype=torch.long, device=x.device)
    masks = _masks(shard, pairs)
    selected = pairs if isinstance(pairs, Selected) else None

    def plain(rows: Tensor, references: Tensor | None) -> Counted:
        relation = relation_of(wide(masks, n), selected)

        def block(part: Tensor, references: Tensor, start: int) -> Counted:
            sim = loss.similarity(part, references)
            return loss.anchors(sim, *relation(sim, start))

        references = rows if references is None else references
        if loss.chunk_size is None or loss.chunk_size >= n:
            return block(rows, references, 0)
        starts = range(0, n, loss.chunk_size)
        parts = [
            checkpoint(block, part, references, start, use_reentrant=False, preserve_rng_state=False)
            for part, start in zip(rows.split(loss.chunk_size), starts, strict=True)
        ]
        return Counted(*(torch.cat(each) for each in zip(*parts, strict=True)))

    similarity = loss.known_similarity()
    if similarity is None or m == 0:
        return plain(x, refs)
    relation = relation_of(masks, selected)
    sides: Sided | _From | None = None
    if loss.closed_form is not None:
        sides = _sides(shard, x.dtype) if pairs is None else MaskSides(relation)
    rows = LossRows(
        relation=relation,
        sides=sides,  # type: ignore[arg-type]
        closed_form=loss.closed_form and partial(loss.closed_form, **loss.hyperparameters()),
        per_anchor=loss.anchors,
        plain=lambda own, references: plain(own, references).losses,
        needs=loss.needs,
        private=isinstance(pairs, PrivateMasks),
    )
    with torch.autocast(x.device.type, enabled=False):
        return row_losses(x, refs, similarity, rows.weigh, rows.plain, chunk_size=loss.chunk_size, private=rows.private)


def _masks(shard: Shard, pairs: AllPairs | OwnPairs | Selected | PrivateMasks | None) -> RowMasks:
    """The masks of a range of own rows."""
    if isinstance(pairs, PrivateMasks):
        return lambda start, stop: PrivateMasks(pairs.pos[start:stop], pairs.neg[start:stop])
    if isinstance(pairs, (AllPairs, OwnPairs)):
        whole = own_pairs(shard, pairs)
        return lambda start, stop: PairMasks(whole.pos[start:stop], whole.neg[start:stop])
    labels, ref_labels, offset = shard.labels, shard.ref_labels, shard.offset
    if labels is None or ref_labels is None:
        raise ValueError("the pairs are unknown: give labels or an indices_tuple")
    m, device = len(ref_labels), shard.own.device

    def masks(start: int, stop: int) -> PairMasks:
        pos, neg = label_masks(labels[start:stop], ref_labels)
        if offset is None:
            return PairMasks(pos, neg)
        return PairMasks(pos & not_self(offset + start, offset + stop, m, device), neg)

    return masks


def _sides(shard: Shard, dtype: torch.dtype) -> "Sided | _From":
    """The two sides of blocks of own rows: those of the batch of all from row `offset` on."""
    labels, ref_labels = shard.labels, shard.ref_labels
    assert labels is not None
    assert ref_labels is not None
    same = shard.offset is not None
    if looks_are_free(labels):
        members = Members.of(ref_labels if same else labels, ref_labels, same)
        if members is not None:
            gathered = GatheredSides(members, len(ref_labels), same, dtype)
            return _From(gathered, shard.ranks.offset) if same else gathered
    if same:
        return _From(LabelSides(ref_labels, ref_labels, True, dtype), shard.ranks.offset)
    return LabelSides(labels, ref_labels, False, dtype)


class _From:
    """The sides of the rows from an offset on."""

    def __init__(self, sides: GatheredSides | LabelSides, offset: int) -> None:
        self.sides, self.offset, self.complete = sides, offset, sides.complete

    def __call__(self, sim: Tensor, start: int) -> Sides:
        return self.sides(sim, start + self.offset)

    @property
    def columns(self) -> Callable[[int, int], Tensor | None]:
        return lambda start, stop: self.sides.columns(start + self.offset, stop + self.offset)
