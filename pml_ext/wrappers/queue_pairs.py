"""Which pairs a batch has with a queue: those of its labels, those that a miner finds, and those that are given."""

from typing import Any, NamedTuple, final

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

from pml_ext import _pml
from pml_ext.masked import masked_max, masked_min
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import ByLabels, IndicesTuple, PairMasks, Pairs


class Queue(NamedTuple):
    """What the anchors of a batch are compared with.

    Args:
        embeddings: [m, d].
        labels: [m].
        slots: where each sample of the batch is among them [N], -1 if it is not.
        anchors: which samples of the batch are anchors [n].
        there: which of the m are in use, [m]; None for all.
    """

    embeddings: Tensor
    labels: Tensor
    slots: Tensor
    anchors: Tensor
    there: Tensor | None = None

    @property
    def own(self) -> Tensor:
        """Where each anchor itself is, [n], -1 if it is not."""
        return self.slots[self.anchors]


def label_pairs(labels: Tensor, queue: Queue) -> ByLabels | PairMasks:
    """All pairs of the anchors with the queue but those of a sample with itself: labels [n]."""
    pairs = ByLabels(labels, queue.labels, own=queue.own)
    if queue.there is None:
        return pairs
    pos, neg = pairs.masks(labels, 0)
    return PairMasks(pos & queue.there, neg & queue.there)


def older_pairs(queue: Queue) -> PairMasks:
    """What was in the queue before the batch, as negatives of every anchor: masks [n, m]."""
    column = torch.arange(len(queue.labels), device=queue.slots.device)
    older = (column.unsqueeze(-1) != queue.slots).all(-1)
    older = older if queue.there is None else older & queue.there
    neg = older.expand(len(queue.anchors), -1)
    return PairMasks(torch.zeros_like(neg), neg)


def given_masks(given: IndicesTuple, batch: Tensor, queue: Queue) -> PairMasks:
    """Pairs within a batch [N, d], those of anchors with what is in the queue, as masks of the queue [n, m]."""
    size = len(queue.labels)
    place = torch.where(queue.slots < 0, size, queue.slots)  # a spare column for those that are not in the queue

    def moved(mask: Tensor) -> Tensor:
        wide = torch.zeros(len(queue.anchors), size + 1, dtype=torch.bool, device=mask.device)
        return wide.index_copy(1, place, mask[queue.anchors])[:, :size]

    return PairMasks(*map(moved, _of_batch(given, batch)))


def given_indices(given: IndicesTuple, batch: Tensor, queue: Queue) -> tuple[Tensor, ...]:
    """The same as indices: three for triplets, four for pairs, in the order in which they were given."""
    pairs = _of_batch(given, batch)
    indices = given if isinstance(given, tuple) and not isinstance(given, PairMasks) else pairs.indices()
    row = torch.full_like(queue.slots, -1)
    row[queue.anchors] = torch.arange(len(queue.anchors), device=row.device)

    def moved(a: Tensor, *others: Tensor) -> list[Tensor]:
        found = [row[a], *(torch.where(other == a, -1, queue.slots[other]) for other in others)]
        there = torch.stack(found).ge(0).all(0)
        return [index[there] for index in found]

    a, *others = (index.to(row.device, torch.long) for index in indices)
    return tuple(moved(a, *others) if len(indices) == 3 else moved(a, others[0]) + moved(*others[1:]))


def _of_batch(given: IndicesTuple, batch: Tensor) -> PairMasks:
    """Pairs within a batch [N, d] as masks [N, N], after a check."""
    return Pairs.of(batch, None, given, batch, None).masks(batch, 0)


def mined_masks(
    miner: PairMiner, embeddings: Tensor, labels: Tensor | None, queue: Queue, pairs: Pairs | PairMasks
) -> PairMasks:
    """What a miner of ours finds among the pairs [n, m]; it records the statistics of a call."""
    _pml.reset_stats(miner)
    found = miner.masks(embeddings, labels, queue.embeddings, queue.labels, pairs)
    miner.output_assertion(found)
    return found


def mined_indices(miner: BaseMiner, embeddings: Tensor, labels: Tensor, queue: Queue) -> tuple[Tensor, ...]:
    """What any miner finds for the anchors in the queue, where no sample has a pair with itself."""
    own = queue.own
    within = (own >= 0).nonzero().squeeze(1)
    if len(within) == 0:
        found: Any = _pml.mine(miner, embeddings, labels, queue.embeddings, queue.labels)
        return tuple(found)
    if type(miner) in _pml.miners_named("MultiSimilarityMiner"):
        ours = _MultiSimilarity(miner.epsilon, distance=miner.distance)
        masks = ours.masks(embeddings, labels, queue.embeddings, queue.labels, label_pairs(labels, queue))
        _pml.count_mined(miner, masks.indices())
        return masks.indices()
    # The anchors first, so that a pair of a sample with itself is on the diagonal.
    rest = torch.ones(len(queue.labels), dtype=torch.bool, device=own.device)
    rest[own[within]] = False
    order = torch.cat((own[within], rest.nonzero().squeeze(1)))
    refs, ref_labels = queue.embeddings[order], queue.labels[order]
    found = _pml.mined_without_diagonal(miner, embeddings[within], labels[within], refs, ref_labels)
    if found is None:
        found = of_anchors(miner(refs, ref_labels), len(within))
    columns = (0,) if len(found) == 3 else (0, 2)
    return tuple(within[x] if i in columns else order[x] for i, x in enumerate(found))


def of_anchors(found: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
    """The pairs or triplets of the first anchors only."""
    if len(found) == 3:
        keep = found[0] < number
        return tuple(x[keep] for x in found)
    keep, keep_neg = found[0] < number, found[2] < number
    return found[0][keep], found[1][keep], found[2][keep_neg], found[3][keep_neg]


@final
class _MultiSimilarity(PairMiner):
    """PML's miner of that name, which takes scores of a sample with itself for those of a pair."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """Positives hardly closer than the nearest negative, negatives hardly farther than the farthest positive."""
        return (
            pos & (sim - self.epsilon < masked_max(sim, neg)),
            neg & (sim + self.epsilon > masked_min(sim, pos)),
        )
