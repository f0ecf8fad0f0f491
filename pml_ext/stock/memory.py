"""PML's CrossBatchMemory, which passes masks to an accelerated loss instead of all pairs with the queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from pml_ext.stock.chosen import listed
from pml_ext.stock.chosen_triplets import Triplets
from pml_ext.stock.incidence import PAIRS, Incidence, blocks, by_labels
from pml_ext.stock.loss import AcceleratedLoss
from pml_ext.stock.mined import Lists, Mined
from pml_ext.stock.miners import AcceleratedMiner


class AcceleratedMemory:
    """The base of an accelerated CrossBatchMemory that comes before its stock class."""

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        memory: Tensor,
        memory_labels: Tensor,
        given: Any,
        without_own: bool,
    ) -> Any:
        """As in PML; the lists are computed when they are read."""
        miner = self.miner  # type: ignore[attr-defined]
        masked = isinstance(self.loss, AcceleratedLoss) and (miner is None or isinstance(miner, AcceleratedMiner))  # type: ignore[attr-defined]
        # PML pairs the only sample of a batch with itself, and appends a given tuple to its lists.
        if given is None and masked and len(embeddings) > 1:
            if miner is None:
                pairs = by_labels(labels, memory_labels, without_self=False, dtype=embeddings.dtype)
                pairs = replace(pairs, kind=PAIRS)
                shape = (len(embeddings), len(memory), embeddings.dtype, embeddings.device)
                parts = blocks(len(embeddings), len(memory))
                found: Any = Mined(4, shape, lambda: listed(pairs, parts), lambda: pairs)
            else:
                found = miner(embeddings, labels, memory, memory_labels)
            if isinstance(found, Mined):
                return without_places(found, self.curr_batch_idx) if without_own else found  # type: ignore[attr-defined]
        stock: Any = losses.CrossBatchMemory
        return stock.create_indices_tuple(self, embeddings, labels, memory, memory_labels, given, without_own)


def without_places(mined: Mined, places: Tensor) -> Mined:
    """What was mined, without the pair of each anchor with its own copy in the queue."""

    def cut(pairs: Incidence) -> Incidence:
        return replace(pairs, counts=pairs.counts.masked_fill(pairs.positives == places[:, None], 0))

    if mined.chosen is not None:
        chosen: Triplets = replace(mined.chosen, pairs=cut(mined.chosen.pairs))
        return Mined(3, mined.shape, chosen.lists, chosen.incidence, mined.scores, chosen)

    def lists() -> Lists:
        anchors, positives, *others = mined.lists()
        keep = positives != places[anchors]
        return anchors[keep], positives[keep], *others

    return Mined(4, mined.shape, lists, lambda: cut(mined.incidence()), mined.scores)


CrossBatchMemory: Any = type(
    "CrossBatchMemory",
    (AcceleratedMemory, losses.CrossBatchMemory),
    {"__doc__": losses.CrossBatchMemory.__doc__, "__module__": __name__},
)


def accelerated_memory(memory: Any) -> Any:
    """An accelerated copy of a memory, with a copy of its queue."""
    made = CrossBatchMemory.__new__(CrossBatchMemory)
    made.__dict__.update(memory.__dict__)
    for name in ("embedding_memory", "label_memory"):
        if isinstance(made.__dict__.get(name), Tensor):
            made.__dict__[name] = made.__dict__[name].clone()
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = {
            key: value.clone() if isinstance(value, torch.Tensor) and name == "_buffers" else value
            for key, value in memory.__dict__[name].items()
        }
    return made
