"""In how many triplets of a row each pair is, at a cost that does not grow with the number of positives.

A triplet counts where the difference `D_ip - D_in` is above a bound. Of one negative these are the positives from some
distance on, so their number says which they are. It is looked up: the range of the distances at which it changes is cut
into bins, and in nearly all of these it changes at most once, so that one comparison is left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext.stock.comparisons import Test

# So many bins for each positive: few hold the borders of two.
_BINS = 8


class Active(NamedTuple):
    """Numbers of the triplets that count: of each positive [r, k], and of each negative [r, m]."""

    of_near: Tensor
    of_far: Tensor


def active_counts(near: Tensor, far: Tensor, there: Tensor, test: Test) -> Active | None:
    """How many triplets hold the test; None where a distance is no number: none of them is to be looked up.

    Args:
        near: distances of the positives, [r, k].
        far: those of all, [r, m]; so large that no test holds where a pair is no negative.
        there: which positives are there, [r, k], 1 or 0.
        test: a comparison of `D_ip - D_in`, which holds from a bound on.
    """
    number = _BINS * near.shape[1] + 2
    if len(near) * number >= 1 / torch.finfo(near.dtype).eps or not bool(torch.isfinite(near).all()):
        return None  # or more bins than whole numbers
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
        # A bin with several borders: each positive is compared.
        held = compare(near[rows] - far[rows, columns, None], bound).mul(there[rows])
        found[rows, columns] = held.sum(1).to(found.dtype)
    return Active(_of_positives(found, near, there), found)


class _Bins:
    """Bins of each row, with how many borders lie beyond each, and the positive whose border is in it."""

    def __init__(self, near: Tensor, there: Tensor, bound: float, number: int) -> None:
        rows = len(near)
        self.number = number  # the first and the last are for what is beyond all borders
        borders = near - bound
        # The border is that in exact arithmetic to some roundings, of which the distances know less than this.
        rounding = torch.finfo(near.dtype).eps * 8 * (near.abs() + abs(bound))
        lowest = (borders - rounding).masked_fill(there == 0, torch.inf).amin(1, keepdim=True)
        highest = (borders + rounding).masked_fill(there == 0, -torch.inf).amax(1, keepdim=True)
        none = lowest > highest
        self.lowest = lowest.masked_fill_(none, 0)
        width = highest.masked_fill_(none, 0) - self.lowest
        # A bin is so wide that a border is in one, or at the edge of two.
        least = (rounding.amax(1, keepdim=True) * 4 * number).clamp_min_(torch.finfo(near.dtype).tiny * number * 4)
        self.scale = (number - 2.5) / torch.maximum(width, least)
        absent = there == 0
        first = self.of(borders - rounding).long().masked_fill_(absent, self.number)
        last = self.of(borders + rounding).long().masked_fill_(absent, self.number)
        counts = near.new_zeros(rows, number + 1)
        found = counts.scatter_add_(1, first, there)[:, :-1]
        self.sure = found.sum(1, keepdim=True) - found.cumsum(1)
        # Two in one bin, or one at the edge of two: the border is infinite, and nobody's.
        straddles = (last != first).to(there.dtype)
        counts.scatter_add_(1, first, straddles).scatter_add_(1, last, 2 * straddles)
        border = torch.full_like(counts, torch.finfo(near.dtype).min).scatter_(1, first, near)[:, :-1]
        single = torch.le(counts, 1, out=counts)[:, :-1]
        self.border = border.add(single.reciprocal().sub_(1))
        self.first_of_row = torch.arange(rows, dtype=near.dtype, device=near.device)[:, None] * self.number

    def of(self, distances: Tensor) -> Tensor:
        """The bin of each distance, in new memory."""
        places = (distances - self.lowest).mul_(self.scale).floor_().add_(1)
        return places.clamp_(0, self.number - 1)


def _of_positives(of_far: Tensor, near: Tensor, there: Tensor) -> Tensor:
    """How many negatives each positive has: one that is the r-th farthest, all with which more than r are active."""
    rows, k = near.shape
    order = near.masked_fill(there == 0, -torch.inf).argsort(1, descending=True)
    first = torch.arange(rows, dtype=near.dtype, device=near.device)[:, None] * (k + 1)
    numbers = torch.bincount((of_far + first).int().flatten(), minlength=rows * (k + 1)).view(rows, k + 1)
    beyond = numbers.flip(1).cumsum(1).flip(1)[:, 1:].to(near.dtype)
    return torch.empty_like(near).scatter_(1, order, beyond)
