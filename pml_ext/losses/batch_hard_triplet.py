"""The batch-hard triplet loss: each anchor's farthest positive against its nearest negative."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss, StaticDivisorReducer
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, in_equal_parts
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_max, masked_min, softplus


def batch_hard_triplet(sim: Tensor, pos: Tensor, neg: Tensor, *, margin: float | None) -> Tensor:
    """Batch-hard triplet loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `BatchHardTripletLoss`."""
    violation = (masked_max(sim, neg) - masked_min(sim, pos)).squeeze(-1)
    return softplus(violation) if margin is None else torch.relu(violation + margin)


def batch_hard_triplet_weights(sides: Sides, *, margin: float | None) -> SideWeights:
    """Batch-hard loss and its few pair weights of each anchor."""
    hardest_pos, hardest_neg = sides.hardest_pos(), sides.hardest_neg()
    violation = hardest_neg - hardest_pos
    if margin is None:
        losses, slope = softplus(violation), violation.sigmoid()
    else:
        slope = above(violation.add_(margin), 0)
        losses = violation.relu_()
    pos = in_equal_parts(-slope, sides.pos, hardest_pos)
    neg, column = sides.on_hardest_neg(hardest_neg, slope)
    return SideWeights(losses.squeeze(1), pos, neg, neg_column=column)


@final
class BatchHardTripletLoss(RowLoss):
    r"""Triplet loss of each anchor's farthest positive and nearest negative, averaged over the anchors.

        z_i = max_{p in P_i} D_ip - min_{n in N_i} D_in
        L_i = [z_i + margin]+ ,   or   log(1 + exp(z_i))   for margin=None, the soft margin

    Equally hard pairs of an anchor share the gradient.

    Args:
        margin: how much closer the positive must be than the negative, at least 0, a difference of two scores; None
            for the soft margin.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), DivisorReducer (the mean over the anchors that have
        a positive and a negative), needs a positive and a negative.

    Source:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv 1703.07737:
        the batch-hard loss with a hinge or the soft margin. The code of DM18 differs: it takes the sum of the
        anchors, with a margin of 1; it counts the anchor as its own positive, so that anchors without positives are
        pushed; it ignores negatives at distance 0, the hardest ones; and its gradient is NaN where two embeddings
        coincide. Equal to PML's `BatchHardMiner` with `TripletMarginLoss` and a `MeanReducer`.

    Raises:
        TypeError, ValueError: a margin that is not a number, not finite or negative.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> BatchHardTripletLoss()(embeddings, labels)
        tensor(0.1655)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(batch_hard_triplet_weights)

    def __init__(self, *, margin: float | None = 0.2, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(margin=None if margin is None else arguments.non_negative("margin", margin))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def get_default_reducer(self) -> Any:
        """Sum over the batch, divided by its number of defined anchors."""
        return StaticDivisorReducer()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Batch-hard triplet loss of each anchor."""
        return batch_hard_triplet(sim, pos, neg, **self.hyperparameters())
