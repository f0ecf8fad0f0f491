"""Pair weights of all rows, put together block by block: a full matrix, or a few numbers of each row."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sparse(NamedTuple):
    """Pair weights of which each row has a few: columns [b, k] and weights [b, k]; those of equal columns add up."""

    columns: Tensor
    weights: Tensor


def scattered(few: Sparse, out: Tensor) -> Tensor:
    """A few weights of each row in a full matrix, whose numbers they replace."""
    return out.zero_().scatter_add_(1, few.columns, few.weights)


class Kept:
    """V of all rows, dense or sparse, put together block by block.

    Args:
        dense: None, or where to put it together: scores that nobody needs once there are weights.
    """

    def __init__(self, dense: Tensor | None) -> None:
        self.dense = dense
        self.is_dense = False
        self.few: list[tuple[int, Sparse]] = []

    def put(self, v: Tensor | Sparse, start: int, n: int, is_there: bool) -> None:
        """Add V of the rows from a start on, of n; `is_there`: it has been made where it is put together."""
        if isinstance(v, Sparse):
            self.few.append((start, v))
            return
        self.is_dense = True
        if self.dense is None:
            self.dense = v.new_empty(n, v.shape[1])
        if not is_there:
            self.dense[start : start + len(v)] = v

    def tensors(self) -> tuple[Tensor, ...]:
        """V, or its columns and weights if all blocks have few."""
        if not self.is_dense:
            return tuple(torch.cat(part) for part in zip(*(few for _, few in self.few), strict=True))
        assert self.dense is not None
        for start, few in self.few:
            scattered(few, self.dense[start : start + len(few.columns)])
        return (self.dense,)
