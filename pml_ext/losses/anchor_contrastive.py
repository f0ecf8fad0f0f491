"""The contrastive loss with the hinges averaged per anchor."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from pml_ext import arguments
from pml_ext.base import PairMatrixLoss
from pml_ext.pairs import Needs, masked_mean


def anchor_contrastive(sim: Tensor, pos: Tensor, neg: Tensor, *, pos_margin: float, neg_margin: float) -> Tensor:
    """Mean hinges of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `AnchorContrastiveLoss`."""
    pull = masked_mean(torch.relu(pos_margin - sim), pos)
    push = masked_mean(torch.relu(sim - neg_margin), neg)
    return pull + push


@final
class AnchorContrastiveLoss(PairMatrixLoss):
    r"""Linear hinges on positives and negatives, each averaged over all pairs of the anchor.

        L_i = mean_{p in P_i} [D_ip - pos_margin]+ + mean_{n in N_i} [neg_margin - D_in]+

    A missing side contributes 0. The mean is over active and inactive pairs alike.

    Args:
        pos_margin: the distance up to which a positive costs nothing; a level of the distance.
        neg_margin: the distance from which on a negative costs nothing; a level of the distance.
        kwargs: those of `PairMatrixLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalised embeddings), MeanReducer (divides by all n anchors), needs a
        positive or a negative.

    Source:
        The contrastive loss of the 2018 zoo, after Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an
        Invariant Mapping", CVPR 2006, whose terms are squares. The reference code fixes the two levels and ignores
        its `margin` argument; here they are arguments. PML's `ContrastiveLoss` has the same hinges, averaged over
        the active pairs of the batch instead of all pairs of the anchor.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number or not finite.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> AnchorContrastiveLoss()(embeddings, labels)
        tensor(0.3053)
    """

    needs: ClassVar[Needs] = "either"
    levels: ClassVar[tuple[str, ...]] = ("pos_margin", "neg_margin")

    def __init__(self, *, pos_margin: float = 0.6, neg_margin: float = 1.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            pos_margin=arguments.finite("pos_margin", pos_margin),
            neg_margin=arguments.finite("neg_margin", neg_margin),
        )

    def get_default_distance(self) -> LpDistance:
        """Euclidean distance of normalised embeddings."""
        return LpDistance()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Mean hinges of each anchor."""
        return anchor_contrastive(sim, pos, neg, **self.hyperparameters())
