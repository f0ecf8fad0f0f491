"""Draws without replacement from the entries of a mask, by log-weights.

Exact, and one of several ways to the same distribution: by the order of the log-weights after Gumbel noise, which looks
at no number and so waits for no device, or by looking up uniform numbers among cumulative weights, where that is less.
"""

import math

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import FAR, as_numbers, count, kth_largest, looks_are_free, of_rows, only


def sample(log_weights: Tensor, mask: Tensor, k: Tensor, generator: torch.Generator | None) -> Tensor:
    """Mask of k entries of the mask, drawn one after another without replacement, or all if there are fewer.

    Each draw takes an entry with probability proportional to the exponential of its log-weight among those that are
    left; never one with a log-weight of minus infinity. k is an integer per row, [..., 1].
    """
    if not mask.numel():
        return mask
    if not looks_are_free(log_weights):
        return _sample_by_counting(log_weights, mask, k, generator)
    if mask.ndim > 2:
        log_weights, flat, k = log_weights.flatten(0, -2), mask.flatten(0, -2), k.flatten(0, -2)
        return _sample_rows(log_weights, flat, k, generator).view(mask.shape)
    return _sample_rows(log_weights, mask, k, generator)


def _sample_rows(log_weights: Tensor, mask: Tensor, k: Tensor, generator: torch.Generator | None) -> Tensor:
    """`sample` of [b, m] by looks at the numbers."""
    all_taken = k >= count(mask)
    some = bool(all_taken.any())
    # Where all is taken there is nothing to draw.
    k = k.masked_fill(all_taken, 0) if some else k
    most = int(k.max())
    if most == 0:
        drawn = torch.zeros_like(mask)
    elif mask.numel() < thresholds.SEARCHED_NUMBERS:
        drawn = _sample_by_order(log_weights, mask, k, most, generator)
    elif most * most <= mask.shape[1]:
        drawn = _sample_by_search(log_weights, mask, k, most, generator)
    else:
        drawn = _sample_by_counting(log_weights, mask, k, generator)
    return drawn | (of_rows(mask, all_taken) & (log_weights > -torch.inf)) if some else drawn


def _sample_by_counting(log_weights: Tensor, mask: Tensor, k: Tensor, generator: torch.Generator | None) -> Tensor:
    """`sample` by the same order, whose k-th number is found by counting: no look at the numbers, any k."""
    keys = _about_the_largest(log_weights, mask).add_(gumbel_like(log_weights, generator))
    return _no_more(top_mask(keys, mask, k) & (log_weights > -torch.inf), keys, k)


def _sample_by_order(
    log_weights: Tensor, mask: Tensor, k: Tensor, most: int, generator: torch.Generator | None
) -> Tensor:
    """`sample` by the order of the log-weights after independent Gumbel noise was added to them; no k above `most`."""
    keys = only(_about_the_largest(log_weights, mask).add_(gumbel_like(log_weights, generator)), mask, -FAR)
    top = keys.topk(most)
    return _mask_of(top.indices, (torch.arange(most, device=k.device) < k) & (top.values > -FAR / 2), mask.shape[1])


def _sample_by_search(
    log_weights: Tensor, mask: Tensor, k: Tensor, most: int, generator: torch.Generator | None
) -> Tensor:
    """`sample` by looking up a few uniform numbers among the cumulative weights; no k above `most`.

    Of draws with replacement the first k that differ are k draws without.
    """
    exponents = only(_about_the_largest(log_weights, mask), mask, -FAR)
    weights = exponents.mul_(1 / math.log(2)).exp2_()
    # More than is wanted, as some will be alike: to go on costs far more than to look up some in vain.
    columns = _search(weights, 2 * most + 3 if most > 1 else 1, generator)
    # Rounding may point beside the weights that are not 0.
    new = weights.gather(1, columns) > 0
    if most > 1:
        new &= ~_repeated(columns, mask.shape[1])
    rank = new.cumsum(1)
    drawn = _mask_of(columns, new & (rank <= k), mask.shape[1])
    missing = k - rank[:, -1:]
    most = int(missing.max())
    if most > 0:
        # Their sequence goes on with what is left, as that of draws one after another does.
        rows = (missing > 0).squeeze(1).nonzero().squeeze(1)
        left = mask[rows] & ~drawn[rows]
        drawn[rows] |= _sample_by_order(log_weights[rows], left, missing[rows], most, generator)
    return drawn


def _about_the_largest(log_weights: Tensor, mask: Tensor) -> Tensor:
    """The log-weights less the largest of the mask in their row: around 300 floats are too far apart to hold noise.

    A row in which nothing can be drawn keeps what it has.
    """
    largest = only(log_weights, mask, -FAR).amax(-1, keepdim=True)
    return log_weights - torch.where(largest.abs() < FAR / 2, largest, 0.0)


def _no_more(drawn: Tensor, keys: Tensor, k: Tensor) -> Tensor:
    """The mask without what is too much: of keys equal to the k-th largest the first are drawn."""
    if looks_are_free(keys) and not bool((count(drawn) > k).any()):
        return drawn
    last = keys.masked_fill(~drawn, torch.inf).amin(-1, keepdim=True)
    equal = drawn & (keys == last)
    left = k - (drawn & ~equal).sum(-1, keepdim=True)
    return drawn & (~equal | (equal.cumsum(-1) <= left))


def _mask_of(columns: Tensor, kept: Tensor, m: int) -> Tensor:
    """Mask [b, m] of the columns [b, t] that are kept."""
    mask = torch.zeros(len(columns), m + 1, dtype=torch.bool, device=columns.device)  # the others go to a spare column
    return mask.scatter_(1, torch.where(kept, columns, m), True)[:, :m]


def _repeated(columns: Tensor, m: int) -> Tensor:
    """Which of the columns, below m, stand in their row [b, t] before already."""
    turn = torch.arange(columns.shape[1], dtype=torch.int32, device=columns.device)
    first = torch.empty(len(columns), m, dtype=torch.int32, device=columns.device)
    first.scatter_reduce_(1, columns, turn.expand_as(columns), "amin", include_self=False)
    return first.gather(1, columns) < turn


def _search(weights: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
    """Columns drawn with replacement in proportion to the weights: [b, m] -> [b, draws]."""
    b, m = weights.shape
    # Sums and numbers of 53 bits: of 24 bits there are no more than a few for each of many entries.
    uniform = torch.rand(b, draws, dtype=torch.float64, device=weights.device, generator=generator)
    if m < thresholds.GROUPED_COLUMNS:
        upto = weights.cumsum(1, dtype=torch.float64)
        return torch.searchsorted(upto, uniform.mul_(upto[:, -1:]), right=True).clamp_max_(m - 1)
    # First the group of columns, then the column: a cumulative sum takes ten times as long as a sum.
    size = math.isqrt(m)
    weights = torch.nn.functional.pad(weights, (0, -m % size)) if m % size else weights
    groups = weights.view(b, -1, size)
    sums = groups.sum(2).double()
    upto = sums.cumsum(1)
    group = _place(upto.unsqueeze(1), uniform.mul_(upto[:, -1:]))
    uniform.sub_(upto.gather(1, group)).add_(sums.gather(1, group))
    first = torch.arange(0, sums.numel(), sums.shape[1], device=sums.device).unsqueeze(1)
    inner = groups.view(-1, size)[group + first].cumsum(2, dtype=torch.float64)  # [b, draws, size]
    return _place(inner, uniform).add_(group, alpha=size).clamp_max_(m - 1)


def _place(upto: Tensor, x: Tensor) -> Tensor:
    """The first place of a few where the cumulative sum is above x: [b, draws or 1, places], [b, draws] -> [b, draws].

    By counting: a binary search for a random number is a series of surprises to the processor.
    """
    x = x.unsqueeze(2)
    below = torch.le(upto, x, out=x.new_empty(*x.shape[:2], upto.shape[2]))
    return below.sum(2).long().clamp_max_(upto.shape[2] - 1)


def gumbel_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent standard Gumbel noise of the shape of x, of float32 or float64.

    The logarithm of an exponential one, made from random integers: `exponential_` takes five times as long.
    """
    integers, bits = (torch.int64, 63) if x.dtype == torch.float64 else (torch.int32, 31)
    # Not `random_`, which torch.compile does not capture.
    noise = torch.randint(0, torch.iinfo(integers).max, x.shape, dtype=integers, device=x.device, generator=generator)
    # Minus a number in (0, 1), finest at 0, where the largest noise comes from. The factor undoes a rounding to 1.
    uniform = noise.to(x.dtype).add_(0.5).mul_(-(2.0**-bits) * (1 - torch.finfo(x.dtype).eps))
    return uniform.log1p_().neg_().log_().neg_()


def top_mask(x: Tensor, mask: Tensor, k: Tensor) -> Tensor:
    """Mask of the k largest entries in the mask, or of all if there are fewer; k is one integer per row, [..., 1].

    Entries equal to the k-th largest all count: draw keys without ties where exactly k are wanted.
    """
    # By arithmetic: to fill where a mask without a pattern says so takes seven times as long.
    x = torch.minimum(x, as_numbers(mask, x.dtype).sub_(0.5).mul_(torch.inf))
    return of_rows(mask & (x >= kth_largest(x, k.minimum(mask.sum(-1, keepdim=True)))), k > 0)
