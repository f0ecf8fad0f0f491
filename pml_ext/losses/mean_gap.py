"""The gap between the mean distances of the closest positive and the closest negative pairs of a batch."""

from typing import Any, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from pml_ext import arguments
from pml_ext.base import BatchMatrixLoss
from pml_ext.pairs import masked_mean


def mean_gap(sim: Tensor, pos: Tensor, neg: Tensor, *, fraction: float) -> Tensor:
    """Mean gap loss of each batch: sim, pos, neg [.., n, m] -> [..]. See `MeanGapLoss`."""
    sim, pos, neg = (x.flatten(-2) for x in (sim, pos, neg))
    # Not quite an integer where the fraction is 1/5, say: 0.2 * 15 may fall short of 3.
    kept = (pos.sum(-1, keepdim=True).double() * fraction + 1e-6).floor()
    rank = torch.arange(sim.shape[-1], device=sim.device)
    pos_sim, neg_sim = (sim.masked_fill(~x, -torch.inf).sort(-1, descending=True).values for x in (pos, neg))
    near_pos, near_neg = (rank < kept.minimum(x.sum(-1, keepdim=True)) for x in (pos, neg))
    pull = near_pos & (pos_sim < masked_mean(neg_sim, near_neg).unsqueeze(-1))
    push = near_neg & (neg_sim > masked_mean(pos_sim, near_pos).unsqueeze(-1))
    return masked_mean(neg_sim, push) - masked_mean(pos_sim, pull)


@final
class MeanGapLoss(BatchMatrixLoss):
    r"""Separates the closest positive pairs of a batch from its closest negative pairs by their mean distances.

    With r = floor(fraction |P|), p the mean of the r smallest positive and n that of the r smallest negative distances:

        A = { kept positive distances above n },   B = { kept negative distances below p }
        L = mean A - mean B,   the mean of an empty set being 0

    Args:
        fraction: share of the positive pairs that is kept, above 0 and at most 1; as many negative pairs are kept.
        kwargs: those of every PML loss.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalised embeddings), needs a positive and a negative pair in the batch,
        whose loss is one number.

    Source:
        The 2018 zoo's GaussianMetric, in which nothing is Gaussian. The reference code is NaN for fewer than five
        positive pairs, of which none is kept; here the loss is 0. Each pair counts once in each direction.

    Raises:
        TypeError, ValueError: a fraction that is not a number or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> MeanGapLoss(fraction=1)(embeddings, labels)
        tensor(-0.6325)
    """

    def __init__(self, *, fraction: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if arguments.positive("fraction", fraction) > 1:
            raise ValueError(f"fraction must be at most 1, got {fraction!r}")
        self.record_hyperparameters(fraction=fraction)

    def get_default_distance(self) -> LpDistance:
        """Euclidean distance of normalised embeddings."""
        return LpDistance()

    def per_batch(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Mean gap loss of the batch."""
        return mean_gap(sim, pos, neg, **self.hyperparameters())
