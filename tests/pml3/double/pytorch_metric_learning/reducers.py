"""Reducers: a term is `losses`, `indices`, and a `divisor` for DivisorReducer only, elsewhere a ValueError [p].

How they are called, and what one of one's own implements, is unknown [?]: a plug-in has to leave that to PML.
"""

import torch
from torch import Tensor, nn

from .switches import assumed

__all__ = [
    "AvgNonZeroReducer",
    "BaseReducer",
    "DivisorReducer",
    "MeanReducer",
    "MultipleReducers",
    "SumReducer",
]


class BaseReducer(nn.Module):
    def _reduce_all(self, terms: dict, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        total = (embeddings.float() if embeddings.dtype.itemsize < 4 else embeddings).sum() * 0
        for name, term in terms.items():
            self._check(name, term)
            if len(term["losses"]):
                total = total + self._of(name)._reduce(term, labels)
        return total

    def _of(self, name: str) -> "BaseReducer":
        return self

    def _check(self, name: str, term: dict) -> None:
        extra = term.keys() - {"losses", "indices", "divisor"}
        if extra and assumed("reduction_type"):
            raise TypeError(f"term {name!r} has {sorted(extra)}")
        losses, indices = term["losses"], term["indices"]
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            raise TypeError(f"losses of {name!r} must be 1-D")
        for index in (indices,) if isinstance(indices, Tensor) else indices:
            if index.shape != losses.shape or index.dtype != torch.int64:
                raise ValueError(f"indices of {name!r} must be of the shape of its losses")
        if "divisor" in term and not isinstance(self._of(name), DivisorReducer):
            raise ValueError(f"term {name!r} has a divisor, and its reducer is no DivisorReducer")


class MeanReducer(BaseReducer):
    def _reduce(self, term: dict, labels: Tensor | None) -> Tensor:
        return term["losses"].mean()


class SumReducer(BaseReducer):
    def _reduce(self, term: dict, labels: Tensor | None) -> Tensor:
        return term["losses"].sum()


class AvgNonZeroReducer(BaseReducer):
    def _reduce(self, term: dict, labels: Tensor | None) -> Tensor:
        losses = term["losses"]
        return losses.clamp(min=0).sum() / (losses > 0).sum().clamp(min=1)


class DivisorReducer(BaseReducer):
    def _reduce(self, term: dict, labels: Tensor | None) -> Tensor:
        divisor = torch.as_tensor(term["divisor"], device=term["losses"].device)
        if not assumed("zero_divisor"):
            return torch.where(divisor == 0, 0.0, term["losses"].sum() / divisor.clamp(min=1))
        return term["losses"].sum() / divisor


class MultipleReducers(BaseReducer):
    def __init__(self, reducers: dict, default_reducer: BaseReducer | None = None) -> None:
        super().__init__()
        self.reducers = nn.ModuleDict(reducers)
        self._rest = MeanReducer() if default_reducer is None else default_reducer

    def _of(self, name: str) -> BaseReducer:
        return dict(self.reducers.items()).get(name, self._rest)
