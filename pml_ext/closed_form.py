"""Closed forms of losses and pair weights: the two sides of a block of rows, and what several forms share.

A closed form is a function `f(sides, *, hyperparameters) -> SideWeights` that stands beside the pure function of its
loss; a law checks it against autograd on that function. It needs no mask, because a pair that is not there has a score
with which it costs nothing.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext.masked import FAR, crossing_point, largest, softplus

# Score of a pair that is not there: a positive infinitely close, a negative (with a minus) infinitely far. Neither
# costs anything.
ABSENT = FAR


class Sides(NamedTuple):
    """The scores of some rows, split by kind. Both may be overwritten.

    Args:
        pos: scores of the positives, `ABSENT` where there is none: [b, m], or [b, k] if they have been gathered.
        neg: scores of the negatives [b, m], minus `ABSENT` where there is none.
        pos_count: number of positives of each row in the scores' dtype, [b, 1].
        neg_count: number of negatives of each row in the scores' dtype, [b, 1].
        gathered: whether `pos` has been gathered to few columns.
    """

    pos: Tensor
    neg: Tensor
    pos_count: Tensor
    neg_count: Tensor
    gathered: bool


class SideWeights(NamedTuple):
    """Losses [b], and their derivative by the scores of each side, of the shapes of `Sides`; 0 where no pair is.

    Args:
        losses: [b].
        pos: derivative by `Sides.pos`.
        neg: derivative by `Sides.neg`, or by its columns `neg_column` [b, q] only.
        counts: what each row adds to the divisor [b], or None for 1.
        neg_column: None, or the columns [b, q] of the only negatives with a weight; those of equal columns add up.
    """

    losses: Tensor
    pos: Tensor
    neg: Tensor
    counts: Tensor | None = None
    neg_column: Tensor | None = None


def near(pos: Tensor) -> Tensor:
    """The scores of the positives with absent ones infinitely far: for a sum or a maximum over closeness."""
    # NaN stays what it is.
    return torch.where(pos > ABSENT / 2, -ABSENT, pos)


def only_max(sides: Sides) -> tuple[Tensor, Tensor] | None:
    """The nearest negative of each row with its column [b, 1] each; None where equals would have to share."""
    if not sides.gathered:
        return None
    # A maximum with its index takes four times as long as this.
    top = sides.neg.amax(1, keepdim=True)
    equal = torch.eq(sides.neg, top, out=torch.empty_like(sides.neg))
    # Gathered sides are real numbers on the CPU: to look at them waits for nothing. NaN equals nothing.
    if ((equal.sum(1, keepdim=True) != 1) & ~(top < -ABSENT / 2)).any():
        return None
    numbers = torch.arange(equal.shape[1], dtype=equal.dtype, device=equal.device)
    return top, equal.mul_(numbers).amax(1, keepdim=True).long()


def have_equals(scores: Tensor, value: Tensor) -> bool:
    """Whether some row [b, m] of gathered sides holds its value [b, 1] more than once. Not for absent pairs."""
    times = torch.eq(scores, value, out=torch.empty_like(scores)).sum(1, keepdim=True)
    return bool(((times > 1) & (value.abs() < ABSENT / 2)).any())


def above(x: Tensor, level: Tensor | float) -> Tensor:
    """1 where x is above the level and 0 elsewhere, as numbers: far cheaper here than booleans."""
    return torch.gt(x, level, out=torch.empty_like(x))


def below(x: Tensor, level: Tensor | float) -> Tensor:
    """1 where x is below the level and 0 elsewhere, as numbers."""
    return torch.lt(x, level, out=torch.empty_like(x))


def keep_nearest(pos: Tensor, neg: Tensor, k: int | None) -> tuple[Tensor | None, Tensor | None]:
    """Which scores are above the (k+1)-th largest of both sides, as numbers, with the nearest positive always kept.

    Absent positives are infinitely far here (`near`). None and None if all are kept.
    """
    if k is None or k >= neg.shape[1]:
        return None, None
    threshold = largest(neg, k + 1, pos).amin(1, keepdim=True)
    keep_pos = above(pos, threshold)
    keep_pos.scatter_(1, pos.argmax(1, keepdim=True), 1.0)
    return keep_pos, above(neg, threshold)


def exponential_sum(scores: Tensor, slope: float, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the sum over each row of exp(slope * score), the terms up to a factor, and their sum; overwrites scores.

    The logarithm [b, 1] is very negative, the terms are finite and their sum is above 0, for a row without entries.
    """
    # Base 2: the same job at a quarter of the price of exp.
    exponent = scores.mul_(slope / math.log(2))
    top = exponent.amax(1, keepdim=True)
    terms = exponent.sub_(top).exp2_()
    if keep is not None:
        terms.mul_(keep)
    total = terms.sum(1, keepdim=True)
    log_sum = top.mul_(math.log(2)).add_(total.log())
    return log_sum, terms, total.clamp_min_(torch.finfo(total.dtype).tiny)


def soft_side(scores: Tensor, slope: float, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log(1 + sum exp(slope * score)) / |slope| of each row [b, 1], and its derivative; overwrites scores."""
    log_sum, terms, total = exponential_sum(scores, slope, keep)
    weights = terms.mul_(math.copysign(1, slope) * torch.sigmoid(log_sum) / total)
    return softplus(log_sum) / abs(slope), weights


def crossing_of(sides: Sides) -> Tensor:
    """`pml_ext.masked.crossing` of the two sides, [b, 1]."""
    mean_pos, std_pos = _mean_std(sides.pos, below(sides.pos, ABSENT / 2), sides.pos_count)
    mean_neg, std_neg = _mean_std(sides.neg, above(sides.neg, -ABSENT / 2), sides.neg_count)
    return crossing_point(mean_pos, std_pos, mean_neg, std_neg)


def _mean_std(scores: Tensor, there: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    count = count.clamp(min=1)
    known = scores * there
    mean = known.sum(1, keepdim=True) / count
    deviation = known.sub_(mean).mul_(there)
    return mean, (deviation.square_().sum(1, keepdim=True) / count).sqrt()
