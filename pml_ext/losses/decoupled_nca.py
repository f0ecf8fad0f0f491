"""The decoupled NCA loss: pull and push of the k-nearest-neighbor softmax with a steepness of their own."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum, keep_nearest
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, masked_logsumexp, masked_mean, neighbors


def decoupled_nca(sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float, beta: float, k: int | None) -> Tensor:
    """Decoupled NCA loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `DecoupledNCALoss`."""
    pos, neg = neighbors(sim, pos, neg, k)
    push = masked_logsumexp(alpha * sim, neg)
    weight = (push - masked_logsumexp(alpha * sim, pos)).sigmoid().detach()
    pull = masked_mean(sim, pos) - 1 if beta == 0 else masked_logsumexp(beta * sim, pos) / beta
    return (weight * (push - alpha * pull)).where(neg.any(-1), 0.0)


def decoupled_nca_weights(sides: Sides, *, alpha: float, beta: float, k: int | None) -> SideWeights | None:
    """Decoupled NCA loss and pair weights in closed form."""
    if sides.columns is None or beta == 0:
        return None
    pos, neg = sides.near_pos(), sides.neg
    keep_pos, keep_neg = keep_nearest(pos, neg, k)
    push, neg_terms, neg_total = exponential_sum(neg, alpha, keep_neg)
    weight = (push - exponential_sum(pos.clone(), alpha, keep_pos)[0]).sigmoid()
    pull, pos_terms, pos_total = exponential_sum(pos, beta, keep_pos)
    losses = torch.where(weight == 0, 0.0, weight * (push - alpha * pull / beta))
    slope = alpha * weight
    return SideWeights(losses.squeeze(1), pos_terms.mul_(-slope / pos_total), neg_terms.mul_(slope / neg_total))


@final
class DecoupledNCALoss(RowLoss):
    r"""The gradient of a k-nearest-neighbor softmax, its pull spread over more positives than its push over negatives.

    With P^k_i and N^k_i the neighbors of `KNNSoftmaxLoss`, and a_i the softmax probability of the negatives, held
    constant in the backward pass:

        L_i = a_i ( log sum_{N^k_i} exp(-alpha D_in) - alpha/beta log sum_{P^k_i} exp(-beta D_ip) ),
        a_i = S- / (S+ + S-),   S+ = sum_{P^k_i} exp(-alpha D_ip),  S- = sum_{N^k_i} exp(-alpha D_in)

    so that the gradient is a_i alpha softmax_{P^k_i}(-beta D) on positives and -a_i alpha softmax_{N^k_i}(-alpha D) on
    negatives. With beta = alpha it is that of `KNNSoftmaxLoss`. Only the gradient has a meaning here, the value has
    none.

    Args:
        alpha: steepness on negatives and of a_i, above 0.
        beta: steepness on positives, at least 0; at 0 all positives are pulled equally, and the second term is alpha
            times (1 + their mean distance).
        k: how many of the nearest references count, at least 1; None for all.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative.

    Source:
        DM18's Grad_NCA. Its code is NaN for an anchor without negatives among its k nearest references, whose loss is 0
        here, and raises for batches of at most k + 1. The 1 that is added to the mean distance where beta is 0 is the
        code's: it changes no gradient.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> DecoupledNCALoss()(embeddings, labels)
        tensor(2.6196)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(decoupled_nca_weights)
    needs: ClassVar[Needs] = "both"

    def __init__(
        self, *, alpha: float = 40, beta: float = 10, k: int | None = 64, **kwargs: Unpack[RowLossArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            beta=arguments.non_negative("beta", beta),
            k=arguments.count("k", k, optional=True),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Decoupled NCA loss of each anchor."""
        return decoupled_nca(sim, pos, neg, **self.hyperparameters())
