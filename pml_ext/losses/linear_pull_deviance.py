"""The binomial deviance loss with an adaptive level and a linear pull on the hard positives."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, below, crossing_of
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import crossing, masked_max, masked_mean, masked_min, softplus


def linear_pull_deviance(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    beta: float,
    epsilon: float,
    base: float,
    adaptivity: float,
    balance: float,
) -> Tensor:
    """Loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `LinearPullDevianceLoss`."""
    level = adaptivity * crossing(sim, pos, neg) + (1 - adaptivity) * base  # [.., n, 1]
    neg = neg & (sim > masked_min(sim, pos) - epsilon)
    pos = pos & (sim < masked_max(sim, neg) + epsilon)
    pull = masked_mean(level - sim, pos)
    push = masked_mean(softplus(beta * (sim - level)), neg) / beta
    return (pull + balance * push).where(neg.any(-1), 0.0)


def linear_pull_deviance_weights(
    sides: Sides, *, beta: float, epsilon: float, base: float, adaptivity: float, balance: float
) -> SideWeights:
    """Loss and pair weights in closed form."""
    level = adaptivity * crossing_of(sides) + (1 - adaptivity) * base
    hardest_neg = sides.hardest_neg()
    kept = above(sides.neg, sides.hardest_pos() - epsilon)
    number = kept.sum(1, keepdim=True)
    pulled = below(sides.pos, hardest_neg + epsilon).mul_(number > 0)
    pull, push = 1 / pulled.sum(1, keepdim=True).clamp(min=1), balance / number.clamp(min=1)
    pos, neg = sides.pos.sub_(level), sides.neg.sub_(level).mul_(beta)
    pushed = torch.linalg.vecdot(softplus(neg), kept).unsqueeze(1)
    losses = pushed * push / beta - torch.linalg.vecdot(pos, pulled).unsqueeze(1) * pull
    return SideWeights(losses.squeeze(1), pulled.mul_(-pull), neg.sigmoid_().mul_(kept).mul_(push))


@final
class LinearPullDevianceLoss(RowLoss):
    r"""Pulls hard positives with a constant force and pushes hard negatives below a level that each anchor decides.

    With mu and sigma the mean and the population standard deviation of the scores of an anchor's positives and of its
    negatives, the level b_i is the score that is equally many standard deviations away from both means, interpolated
    with a fixed score `base`:

        b_i = adaptivity (sigma-_i mu+_i + sigma+_i mu-_i) / (sigma+_i + sigma-_i) + (1 - adaptivity) base

    The level is held constant in the backward pass. With the hard negatives N'_i = { n in N_i : s_in > min_{p in P_i}
    s_ip - epsilon } and the hard positives P'_i = { p in P_i : s_ip < max_{n in N'_i} s_in + epsilon }:

        L_i = mean_{p in P'_i} (b_i - s_ip)
            + balance/beta mean_{n in N'_i} log(1 + exp(beta (s_in - b_i)))   if N'_i is not empty, else 0

    The pull has no lower bound: a negative loss is not an error.

    Args:
        beta: steepness on negatives, above 0.
        epsilon: how far beyond the hardest opposite pair a pair still counts, at least 0; a difference of two scores.
        base: fixed score with which the level is interpolated; a level of the distance.
        adaptivity: how much the level follows the anchor's scores, from 0 to 1; at 0 the level is `base` for every
            anchor.
        balance: ratio of the largest slope on negatives to that on positives, above 0.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        DM18's MarginPositive. The means and deviations are over all pairs that the loss is given, not only the hard
        ones: this is why the selection is a part of the loss and not a miner. Where neither the positive nor the
        negative scores vary (one positive and one negative) the reference code divides 0 by 0; here the level is
        halfway between the two means. The reference code raises when no anchor is left; here the loss is 0.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> LinearPullDevianceLoss()(embeddings, labels)
        tensor(0.1211)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(linear_pull_deviance_weights)
    levels: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(
        self,
        *,
        beta: float = 40,
        epsilon: float = 0.05,
        base: float = 0.5,
        adaptivity: float = 0.8,
        balance: float = 2,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            beta=arguments.positive("beta", beta),
            epsilon=arguments.non_negative("epsilon", epsilon),
            base=arguments.finite("base", base),
            adaptivity=arguments.fraction("adaptivity", adaptivity),
            balance=arguments.positive("balance", balance),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Linear pull and deviance push of each anchor."""
        return linear_pull_deviance(sim, pos, neg, **self.hyperparameters())
