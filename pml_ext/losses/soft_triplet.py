"""The soft-margin triplet loss over the triplets above a threshold, without a triplet tensor."""

import math
from typing import Any, Literal, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_ext import arguments
from pml_ext.base import PairMatrixLoss, StaticDivisorReducer
from pml_ext.pairs import Counted, softplus

Normalization = Literal["anchor", "triplet", "legacy"]


def soft_triplet(
    sim: Tensor, pos: Tensor, neg: Tensor, *, beta: float, threshold: float, normalization: Normalization
) -> Counted:
    """Soft triplet loss of each anchor, and its part of the divisor: sim, pos, neg [.., n, m] -> [.., n] each.

    Takes the positives in blocks of columns, and computes each block again in the backward pass.
    """
    # softplus(z) > threshold, solved for z; minus infinity for 0, which every softplus exceeds.
    cut = threshold + math.log(-math.expm1(-threshold)) if threshold > 0 else -math.inf

    def block(sim: Tensor, neg: Tensor, sim_pos: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        z = beta * (sim.unsqueeze(-2) - sim_pos.unsqueeze(-1))  # [.., n, block, m]
        kept = pos.unsqueeze(-1) & neg.unsqueeze(-2) & (z > cut)
        return softplus(z.masked_fill(~kept, -torch.inf)).sum((-2, -1)), kept.sum((-2, -1))

    size = max(1, _NUMBERS // sim.numel())
    blocks = [
        checkpoint(block, sim, neg, *columns, use_reentrant=False, preserve_rng_state=False)
        for columns in zip(sim.split(size, -1), pos.split(size, -1), strict=True)
    ]
    total, count = (torch.stack(parts).sum(0) for parts in zip(*blocks, strict=True))
    match normalization:
        case "triplet":
            return Counted(total, count)
        case "anchor":
            return Counted(total / count.clamp(min=1), (count > 0).long())
        case "legacy":
            return Counted(total / count.clamp(min=1), count)


# A block holds about so many triplets, or those of one positive of every anchor if these are more.
_NUMBERS = 2**22


@final
class SoftTripletLoss(PairMatrixLoss):
    r"""Soft-margin triplet loss over all valid triplets whose loss exceeds a threshold.

        t_ipn = log(1 + exp(beta (D_ip - D_in))) ,   A_i = the triplets of anchor i with t_ipn > threshold

        L = 1/|A|  sum_{i in A} mean_{A_i} t            normalization="anchor": A = the anchors with a triplet
        L = 1/V    sum_i sum_{A_i} t                    normalization="triplet": V = the number of triplets in all A_i
        L = 1/V    sum_{i in A} mean_{A_i} t            normalization="legacy"

    The selection is a constant: the value jumps where a triplet crosses the threshold, the gradient does not see it.
    Memory n * m numbers, time n * m * m.

    Args:
        beta: steepness, above 0.
        threshold: only triplets whose t is above it count, at least 0; 0 for all. A triplet with D_ip = D_in has
            t = log 2 = 0.693.
        normalization: "anchor", "triplet" or "legacy".
        kwargs: those of `PairMatrixLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalised embeddings), DivisorReducer (sum over the batch, divided by what
        `normalization` counts), needs a positive and a negative.

    Source:
        The 2018 zoo's Triplet (threshold=0.7) and ATriplet (threshold=0.65, in `AnchorWeightedLoss(alpha=40)`); the
        soft margin is that of Hermans, Beyer, Leibe 2017, arXiv 1703.07737. The reference code divides by the number
        of triplets twice, which makes the loss shrink with the batch: that is "legacy". Its count wraps at 256, it
        needs classes of equal size and overflows for large distances.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range, or an unknown
            `normalization`.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> SoftTripletLoss()(embeddings, labels)
        tensor(1.0208)
    """

    def __init__(
        self,
        *,
        beta: float = 4,
        threshold: float = 0.65,
        normalization: Normalization = "anchor",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if normalization not in ("anchor", "triplet", "legacy"):
            raise ValueError(f"normalization must be 'anchor', 'triplet' or 'legacy', got {normalization!r}")
        self.record_hyperparameters(
            beta=arguments.positive("beta", beta),
            threshold=arguments.non_negative("threshold", threshold),
            normalization=normalization,
        )

    def get_default_distance(self) -> LpDistance:
        """Euclidean distance of normalised embeddings."""
        return LpDistance()

    def get_default_reducer(self) -> StaticDivisorReducer:
        """Sum over the batch, divided by the number of anchors or triplets that count."""
        return StaticDivisorReducer()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Counted:
        """Soft triplet loss of each anchor, and its part of the divisor."""
        return soft_triplet(sim, pos, neg, **self.hyperparameters())
