"""The generalized lifted structure loss."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, exponential_sum
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_logsumexp


def generalized_lifted_structure(
    sim: Tensor, pos: Tensor, neg: Tensor, *, neg_margin: float, pos_margin: float
) -> Tensor:
    """Generalized lifted structure loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See the class."""
    pull = masked_logsumexp(pos_margin - sim, pos)
    push = masked_logsumexp(sim - neg_margin, neg)
    return torch.relu(pull + push)


def generalized_lifted_structure_weights(sides: Sides, *, neg_margin: float, pos_margin: float) -> SideWeights:
    """Generalized lifted structure loss and pair weights in closed form."""
    pull, pos, pos_total = exponential_sum(sides.pos, -1, level=pos_margin)
    push, neg, neg_total = exponential_sum(sides.neg, 1, level=neg_margin)
    total = pull + push
    active = above(total, 0)
    return SideWeights(total.relu().squeeze(1), pos.mul_(-active / pos_total), neg.mul_(active / neg_total))


@final
class GeneralizedLiftedStructureLoss(RowLoss):
    r"""Hinge on the soft maximum of the positive distances minus the soft minimum of the negative ones, per anchor.

        L_i = [ log sum_{p in P_i} exp(D_ip - pos_margin) + log sum_{n in N_i} exp(neg_margin - D_in) ]+

    Args:
        neg_margin: the level from which the distances of negatives are subtracted; a level of the distance.
        pos_margin: the level that is subtracted from the distances of positives; a level of the distance.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), MeanReducer (divides by all n anchors), needs a
        positive and a negative.

    Source:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv 1703.07737,
        page 4, after Song et al. 2016 (`LiftedStructureLoss`). Equal to PML's `GeneralizedLiftedStructureLoss`, whose
        arguments and defaults it has, wherever every anchor has a positive and a negative: PML takes the logarithm of
        an empty sum as 0, so that an anchor without positives is still pushed from its negatives, or one without
        negatives pulled to its positives; by the formula it is minus infinity and the hinge 0, as it is here. A pair
        named twice in `indices_tuple` counts once.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number or not finite.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> GeneralizedLiftedStructureLoss()(embeddings, labels)
        tensor(1.2413)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(generalized_lifted_structure_weights)
    levels: ClassVar[tuple[str, ...]] = ("neg_margin", "pos_margin")

    def __init__(self, *, neg_margin: float = 1, pos_margin: float = 0, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            neg_margin=arguments.finite("neg_margin", neg_margin),
            pos_margin=arguments.finite("pos_margin", pos_margin),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Generalized lifted structure loss of each anchor."""
        return generalized_lifted_structure(sim, pos, neg, **self.hyperparameters())
