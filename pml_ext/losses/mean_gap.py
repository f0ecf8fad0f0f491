"""The gap between the mean distances of the closest positive and the closest negative pairs of a batch."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import BatchLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, above, below
from pml_ext.hyperparameters import LossArguments
from pml_ext.masked import kth_largest, largest, masked_max


def mean_gap(sim: Tensor, pos: Tensor, neg: Tensor, *, fraction: float) -> Tensor:
    """Mean gap loss of each batch: sim, pos, neg [.., n, m] -> [..]. See `MeanGapLoss`."""
    sim, pos, neg = (x.flatten(-2) for x in (sim, pos, neg))
    kept = (pos.sum(-1, keepdim=True).double() * fraction + 1e-6).floor().long()
    near_pos, near_neg = _closest(sim, pos, kept), _closest(sim, neg, kept)  # [.., n * m] each
    margin = slack(masked_max(sim.detach().abs(), (near_pos > 0) | (near_neg > 0)))
    pull = near_pos * (sim < _mean(sim, near_neg).unsqueeze(-1) - margin)
    push = near_neg * (sim > _mean(sim, near_pos).unsqueeze(-1) + margin)
    # NaN is neither near nor far, and must stay visible, in the derivative too.
    unknown = torch.where((pos | neg) & sim.isnan(), sim.square(), 0.0).sum(-1)
    return _mean(sim, push) - _mean(sim, pull) + unknown


def _closest(sim: Tensor, mask: Tensor, k: Tensor) -> Tensor:
    """1 for the k largest entries in the mask, 0 for the others; entries equal to the k-th largest share what is left.

    If there are fewer than k, 1 for all; k is one integer per row, [.., 1].
    """
    with torch.no_grad():
        k = k.minimum(mask.sum(-1, keepdim=True))
        scores = sim.masked_fill(~mask, -torch.inf)
        last = kth_largest(scores, k)
        is_above, equal = scores > last, (scores == last) & mask
        # Not as integers, whose quotient would be a float32.
        left, number = (k - is_above.sum(-1, keepdim=True)).to(sim.dtype), equal.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(k > 0, is_above + equal * (left / number), 0.0)


def _mean(sim: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, [..], 0 if there are no weights; of equal scores exactly what they are: none is beyond."""
    total, there = weights.sum(-1), weights > 0
    top = masked_max(sim.detach(), there)
    top = torch.where(total.unsqueeze(-1) > 0, top, 0.0)
    rest = torch.where(there, sim - top, 0.0).mul(weights).sum(-1) / torch.where(total > 0, total, 1.0)
    return top.squeeze(-1) + rest


def number_kept(positives: int, fraction: float) -> int:
    """How many of so many positive pairs are kept."""
    # Not quite an integer where the fraction is 1/5, say: 0.2 * 15 may fall short of 3.
    return int(positives * fraction + 1e-6)


def slack(largest: Tensor) -> Tensor:
    """What the mean of scores of at most this size may be off by rounding: a score so near to it is not beyond it."""
    margin = 64 * torch.finfo(largest.dtype).eps * largest
    return torch.where(margin.isfinite(), margin, 0.0)


def mean_gap_weights(sides: Sides, *, fraction: float) -> SideWeights:
    """Mean gap loss of a batch and its pair weights in closed form."""
    # The sides are on the CPU: to count their pairs waits for nothing.
    n_pos, n_neg = int(sides.pos_count.sum()), int(sides.neg_count.sum())
    kept = number_kept(n_pos, fraction)
    pos, neg = sides.near_pos(), sides.neg
    if kept == 0 or n_neg == 0:
        return SideWeights(neg.new_zeros(()), torch.zeros_like(pos), torch.zeros_like(neg))
    near_pos, near_neg = largest(pos.flatten(), kept), largest(neg.flatten(), min(kept, n_neg))
    mean_pos, mean_neg = _mean_of(near_pos), _mean_of(near_neg)
    margin = slack(torch.maximum(near_pos.abs().amax(), near_neg.abs().amax()))
    mean_neg, mean_pos = mean_neg - margin, mean_pos + margin
    is_pulled, is_pushed = below(near_pos, mean_neg), above(near_neg, mean_pos)
    pulled, pushed = is_pulled.sum().clamp(min=1), is_pushed.sum().clamp(min=1)
    loss = (near_neg * is_pushed).sum() / pushed - (near_pos * is_pulled).sum() / pulled
    pull = _shares(pos, near_pos).mul_(below(pos, mean_neg)).div_(-pulled)
    push = _shares(neg, near_neg).mul_(above(neg, mean_pos)).div_(pushed)
    unknown = 0 * loss  # NaN is neither near nor far, and must stay visible
    return SideWeights(loss, pull.add_(unknown), push.add_(unknown))


def _mean_of(scores: Tensor) -> Tensor:
    top = scores.amax()
    return top + (scores - top).mean()


def _shares(scores: Tensor, nearest: Tensor) -> Tensor:
    """1 for the scores that are among the nearest [k]; those equal to the last of these share what is left."""
    last = nearest.amin()
    kept = above(scores, last)
    equal = scores == last
    left = len(nearest) - int((nearest > last).sum())
    # Of NaN there is none that is equal.
    return kept.add_(equal, alpha=left / max(int(equal.sum()), 1))


@final
class MeanGapLoss(BatchLoss):
    r"""Separates the closest positive pairs of a batch from its closest negative pairs by their mean distances.

    With |P| the number of positive pairs, r = floor(fraction |P|), p the mean of the r smallest positive and n that of
    the r smallest negative distances:

        A = { kept positive distances above n },   B = { kept negative distances below p }
        L = mean A - mean B,   the mean of an empty set being 0

    Args:
        fraction: share of the positive pairs that is kept, above 0 and at most 1; the same number of negative pairs is
            kept.
        kwargs: those of every PML loss.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), needs a positive and a negative pair in the batch. The
        loss of a batch is one number, so the reducer has no effect.

    Source:
        DM18's GaussianMetric, in which nothing is Gaussian. The reference code is NaN for fewer than five positive
        pairs, of which none is kept; here the loss is 0. Each pair counts once in each direction. The loss jumps where
        a distance crosses the mean; a distance that differs from the mean only by rounding is not beyond it.

    Raises:
        TypeError, ValueError: a fraction that is not a number or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> MeanGapLoss(fraction=1)(embeddings, labels)
        tensor(-0.6325)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(mean_gap_weights)

    def __init__(self, *, fraction: float = 0.2, **kwargs: Unpack[LossArguments]) -> None:
        super().__init__(**kwargs)
        share = arguments.positive("fraction", fraction)
        if share > 1:
            raise ValueError(f"fraction must be at most 1, got {fraction!r}")
        self.record_hyperparameters(fraction=share)

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_batch(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Mean gap loss of the batch."""
        return mean_gap(sim, pos, neg, **self.hyperparameters())
