"""The k-nearest-neighbour softmax loss: NCA on the k nearest references of each anchor."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from pml_ext import arguments
from pml_ext.base import PairMatrixLoss
from pml_ext.pairs import Needs, first_max, masked_logsumexp, softplus


def knn_softmax(sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float, k: int | None) -> Tensor:
    """k-NN softmax loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `KNNSoftmaxLoss`."""
    if k is not None and k < sim.shape[-1]:
        scores = sim.masked_fill(~(pos | neg), -float("inf"))
        near = sim > scores.topk(k + 1, dim=-1).values[..., -1:]
        nearest_pos = first_max(sim, pos)
        pos = (pos & near) | (nearest_pos & ~(pos & near).any(-1, keepdim=True))
        neg = neg & near
    return softplus(masked_logsumexp(alpha * sim, neg) - masked_logsumexp(alpha * sim, pos))


@final
class KNNSoftmaxLoss(PairMatrixLoss):
    r"""Maximises the softmax probability of the positives among the k nearest references of each anchor.

    With P^k_i and N^k_i the positives and negatives closer than the (k+1)-th nearest reference (if no positive is that
    close, P^k_i is the nearest one), and D the distance to the chosen power:

        L_i = -log( sum_{P^k_i} exp(-alpha D_ip) / (sum_{P^k_i} exp(-alpha D_ip) + sum_{N^k_i} exp(-alpha D_in)) )

    Args:
        alpha: steepness, the inverse temperature, above 0.
        k: how many of the nearest references count, at least 1; None for all (the original NCA).
        kwargs: those of `PairMatrixLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance(power=2) (squared Euclidean distance of normalised embeddings), MeanReducer (divides by all n
        anchors), needs a positive and a negative.

    Source:
        Goldberger et al., "Neighbourhood Components Analysis", NIPS 2004 (k=None, alpha=1); the 2018 zoo's NCA
        (alpha=16, k=32, squared distance) and GaussianLDA (alpha=30, k=16, `LpDistance(power=1)`), which has neither
        a Gaussian nor LDA in it. The reference code raises for batches of at most k + 1 and divides by zero where
        the exponentials underflow; here k is cut to the batch and the logarithms are never left.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> KNNSoftmaxLoss()(embeddings, labels)
        tensor(1.7737)
    """

    needs: ClassVar[Needs] = "both"

    def __init__(self, *, alpha: float = 16, k: int | None = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(alpha=arguments.positive("alpha", alpha), k=arguments.count("k", k, optional=True))

    def get_default_distance(self) -> LpDistance:
        """Squared Euclidean distance of normalised embeddings."""
        return LpDistance(power=2)

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """k-NN softmax loss of each anchor."""
        return knn_softmax(sim, pos, neg, **self.hyperparameters())
