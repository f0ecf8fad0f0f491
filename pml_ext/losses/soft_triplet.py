"""The soft-margin triplet loss over the triplets above a threshold, without a triplet tensor."""

import math
from typing import Any, Literal, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments, thresholds
from pml_ext.base import RowLoss, StaticDivisorReducer
from pml_ext.closed_form import Sides, SideWeights, above, added_up, beside, beyond_absent
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Counted, is_eager, softplus

Normalization = Literal["anchor", "triplet", "legacy"]


def soft_triplet(
    sim: Tensor, pos: Tensor, neg: Tensor, *, beta: float, threshold: float, normalization: Normalization
) -> Counted:
    """Soft triplet loss of each anchor, and its part of the divisor: sim, pos, neg [.., n, m] -> [.., n] each."""
    # Transforms of functions and forward mode follow plain operations only.
    sums = _sums if is_eager() or torch.compiler.is_compiling() else _plain_sums
    total, count = sums(sim, pos, neg, beta, threshold)
    match normalization:
        case "triplet":
            return Counted(total, count)
        case "anchor":
            return Counted(total / count.clamp(min=1), (count > 0).long())
        case "legacy":
            return Counted(total / count.clamp(min=1), count)


# Triplets are formed for a few positives of each anchor at a time, in operators of their own: no block outlives its
# turn, neither for the backward pass nor in the graph of a compiler, which would unroll the loop. Parts are added up at
# once, because small tensors that are kept would pin the memory of the large ones between them.


def _plain_sums(sim: Tensor, pos: Tensor, neg: Tensor, beta: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Sum and number of the triplets of each anchor that are kept, [.., n] each."""
    total, count = sim.new_zeros(sim.shape[:-1]), sim.new_zeros(sim.shape[:-1], dtype=torch.long)
    for columns in _blocks(sim):
        z = _kept_triplets(sim, pos, neg, columns, beta, threshold)
        total = total + softplus(z).sum((-2, -1))
        count = count + (z > -torch.inf).sum((-2, -1))
    return total, count


_sums = torch.library.custom_op("pml_ext::soft_triplet_sums", mutates_args=())(_plain_sums)


@torch.library.custom_op("pml_ext::soft_triplet_slopes", mutates_args=())
def _slopes(sim: Tensor, pos: Tensor, neg: Tensor, beta: float, threshold: float) -> Tensor:
    """Derivative of the sum of each anchor by its scores, [.., n, m]."""
    result = torch.zeros_like(sim)
    for columns in _blocks(sim):
        slopes = beta * torch.sigmoid(_kept_triplets(sim, pos, neg, columns, beta, threshold))
        result += slopes.sum(-2)
        result[..., columns] -= slopes.sum(-1)
    return result


def _curvature(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The second derivative of the sum of each anchor, times `grad`, [.., n, m]."""
    sim, pos, neg = ctx.saved_tensors
    result = torch.zeros_like(sim)
    for columns in _blocks(sim):
        slopes = torch.sigmoid(_kept_triplets(sim, pos, neg, columns, *ctx.numbers))
        change = grad.unsqueeze(-2) - grad[..., columns].unsqueeze(-1)
        curvature = ctx.numbers[0] ** 2 * slopes * (1 - slopes) * change
        result += curvature.sum(-2)
        result[..., columns] -= curvature.sum(-1)
    return result, None, None, None, None


def _slopes_times(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _slopes(*ctx.saved_tensors, *ctx.numbers) * grad.unsqueeze(-1), None, None, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.numbers = inputs[3:]


@_sums.register_fake
def _(sim: Tensor, pos: Tensor, neg: Tensor, beta: float, threshold: float) -> tuple[Tensor, Tensor]:
    return sim.new_empty(sim.shape[:-1]), sim.new_empty(sim.shape[:-1], dtype=torch.long)


@_slopes.register_fake
def _(sim: Tensor, pos: Tensor, neg: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.empty_like(sim)


_sums.register_autograd(_slopes_times, setup_context=_save)
_slopes.register_autograd(_curvature, setup_context=_save)


def _kept_triplets(sim: Tensor, pos: Tensor, neg: Tensor, columns: slice, beta: float, threshold: float) -> Tensor:
    """beta (s_n - s_p) of the positives in these columns, [.., n, columns, m]; minus infinity for what is not kept."""
    # softplus(z) > threshold, solved for z; minus infinity for 0, which every softplus exceeds.
    cut = _cut(threshold)
    z = beta * (sim.unsqueeze(-2) - sim[..., columns].unsqueeze(-1))
    kept = pos[..., columns].unsqueeze(-1) & neg.unsqueeze(-2) & (z > cut)
    return z.masked_fill(~kept, -torch.inf)


def _blocks(sim: Tensor) -> list[slice]:
    """The columns by blocks of about 2^20 triplets, or of one positive of every anchor if these are more."""
    m = sim.shape[-1]
    size = max(1, thresholds.SOFT_TRIPLETS // max(1, sim.numel()))
    return [slice(start, min(start + size, m)) for start in range(0, m, size)]


def soft_triplet_weights(
    sides: Sides, *, beta: float, threshold: float, normalization: Normalization
) -> SideWeights | None:
    """Soft triplet loss and pair weights, a few positives at a time."""
    if sides.columns is None:
        return None
    neg = sides.neg
    cut = beyond_absent(_cut(threshold) / beta)
    total, count = neg.new_zeros(len(neg)), neg.new_zeros(len(neg))
    weights_neg, weights_pos = torch.zeros_like(neg), []
    wide, of_neg = neg.unsqueeze(1), weights_neg.unsqueeze(1)
    for positive, room in beside(sides.pos, wide):
        gap = torch.sub(wide, positive, out=room)
        kept = above(gap, cut)
        gap.mul_(beta)
        total += torch.linalg.vecdot(softplus(gap), kept).sum(1)
        count += kept.sum((1, 2))
        slope = gap.sigmoid_().mul_(kept)
        of_neg.add_(added_up(slope), alpha=beta)
        weights_pos.append(slope.sum(2).mul_(-beta))
    weights = torch.cat(weights_pos, 1)
    if normalization != "triplet":
        share = 1 / count.clamp(min=1)
        total, weights, weights_neg = total * share, weights * share.unsqueeze(1), weights_neg.mul_(share.unsqueeze(1))
    divisor = (count > 0) if normalization == "anchor" else count
    return SideWeights(total, weights, weights_neg, counts=divisor.long())


def _cut(threshold: float) -> float:
    """softplus(z) > threshold, solved for z; minus infinity for 0, which every softplus exceeds."""
    return threshold + math.log(-math.expm1(-threshold)) if threshold > 0 else -math.inf


@final
class SoftTripletLoss(RowLoss):
    r"""Soft-margin triplet loss over all valid triplets whose loss exceeds a threshold.

        t_ipn = log(1 + exp(beta (D_ip - D_in))) ,   A_i = the triplets of anchor i with t_ipn > threshold

        L = 1/|A|  sum_{i in A} mean_{A_i} t            normalization="anchor": A = the anchors with a triplet
        L = 1/V    sum_i sum_{A_i} t                    normalization="triplet": V = the number of triplets in all A_i
        L = 1/V    sum_{i in A} mean_{A_i} t            normalization="legacy"

    The selection is held constant in the backward pass: the value jumps where a triplet crosses the threshold, which
    the gradient ignores. Memory n * m numbers, time n * m * m.

    Args:
        beta: steepness, above 0.
        threshold: only triplets with t above it count, at least 0; 0 for all. A triplet with D_ip = D_in has t = log 2
            = 0.693.
        normalization: "anchor", "triplet" or "legacy".
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), DivisorReducer (sum over the batch, divided by the
        number that `normalization` names), needs a positive and a negative.

    Source:
        DM18's Triplet (threshold=0.7) and ATriplet (threshold=0.65, in `AnchorWeightedLoss(alpha=40)`); the soft margin
        is that of Hermans, Beyer, Leibe 2017, arXiv 1703.07737. The reference code divides by the number of triplets
        twice, which makes the loss shrink with the batch: that is "legacy". It counted triplets in 8 bits, modulo 256,
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

    closed_form = staticmethod(soft_triplet_weights)

    def __init__(
        self,
        *,
        beta: float = 4,
        threshold: float = 0.65,
        normalization: Normalization = "anchor",
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        if normalization not in ("anchor", "triplet", "legacy"):
            raise ValueError(f"normalization must be 'anchor', 'triplet' or 'legacy', got {normalization!r}")
        self.record_hyperparameters(
            beta=arguments.positive("beta", beta),
            threshold=arguments.non_negative("threshold", threshold),
            normalization=normalization,
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def get_default_reducer(self) -> Any:
        """Sum over the batch, divided by the number of anchors or triplets that count."""
        return StaticDivisorReducer()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Counted:
        """Soft triplet loss of each anchor, and its part of the divisor."""
        return soft_triplet(sim, pos, neg, **self.hyperparameters())
