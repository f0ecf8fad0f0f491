"""What closed forms share, and the two sides they are given; the form of each loss stands in its file in `losses/`.

A closed form is a function `f(sides, *, hyperparameters) -> SideWeights` that stands beside the pure function of its
loss; a law checks it against autograd on that function. It needs no mask, because a pair that is not there has a score
with which it costs nothing: a positive is infinitely close, a negative infinitely far.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import FAR, all_known, count, crossing_point, largest, looks_are_free, only

# Score of a pair that is not there: a positive infinitely close, a negative (with a minus) infinitely far.
ABSENT = FAR


class Sides(NamedTuple):
    """The scores of some rows, split by kind. Both may be overwritten.

    Args:
        pos: scores of the positives, [b, m], or [b, k] if they have been gathered to few columns.
        neg: scores of the negatives [b, m].
        pos_count: number of positives of each row in the scores' dtype, [b, 1].
        neg_count: number of negatives of each row in the scores' dtype, [b, 1].
        columns: from which the positives have been gathered [b, k], or None if they are where they were.
    """

    pos: Tensor
    neg: Tensor
    pos_count: Tensor
    neg_count: Tensor
    columns: Tensor | None = None

    @property
    def gathered(self) -> bool:
        """Whether the positives have been gathered, no score is NaN, and reading scores needs no synchronization."""
        return self.columns is not None and looks_are_free(self.pos)

    @property
    def has_pos(self) -> Tensor:
        """Which rows have a positive, booleans [b, 1]."""
        return self.pos_count > 0

    @property
    def has_neg(self) -> Tensor:
        """Which rows have a negative, booleans [b, 1]."""
        return self.neg_count > 0

    def hardest_pos(self) -> Tensor:
        """The score of the farthest positive of each row [b, 1]; infinitely close if there is none."""
        return self.pos.amin(1, keepdim=True)

    def hardest_neg(self) -> Tensor:
        """The score of the nearest negative of each row [b, 1]; infinitely far if there is none."""
        return self.neg.amax(1, keepdim=True)

    def near_pos(self) -> Tensor:
        """The positives with absent ones infinitely far: for a sum or a maximum over closeness."""
        # NaN stays what it is.
        return torch.where(self.pos > ABSENT / 2, -ABSENT, self.pos)

    def only_hardest_neg(self) -> tuple[Tensor, Tensor] | None:
        """The nearest negative of each row and its column, [b, 1] each; None where ties would have to share the weight.

        Deprecated: use `on_hardest_neg`, which puts the weight there, with or without ties.
        """
        warnings.warn("only_hardest_neg is called on_hardest_neg now, and takes the weight", DeprecationWarning, 2)
        top = self.hardest_neg()
        equal = self.neg == top
        if not self.gathered or ((equal.sum(1, keepdim=True) != 1) & ~absent(top)).any():
            return None
        return top, equal.long().argmax(1, keepdim=True)

    def on_hardest_neg(self, score: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight [b, 1] on the nearest negative of each row, of that score, and its column; overwrites `neg`.

        Where ties have to share the weight, or few columns are not faster, the weight on all columns, and None.
        """
        hits = torch.eq(self.neg, score, out=self.neg)
        times = hits.sum(1, keepdim=True)
        # NaN equals nothing.
        is_few = hits.shape[1] > thresholds.FEW_FROM and self.gathered
        if not is_few or ((times != 1) & ~absent(score)).any():
            return hits.mul_(weight / times), None
        # A maximum with its index takes four times as long as this.
        numbers = torch.arange(hits.shape[1], dtype=hits.dtype, device=hits.device)
        return weight, hits.mul_(numbers).amax(1, keepdim=True).long()


def sides_of(sim: Tensor, pos: Tensor, neg: Tensor) -> Sides:
    """The two sides of a block of scores by masks [b, m], the positives where they are."""
    pos_count, neg_count = (count(mask).to(sim.dtype) for mask in (pos, neg))
    if all_known(sim):
        return Sides(only(sim, pos, ABSENT), only(sim, neg, -ABSENT), pos_count, neg_count)
    # What is no number, in a pair that is not selected, would still be none after an addition.
    return Sides(torch.where(pos, sim, ABSENT), torch.where(neg, sim, -ABSENT), pos_count, neg_count)


class SideWeights(NamedTuple):
    """Losses, and their derivatives with respect to the scores of each side, shaped as in `Sides`; 0 where no pair is.

    Args:
        losses: losses of the rows [b]; for a loss of the whole batch one number [].
        pos: derivative with respect to `Sides.pos`.
        neg: derivative with respect to `Sides.neg`, or only to its columns `neg_column` [b, q].
        counts: the number that each row adds to the divisor [b], or None for 1.
        neg_column: None, or the columns [b, q] of the only negatives with a weight; those of equal columns add up.
    """

    losses: Tensor
    pos: Tensor
    neg: Tensor
    counts: Tensor | None = None
    neg_column: Tensor | None = None


class ClosedForm(Protocol):
    """Losses and pair weights of the two sides of some rows; None to leave these rows to autograd.

    A NaN score makes the loss of its row NaN.

    For a loss of the whole batch, the rows are the whole batch, compared with itself by labels, with gathered
    positives: pairs (i, j) and (j, i) may share their weight in any way.
    """

    def __call__(self, sides: Sides, *args: Any, **kwargs: Any) -> SideWeights | None:
        """The hyperparameters are keywords."""


def absent(scores: Tensor) -> Tensor:
    """Which scores are those of pairs that are not there, on either side, as booleans. Not NaN."""
    return scores.abs() > ABSENT / 2


def there(scores: Tensor) -> Tensor:
    """1 where a pair is there and 0 elsewhere, as numbers; 0 for NaN."""
    size = scores.abs()
    return torch.lt(size, ABSENT / 2, out=size)


def hidden(scores: Tensor, which: Tensor) -> Tensor:
    """The scores with some of them infinitely far, as if their pairs were not there."""
    return scores.masked_fill(which, -ABSENT)


def behind(scores: Tensor, level: Tensor, out: Tensor) -> Tensor:
    """The scores below a level, and all others as far as if their pairs were not there; written to out."""
    return torch.ge(scores, level, out=out).mul_(-2 * ABSENT).add_(scores)


def beside(positives: Tensor, neg: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few positives [b, g, 1] at a time, to be compared with negatives [b, 1, m], and where to put that [b, g, m].

    Of a small batch these are many, which spares calls; of a block of many scores one, so that it stays in the cache.
    """
    b, _, m = neg.shape
    size = max(1, min(positives.shape[1], thresholds.TRIPLETS // max(1, neg.numel())))
    room = neg.new_empty(b, size, m)
    for some in positives.unsqueeze(2).split(size, 1):
        yield some, room if some.shape[1] == size else room[:, : some.shape[1]]


def added_up(hits: Tensor) -> Tensor:
    """The sum over a few positives [b, g, m] -> [b, 1, m]; that of a single one is itself."""
    return hits.sum(1, keepdim=True) if hits.shape[1] > 1 else hits


def farthest(scores: Tensor) -> Tensor:
    """The least score of each row that is there, [b, 1]; infinitely close if none is."""
    return torch.where(absent(scores), ABSENT, scores).amin(1, keepdim=True)


def beyond_absent(level: float) -> float:
    """The level of a score, or of a difference of scores, made so high that no pair that is not there is above it."""
    return max(level, -ABSENT / 2)


def only_nearest(scores: Tensor, k: int) -> Tensor | None:
    """The k largest scores of each row, others infinitely far; None where equals would have to share.

    For gathered positives, absent ones infinitely far.
    """
    best = scores.topk(k)
    last = best.values[:, -1:].contiguous()
    times = torch.eq(scores, last, out=torch.empty_like(scores)).sum(1, keepdim=True)
    if bool(((times > 1) & ~absent(last)).any()):
        return None
    return torch.full_like(scores, -ABSENT).scatter_(1, best.indices, best.values)


def above(x: Tensor, level: Tensor | float) -> Tensor:
    """1 where x is above the level and 0 elsewhere, as numbers: far cheaper here than booleans."""
    return torch.gt(x, level, out=torch.empty_like(x))


def below(x: Tensor, level: Tensor | float) -> Tensor:
    """1 where x is below the level and 0 elsewhere, as numbers."""
    return torch.lt(x, level, out=torch.empty_like(x))


def kept(comparison: Callable[..., Tensor], x: Tensor, level: Tensor) -> Tensor:
    """Where comparison(x, level) holds, as torch.gt(x, level): to multiply with, as numbers or booleans."""
    return comparison(x, level, out=torch.empty_like(x)) if looks_are_free(x) else comparison(x, level)


def in_equal_parts(weight: Tensor, scores: Tensor, score: Tensor) -> Tensor:
    """The weight of each row [b, 1] in equal parts on those scores that are equal to one; overwrites the scores."""
    hits = torch.eq(scores, score, out=scores)
    return hits.mul_(weight / hits.sum(1, keepdim=True))


def keep_nearest(pos: Tensor, neg: Tensor, k: int | None) -> tuple[Tensor | None, Tensor | None]:
    """Which scores are above the (k+1)-th largest of both sides, as `kept`, with the nearest positive always kept.

    Absent positives are infinitely far here (`Sides.near_pos`). None and None if all are kept.
    """
    if k is None or k >= neg.shape[1]:
        return None, None
    threshold = largest(neg, k + 1, pos).amin(1, keepdim=True)
    keep_pos = kept(torch.gt, pos, threshold)
    keep_pos.scatter_(1, pos.argmax(1, keepdim=True), 1)
    return keep_pos, kept(torch.gt, neg, threshold)


def exponential_sum(
    scores: Tensor, slope: float, keep: Tensor | None = None, *, level: float = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the sum over each row of exp(slope * (score - level)), the terms up to a factor, and their sum.

    The logarithm [b, 1] is very negative, the terms are finite and their sum is above 0, for a row without entries.

    Args:
        scores: [b, m], which are overwritten.
        slope: above 0, or below.
        keep: which scores count, as numbers or booleans, None for all.
        level: of the scores.
    """
    top = scores.amax(1, keepdim=True) if slope > 0 else scores.amin(1, keepdim=True)
    # Base 2: the same job at a quarter of the price of exp.
    terms = scores.sub_(top).mul_(slope / math.log(2)).exp2_()
    total = (terms if keep is None else terms.mul_(keep)).sum(1, keepdim=True)
    log_sum = total.log().add_(top - level if level else top, alpha=slope)
    return log_sum, terms, total if keep is None else total.clamp_min_(torch.finfo(total.dtype).tiny)


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
