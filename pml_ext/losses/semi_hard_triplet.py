"""The semi-hard triplet loss: every positive pair against the nearest negative that is farther than the positive."""

from typing import Any, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments, thresholds
from pml_ext.base import RowLoss, StaticDivisorReducer
from pml_ext.closed_form import Sides, SideWeights, above, absent, behind, beside, farthest
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Counted, masked_sum


def semi_hard_triplet(sim: Tensor, pos: Tensor, neg: Tensor, *, margin: float) -> Counted:
    """Sum and number of the positive pairs of each anchor: sim, pos, neg [.., n, m] -> [.., n] each.

    Sorts the negatives and looks every positive up among them. The negative before it in the order is the nearest of
    those farther than it; if there is none, the first negative of the order is the farthest of all.
    """
    m = sim.shape[-1]
    # Stable: of equal negatives the last column is the nearest, the first one the farthest.
    ordered = sim.masked_fill(~neg, -torch.inf).sort(stable=True, dim=-1).values
    before = torch.searchsorted(ordered.detach(), sim.detach()) - 1
    first = m - neg.sum(-1, keepdim=True)
    chosen = ordered.gather(-1, before.clamp(min=first).clamp(max=m - 1))
    return Counted(masked_sum(torch.relu(chosen - sim + margin), pos), pos.sum(-1))


def semi_hard_triplet_weights(sides: Sides, *, margin: float) -> SideWeights | None:
    """Sums and pair weights of the positive pairs, a few positives at a time."""
    if sides.columns is None or sides.pos.shape[1] > thresholds.SEMI_HARD_POSITIVES:
        return None
    neg = sides.neg
    numbers = torch.arange(neg.shape[1], dtype=neg.dtype, device=neg.device)
    columns, chosen, wide = [], [], neg.unsqueeze(1)
    for positive, hits in beside(sides.pos, wide):
        chosen.append(behind(wide, positive, hits).amax(2, keepdim=True))
        columns.append(torch.eq(wide, chosen[-1], out=hits).mul_(numbers).amax(2))
    scores, column = torch.cat(chosen, 1).squeeze(2), torch.cat(columns, 1)
    none_behind = absent(scores)
    looks = sides.gathered
    if not looks or none_behind.any():
        last = farthest(neg)
        from_the_end = torch.eq(neg, last, out=torch.empty_like(neg)).mul_(len(numbers) - numbers).amax(1, keepdim=True)
        scores = torch.where(none_behind, last, scores)
        # The first of equals; any column of a row without negatives.
        column = torch.where(none_behind, (len(numbers) - from_the_end).clamp_(max=len(numbers) - 1), column)
    if looks and scores.isnan().any():
        return None  # which has no column
    present = ~absent(sides.pos)  # true of NaN, which must stay visible
    violation = torch.where(present, scores - sides.pos + margin, 0.0)
    slope = above(violation, 0)
    return SideWeights(violation.relu().sum(1), -slope, slope, counts=present.sum(1), neg_column=column.long())


@final
class SemiHardTripletLoss(RowLoss):
    r"""Triplet loss of every positive pair with the nearest negative that is farther than the positive.

        L = 1/V  sum_i sum_{p in P_i} [D_ip - D_in* + margin]+ ,   V = the number of positive pairs

    n* is the nearest of the negatives with D_in > D_ip or, if there is none, the farthest negative of the anchor.
    Memory n * m numbers, time n * m log m.

    Args:
        margin: how much closer a positive must be than its negative, at least 0; a difference of two scores.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance(power=2) (squared Euclidean distance of normalized embeddings), DivisorReducer (sum over all
        positive pairs, divided by their number V), needs a positive and a negative. The loss dict holds the sum of
        each anchor.

    Source:
        Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015, arXiv 1503.03832 (margin 0.2), with the rule of
        TensorFlow's `triplet_semihard_loss` (margin 1) for pairs without a semi-hard negative. DM20's loss of this name
        differs: it only drops the negatives that are harder than the easiest positive.

    Raises:
        TypeError, ValueError: a margin that is not a number, not finite or negative.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> SemiHardTripletLoss()(embeddings, labels)
        tensor(0.0900)
    """

    closed_form = staticmethod(semi_hard_triplet_weights)

    def __init__(self, *, margin: float = 1.0, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(margin=arguments.non_negative("margin", margin))

    def get_default_distance(self) -> Any:
        """Squared Euclidean distance of normalized embeddings."""
        return LpDistance(power=2)

    def get_default_reducer(self) -> Any:
        """Sum over the batch, divided by its number of positive pairs."""
        return StaticDivisorReducer()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Counted:
        """Sum and number of the positive pairs of each anchor."""
        return semi_hard_triplet(sim, pos, neg, **self.hyperparameters())
