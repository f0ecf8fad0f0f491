"""Losses: one path from a batch to terms, a reducer, and penalties that are added after it [p]."""

import torch
from torch import Tensor, nn

from .distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from .indexing import all_pairs, as_pairs, as_triplets, checked
from .reducers import AvgNonZeroReducer, BaseReducer, DivisorReducer, MeanReducer
from .regularizers import BaseRegularizer
from .switches import assumed
from .types import LossDict

__all__ = [
    "BaseMetricLossFunction",
    "BaseProxyLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "GenericPairLoss",
    "MarginLoss",
    "MultipleLosses",
    "NPairsLoss",
    "SelfSupervisedLoss",
    "SoftTripleLoss",
    "TripletMarginLoss",
]


class BaseMetricLossFunction(nn.Module):
    def __init__(
        self,
        *,
        distance: BaseDistance | None = None,
        reducer: BaseReducer | None = None,
        embedding_regularizer: BaseRegularizer | None = None,
        embedding_reg_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.distance = self.default_distance() if distance is None else distance
        self.reducer = self.default_reducer() if reducer is None else reducer
        self.embedding_regularizer, self.embedding_reg_weight = embedding_regularizer, embedding_reg_weight

    def default_distance(self) -> BaseDistance:
        raise AssertionError("PML's default distance would be taken in silence")

    def default_reducer(self) -> BaseReducer:
        return MeanReducer()

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> LossDict:
        raise NotImplementedError

    def objective_terms(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> LossDict:
        _check_batch(embeddings, labels)
        if ref_emb is None:
            if ref_labels is not None:
                raise ValueError("ref_labels without ref_emb")
        else:
            _check_batch(ref_emb, ref_labels)
            if ref_emb.shape[1] != embeddings.shape[1]:
                raise ValueError("ref_emb of another dimension")
            if ref_labels is None and (labels is not None or assumed("combination")):
                raise ValueError("ref_emb without ref_labels")
        return self.compute_loss(embeddings, labels, checked(indices_tuple), ref_emb, ref_labels)

    def regularization_terms(self, embeddings: Tensor) -> dict:
        if self.embedding_regularizer is None:
            return {}
        value = self.embedding_reg_weight * self.embedding_regularizer(embeddings)
        return {"embedding_reg_loss": value if assumed("penalty") else {"losses": value}}

    def loss_terms(self, *batch: object, **named: object) -> dict:
        embeddings = batch[0] if batch else named["embeddings"]
        return {**self.objective_terms(*batch, **named), **self.regularization_terms(embeddings)}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        terms = self.objective_terms(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        loss = self.reducer._reduce_all(terms, embeddings, labels)
        for penalty in self.regularization_terms(embeddings).values():
            loss = loss + (penalty["losses"] if isinstance(penalty, dict) else penalty)
        return loss


def _check_batch(embeddings: Tensor, labels: Tensor | None) -> None:
    if embeddings.ndim != 2:
        raise ValueError("embeddings must be 2-D")
    if labels is not None and (labels.shape != embeddings.shape[:1] or labels.device != embeddings.device):
        raise ValueError("one label for each embedding, on its device")


class GenericPairLoss(BaseMetricLossFunction):
    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> LossDict:
        if not len(embeddings) or (ref_emb is not None and not len(ref_emb)):
            return {}
        pairs = all_pairs(labels, ref_labels) if indices_tuple is None else as_pairs(indices_tuple)
        return self.pair_loss(self.distance(embeddings, ref_emb), pairs)

    def pair_loss(self, mat: Tensor, pairs: tuple[Tensor, ...]) -> LossDict:
        raise NotImplementedError


class BaseProxyLoss(BaseMetricLossFunction):
    def __init__(
        self,
        num_weights: int,
        embedding_size: int,
        *,
        weight_regularizer: BaseRegularizer | None = None,
        weight_reg_weight: float = 1.0,
        weight_init_func: object = None,
        **options: object,
    ) -> None:
        super().__init__(**options)
        self.weight = nn.Parameter(torch.empty(num_weights, embedding_size))
        nn.init.kaiming_uniform_(self.weight)
        self.weight_regularizer, self.weight_reg_weight = weight_regularizer, weight_reg_weight

    def regularization_terms(self, embeddings: Tensor) -> dict:
        terms = super().regularization_terms(embeddings)
        if self.weight_regularizer is None:
            return terms
        value = self.weight_reg_weight * self.weight_regularizer(self.weight)
        return terms | {"weight_reg_loss": value if assumed("penalty") else {"losses": value}}


class ContrastiveLoss(GenericPairLoss):
    def __init__(self, pos_margin: float = 0.0, neg_margin: float = 1.0, **options: object) -> None:
        super().__init__(**options)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def default_distance(self) -> BaseDistance:
        return LpDistance()

    def default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def pair_loss(self, mat: Tensor, pairs: tuple[Tensor, ...]) -> LossDict:
        a, p, b, n = pairs
        margin = self.distance.margin
        return {
            "pos_loss": {"losses": margin(mat[a, p], self.pos_margin).relu(), "indices": (a, p)},
            "neg_loss": {"losses": margin(self.neg_margin, mat[b, n]).relu(), "indices": (b, n)},
        }


class TripletMarginLoss(BaseMetricLossFunction):
    def __init__(self, margin: float = 0.2, **options: object) -> None:  # 0.05 in version 2 [p]
        super().__init__(**options)
        self.margin = margin

    def default_distance(self) -> BaseDistance:
        return LpDistance()

    def default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> LossDict:
        if not len(embeddings):
            return {}
        given = all_pairs(labels, ref_labels) if indices_tuple is None else indices_tuple
        a, p, n = as_triplets(given)
        mat = self.distance(embeddings, ref_emb)
        losses = (self.distance.margin(mat[a, p], mat[a, n]) + self.margin).relu()
        return {"loss": {"losses": losses, "indices": (a, p, n)}}


class MarginLoss(TripletMarginLoss):
    def __init__(self, margin: float = 0.2, *, beta: float = 1.2, **options: object) -> None:
        super().__init__(margin, **options)
        self.beta = beta

    def default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> LossDict:
        if not len(embeddings):
            return {}
        a, p, n = as_triplets(all_pairs(labels, ref_labels) if indices_tuple is None else indices_tuple)
        mat = self.distance(embeddings, ref_emb)
        pos = (mat[a, p] - self.beta + self.margin).relu()
        neg = (self.beta - mat[a, n] + self.margin).relu()
        count = ((pos > 0).sum() + (neg > 0).sum()).clamp(min=1)
        return {"margin_loss": {"losses": pos + neg, "indices": (a, p, n), "divisor": count}}


class NPairsLoss(BaseMetricLossFunction):
    def default_distance(self) -> BaseDistance:
        return DotProductSimilarity(normalize_embeddings=True)

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> LossDict:
        if ref_emb is not None:
            raise ValueError("NPairsLoss takes no references")
        order = labels.argsort(stable=True)
        ordered = labels[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        pairs = first[:-1] & ~first[1:] if len(first) > 1 else first[:0]
        places = pairs.nonzero().squeeze(1)
        anchors, positives = order[places], order[places + 1]
        if len(anchors) == 0:
            return {}
        sim = self.distance(embeddings[anchors], embeddings[positives])
        losses = nn.functional.cross_entropy(sim, torch.arange(len(sim), device=sim.device), reduction="none")
        return {"loss": {"losses": losses, "indices": anchors}}


class SoftTripleLoss(BaseProxyLoss):
    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        centers_per_class: int = 10,
        la: float = 20,
        gamma: float = 0.1,
        margin: float = 0.01,
        **options: object,
    ) -> None:
        super().__init__(num_classes * centers_per_class, embedding_size, **options)
        self.num_classes, self.la, self.gamma, self.margin = num_classes, la, gamma, margin

    def default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> LossDict:
        if ref_emb is not None:
            raise ValueError("SoftTripleLoss takes no references")
        if not len(embeddings):
            return {}
        sim = self.distance(embeddings, self.weight.to(embeddings.dtype)).unflatten(1, (self.num_classes, -1))
        of_class = (torch.softmax(sim / self.gamma, 2) * sim).sum(2)
        logits = self.la * (of_class - self.margin * nn.functional.one_hot(labels, self.num_classes))
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return {"loss": {"losses": losses, "indices": torch.arange(len(labels), device=labels.device)}}


class MultipleLosses(nn.Module):
    def __init__(self, losses: dict, miners: dict | None = None, weights: dict | None = None) -> None:
        super().__init__()
        self.losses, self.miners = nn.ModuleDict(losses), nn.ModuleDict(miners or {})
        self.weights = weights or {}

    def forward(self, embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None) -> Tensor:
        total = embeddings.sum() * 0
        for name, loss in self.losses.items():
            pairs = indices_tuple
            if name in self.miners:
                # [p]: candidates are the third argument, as those of a loss.
                order = (indices_tuple, ref_emb, ref_labels) if assumed("miner_order") else (ref_emb, ref_labels)
                pairs = self.miners[name](embeddings, labels, *order)
            # [d]: a memory takes no references, so losses are given them only where there are some.
            references = () if ref_emb is None else (ref_emb, ref_labels)
            total = total + self.weights.get(name, 1) * loss(embeddings, labels, pairs, *references)
        return total


class CrossBatchMemory(nn.Module):
    """Public; the plug-in has its own, and only asks whether something is one."""


class SelfSupervisedLoss(nn.Module):
    """Public; the plug-in has its own, and only asks whether something is one."""
