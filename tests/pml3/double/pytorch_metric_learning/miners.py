"""Miners: candidates as their third argument [d], named tuples as their result [p], `tuples_per_anchor` [p]."""

import torch
from torch import Tensor, nn

from .distances import BaseDistance, CosineSimilarity, LpDistance
from .indexing import all_pairs, checked
from .switches import assumed
from .types import PairIndices, TripletIndices

__all__ = [
    "BaseMiner",
    "MultiSimilarityMiner",
    "TripletMarginMiner",
]


class BaseMiner(nn.Module):
    def __init__(self, *, distance: BaseDistance | None = None, tuples_per_anchor: int | None = None) -> None:
        super().__init__()
        self.distance = self.default_distance() if distance is None else distance
        self.tuples_per_anchor = tuples_per_anchor

    def default_distance(self) -> BaseDistance:
        raise AssertionError("PML's default distance would be taken in silence")


class _PairMiner(BaseMiner):
    def default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def forward(self, embeddings: Tensor, labels: Tensor, *given: object, **named: object) -> tuple[Tensor, ...]:
        order = ("indices_tuple", "ref_emb", "ref_labels") if assumed("miner_order") else ("ref_emb", "ref_labels")
        named = dict(zip(order, given, strict=False)) | named
        if named.keys() - {"indices_tuple", "ref_emb", "ref_labels", "mat"}:
            raise TypeError(f"unknown arguments {sorted(named)}")
        refs, ref_labels = named.get("ref_emb"), named.get("ref_labels")
        if isinstance(named.get("indices_tuple"), Tensor):
            raise TypeError("an index tuple is a tuple")
        with torch.no_grad():
            candidates = checked(named.get("indices_tuple"))
            candidates = all_pairs(labels, ref_labels) if candidates is None else candidates
            mat = self.distance(embeddings, refs)
            return self._mine(mat, candidates)


class MultiSimilarityMiner(_PairMiner):
    def __init__(self, epsilon: float = 0.1, **options: object) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    def _mine(self, mat: Tensor, candidates: tuple[Tensor, ...]) -> PairIndices:
        a, p, b, n = candidates
        similarity = mat * (1 if self.distance.margin(1.0, 0.0) < 0 else -1)
        farthest = similarity.new_full((len(mat),), torch.inf).scatter_reduce(0, a, similarity[a, p], "amin")
        nearest = similarity.new_full((len(mat),), -torch.inf).scatter_reduce(0, b, similarity[b, n], "amax")
        keep_pos = similarity[a, p] - self.epsilon < nearest[a]
        keep_neg = similarity[b, n] + self.epsilon > farthest[b]
        return PairIndices(a[keep_pos], p[keep_pos], b[keep_neg], n[keep_neg])


class TripletMarginMiner(_PairMiner):
    def __init__(self, margin: float = 0.2, type_of_triplets: str = "all", **options: object) -> None:  # [g]
        super().__init__(**options)
        self.margin, self.type_of_triplets = margin, type_of_triplets

    def default_distance(self) -> BaseDistance:
        return LpDistance()

    def _mine(self, mat: Tensor, candidates: tuple[Tensor, ...]) -> TripletIndices:
        a, p, b, n = candidates
        first, second = torch.where(a.unsqueeze(1) == b)
        a, p, n = a[first], p[first], n[second]
        further = self.distance.margin(mat[a, n], mat[a, p])
        keep = {
            "all": further <= self.margin,
            "hard": further <= 0,
            "semihard": (further > 0) & (further <= self.margin),
            "easy": further > self.margin,
        }[self.type_of_triplets]
        return TripletIndices(a[keep], p[keep], n[keep])
