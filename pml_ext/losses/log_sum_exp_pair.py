"""The log-sum-exp pair loss: soft maxima of an anchor's pairs against two absolute levels."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_logsumexp, softplus
from pml_ext.renamed import RenamedAttribute, renamed_arguments


def log_sum_exp_pair(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    alpha: float,
    beta: float,
    pos_margin: float,
    neg_margin: float,
    scale: float,
    bounded: bool,
) -> Tensor:
    """Log-sum-exp pair loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `LogSumExpPairLoss`."""
    pull = masked_logsumexp(alpha * (pos_margin - sim), pos)
    push = masked_logsumexp(beta * (sim - neg_margin), neg)
    if bounded:
        pull, push = softplus(pull), softplus(push)
    return scale * (pull / alpha + push / beta)


def log_sum_exp_pair_weights(
    sides: Sides,
    *,
    alpha: float,
    beta: float,
    pos_margin: float,
    neg_margin: float,
    scale: float,
    bounded: bool,
) -> SideWeights:
    """Log-sum-exp pair loss and pair weights in closed form."""
    pull, pos, pos_total = exponential_sum(sides.pos, -alpha, level=pos_margin)
    push, neg, neg_total = exponential_sum(sides.neg, beta, level=neg_margin)
    pos_slope, neg_slope = scale / pos_total, scale / neg_total
    if bounded:
        pos_slope, neg_slope = pos_slope * pull.sigmoid(), neg_slope * push.sigmoid()
        pull, push = softplus(pull), softplus(push)
    losses = scale * (pull / alpha + push / beta)
    return SideWeights(losses.squeeze(1), pos.mul_(-pos_slope), neg.mul_(neg_slope))


@final
class LogSumExpPairLoss(RowLoss):
    r"""Soft maxima over an anchor's positives and over its negatives, each against an absolute level.

        L_i = scale ( 1/alpha log sum_{p in P_i} exp(alpha (D_ip - pos_margin))
                    + 1/beta  log sum_{n in N_i} exp( beta (neg_margin - D_in)) )

    It has no lower bound, and its gradient does not fade: the pair weights of each side always add up to `scale`. With
    `bounded` each logarithm l becomes log(1 + exp(l)), which tends to 0 once all pairs are beyond their level.

    Args:
        alpha: steepness on positives, above 0.
        beta: steepness on negatives, above 0.
        pos_margin: the distance that positives are compared with; a level of the distance.
        neg_margin: the distance that negatives are compared with; a level of the distance.
        scale: factor of the whole loss, above 0; the default 20 cancels the default steepness, as in the reference
            code.
        bounded: whether to bound both terms by 0 from below.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative.

    Source:
        The pair term of DM18's AHardPair, which is this loss in `AnchorWeightedLoss(alpha=40)`, with one steepness of
        20 for both sides and fixed levels. The notes of the reference code say that only pairs beyond their level
        count, which is false: the levels are constants added to the loss. The reference code overflows in float32 for
        distances above 5.2; here the sum is computed as a logarithm. DM20's LiftedStructure is this loss with alpha=2,
        beta=40, scale=2, both margins 0 and `CosineSimilarity`: the lifted loss of Hermans et al. 2017 with
        temperatures and without its hinge, not that of Song et al. 2016. `bounded` is ours; with it, scale=1 and one
        margin for both sides this is `MultiSimilarityLoss`.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> LogSumExpPairLoss()(embeddings, labels)
        tensor(1.8733)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(log_sum_exp_pair_weights)
    levels: ClassVar[tuple[str, ...]] = ("pos_margin", "neg_margin")
    pos_base: RenamedAttribute = RenamedAttribute("pos_margin")
    neg_base: RenamedAttribute = RenamedAttribute("neg_margin")

    @renamed_arguments(pos_base="pos_margin", neg_base="neg_margin")
    def __init__(
        self,
        *,
        alpha: float = 20,
        beta: float = 20,
        pos_margin: float = 0.8,
        neg_margin: float = 1.1,
        scale: float = 20,
        bounded: bool = False,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            beta=arguments.positive("beta", beta),
            pos_margin=arguments.finite("pos_margin", pos_margin),
            neg_margin=arguments.finite("neg_margin", neg_margin),
            scale=arguments.positive("scale", scale),
            bounded=arguments.flag("bounded", bounded),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Log-sum-exp pair loss of each anchor."""
        return log_sum_exp_pair(sim, pos, neg, **self.hyperparameters())
