"""The binomial deviance loss around a level that follows the scores of each anchor."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, crossing_of
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import crossing, masked_mean, masked_min, softplus


def adaptive_binomial_deviance(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    alpha: float,
    beta: float,
    epsilon: float,
    base: float,
    adaptivity: float,
    scale: float,
) -> Tensor:
    """Loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `AdaptiveBinomialDevianceLoss`."""
    level = adaptivity * crossing(sim, pos, neg) + (1 - adaptivity) * base  # [.., n, 1]
    neg = neg & (sim > masked_min(sim, pos) - epsilon)
    pull = masked_mean(softplus(-alpha * (sim - level)), pos) / alpha
    push = masked_mean(softplus(beta * (sim - level)), neg) / beta
    return (scale * (pull + push)).where(neg.any(-1), 0.0)


def adaptive_binomial_deviance_weights(
    sides: Sides, *, alpha: float, beta: float, epsilon: float, base: float, adaptivity: float, scale: float
) -> SideWeights:
    """Loss and pair weights in closed form."""
    level = adaptivity * crossing_of(sides) + (1 - adaptivity) * base
    kept = above(sides.neg, sides.hardest_pos() - epsilon)
    number = kept.sum(1, keepdim=True)
    pos, neg = sides.pos.sub_(level).mul_(-alpha), sides.neg.sub_(level).mul_(beta)
    pull = scale * (number > 0) / sides.pos_count.clamp(min=1)
    push = scale / number.clamp(min=1)
    pushed = torch.linalg.vecdot(softplus(neg), kept).unsqueeze(1)
    losses = softplus(pos).sum(1, keepdim=True) * pull / alpha + pushed * push / beta
    return SideWeights(losses.squeeze(1), pos.sigmoid_().mul_(-pull), neg.sigmoid_().mul_(kept).mul_(push))


@final
class AdaptiveBinomialDevianceLoss(RowLoss):
    r"""Binomial deviance around a level that each anchor's own positive and negative scores decide.

    With mu and sigma the mean and the population standard deviation of the scores of an anchor's positives and of its
    negatives, the level b_i is the score that is equally many standard deviations away from both means, interpolated
    with a fixed score `base`:

        b_i = adaptivity (sigma-_i mu+_i + sigma+_i mu-_i) / (sigma+_i + sigma-_i) + (1 - adaptivity) base

    The level is held constant in the backward pass. Only the negatives more similar than the least similar positive
    minus epsilon count, N'_i = { n in N_i : s_in > min_{p in P_i} s_ip - epsilon }:

        L_i = scale ( 1/alpha mean_{p in P_i}  log(1 + exp(-alpha (s_ip - b_i)))
                    + 1/beta  mean_{n in N'_i} log(1 + exp(  beta (s_in - b_i))) )   if N'_i is not empty, else 0

    Args:
        alpha: steepness on positives, above 0.
        beta: steepness on negatives, above 0.
        epsilon: how much less similar than the hardest positive a negative may be, at least 0; a difference of two
            scores.
        base: fixed score with which the level is interpolated; a level of the distance.
        adaptivity: how much the level follows the anchor's scores, from 0 to 1; at 0 the level is `base` for every
            anchor.
        scale: factor of the whole loss, above 0, and the largest slope of both terms.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        DM18's MarginDeviance. The means and deviations are over all pairs that the loss is given, not only those in
        N'_i: this is why the selection is a part of the loss and not a miner. Where neither the positive nor the
        negative scores vary (one positive and one negative) the reference code divides 0 by 0; here the level is
        halfway between the two means. The reference code raises when no anchor is left; here the loss is 0.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> AdaptiveBinomialDevianceLoss()(embeddings, labels)
        tensor(0.1929)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(adaptive_binomial_deviance_weights)
    levels: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(
        self,
        *,
        alpha: float = 10,
        beta: float = 40,
        epsilon: float = 0.05,
        base: float = 0.5,
        adaptivity: float = 0.8,
        scale: float = 2,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            beta=arguments.positive("beta", beta),
            epsilon=arguments.non_negative("epsilon", epsilon),
            base=arguments.finite("base", base),
            adaptivity=arguments.fraction("adaptivity", adaptivity),
            scale=arguments.positive("scale", scale),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Adaptive binomial deviance of each anchor."""
        return adaptive_binomial_deviance(sim, pos, neg, **self.hyperparameters())
