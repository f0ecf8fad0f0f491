"""Stock miners of PML that give masks instead of lists."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from pytorch_metric_learning import miners
from torch import Tensor

from pml_ext import thresholds
from pml_ext.stock.incidence import PAIRS, TRIPLETS, Incidence, Negatives, by_labels
from pml_ext.stock.mined import Lists, Mined, Shape
from pml_ext.stock.scores import blocks, is_finite


@dataclass(frozen=True)
class Batch:
    """What a miner chooses from: scores as its distance gives them, and all pairs of the labels.

    Args:
        scores: [n, m].
        sign: -1 where they are similarities.
        pairs: of the labels.
        width: dimension of the embeddings.
    """

    scores: Tensor
    sign: float
    pairs: Incidence
    width: int

    @property
    def shape(self) -> Shape:
        """As `Mined` keeps it."""
        return len(self.scores), self.scores.shape[1], self.scores.dtype, self.scores.device


def listed(pairs: Incidence) -> Lists:
    """Index lists of positives and negatives, by rows and then by columns."""
    anchors, slots = (pairs.counts > 0).nonzero(as_tuple=True)
    far = pairs.negatives
    there = torch.empty(len(pairs.positives), pairs.columns, device=anchors.device)
    return (anchors, pairs.positives[anchors, slots], *far.present(there).nonzero(as_tuple=True))


def chosen_pairs(batch: Batch, near: Tensor, far: Tensor) -> Incidence:
    """Of all pairs those that two masks [n, k] and [n, m] keep."""
    counts = near.to(batch.scores.dtype)
    negatives = Negatives(None, ~far, None, far.sum(1).to(counts.dtype))
    return replace(batch.pairs, kind=PAIRS, counts=counts, negatives=negatives)


def multi_similarity(miner: Any, batch: Batch) -> Mined:
    """Positives farther than the nearest negative less epsilon, negatives nearer than the farthest positive plus it."""
    pairs, sign = batch.pairs, batch.sign
    there = pairs.counts > 0
    near = batch.scores.gather(1, pairs.positives) * sign
    farthest = _extreme(near.masked_fill(~there, -torch.inf), largest=True)
    far = torch.empty(batch.scores.shape, dtype=torch.bool, device=near.device)
    nearest = torch.empty_like(farthest)
    for start, stop in blocks(*batch.scores.shape):
        part = pairs.negatives.rows(start, stop).blank(batch.scores[start:stop] * sign, torch.inf)
        nearest[start:stop] = _extreme(part, largest=False)
        torch.lt(part.sub_(miner.epsilon), farthest[start:stop, None], out=far[start:stop])
    found = chosen_pairs(batch, there & (near + miner.epsilon > nearest[:, None]), far)

    def lists() -> Lists:
        anchors, positives, others, negatives = listed(found)
        return *_by_score(batch.scores, anchors, positives), *_by_score(batch.scores, others, negatives)

    return Mined(4, batch.shape, lists, lambda: found)


def _by_score(scores: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort(scores[rows, columns], stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    return rows[order], columns[order]


def _extreme(values: Tensor, *, largest: bool) -> Tensor:
    if values.shape[1] == 0:
        return values.new_full((len(values),), -torch.inf if largest else torch.inf)
    return values.amax(1) if largest else values.amin(1)


def pair_margin(miner: Any, batch: Batch) -> Mined:
    """Positives beyond one margin, negatives within another."""
    pairs, sign = batch.pairs, batch.sign
    near = batch.scores.gather(1, pairs.positives) * sign
    far = torch.empty(batch.scores.shape, dtype=torch.bool, device=near.device)
    for start, stop in blocks(*batch.scores.shape):
        part = pairs.negatives.rows(start, stop).blank(batch.scores[start:stop] * sign, torch.inf)
        torch.lt(part, sign * miner.neg_margin, out=far[start:stop])
    found = chosen_pairs(batch, (pairs.counts > 0) & (near > sign * miner.pos_margin), far)
    return Mined(4, batch.shape, lambda: listed(found), lambda: found)


def easy_and_hard(miner: Any, batch: Batch) -> Lists:
    """One positive and one negative of each row."""
    near, far = miner.pos_strategy, miner.neg_strategy
    first_far = near == miner.SEMIHARD
    positives: tuple[Tensor, Tensor, Tensor]
    if first_far:
        negatives = _one(miner, batch, positive=False, bound=None)
        positives = _one(miner, batch, positive=True, bound=negatives[0])
    else:
        positives = _one(miner, batch, positive=True, bound=None)
        negatives = _one(miner, batch, positive=False, bound=positives[0] if far == miner.SEMIHARD else None)
    (rows,) = (positives[2] & negatives[2]).nonzero(as_tuple=True)
    return rows, positives[1][rows], rows, negatives[1][rows]


def _one(miner: Any, batch: Batch, *, positive: bool, bound: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Score and column of the chosen pair of each row, and whether there is one; of equal ones PML's own choice."""
    strategy = miner.pos_strategy if positive else miner.neg_strategy
    nearest = (strategy == miner.EASY) == positive
    largest = nearest == (batch.sign < 0)
    fill = torch.finfo(batch.scores.dtype).min if largest else torch.finfo(batch.scores.dtype).max
    pairs, scores = batch.pairs, batch.scores
    if positive:
        there = pairs.counts > 0
        values = scores.gather(1, pairs.positives)
        keep = there & _allowed(values, miner.allowed_pos_range, bound, largest)
        candidates = _placed(scores, pairs.positives, torch.where(keep, values, fill), there, fill)
        exists = keep.any(1)
    else:
        candidates = pairs.negatives.blank(scores.clone(), fill)
        keep = _allowed(scores, miner.allowed_neg_range, bound, largest)
        if keep is not True:
            candidates.masked_fill_(~keep, fill)
        exists = (candidates != fill).any(1)
    found = candidates.max(1) if largest else candidates.min(1)
    return found.values, found.indices, exists


def _placed(scores: Tensor, columns: Tensor, values: Tensor, there: Tensor, fill: float) -> Tensor:
    out = torch.full_like(scores, fill)
    rows, slots = there.nonzero(as_tuple=True)
    out[rows, columns[rows, slots]] = values[rows, slots]
    return out


def _allowed(values: Tensor, limits: Any, bound: Tensor | None, largest: bool) -> Any:
    keep: Any = True
    if limits is not None:
        keep = (values >= limits[0]) & (values <= limits[1])
    if bound is not None:
        beyond = values < bound[:, None] if largest else values > bound[:, None]
        keep = beyond if keep is True else keep & beyond
    return keep


@dataclass(frozen=True)
class Triplets:
    """A choice among all triplets of the labels: `low < D_in - D_ip <= high`.

    Args:
        distances: [n, m], by the miner's distance, small is near.
        pairs: of the labels.
        low: exclusive, or None.
        high: inclusive, or None.
    """

    distances: Tensor
    pairs: Incidence
    low: float | None
    high: float | None

    def chosen(self, difference: Tensor) -> Tensor:
        """Which of `D_ip - D_in` are chosen; the sign of a difference is exact."""
        if self.low is None:
            return difference >= -self.high if self.high is not None else torch.ones_like(difference, dtype=torch.bool)
        keep = difference < -self.low
        return keep if self.high is None else keep & (difference >= -self.high)

    def masks(self, start: int, stop: int) -> list[Tensor]:
        """Chosen negatives of each positive of some rows, a mask [r, m] a slot."""
        distances, pairs = self.distances[start:stop], self.pairs.rows(start, stop)
        far = pairs.negatives.blank(distances.clone(), torch.nan)  # compares with nothing
        near = distances.gather(1, pairs.positives).masked_fill(pairs.counts == 0, torch.nan)
        return [self.chosen(near[:, slot, None] - far) for slot in range(near.shape[1])]

    def incidence(self) -> Incidence:
        """How often each pair is in a chosen triplet."""
        far = torch.zeros_like(self.distances)
        near = torch.zeros_like(self.pairs.counts)
        for start, stop in blocks(*self.distances.shape):
            for slot, mask in enumerate(self.masks(start, stop)):
                far[start:stop] += mask
                near[start:stop, slot] = mask.sum(1)
        return replace(self.pairs, kind=TRIPLETS, counts=near, negatives=Negatives(None, far == 0, far, far.sum(1)))

    def lists(self) -> Lists:
        """The triplets, by anchor, positive and negative."""
        parts: list[Tensor] = []
        for start, stop in blocks(*self.distances.shape):
            masks = self.masks(start, stop)
            if masks:
                rows, slots, columns = torch.stack(masks, 1).nonzero(as_tuple=True)
                rows = rows + start
                parts.append(torch.stack([rows, self.pairs.positives[rows, slots], columns]))
        empty = torch.empty(3, 0, dtype=torch.long, device=self.distances.device)
        found = torch.cat([empty, *parts], 1)
        return found[0], found[1], found[2]


def triplet_margin(miner: Any, batch: Batch) -> Mined:
    """Triplets by the difference of their distances."""
    kind, margin = miner.type_of_triplets, miner.margin
    low, high = {
        "hard": (None, min(margin, 0)),
        "semihard": (0, margin),
        "easy": (margin, None),
    }.get(kind, (None, margin))
    chosen = Triplets(batch.scores * batch.sign, batch.pairs, low, high)
    return Mined(3, batch.shape, chosen.lists, chosen.incidence, chosen)


def hard_share(miner: Any, batch: Batch) -> Mined:
    """Of all pairs of the batch a share of the farthest positives and of the nearest negatives; the hardest first."""
    pairs, scores = batch.pairs, batch.scores
    far_is_largest = batch.sign > 0
    rows, slots = (pairs.counts > 0).nonzero(as_tuple=True)
    columns = pairs.positives[rows, slots]
    first = _first(scores[rows, columns], miner.filter_percentage, largest=far_is_largest)
    near = torch.zeros_like(pairs.counts, dtype=torch.bool)
    near[rows[first], slots[first]] = True
    there = pairs.negatives.present(scores)
    values = scores[there]
    number = _number(values, miner.filter_percentage)
    far = there.masked_scatter(there, _share(values, number, largest=not far_is_largest))
    found = chosen_pairs(batch, near, far)

    def lists() -> Lists:
        order = torch.topk(scores[there], number, largest=not far_is_largest).indices
        others, negatives = there.nonzero(as_tuple=True)
        return rows[first], columns[first], others[order], negatives[order]

    return Mined(4, batch.shape, lists, lambda: found)


def _number(values: Tensor, share: float) -> int:
    return math.ceil(share * len(values))


def _first(values: Tensor, share: float, *, largest: bool) -> Tensor:
    return torch.topk(values, _number(values, share), largest=largest).indices


def _share(values: Tensor, number: int, *, largest: bool) -> Tensor:
    """Which of the values are the `number` largest or smallest; of equal ones those that topk takes, as PML does."""
    if number == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    level = values.kthvalue(len(values) - number + 1 if largest else number).values
    keep = values >= level if largest else values <= level
    if int(keep.sum()) == number:
        return keep
    keep = torch.zeros_like(keep)
    keep[torch.topk(values, number, largest=largest).indices] = True
    return keep


# Numbers of scores from which PML's own is slower, as measured.
_PAYS_FROM = 1 << 13

MINERS: dict[type, Any] = {
    miners.BatchEasyHardMiner: easy_and_hard,
    miners.BatchHardMiner: easy_and_hard,
    miners.HDCMiner: hard_share,
    miners.MultiSimilarityMiner: multi_similarity,
    miners.PairMarginMiner: pair_margin,
    miners.TripletMarginMiner: triplet_margin,
}


class AcceleratedMiner:
    """What an accelerated class has before its stock class; see `pml_ext.accelerate`."""

    stock: Any
    _last: Any = None

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Any:
        """As the stock miner; the tuple is made when it is looked at."""
        self._last = None
        if _is_stock(self, embeddings, labels, ref_emb, ref_labels):
            return self.stock.forward(self, embeddings, labels, ref_emb, ref_labels)
        with torch.no_grad():
            labels = labels.to(embeddings.device)
            others = labels if ref_emb is None or ref_labels is None else ref_labels.to(ref_emb.device)
            references = embeddings if ref_emb is None else ref_emb
            distance = self.distance  # type: ignore[attr-defined]
            scores = distance(embeddings, references)
            pairs = by_labels(labels, others, without_self=others is labels, dtype=scores.dtype)
            batch = Batch(scores, -1.0 if distance.is_inverted else 1.0, pairs, embeddings.shape[1])
            found = MINERS[self.stock](self, batch)
            if self.stock is miners.BatchHardMiner:
                found = (found[0], found[1], found[3])
        self._last = found
        return found

    def _count(self, size: int, place: int) -> int:
        last = self._last
        return len(last[place]) if last is not None and len(last) == size else 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.stock,), {name: value for name, value in self.__dict__.items() if name != "_last"}


def _counter(name: str, size: int, place: int) -> property:
    def read(self: Any) -> int:
        return int(self.__dict__[name]) if self._last is None and name in self.__dict__ else self._count(size, place)

    def write(self: Any, value: int) -> None:
        self.__dict__[name] = value

    return property(read, write)


def _is_stock(miner: Any, embeddings: Any, labels: Any, ref_emb: Any, ref_labels: Any) -> bool:
    """Whether PML's own has to run: statistics, half precision, errors, and what PML has a word of its own for."""
    if miner.collect_stats or miner.distance.collect_stats:
        return True
    given = [embeddings] if ref_emb is None else [embeddings, ref_emb]
    if not all(isinstance(each, Tensor) and each.ndim == 2 and len(each) for each in given):
        return True
    if any(each.dtype != embeddings.dtype or each.dtype not in (torch.float32, torch.float64) for each in given):
        return True
    if torch.is_autocast_enabled(embeddings.device.type):
        return True
    if any(not is_finite(each) for each in given):
        return True
    fits = isinstance(labels, Tensor) and labels.ndim == 1 and len(labels) == len(embeddings)
    if not fits or (ref_emb is None) != (ref_labels is None):
        return True
    if ref_emb is not None:
        if not isinstance(ref_labels, Tensor) or ref_labels.ndim != 1 or len(ref_labels) != len(ref_emb):
            return True
        if (ref_emb is embeddings) != (ref_labels is labels):  # which of both says what a sample itself is
            return True
    if len(embeddings) * len(given[-1]) < _PAYS_FROM * thresholds.STOCK_PAYS:
        return True
    if isinstance(miner, miners.BatchEasyHardMiner):
        return miner.ALL in (miner.pos_strategy, miner.neg_strategy)
    if isinstance(miner, miners.HDCMiner):  # whose candidates may come from another miner
        return bool(miner.was_set_externally) or not 0 <= miner.filter_percentage <= 1
    return False


@cache
def accelerated_class(stock: type) -> type:
    """The class of accelerated miners of a stock class; it has the same name."""
    space: dict[str, Any] = {"stock": stock, "__doc__": stock.__doc__, "__module__": __name__}
    for name, size, place in (("num_triplets", 3, 0), ("num_pos_pairs", 4, 0), ("num_neg_pairs", 4, 2)):
        space[name] = _counter(name, size, place)
    return type(stock.__name__, (AcceleratedMiner, stock), space)


def _blank(stock: type) -> Any:
    made: Any = accelerated_class(stock)
    return made.__new__(made)


def accelerated_miner(miner: Any) -> Any:
    """The accelerated twin of a stock miner: same modules, its own attributes."""
    made = _blank(miner.stock if isinstance(miner, AcceleratedMiner) else type(miner))
    state = dict(miner.__dict__)
    for name, value in state.items():
        if name in ("_parameters", "_buffers", "_modules") or "_hooks" in name:
            state[name] = copy.copy(value)
    made.__dict__.update(state)
    made.__dict__["_last"] = None
    return made


__all__ = ["MINERS", "AcceleratedMiner", "Triplets", "accelerated_miner"]
