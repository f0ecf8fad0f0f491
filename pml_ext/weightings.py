"""Pair weights in closed form: those of six losses of the literature, for `PairWeightedLoss`.

A weighting is a pure function

    f(sim [.., n, m], pos [.., n, m] bool, neg [.., n, m] bool, *, hyperparameters) -> w [.., n, m],  w >= 0

of scores that are larger for closer pairs: w_ij is how strongly the positive j of anchor i is pulled, or the negative j
pushed. Entries outside the masks are ignored. Hyperparameters have their defaults here. The losses are sums over the
anchors, so no weight contains the 1/n of a mean.

Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, arXiv
1904.06627, who compare losses by these weights.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pml_ext.masked import Needs, active_triplets, informative, masked_logsumexp

__all__ = [
    "binomial_deviance",
    "contrastive",
    "lifted_structure",
    "multi_similarity",
    "raw",
    "triplet",
    "weighting",
]

W = TypeVar("W", bound=Callable[..., Tensor])


def weighting(
    *,
    levels: tuple[str, ...] = (),
    needs: Needs = "both",
    positive: tuple[str, ...] = (),
    non_negative: tuple[str, ...] = (),
) -> Callable[[W], W]:
    """Declare what `PairWeightedLoss` must know of a weighting; an undecorated function has the defaults.

    Args:
        levels: the hyperparameters that are absolute levels of the distance, as in every loss.
        needs: the pairs without which an anchor is not defined: "both", "positives", "negatives" or "either".
        positive: the hyperparameters that must be above 0.
        non_negative: the hyperparameters that must be at least 0.

    Example:
        >>> @weighting(levels=("base",), needs="either")
        ... def beyond(sim, pos, neg, *, base=0.5):
        ...     return torch.where(pos, sim < base, sim > base).to(sim.dtype)
        >>> beyond.levels
        ('base',)
    """

    def enter(function: W) -> W:
        vars(function).update(levels=levels, needs=needs, positive=positive, non_negative=non_negative)
        return function

    return enter


@weighting(levels=("neg_margin",), needs="either")
def contrastive(sim: Tensor, pos: Tensor, neg: Tensor, *, neg_margin: float = 0.5) -> Tensor:
    """1 for every positive, 1 for a negative beyond the margin: sum_P (1 - s) + sum_N [s - neg_margin]+.

    The loss is `AnchorContrastiveLoss(average=False, pos_margin=1)` on cosine similarities.
    """
    return (pos | (neg & (sim > neg_margin))).to(sim.dtype)


@weighting(non_negative=("margin",))
def triplet(sim: Tensor, pos: Tensor, neg: Tensor, *, margin: float = 0.1) -> Tensor:
    """The number of a pair's triplets that violate the margin: sum over P x N of [s_n - s_p + margin]+.

    The loss is `BatchAllTripletLoss`, summed over its triplets. No triplet is formed.
    """
    return active_triplets(sim, pos, neg, margin)[0].abs()


@weighting(levels=("neg_margin", "pos_margin"))
def lifted_structure(
    sim: Tensor, pos: Tensor, neg: Tensor, *, neg_margin: float = 0, pos_margin: float = 0.5
) -> Tensor:
    """Softmax over the anchor's positives and over its negatives, while the hinge is active.

    The loss is `GeneralizedLiftedStructureLoss`: [log sum_P exp(pos_margin - s) + log sum_N exp(s - neg_margin)]+.
    """
    pull, push = pos_margin - sim, sim - neg_margin
    of_pos, of_neg = masked_logsumexp(pull, pos).unsqueeze(-1), masked_logsumexp(push, neg).unsqueeze(-1)
    weights = torch.where(pos, pull - of_pos, push - of_neg).clamp(max=0).exp()
    return weights * (of_pos + of_neg > 0)


@weighting(levels=("base",), needs="either", positive=("alpha", "beta"))
def binomial_deviance(
    sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float = 2, beta: float = 50, base: float = 0.5
) -> Tensor:
    """A sigmoid of the pair's own score: mean_P log(1 + exp(alpha (base - s))) + mean_N log(1 + exp(beta (s - base))).

    The loss is `BinomialDevianceLoss(scale=alpha, balance=beta / alpha)`: its terms are not divided by the steepness.
    """
    pull = alpha * torch.sigmoid(alpha * (base - sim)) / pos.sum(-1, keepdim=True).clamp(min=1)
    push = beta * torch.sigmoid(beta * (sim - base)) / neg.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(pos, pull, push)


@weighting(levels=("base",), needs="either", positive=("alpha", "beta"))
def multi_similarity(
    sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float = 2, beta: float = 50, base: float = 0.5
) -> Tensor:
    """A softmax over the anchor's positives and one pair at the base, and the same for the negatives.

        w+ = exp(-alpha (s - base)) / (1 + sum_P exp(-alpha (s_k - base)))
        w- = exp(  beta (s - base)) / (1 + sum_N exp(  beta (s_k - base)))

    The loss is `MultiSimilarityLoss`.
    """
    return torch.where(pos, _softmax(-alpha * (sim - base), pos), _softmax(beta * (sim - base), neg))


@weighting(levels=("gamma",), positive=("alpha", "beta"), non_negative=("epsilon",))
def raw(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    alpha: float = 2,
    beta: float = 50,
    gamma: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """`multi_similarity` on the informative pairs, 0 on the others. The loss is `RAWLoss`."""
    pos, neg = informative(sim, pos, neg, epsilon)
    return multi_similarity(sim, pos, neg, alpha=alpha, beta=beta, base=gamma) * (pos | neg)


def _softmax(x: Tensor, mask: Tensor) -> Tensor:
    """exp(x) / (1 + sum over the mask exp(x)) of the entries in the mask, [.., n, m]; 0 of the others."""
    x = x.masked_fill(~mask, torch.finfo(x.dtype).min)
    top = x.amax(-1, keepdim=True).clamp(min=0)
    # Base 2: exp takes thirty times as long for what it makes 0.
    terms = (x - top).mul_(1 / math.log(2)).exp2()
    return terms / (terms.sum(-1, keepdim=True) + (-top).exp())
