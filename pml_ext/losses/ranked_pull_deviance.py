"""The deviance loss whose pull on a positive depends on its rank."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, absent, there
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_mean, softplus


def ranked_pull_deviance(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    margins: Sequence[float],
    alphas: Sequence[float],
    beta: float,
    base: float,
    sharp: bool,
) -> Tensor:
    """Loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `RankedPullDevianceLoss`."""
    # One more than is used, as in the closed form: which of equals come first depends on how many are asked for.
    ranked = sim.masked_fill(~pos, -torch.inf).topk(min(len(margins) + 1, sim.shape[-1]), dim=-1).values
    ranked = ranked[..., : len(margins)]  # nearest first
    there = torch.arange(ranked.shape[-1], device=sim.device) < pos.sum(-1, keepdim=True)
    ranks = zip(ranked.where(there, 0.0).unbind(-1), margins, alphas, strict=False)
    costs = [softplus((alpha if sharp else 1) * (base + margin - score)) / alpha for score, margin, alpha in ranks]
    pull = masked_mean(torch.stack(costs, dim=-1), there)
    push = masked_mean(softplus(beta * (sim - base)), neg) / beta
    return pull + push


def ranked_pull_deviance_weights(
    sides: Sides, *, margins: Sequence[float], alphas: Sequence[float], beta: float, base: float, sharp: bool
) -> SideWeights | None:
    """Loss and pair weights in closed form."""
    ranks = min(len(margins), sides.pos.shape[1])
    ranked, columns = sides.near_pos().topk(min(ranks + 1, sides.pos.shape[1]), dim=1)  # nearest first
    if sides.columns is not None:
        # Which of equals comes first depends on where they stand.
        equal = (ranked[:, 1:] == ranked[:, :-1]) & ~absent(ranked[:, 1:])
        if not sides.gathered or equal.any():
            return None
    ranked, columns = ranked[:, :ranks], columns[:, :ranks]
    margin, alpha = ranked.new_tensor(margins[:ranks]), ranked.new_tensor(alphas[:ranks])
    steepness = alpha if sharp else torch.ones_like(alpha)
    is_there = there(ranked)
    share = is_there / is_there.sum(1, keepdim=True).clamp_min(1)
    violation = steepness * (base + margin - ranked * is_there)
    pull = (softplus(violation) / alpha * share).sum(1, keepdim=True)
    neg = sides.neg.sub_(base).mul_(beta)
    push = softplus(neg).sum(1, keepdim=True) / (beta * sides.neg_count.clamp(min=1))
    pos = torch.zeros_like(sides.pos).scatter_(1, columns, violation.sigmoid() * (-steepness / alpha) * share)
    return SideWeights((pull + push).squeeze(1), pos, neg.sigmoid_().div_(sides.neg_count.clamp(min=1)))


@final
class RankedPullDevianceLoss(RowLoss):
    r"""Pulls the nearest positives, each rank to a level of its own, and pushes all negatives beyond one common level.

    With D_(1) <= D_(2) <= ... the distances of anchor i to its positives and J the number of margins, or of positives
    if there are fewer:

        L_i = 1/J sum_{j <= J} 1/alphas_j log(1 + exp(D_(j) - base + margins_j))
            + 1/beta mean_{n in N_i} log(1 + exp(beta (base - D_in)))

    With `sharp` the steepness also multiplies the exponent, as in the term of the negatives: log(1 + exp(alphas_j
    (D_(j) - ...))).

    Args:
        margins: for each rank, nearest first, how much closer than `base` a positive must be; differences of two
            scores. As many positives count as there are margins.
        alphas: for each rank the divisor of its term, above 0; with `sharp` also its steepness.
        beta: steepness on negatives, above 0.
        base: the distance that separates positives from negatives; a level of the distance.
        sharp: whether `alphas` are also steepnesses, and not only divisors as in the reference code.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative. The levels of the three ranks are distances of 0.95, 1.05 and 1.12.

    Source:
        DM18's DistanceMatch, which is this loss on pairs that `ChainedMiner` selects. Its reference code raises for
        anchors with fewer than three positives, where we average over those that exist. It divides by `alphas` without
        multiplying by them, in all likelihood by mistake: `sharp` does both.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range, or lists of
            different lengths.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> RankedPullDevianceLoss()(embeddings, labels)
        tensor(0.2435)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(ranked_pull_deviance_weights)
    levels: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(
        self,
        *,
        margins: Sequence[float] = (0.05, -0.05, -0.12),
        alphas: Sequence[float] = (4, 8, 16),
        beta: float = 50,
        base: float = 1,
        sharp: bool = False,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < len(margins) == len(alphas):
            raise ValueError(f"margins and alphas must be equally long, and not empty, got {margins!r} and {alphas!r}")
        # Lists, because record-keeper writes no tuples.
        self.record_hyperparameters(
            margins=[arguments.finite("margins", margin) for margin in margins],
            alphas=[arguments.positive("alphas", alpha) for alpha in alphas],
            beta=arguments.positive("beta", beta),
            base=arguments.finite("base", base),
            sharp=arguments.flag("sharp", sharp),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Ranked pull and deviance push of each anchor."""
        return ranked_pull_deviance(sim, pos, neg, **self.hyperparameters())
