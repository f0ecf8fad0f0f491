"""The online form of the large margin nearest neighbor loss."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, farthest, only_nearest, there
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_mean, masked_min, nearest


def large_margin_nearest_neighbor(sim: Tensor, pos: Tensor, neg: Tensor, *, k: int | None, margin: float) -> Tensor:
    """LMNN loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `LargeMarginNearestNeighborLoss`."""
    targets = pos if k is None else nearest(sim, pos, k)
    # Not "nearer than": NaN is neither, and must stay visible.
    impostors = neg & ~(sim <= masked_min(sim, targets) - margin)
    gap = masked_mean(sim, impostors) - masked_mean(sim, targets) + margin
    return gap.where(impostors.any(-1), 0.0)


def large_margin_nearest_neighbor_weights(sides: Sides, *, k: int | None, margin: float) -> SideWeights | None:
    """LMNN loss and pair weights in closed form."""
    if not sides.gathered:
        return None
    positives = sides.near_pos()
    targets = positives if k is None or k >= positives.shape[1] else only_nearest(positives, k)
    if targets is None:
        return None
    is_there = there(targets)
    count = is_there.sum(1, keepdim=True).clamp_(min=1)
    impostors = above(sides.neg, farthest(targets) - margin)
    number = impostors.sum(1, keepdim=True)
    share = 1 / number.clamp(min=1)
    push = torch.linalg.vecdot(impostors, sides.neg).unsqueeze(1) * share
    pull = torch.linalg.vecdot(is_there, targets).unsqueeze(1) / count
    gap = push - pull + margin
    losses = torch.where((number > 0) | gap.isnan(), gap, 0.0)
    return SideWeights(losses.squeeze(1), is_there.mul_(above(number, 0).neg_() / count), impostors.mul_(share))


@final
class LargeMarginNearestNeighborLoss(RowLoss):
    r"""Pulls the k nearest positives and pushes the negatives that come closer than the farthest of them plus a margin.

    With P^k_i the k nearest positives of anchor i (its targets) and R_i = { n : D_in < max_{P^k_i} D_ip + margin }
    its impostors:

        L_i = mean_{p in P^k_i} D_ip - mean_{n in R_i} D_in + margin   if R_i is not empty, else 0

    For k above 1 a term can be negative.

    Args:
        k: how many of the nearest positives are targets, at least 1 (all if there are fewer); None for all.
        margin: how much closer a target must be than a negative, at least 0; a difference of two scores.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative.

    Source:
        DM18's Neighbour loss, after Weinberger, Saul, "Distance Metric Learning for Large Margin Nearest Neighbor
        Classification", JMLR 2009, whose targets are fixed in advance and whose hinge is taken per triplet. With one
        sampled positive and `CosineSimilarity` it is DM18's DistWeightLoss; with k=None, margin=1 and
        `CosineSimilarity`, on pairs selected by PML's `MultiSimilarityMiner`, DM20's HardMining, mean (1 - s_ip) + mean
        s_in, because with such a margin every selected negative is an impostor. Equal to DM18's formula on balanced
        batches, which its code needs; here classes may have any size.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> LargeMarginNearestNeighborLoss()(embeddings, labels)
        tensor(0.1155)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(large_margin_nearest_neighbor_weights)

    def __init__(self, *, k: int | None = 1, margin: float = 0.1, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            k=arguments.count("k", k, optional=True),
            margin=arguments.non_negative("margin", margin),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """LMNN loss of each anchor."""
        return large_margin_nearest_neighbor(sim, pos, neg, **self.hyperparameters())
