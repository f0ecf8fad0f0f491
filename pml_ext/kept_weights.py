"""Pair weights of all rows, put together block by block: a full matrix, or a few numbers of each row."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Sparse(NamedTuple):
    """Pair weights of which each row has a few: columns [b, k] and weights [b, k]; those of equal columns add up."""

    columns: Tensor
    weights: Tensor


def scattered(few: Sparse, out: Tensor) -> Tensor:
    """A few weights of each row in a full matrix, whose numbers they replace."""
    return out.zero_().scatter_add_(1, few.columns, few.weights)


def times(few: Sparse, references: Tensor) -> Tensor:
    """The product of a few weights of each row with references [m, d] -> [b, d]."""
    return F.embedding_bag(few.columns, references, per_sample_weights=few.weights, mode="sum")


def transposed_times(few: Sparse, rows: Tensor, m: int) -> Tensor:
    """The product of their transpose, of m columns, with rows [b, d] -> [m, d]."""
    # The entries of each column one after another.
    of_column, order = few.columns.flatten().sort(stable=True)
    begins = torch.searchsorted(of_column, torch.arange(m, device=rows.device))
    of_row = order.div(few.columns.shape[1], rounding_mode="floor")
    weights = few.weights.flatten()[order]
    return F.embedding_bag(of_row, rows, begins, per_sample_weights=weights, mode="sum")


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
