"""The Smooth-AP loss: one minus the average precision, with soft ranks."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.rank_counts import Step, average_precision, rank_losses, rank_weights


def smooth_ap(sim: Tensor, pos: Tensor, neg: Tensor, *, temperature: float) -> Tensor:
    """Smooth-AP loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    return rank_losses(sim, pos, neg, Step(temperature), False, average_precision)


def smooth_ap_weights(sides: Sides, *, temperature: float) -> SideWeights | None:
    """Smooth-AP loss and signed pair weights in closed form."""
    return rank_weights(sides, Step(temperature), False, average_precision)


@final
class SmoothAPLoss(RowLoss):
    r"""One minus the average precision of each anchor's list, with sigmoids in place of the steps of its ranks.

    With sigma(x) = 1 / (1 + exp(-x / temperature)), A_p the smoothed rank of positive p among the positives, and B_p
    the smoothed number of negatives before it:

        L_i = 1 - mean_{p in P_i} A_p / (A_p + B_p) ,
        A_p = 1 + sum_{j in P_i, j != p} sigma(s_ij - s_ip) ,    B_p = sum_{n in N_i} sigma(s_in - s_ip)

    Positives compete for ranks, so a positive may be pushed by another: the derivative with respect to a positive has
    either sign. Time n * m * p for p positives of each anchor, memory n * m numbers.

    Args:
        temperature: the width of the steps, a difference of two scores, above 0.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020, arXiv 2007.12163.
        In the reference code the anchor is one of its own positives, classes are groups by position and of equal size,
        and memory grows with n^3; here it is not in its own list, and classes of any size, references and masks are
        allowed. PML 2.9's class of this name is correct only if there are as many classes as samples in each class,
        sorted by class: eight perfect clusters of four cost 0.32 there, and 0 here.

    Raises:
        TypeError, ValueError: a temperature that is not a number, not finite or not above 0.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> SmoothAPLoss()(embeddings, labels)
        tensor(0.2083)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(smooth_ap_weights)

    def __init__(self, *, temperature: float = 0.01, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(temperature=arguments.positive("temperature", temperature))

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Smooth-AP loss of each anchor."""
        return smooth_ap(sim, pos, neg, **self.hyperparameters())
