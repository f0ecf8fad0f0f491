"""Losses and pair weights that RAW and Multi-Similarity share: a soft maximum of each side beyond a level."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pml_ext.closed_form import Sides, SideWeights
from pml_ext.masked import looks_are_free, softplus


def soft_sides(sides: Sides, alpha: float, beta: float, level: float, epsilon: float | None = None) -> SideWeights:
    """log(1 + sum exp(slope * (score - level))) / |slope| of both sides, and its derivatives; overwrites the scores.

    The slope is -alpha on positives and beta on negatives. With an epsilon only the informative pairs count
    (`pml_ext.masked.informative`). As `exponential_sum` twice, with as few calls as both sides together need.
    """
    pos, neg, looks = sides.pos, sides.neg, looks_are_free(sides.pos)
    hardest, totals = pos.new_empty(2, pos.shape[0], 1).unbind(), pos.new_empty(2, pos.shape[0], 1)
    torch.amin(pos, 1, keepdim=True, out=hardest[0])
    torch.amax(neg, 1, keepdim=True, out=hardest[1])
    if epsilon is None:
        keep, tops = None, _each_plus([*hardest], [-level, -level], looks)
    else:
        *tops, below_pos, above_neg = _each_plus([*hardest, *hardest], [-level, -level, -epsilon, epsilon], looks)
        if looks:  # as numbers
            keep_pos = torch.lt(pos, above_neg, out=torch.empty_like(pos))
            keep = keep_pos, torch.gt(neg, below_pos, out=torch.empty_like(neg))
        else:
            keep = pos < above_neg, neg > below_pos
    _each_times([pos.sub_(hardest[0]), neg.sub_(hardest[1])], [-alpha / math.log(2), beta / math.log(2)], looks)
    for i, terms in enumerate((pos.exp2_(), neg.exp2_())):
        torch.sum(terms.mul_(keep[i]) if keep else terms, 1, keepdim=True, out=totals[i])
    log_sums = totals.log()
    log_sums[0].add_(tops[0], alpha=-alpha)
    log_sums[1].add_(tops[1], alpha=beta)
    if keep:
        totals.clamp_min_(torch.finfo(totals.dtype).tiny)
    pull, push = softplus(log_sums)
    losses = pull.div_(alpha).add_(push, alpha=1 / beta)
    of_pos, of_neg = log_sums.sigmoid_().div_(totals)
    return SideWeights(losses.squeeze(1), pos.mul_(of_pos.neg_()), neg.mul_(of_neg))


# On the CPU a call that does as much to several tensors takes three times as long as one call for each of them.
def _each_plus(tensors: list[Tensor], numbers: list[float], looks: bool) -> Sequence[Tensor]:
    if not looks:
        return torch._foreach_add(tensors, numbers)
    return [x + number for x, number in zip(tensors, numbers, strict=True)]


def _each_times(tensors: list[Tensor], numbers: list[float], looks: bool) -> None:
    if not looks:
        torch._foreach_mul_(tensors, numbers)
        return
    for x, number in zip(tensors, numbers, strict=True):
        x.mul_(number)
