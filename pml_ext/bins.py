"""Numbers of rows that fall into bins: what each bin gets, and what each number finds in its bin."""

import torch
from torch import Tensor


def sums_of_rows(bins: Tensor, shares: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """How many entries of each row are in each bin, and the sum of their shares: [r, number] each.

    Args:
        bins: [r, m] whole numbers from 0 to number - 1, of any type.
        shares: [r, m].
        number: of bins.
    """
    places = bins.long()
    numbers, sums = shares.new_zeros(2, len(shares), number)
    numbers.scatter_add_(1, places, torch.ones_like(shares))
    sums.scatter_add_(1, places, shares)
    return numbers, sums


def looked_up(values: Tensor, bins: Tensor) -> Tensor:
    """The value of the bin of each entry: values [number], or [r, number] of each row, and bins [r, m] -> [r, m]."""
    places = bins.int()
    if values.ndim == 2:
        first = torch.arange(0, values.numel(), max(values.shape[1], 1), dtype=torch.int32, device=places.device)
        places = places + first[:, None]
    return values.flatten().index_select(0, places.flatten()).view_as(bins)
