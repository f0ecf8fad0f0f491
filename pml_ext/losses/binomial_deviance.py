"""The binomial deviance loss."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, masked_mean, softplus


def binomial_deviance(
    sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float, beta: float, base: float, scale: float, balance: float
) -> Tensor:
    """Binomial deviance of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `BinomialDevianceLoss`."""
    pull = masked_mean(softplus(-alpha * (sim - base)), pos) / alpha
    push = masked_mean(softplus(beta * (sim - base)), neg) / beta
    return scale * (pull + balance * push)


def binomial_deviance_weights(
    sides: Sides, *, alpha: float, beta: float, base: float, scale: float, balance: float
) -> SideWeights:
    """Binomial deviance and pair weights in closed form."""
    pos, neg = sides.pos.sub_(base).mul_(-alpha), sides.neg.sub_(base).mul_(beta)
    pull, push = scale / sides.pos_count.clamp(min=1), scale * balance / sides.neg_count.clamp(min=1)
    losses = softplus(pos).sum(1, keepdim=True) * pull / alpha + softplus(neg).sum(1, keepdim=True) * push / beta
    return SideWeights(losses.squeeze(1), pos.sigmoid_().mul_(-pull), neg.sigmoid_().mul_(push))


@final
class BinomialDevianceLoss(RowLoss):
    r"""Pulls positives above and pushes negatives below one absolute similarity, by two softplus terms.

        L_i = scale (    1/alpha    mean_{p in P_i} log(1 + exp(-alpha (s_ip - base)))
                    + balance/beta mean_{n in N_i} log(1 + exp(  beta (s_in - base))) )

    The slope is at most `scale` on positives and `scale * balance` on negatives; a missing side contributes 0.

    Args:
        alpha: steepness on positives, above 0.
        beta: steepness on negatives, above 0.
        base: absolute score that separates positives from negatives; a level of the distance.
        scale: factor of the whole loss, above 0; the default 2 gives the factors of the reference code, 1 on positives
            and 0.04 on negatives.
        balance: ratio of the largest slope on negatives to that on positives, above 0; beta / alpha gives both means
            the same factor.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive or a negative.

    Source:
        Yi, Lei, Li, "Deep Metric Learning for Practical Person Re-Identification", 2014, arXiv 1407.4979. Their cost C
        of the negatives is both beta / alpha and `balance` here, because they do not divide by the steepness. DM18's
        BinDeviance is this loss on the pairs of `HardNegativePairMiner`; its reference code raises when every anchor is
        skipped, ignores its `alpha` argument, and overflows on embeddings that are not normalized. DM20's Binomial has
        beta=40. Without its hard mining it has balance=20, so slopes of up to 2 on positives and 40 on negatives, which
        dominate; with it, the code divides by its default steepness of 0.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> BinomialDevianceLoss()(embeddings, labels)
        tensor(0.6678)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(binomial_deviance_weights)
    needs: ClassVar[Needs] = "either"
    levels: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(
        self,
        *,
        alpha: float = 2,
        beta: float = 50,
        base: float = 0.5,
        scale: float = 2,
        balance: float = 1,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            beta=arguments.positive("beta", beta),
            base=arguments.finite("base", base),
            scale=arguments.positive("scale", scale),
            balance=arguments.positive("balance", balance),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Binomial deviance of each anchor."""
        return binomial_deviance(sim, pos, neg, **self.hyperparameters())
