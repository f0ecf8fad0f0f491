"""Distances: called as `distance(query, ref=None)`, with `margin(x, y)`, how much further x is than y [p]."""

import torch
from torch import Tensor, nn

from .switches import assumed

__all__ = [
    "BaseDistance",
    "CosineSimilarity",
    "DotProductSimilarity",
    "LpDistance",
    "SNRDistance",
]


class BaseDistance(nn.Module):
    _inverted = False

    def __init__(self, *, normalize_embeddings: bool = True, p: float = 2, power: float = 1) -> None:
        super().__init__()
        self._normalize, self._p, self._power = normalize_embeddings, p, power
        if not assumed("facts"):
            self.normalize_embeddings, self.p, self.power = normalize_embeddings, p, power
            self.is_inverted = self._inverted

    def forward(self, query: Tensor, ref: Tensor | None = None) -> Tensor:
        if query.ndim != 2 or (ref is not None and ref.ndim != 2):
            raise ValueError("embeddings must be 2-D")
        if assumed("facts"):  # names that it does not have say nothing to it, whoever gives it one
            normalize, p, power = self._normalize, self._p, self._power
        else:
            normalize, p, power = self.normalize_embeddings, self.p, self.power
        ref = query if ref is None else ref
        if normalize:
            query, ref = (nn.functional.normalize(x, p=p, dim=1) for x in (query, ref))
        matrix = self._matrix(query, ref, p)
        return matrix if power == 1 else matrix**power

    def margin(self, x: Tensor | float, y: Tensor | float) -> Tensor | float:
        return y - x if self._inverted else x - y


class LpDistance(BaseDistance):
    def _matrix(self, query: Tensor, ref: Tensor, p: float) -> Tensor:
        return torch.cdist(query, ref, p=p)


class DotProductSimilarity(BaseDistance):
    _inverted = True

    def __init__(self, *, normalize_embeddings: bool = False, **options: float) -> None:
        super().__init__(normalize_embeddings=normalize_embeddings, **options)  # does not normalize any more [p]

    def _matrix(self, query: Tensor, ref: Tensor, p: float) -> Tensor:
        return query @ ref.T


class CosineSimilarity(BaseDistance):  # whether it still is a DotProductSimilarity is unknown [?]
    _inverted = True

    def __init__(self, **options: float) -> None:
        super().__init__(normalize_embeddings=True, **options)

    def _matrix(self, query: Tensor, ref: Tensor, p: float) -> Tensor:
        return query @ ref.T


class SNRDistance(BaseDistance):
    def _matrix(self, query: Tensor, ref: Tensor, p: float) -> Tensor:
        noise = (query.unsqueeze(1) - ref.unsqueeze(0)).var(-1)
        return noise / query.var(-1).unsqueeze(1)
