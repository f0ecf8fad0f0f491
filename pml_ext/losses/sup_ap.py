"""The SupAP loss: an upper bound on one minus the average precision, whose slope does not fade."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.rank_counts import Step, average_precision, rank_losses, rank_weights


def sup_ap(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    temperature: float,
    rho: float,
    delta: float,
    start: float,
    offset: float | None,
) -> Tensor:
    """SupAP loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    return rank_losses(sim, pos, neg, Step.rising(temperature, rho, delta, start, offset), True, average_precision)


def sup_ap_weights(
    sides: Sides, *, temperature: float, rho: float, delta: float, start: float, offset: float | None
) -> SideWeights | None:
    """SupAP loss and pair weights in closed form."""
    return rank_weights(sides, Step.rising(temperature, rho, delta, start, offset), True, average_precision)


@final
class SupAPLoss(RowLoss):
    r"""An upper bound on one minus the average precision that keeps a slope for negatives ranked far before a positive.

    With A_p the exact rank of positive p among the positives, and B_p an upper bound on the number of negatives before
    it:

        L_i = 1 - mean_{p in P_i} A_p / (A_p + B_p) ,    B_p = sum_{n in N_i} h(s_in - s_ip) ,
        h(x) = sigma(x) for x <= 0 ,    start + sigma(x) up to delta ,    offset + rho (x - delta) beyond

    with sigma(x) = 1 / (1 + exp(-x / temperature)). Positives do not push each other: the ranks among them are held
    constant in the backward pass, and positives with equal scores count as before each other. The value, not the
    gradient, jumps where a negative has the score of a positive. Time n * m * p for p positives of each anchor, memory
    n * m numbers.

    Args:
        temperature: the width of the step, a difference of two scores, above 0.
        rho: the slope beyond `delta`, at least 0.
        delta: the difference of two scores beyond which h is linear, at least 0.
        start: by how much the step jumps at 0, at least 0; from 0.5 on L is an upper bound.
        offset: h at delta; None for no jump there: start + sigma(delta).
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Ramzi et al., "Robust and Decomposable Average Precision for Image Retrieval", NeurIPS 2021, arXiv 2110.01445;
        with `AnchorContrastiveLoss(pos_margin=0.9, neg_margin=0.6)` beside it, as calibration, it is the recipe
        ROADMAP. The configurations of its code have offset=1.44, which jumps down by 0.05, and for iNaturalist start=0,
        offset=1, which is not an upper bound; the anchor is one of its own positives there, and it cannot be trained
        with a current torch, which has no derivative of `heaviside`. HAPPIER's loss with two levels of relevance is
        this one.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> SupAPLoss()(embeddings, labels)
        tensor(0.3190)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(sup_ap_weights)

    def __init__(
        self,
        *,
        temperature: float = 0.01,
        rho: float = 100,
        delta: float = 0.05,
        start: float = 0.5,
        offset: float | None = None,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            temperature=arguments.positive("temperature", temperature),
            rho=arguments.non_negative("rho", rho),
            delta=arguments.non_negative("delta", delta),
            start=arguments.non_negative("start", start),
            offset=None if offset is None else arguments.non_negative("offset", offset),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """SupAP loss of each anchor."""
        return sup_ap(sim, pos, neg, **self.hyperparameters())
