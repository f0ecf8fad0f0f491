"""The contrastive loss with the hinges averaged per anchor."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, masked_mean, masked_sum


def anchor_contrastive(
    sim: Tensor, pos: Tensor, neg: Tensor, *, pos_margin: float, neg_margin: float, average: bool, step: float
) -> Tensor:
    """Hinges of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `AnchorContrastiveLoss`."""
    total = masked_mean if average else masked_sum
    pull = total(torch.relu(pos_margin - sim), pos)
    push = total(torch.where(sim > neg_margin, sim - neg_margin + step, 0.0), neg)
    return pull + push


def anchor_contrastive_weights(
    sides: Sides, *, pos_margin: float, neg_margin: float, average: bool, step: float
) -> SideWeights:
    """Hinges and pair weights in closed form."""
    pull = 1 / sides.pos_count.clamp(min=1) if average else torch.ones_like(sides.pos[:, :1])
    push = 1 / sides.neg_count.clamp(min=1) if average else torch.ones_like(sides.neg[:, :1])
    pos, neg = sides.pos.neg_().add_(pos_margin), sides.neg.sub_(neg_margin)
    near, far = above(neg, 0), above(pos, 0)
    push_losses = neg.clamp_min_(0).sum(1, keepdim=True) + step * near.sum(1, keepdim=True)
    losses = pos.clamp_min_(0).sum(1, keepdim=True) * pull + push_losses * push
    return SideWeights(losses.squeeze(1), far.mul_(-pull), near.mul_(push))


@final
class AnchorContrastiveLoss(RowLoss):
    r"""Linear hinges on positives and negatives, averaged over the pairs of each anchor, or summed.

        L_i = mean_{p in P_i} [D_ip - pos_margin]+ + mean_{n in N_i} [neg_margin - D_in]+

    A missing side contributes 0. The mean is over active and inactive pairs; with `average=False` it is a sum.

    Args:
        pos_margin: the distance below which a positive costs nothing; a level of the distance.
        neg_margin: the distance above which a negative costs nothing; a level of the distance.
        average: whether to take the mean over an anchor's pairs, or their sum.
        step: a constant that is added for each negative closer than `neg_margin`, at least 0. It has no gradient.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive or a negative.

    Source:
        The contrastive loss of DM18, after Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant
        Mapping", CVPR 2006, whose terms are squares. The reference code fixes the two levels and ignores its `margin`
        argument; here they are arguments. PML's `ContrastiveLoss` has the same hinges, averaged over the active pairs
        of the batch instead of all pairs of the anchor. DM20's contrastive loss has sums (average=False),
        `CosineSimilarity`, pos_margin=1 and neg_margin=0.5; there a negative above the margin costs its whole score and
        not only the part above the margin, so the value, not the gradient, jumps at the margin: step=0.5 reproduces
        this.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number or not finite.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> AnchorContrastiveLoss()(embeddings, labels)
        tensor(0.3053)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(anchor_contrastive_weights)
    needs: ClassVar[Needs] = "either"
    levels: ClassVar[tuple[str, ...]] = ("pos_margin", "neg_margin")

    def __init__(
        self,
        *,
        pos_margin: float = 0.6,
        neg_margin: float = 1.2,
        average: bool = True,
        step: float = 0,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            pos_margin=arguments.finite("pos_margin", pos_margin),
            neg_margin=arguments.finite("neg_margin", neg_margin),
            average=arguments.flag("average", average),
            step=arguments.non_negative("step", step),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Mean hinges of each anchor."""
        return anchor_contrastive(sim, pos, neg, **self.hyperparameters())
