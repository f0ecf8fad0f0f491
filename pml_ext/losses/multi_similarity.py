"""The Multi-Similarity loss."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, masked_logsumexp, softplus
from pml_ext.soft_sides import soft_sides


def multi_similarity(sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float, beta: float, base: float) -> Tensor:
    """Multi-Similarity loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. See `MultiSimilarityLoss`."""
    pull = softplus(masked_logsumexp(-alpha * (sim - base), pos)) / alpha
    push = softplus(masked_logsumexp(beta * (sim - base), neg)) / beta
    return pull + push


def multi_similarity_weights(sides: Sides, *, alpha: float, beta: float, base: float) -> SideWeights:
    """Multi-Similarity loss and pair weights in closed form."""
    return soft_sides(sides, alpha, beta, base)


@final
class MultiSimilarityLoss(RowLoss):
    r"""Weights each pair by its own similarity and by its similarity relative to the anchor's pairs of the same kind.

        L_i = 1/alpha log(1 + sum_{p in P_i} exp(-alpha (s_ip - base)))
            + 1/beta  log(1 + sum_{n in N_i} exp(  beta (s_in - base)))

    A missing side contributes 0.

    Args:
        alpha: steepness on positives, above 0.
        beta: steepness on negatives, above 0.
        base: absolute score at which a pair starts to matter; a level of the distance.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive or a negative.

    Source:
        Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, arXiv
        1904.06627, without its mining: all pairs count. `RAWLoss` is this loss with the mining. Equal to PML's
        `MultiSimilarityLoss`, whose arguments and defaults it has, except that a pair named twice in `indices_tuple`
        counts once, and that one positive with one negative pair is a batch like any other (there PML returns 0). The
        paper has base=1, the authors' code beta=40.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> MultiSimilarityLoss()(embeddings, labels)
        tensor(0.4089)
    """

    needs: ClassVar[Needs] = "either"
    closed_form: ClassVar[ClosedForm | None] = staticmethod(multi_similarity_weights)
    levels: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(
        self, *, alpha: float = 2, beta: float = 50, base: float = 0.5, **kwargs: Unpack[RowLossArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            beta=arguments.positive("beta", beta),
            base=arguments.finite("base", base),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Multi-Similarity loss of each anchor."""
        return multi_similarity(sim, pos, neg, **self.hyperparameters())
