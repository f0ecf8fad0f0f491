"""The clamped NCA loss: pulls and pushes only where a pair is not yet where it should be."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, absent, exponential_sum, hidden
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, masked_logsumexp
from pml_ext.renamed import RenamedAttribute, renamed_arguments


def clamped_nca(sim: Tensor, pos: Tensor, neg: Tensor, *, pos_margin: float, neg_margin: float) -> Tensor:
    """Clamped NCA loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `ClampedNCALoss`."""
    return masked_logsumexp(sim.clamp(min=neg_margin), neg) - masked_logsumexp(sim.clamp(max=pos_margin), pos)


def clamped_nca_weights(sides: Sides, *, pos_margin: float, neg_margin: float) -> SideWeights:
    """Clamped NCA loss and pair weights in closed form."""
    pos, neg = sides.pos, sides.neg
    # Clamped, absent pairs would cost something, so here they are infinitely far, whatever the clamp says.
    no_pos, no_neg = absent(pos), absent(neg)
    # A clamp lets the gradient of its own level through.
    moves_pos = torch.le(pos, pos_margin, out=torch.empty_like(pos))
    moves_neg = torch.ge(neg, neg_margin, out=torch.empty_like(neg))
    pull, pos, pos_total = exponential_sum(hidden(pos.clamp_max_(pos_margin), no_pos), 1)
    push, neg, neg_total = exponential_sum(hidden(neg.clamp_min_(neg_margin), no_neg), 1)
    losses = (push - pull).squeeze(1)
    return SideWeights(losses, pos.mul_(moves_pos).div_(-pos_total), neg.mul_(moves_neg).div_(neg_total))


@final
class ClampedNCALoss(RowLoss):
    r"""Pulls positives until they are near enough, and pushes negatives, the nearest most, until they are far enough.

        L_i = log sum_{N_i} exp(-min(D_in, neg_margin)) - log sum_{P_i} exp(-max(D_ip, pos_margin))

    With a single positive, for example the class center, the second term is the distance max(D_ip, pos_margin) itself.
    A loss may be negative.

    Args:
        pos_margin: the distance below which a positive is not pulled; an absolute distance.
        neg_margin: the distance above which a negative is not pushed; an absolute distance.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative.

    Source:
        DM18's CenterTripletLoss, which compares samples with class centers: `CenterPair` in the catalog. Its code has
        the sign of the second term wrong, which pulls samples to the centers of other classes, and mixes the distances
        of several samples, so that the value depends on their order; neither is reproduced. Despite its name it has no
        triplets. For a batch of one class the reference code returns the positive term; here the loss is 0. Without the
        clamps this is the loss of Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV
        2017.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a finite number.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> ClampedNCALoss()(embeddings, labels)
        tensor(0.8566)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(clamped_nca_weights)
    needs: ClassVar[Needs] = "both"
    levels: ClassVar[tuple[str, ...]] = ("pos_margin", "neg_margin")
    pos_base: RenamedAttribute = RenamedAttribute("pos_margin")
    neg_base: RenamedAttribute = RenamedAttribute("neg_margin")

    @renamed_arguments(pos_base="pos_margin", neg_base="neg_margin")
    def __init__(
        self, *, pos_margin: float = 0.15, neg_margin: float = 0.6, **kwargs: Unpack[RowLossArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            pos_margin=arguments.finite("pos_margin", pos_margin), neg_margin=arguments.finite("neg_margin", neg_margin)
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Clamped NCA loss of each anchor."""
        return clamped_nca(sim, pos, neg, **self.hyperparameters())
