"""The batch-all triplet loss, over every valid triplet without forming one."""

from typing import Any, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments, thresholds
from pml_ext.base import RowLoss, StaticDivisorReducer
from pml_ext.closed_form import Sides, SideWeights, added_up, beside
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Counted, active_triplets, masked_mean


def batch_all_triplet(sim: Tensor, pos: Tensor, neg: Tensor, *, margin: float) -> Counted:
    """Sum and number of the active triplets of each anchor: sim, pos, neg [.., n, m] -> [.., n] each.

    The sum of [s_n - s_p + margin]+ is linear in the scores while no triplet crosses the margin: a negative counts once
    for every positive with which it is active, a positive counts minus once for every such negative. So the loss is the
    sum of these counts times the scores, and the counts are its gradient.
    """
    with torch.no_grad():
        weight, count = active_triplets(sim, pos, neg, margin)
        # The weights of a row add up to 0, so any constant may be taken off its scores: less cancellation.
        center = masked_mean(sim, pos | neg).unsqueeze(-1)
    losses = torch.where(pos | neg, sim - center, 0.0).mul(weight).sum(-1) + margin * count.to(sim.dtype)
    return Counted(losses, count)


def batch_all_triplet_weights(sides: Sides, *, margin: float) -> SideWeights | None:
    """Sums, numbers and pair weights of the active triplets, by counting them, a few positives at a time."""
    if sides.columns is None or sides.pos.shape[1] > thresholds.BATCH_ALL_POSITIVES:
        return None
    active_pos, active_neg = torch.zeros_like(sides.neg), []
    neg, of_neg = sides.neg.unsqueeze(1), active_pos.unsqueeze(1)
    for threshold, hits in beside(sides.pos - margin, neg):
        torch.gt(neg, threshold, out=hits)
        of_neg.add_(added_up(hits))
        active_neg.append(hits.sum(2))
    active = torch.cat(active_neg, 1)
    count = active.sum(1)
    # As in the pure function: any constant may be taken off, here the hardest negative's score.
    center = sides.neg.amax(1, keepdim=True)
    losses = torch.linalg.vecdot(active_pos, sides.neg.sub_(center)) - torch.linalg.vecdot(
        active, sides.pos.sub_(center)
    )
    return SideWeights(losses + margin * count, active.neg_(), active_pos, counts=count.long())


@final
class BatchAllTripletLoss(RowLoss):
    r"""Triplet margin loss, averaged over all valid triplets that violate the margin.

        L = 1/V  sum_i sum_{p in P_i} sum_{n in N_i} [D_ip - D_in + margin]+ ,   V = the number of positive terms

    Exact, without ever forming a triplet: memory n * m numbers, time n * m log m.

    Args:
        margin: how much closer a positive must be than a negative, at least 0; a difference of two scores.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), DivisorReducer (sum over all triplets, divided by
        the number V of active ones), needs a positive and a negative. The loss dict holds the sum of each anchor.

    Source:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv 1703.07737,
        the batch-all loss averaged over non-zero terms; the margin is that of DM18, whose code needs classes of equal
        size and counted triplets in 8 bits, modulo 256. Equal to PML's `TripletMarginLoss` over all triplets with
        `AvgNonZeroReducer`. Given an `indices_tuple` of triplets, every positive of an anchor is combined with every
        negative of it.

    Raises:
        TypeError, ValueError: a margin that is not a number, not finite or negative.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> BatchAllTripletLoss()(embeddings, labels)
        tensor(0.1510)
    """

    closed_form = staticmethod(batch_all_triplet_weights)

    def __init__(self, *, margin: float = 0.02, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(margin=arguments.non_negative("margin", margin))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def get_default_reducer(self) -> Any:
        """Sum over the batch, divided by its number of active triplets."""
        return StaticDivisorReducer()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Counted:
        """Sum and number of the active triplets of each anchor."""
        return batch_all_triplet(sim, pos, neg, **self.hyperparameters())
