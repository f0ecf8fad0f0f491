"""The hardness-weighted contrastive loss: InfoNCE whose nearer negatives count more."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.info_nce import info_nce, info_nce_sides
from pml_ext.masked import masked_logsumexp


def hardness_weighted_contrastive(sim: Tensor, pos: Tensor, neg: Tensor, *, temperature: float, alpha: float) -> Tensor:
    """Hardness-weighted InfoNCE of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    logits = sim / temperature
    return info_nce(logits, pos, masked_logsumexp(logits + alpha * sim.detach(), neg))


def hardness_weighted_contrastive_weights(sides: Sides, *, temperature: float, alpha: float) -> SideWeights:
    """Hardness-weighted InfoNCE and pair weights in closed form."""
    push, neg, total = exponential_sum(sides.neg, 1 / temperature + alpha)
    losses, pos, by_negatives = info_nce_sides(sides.pos.div_(temperature), sides.pos_count, push)
    return SideWeights(losses.squeeze(1), pos.div_(temperature), neg.mul_(by_negatives / (temperature * total)))


@final
class HardnessWeightedContrastiveLoss(RowLoss):
    r"""InfoNCE in which nearer negatives count more: an adaptive margin with one parameter.

        L_i = mean_{p in P_i} log(1 + sum_{n in N_i} exp(s_in / temperature + alpha sg[s_in] - s_ip / temperature))

    where sg[.] is held constant in the backward pass: the softmax over the negatives has a steepness of 1 / temperature
    + alpha, the gradient keeps the factor 1 / temperature, and negatives are never pulled. alpha=0 is InfoNCE.

    Args:
        temperature: divides the scores, above 0.
        alpha: how much more near negatives count, at least 0; it multiplies the score.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Lan et al., "LLaVE: Large Language and Vision Embedding Models with Hardness-Weighted Contrastive Learning",
        EMNLP Findings 2025, arXiv 2503.04812, whose values are the defaults. Its code averages two directions: here
        that takes two calls, the second with embeddings and references exchanged. sentence-transformers has it as
        `hardness_mode="all_negatives"`, with alpha as `hardness_strength`; its other modes weight only a part of the
        negatives. The mean over several positives, outside the logarithm, is ours.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> HardnessWeightedContrastiveLoss()(embeddings, labels)
        tensor(6.1002)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(hardness_weighted_contrastive_weights)

    def __init__(self, *, temperature: float = 0.02, alpha: float = 9, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            temperature=arguments.positive("temperature", temperature), alpha=arguments.non_negative("alpha", alpha)
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Hardness-weighted InfoNCE of each anchor."""
        return hardness_weighted_contrastive(sim, pos, neg, **self.hyperparameters())
