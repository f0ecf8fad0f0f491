"""The k-nearest-neighbor softmax loss: NCA on the k nearest references of each anchor."""

import math
from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum, keep_nearest
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, masked_logsumexp, neighbors, softplus


def knn_softmax(
    sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float, k: int | None, negative_weight: float
) -> Tensor:
    """k-NN softmax loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `KNNSoftmaxLoss`."""
    pos, neg = neighbors(sim, pos, neg, k)
    push, pull = masked_logsumexp(alpha * sim, neg), masked_logsumexp(alpha * sim, pos)
    return softplus(push + math.log(negative_weight) - pull)


def knn_softmax_weights(sides: Sides, *, alpha: float, k: int | None, negative_weight: float) -> SideWeights | None:
    """k-NN softmax loss and pair weights in closed form."""
    if sides.columns is None and k is not None and k < sides.neg.shape[1]:
        return None
    pos, neg = sides.near_pos(), sides.neg
    keep_pos, keep_neg = keep_nearest(pos, neg, k)
    push, neg, neg_total = exponential_sum(neg, alpha, keep_neg)
    pull, pos, pos_total = exponential_sum(pos, alpha, keep_pos)
    margin = push + math.log(negative_weight) - pull
    slope = alpha * margin.sigmoid()
    return SideWeights(softplus(margin).squeeze(1), pos.mul_(-slope / pos_total), neg.mul_(slope / neg_total))


@final
class KNNSoftmaxLoss(RowLoss):
    r"""Maximizes the softmax probability of the positives among the k nearest references of each anchor.

    With P^k_i and N^k_i the positives and negatives closer than the (k+1)-th nearest reference (if no positive is that
    close, P^k_i is the nearest one), and D the distance, raised to the `power` of the distance object:

        L_i = -log( S+ / (S+ + negative_weight S-) )
        S+ = sum_{p in P^k_i} exp(-alpha D_ip),   S- = sum_{n in N^k_i} exp(-alpha D_in)

    Args:
        alpha: steepness, the inverse temperature, above 0.
        k: how many of the nearest references count, at least 1; None for all (the original NCA).
        negative_weight: factor of the negatives' sum, above 0.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance(power=2) (squared Euclidean distance of normalized embeddings), MeanReducer (divides by all n
        anchors), needs a positive and a negative.

    Source:
        Goldberger et al., "Neighbourhood Components Analysis", NIPS 2004 (k=None, alpha=1); DM18's NCA (alpha=16, k=32,
        squared distance) and GaussianLDA (alpha=30, k=16, `LpDistance(power=1)`), which has neither a Gaussian nor LDA
        in it. The reference code raises for batches of at most k + 1 and divides by zero where the exponentials
        underflow; here k is limited by the batch, and sums are computed as logarithms. Its SoftmaxNeig (alpha=50,
        k=None, negative_weight=0.5, `LpDistance(power=1)`) cannot be constructed; the 5 nearest positives and 15
        nearest negatives that it finds are not used in its formula, and so not here.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> KNNSoftmaxLoss()(embeddings, labels)
        tensor(1.7737)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(knn_softmax_weights)
    needs: ClassVar[Needs] = "both"

    def __init__(
        self, *, alpha: float = 16, k: int | None = 32, negative_weight: float = 1, **kwargs: Unpack[RowLossArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            k=arguments.count("k", k, optional=True),
            negative_weight=arguments.positive("negative_weight", negative_weight),
        )

    def get_default_distance(self) -> Any:
        """Squared Euclidean distance of normalized embeddings."""
        return LpDistance(power=2)

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """k-NN softmax loss of each anchor."""
        return knn_softmax(sim, pos, neg, **self.hyperparameters())
