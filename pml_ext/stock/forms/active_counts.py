"""How many triplets of a row contain each pair, at a cost that does not grow with the number of positives.

A triplet counts if the difference `D_ip - D_in` is above a bound. For a given negative, the positives of these triplets
are those beyond some distance, so that their number determines them. The number is looked up: the range of distances in
which it changes is divided into bins, and in nearly all of these it changes at most once, so that one comparison
remains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext.stock.comparisons import Test

# Bins per positive: so many that few contain the borders of two positives.
_BINS = 8


class Active(NamedTuple):
    """Numbers of triplets that count, for each positive [r, k] and for each negative [r, m]."""

    of_near: Tensor
    of_far: Tensor


def active_counts(near: Tensor, far: Tensor, there: Tensor, test: Test) -> Active | None:
    """How many triplets pass the test; None if a distance is NaN or infinite, or the bins too many for a lookup.

    Args:
        near: distances of the positives, [r, k].
        far: distances of all columns, [r, m]; where a pair is not a negative, so large that no triplet passes.
        there: 1 where there is a positive, 0 elsewhere, [r, k].
        test: a lower bound of `D_ip - D_in`.
    """
    number = _BINS * near.shape[1] + 2
    if len(near) * number >= 1 / torch.finfo(near.dtype).eps or not bool(torch.isfinite(near).all()):
        return None  # floats could not count all bins exactly
    bins = _Bins(near, there, float(test[1]), number)
    places = bins.of(far)
    if not bool(places.sum() >= 0):
        return None
    index = places.add_(bins.first_of_row).int().flatten()
    found = bins.sure.flatten().index_select(0, index).view_as(far)
    border = bins.border.flatten().index_select(0, index).view_as(far)
    compare, bound = test
    spare = places
    found.add_(compare(torch.sub(border, far, out=spare), bound, out=spare))
    rows, columns = torch.eq(border, torch.inf, out=spare).nonzero(as_tuple=True)
    if len(rows):
        # A bin with several borders: compare with each positive.
        held = compare(near[rows] - far[rows, columns, None], bound).mul(there[rows])
        found[rows, columns] = held.sum(1).to(found.dtype)
    return Active(_of_positives(found, near, there), found)


class _Bins:
    """The bins of each row: the number of borders beyond each, and the positive whose border lies in it."""

    def __init__(self, near: Tensor, there: Tensor, bound: float, number: int) -> None:
        rows = len(near)
        self.number = number  # the first and the last one are for distances beyond all borders
        borders = near - bound
        # The computed border differs from the exact one by a few roundings, less than this.
        rounding = torch.finfo(near.dtype).eps * 8 * (near.abs() + abs(bound))
        lowest = (borders - rounding).masked_fill(there == 0, torch.inf).amin(1, keepdim=True)
        highest = (borders + rounding).masked_fill(there == 0, -torch.inf).amax(1, keepdim=True)
        none = lowest > highest
        self.lowest = lowest.masked_fill_(none, 0)
        width = highest.masked_fill_(none, 0) - self.lowest
        # Bins are so wide that a border with its rounding lies in one, or at the edge of two.
        least = (rounding.amax(1, keepdim=True) * 4 * number).clamp_min_(torch.finfo(near.dtype).tiny * number * 4)
        self.scale = (number - 2.5) / torch.maximum(width, least)
        absent = there == 0
        first = self.of(borders - rounding).long().masked_fill_(absent, self.number)
        last = self.of(borders + rounding).long().masked_fill_(absent, self.number)
        counts = near.new_zeros(rows, number + 1)
        found = counts.scatter_add_(1, first, there)[:, :-1]
        self.sure = found.sum(1, keepdim=True) - found.cumsum(1)
        # Two borders in one bin, or one at the edge of two bins: an infinite border marks the bin.
        straddles = (last != first).to(there.dtype)
        counts.scatter_add_(1, first, straddles).scatter_add_(1, last, 2 * straddles)
        border = torch.full_like(counts, torch.finfo(near.dtype).min).scatter_(1, first, near)[:, :-1]
        single = torch.le(counts, 1, out=counts)[:, :-1]
        self.border = border.add(single.reciprocal().sub_(1))
        self.first_of_row = torch.arange(rows, dtype=near.dtype, device=near.device)[:, None] * self.number

    def of(self, distances: Tensor) -> Tensor:
        """The bin of each distance, newly allocated."""
        places = (distances - self.lowest).mul_(self.scale).floor_().add_(1)
        return places.clamp_(0, self.number - 1)


def _of_positives(of_far: Tensor, near: Tensor, there: Tensor) -> Tensor:
    """How many negatives count with each positive: with the r-th farthest those that count with r or more."""
    rows, k = near.shape
    order = near.masked_fill(there == 0, -torch.inf).argsort(1, descending=True)
    first = torch.arange(rows, dtype=near.dtype, device=near.device)[:, None] * (k + 1)
    numbers = torch.bincount((of_far + first).int().flatten(), minlength=rows * (k + 1)).view(rows, k + 1)
    beyond = numbers.flip(1).cumsum(1).flip(1)[:, 1:].to(near.dtype)
    return torch.empty_like(near).scatter_(1, order, beyond)
