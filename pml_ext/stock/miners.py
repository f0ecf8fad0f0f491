"""Stock miners of PML that return masks instead of lists."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import miners
from torch import Tensor

from pml_ext import thresholds
from pml_ext.similarity import is_enabled
from pml_ext.stock.chosen import Batch, by_rule, hard_share, multi_similarity, pair_margin
from pml_ext.stock.chosen_triplets import triplet_margin
from pml_ext.stock.easy_and_hard import easy_and_hard
from pml_ext.stock.incidence import by_labels
from pml_ext.stock.mined import Lists, Mined
from pml_ext.stock.miner_scores import MinerScores
from pml_ext.stock.scores import is_finite


def batch_hard(miner: Any, batch: Batch) -> Lists:
    """The hardest positive and the hardest negative of each anchor."""
    anchors, positives, _, negatives = easy_and_hard(miner, batch).lists()
    return anchors, positives, negatives


class Way(NamedTuple):
    """How a miner chooses without lists.

    Args:
        choose: returns the pairs or triplets of a batch.
        pays_from: number of scores from which PML's own code is slower, measured together with a loss.
    """

    choose: Callable[[Any, Batch], Mined | Lists]
    pays_from: int


MINERS: dict[type, Way] = {
    miners.BatchEasyHardMiner: Way(easy_and_hard, 1 << 15),
    miners.BatchHardMiner: Way(batch_hard, 1 << 15),
    miners.HDCMiner: Way(hard_share, 1 << 13),
    miners.MultiSimilarityMiner: Way(
        lambda miner, batch: by_rule(batch, multi_similarity(miner), by_score=True), 1 << 12
    ),
    miners.PairMarginMiner: Way(lambda miner, batch: by_rule(batch, pair_margin(miner), by_score=False), 1 << 15),
    miners.TripletMarginMiner: Way(triplet_margin, 1 << 12),
}


class AcceleratedMiner:
    """The base of an accelerated class that comes before its stock class; see `pml_ext.accelerate`."""

    stock: Any
    _chunk_size: int | None = None
    _last: Any = None

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Any:
        """As the stock miner; the index tensors are computed when they are read."""
        self._last = None
        if _is_stock(self, embeddings, labels, ref_emb, ref_labels):
            return self.stock.forward(self, embeddings, labels, ref_emb, ref_labels)
        with torch.no_grad():
            labels = labels.to(embeddings.device)
            others = labels if ref_emb is None or ref_labels is None else ref_labels.to(ref_emb.device)
            references = None if ref_emb is None or ref_emb is embeddings else ref_emb
            chunk_size = None if self.stock is miners.HDCMiner else self._chunk_size  # HDCMiner sorts all pairs
            scores = MinerScores(self.distance, embeddings, references, chunk_size)  # type: ignore[attr-defined]
            pairs = by_labels(labels, others, without_self=others is labels, dtype=scores.shape[2])
            found = MINERS[self.stock].choose(self, Batch(scores, pairs))
        self._last = found
        return found

    def _count(self, size: int, place: int) -> int:
        last = self._last
        if last is None or len(last) != size:
            return 0
        lazy = isinstance(last, Mined) and not last.is_made
        return int(last.incidence().lengths()[place > 0]) if lazy else len(last[place])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.stock,), {name: value for name, value in self.__dict__.items() if name != "_last"}


def _counter(name: str, size: int, place: int) -> property:
    def read(self: Any) -> int:
        return int(self.__dict__[name]) if self._last is None and name in self.__dict__ else self._count(size, place)

    def write(self: Any, value: int) -> None:
        self.__dict__[name] = value

    return property(read, write)


def _is_stock(miner: Any, embeddings: Any, labels: Any, ref_emb: Any, ref_labels: Any) -> bool:
    """Whether PML's own code has to run: small batches, statistics, half precision, and input that PML may refuse."""
    given = [embeddings] if ref_emb is None else [embeddings, ref_emb]
    if not all(isinstance(each, Tensor) and each.ndim == 2 and each.numel() for each in given):
        return True
    if not is_enabled() or len(given[0]) * len(given[-1]) < MINERS[miner.stock].pays_from * thresholds.STOCK_PAYS:
        return True
    if miner.collect_stats or miner.distance.collect_stats:
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
        if (ref_emb is embeddings) != (ref_labels is labels):  # it is not clear whether the references are the batch
            return True
    if isinstance(miner, miners.BatchEasyHardMiner):
        return miner.ALL in (miner.pos_strategy, miner.neg_strategy)
    if isinstance(miner, miners.HDCMiner):  # its candidates may come from another miner
        return bool(miner.was_set_externally) or not 0 <= miner.filter_percentage <= 1
    return False


@cache
def accelerated_class(stock: type) -> type:
    """The accelerated class of a stock miner; it has the same name."""
    space: dict[str, Any] = {"stock": stock, "__doc__": stock.__doc__, "__module__": __name__}
    for name, size, place in (("num_triplets", 3, 0), ("num_pos_pairs", 4, 0), ("num_neg_pairs", 4, 2)):
        space[name] = _counter(name, size, place)
    return type(stock.__name__, (AcceleratedMiner, stock), space)


def _blank(stock: type) -> Any:
    made: Any = accelerated_class(stock)
    return made.__new__(made)


def accelerated_miner(miner: Any, *, chunk_size: int | None) -> Any:
    """An accelerated copy of a stock miner that shares its modules, but not its attributes."""
    made = _blank(miner.stock if isinstance(miner, AcceleratedMiner) else type(miner))
    state = dict(miner.__dict__)
    for name, value in state.items():
        if name in ("_parameters", "_buffers", "_modules") or "_hooks" in name:
            state[name] = copy.copy(value)
    made.__dict__.update(state)
    made.__dict__.update(_chunk_size=chunk_size, _last=None)
    return made


__all__ = ["MINERS", "AcceleratedMiner", "accelerated_miner"]
