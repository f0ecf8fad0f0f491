"""The RAW loss: relative and absolute similarity based weight assignment."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import informative, masked_logsumexp, softplus
from pml_ext.soft_sides import soft_sides


def raw(sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float, beta: float, gamma: float, epsilon: float) -> Tensor:
    """RAW loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]. The formula is in `RAWLoss`."""
    pos, neg = informative(sim, pos, neg, epsilon)
    pull = softplus(masked_logsumexp(-alpha * (sim - gamma), pos)) / alpha
    push = softplus(masked_logsumexp(beta * (sim - gamma), neg)) / beta
    return pull + push


def raw_weights(sides: Sides, *, alpha: float, beta: float, gamma: float, epsilon: float) -> SideWeights:
    """RAW loss and pair weights in closed form."""
    return soft_sides(sides, alpha, beta, gamma, epsilon)


@final
class RAWLoss(RowLoss):
    r"""Weights each informative pair by its similarity, relative to its anchor's other pairs and absolute.

    With s the score of a pair, an anchor i keeps the positives P'_i less similar than its most similar negative plus
    epsilon, and the negatives N'_i more similar than its least similar positive minus epsilon:

        L_i = 1/alpha log(1 + sum_{p in P'_i} exp(-alpha (s_ip - gamma)))
            + 1/beta  log(1 + sum_{n in N'_i} exp(  beta (s_in - gamma)))

    Its derivative by s_ij is the pair weight of the paper: minus w_ij on P'_i, plus w_ij on N'_i, with

        w_ip = 1 / (sum_{k in P'_i} exp(alpha (s_ip - s_ik)) + exp(alpha (s_ip - gamma)))
        w_in = 1 / (sum_{k in N'_i} exp(beta (s_ik - s_in)) + exp(-beta (s_in - gamma)))

    Args:
        alpha: steepness on positives, above 0.
        beta: steepness on negatives, above 0.
        gamma: absolute score at which a pair starts to matter; a level of the distance.
        epsilon: how far beyond the hardest opposite pair a pair is still informative, at least 0; a difference of
            two scores.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        "A Unified View of Deep Metric Learning via Gradient Analysis", OpenReview Skf5qiC5KQ, 2018. We follow its three
        formula pictures. The published re-implementation (raw.py) differs: it takes the exponential of a sum instead of
        the sum of exponentials, which gives every pair of an anchor the same weight; it keeps the easy positives
        instead of the hard ones; it counts the anchor as its own positive; an anchor without pairs costs log 2; it has
        no epsilon. The paper's own hyperparameters are not known to us: the defaults are those of the Multi-Similarity
        loss (Wang et al., CVPR 2019), to which this loss with its miner is equal, with gamma as the base.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> RAWLoss()(embeddings, labels)
        tensor(0.2795)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(raw_weights)
    levels: ClassVar[tuple[str, ...]] = ("gamma",)

    def __init__(
        self,
        *,
        alpha: float = 2,
        beta: float = 50,
        gamma: float = 0.5,
        epsilon: float = 0.1,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            alpha=arguments.positive("alpha", alpha),
            beta=arguments.positive("beta", beta),
            gamma=arguments.finite("gamma", gamma),
            epsilon=arguments.non_negative("epsilon", epsilon),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """RAW loss of each anchor."""
        return raw(sim, pos, neg, **self.hyperparameters())
