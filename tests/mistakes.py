"""Mistakes that an author of a closed form naturally makes, each beside the law that must name it.

`Right` has a closed form with everything in it that one can get wrong: a nearest pair of each side, a mean, counts and
few columns. A mistake changes one thing.
"""

import torch
from pytorch_metric_learning.distances import CosineSimilarity

from pml_ext.base import RowLoss
from pml_ext.closed_form import ABSENT, Sides, SideWeights, above
from pml_ext.masked import Counted, masked_max, masked_mean, softplus

MISTAKES = {}


def caught_by(law):
    """Enter a mistake with the law that must be the first to notice it."""

    def enter(mistake):
        MISTAKES[mistake.__name__] = mistake, law
        return mistake

    return enter


def near(scores):
    return torch.where(scores > ABSENT / 2, -ABSENT, scores)


def right(
    sides, *, base, closest=near, share=True, first=False, mean_over=None, count=True, column=None, hinge=None, bend=0
):
    """The closed form of `Right`; the other arguments are where it can go wrong."""
    closest_pos = closest(sides.pos).amax(1, keepdim=True)
    top = sides.neg.amax(1, keepdim=True)
    violation = top - closest_pos + 0.25
    losses = hinge(violation) if hinge else torch.relu(violation)
    slope = above(violation, bend)
    pos, neg = (
        side_share((side == nearest).to(slope.dtype), share, first) * slope
        for side, nearest in ((closest(sides.pos), closest_pos), (sides.neg, top))
    )
    width = sides.pos_count.clamp(min=1) if mean_over is None else mean_over(sides)
    cost = 4 * (base - sides.pos)
    losses = losses + softplus(cost).sum(1, keepdim=True) / width
    pos = -pos - 4 * cost.sigmoid() / width
    counts = (sides.pos_count * sides.neg_count).squeeze(1).long() if count else None
    neg, at = column(sides, top, slope) if column else (neg, None)
    return SideWeights(losses.squeeze(1), pos, neg, counts, at)


def side_share(equal, share, first):
    if first:
        return torch.zeros_like(equal).scatter_(1, equal.argmax(1, keepdim=True), 1.0)
    return equal / equal.sum(1, keepdim=True) if share else equal


class Right(RowLoss):
    """The nearest negative against the nearest positive, and the mean of the positives around a level."""

    levels = ("base",)

    def __init__(self, base=0.5, **kwargs):
        super().__init__(**kwargs)
        self.record_hyperparameters(base=base)

    def get_default_distance(self):
        return CosineSimilarity()

    def per_anchor(self, sim, pos, neg):
        base = self.hyperparameters()["base"]
        hinge = torch.relu(masked_max(sim, neg) - masked_max(sim, pos) + 0.25).squeeze(-1)
        return Counted(hinge + masked_mean(softplus(4 * (base - sim)), pos), pos.sum(-1) * neg.sum(-1))

    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, column=Sides.on_hardest_neg)


@caught_by("equal_scores_share_their_weight")
class TiesNotShared(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, share=False)


@caught_by("equal_scores_share_their_weight")
class TheFirstOfEqualsTakesAll(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, first=True)


@caught_by("pair_weights_are_derivatives_by_the_score")
class TheSignOfThePaper(Right):
    @staticmethod
    def closed_form(sides, *, base):
        found = right(sides, base=base)
        return found._replace(pos=-found.pos)


@caught_by("absent_pairs_cost_nothing")
class TheMeanOverTheWidth(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, mean_over=lambda sides: sides.pos.shape[1])


@caught_by("closed_form_counts_as_the_loss_does")
class CountsForgotten(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, count=False)


@caught_by("absent_pairs_cost_nothing")
class AnAbsentPositiveIsTheNearest(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, closest=lambda pos: pos)


@caught_by("closed_form_is_the_loss")
class TheSlopeForgetsTheMargin(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, bend=0.25)


@caught_by("closed_form_passes_on_what_is_no_number")
class AComparisonSwallowsNaN(Right):
    @staticmethod
    def closed_form(sides, *, base):
        known = sides._replace(pos=sides.pos.nan_to_num(nan=base), neg=sides.neg)
        return right(known, base=base, hinge=lambda x: torch.where(x > 0, x, 0.0))


@caught_by("blocks_of_any_height_are_alike")
class TheLastRowOfALongBlockIsLost(Right):
    @staticmethod
    def closed_form(sides, *, base):
        losses, pos, neg, counts, _ = right(sides, base=base)
        if len(losses) > 32:
            losses[-1] = pos[-1] = neg[-1] = 0
        return SideWeights(losses, pos, neg, counts)


@caught_by("closed_form_keeps_the_dtype")
class AlwaysFloat64(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=torch.tensor([base], dtype=torch.float64))


@caught_by("few_columns_come_with_gathered_positives")
class AColumnWithoutGatheredPositives(Right):
    @staticmethod
    def closed_form(sides, *, base):
        return right(sides, base=base, column=lambda sides, top, slope: (slope, sides.neg.argmax(1, keepdim=True)))
