"""The triplet loss on the easiest positive and the hardest negative."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, in_equal_parts
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_max


def easy_positive_triplet(sim: Tensor, pos: Tensor, neg: Tensor, *, margin: float) -> Tensor:
    """Easy positive triplet loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `EasyPositiveTripletLoss`."""
    return torch.relu(masked_max(sim, neg) - masked_max(sim, pos) + margin).squeeze(-1)


def easy_positive_triplet_weights(sides: Sides, *, margin: float) -> SideWeights:
    """Easy positive triplet loss and its few pair weights of each anchor."""
    near, hardest_neg = sides.near_pos(), sides.hardest_neg()
    easiest_pos = near.amax(1, keepdim=True)
    violation = hardest_neg - easiest_pos + margin
    slope = above(violation, 0)
    pos = in_equal_parts(-slope, near, easiest_pos)
    neg, column = sides.on_hardest_neg(hardest_neg, slope)
    return SideWeights(torch.relu(violation).squeeze(1), pos, neg, neg_column=column)


@final
class EasyPositiveTripletLoss(RowLoss):
    r"""Triplet margin loss of the nearest positive and the nearest negative of each anchor.

        L_i = [ min_{p in P_i} D_ip - min_{n in N_i} D_in + margin ]+

    One nearest neighbor of its class is enough for an anchor, so a class need not be one cluster.

    Args:
        margin: how much closer the nearest positive must be than the nearest negative, at least 0; a difference of
            two scores.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative.

    Source:
        DM18's NeighbourHard, in which only the negative is hard. Equal to PML's `TripletMarginLoss` on the triplets of
        `BatchEasyHardMiner(pos_strategy="easy", neg_strategy="hard")` with `MeanReducer`, where every anchor has a
        positive and a negative. Equally near references share the gradient.

    Raises:
        TypeError, ValueError: a margin that is not a number, not finite or negative.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> EasyPositiveTripletLoss()(embeddings, labels)
        tensor(0.0905)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(easy_positive_triplet_weights)

    def __init__(self, *, margin: float = 0.05, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(margin=arguments.non_negative("margin", margin))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Easy positive triplet loss of each anchor."""
        return easy_positive_triplet(sim, pos, neg, **self.hyperparameters())
