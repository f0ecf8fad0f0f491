"""Hardness-aware synthesis as pure functions: the hardness of negatives, their synthesis, and their weight."""

import torch
from torch import Tensor

from pml_ext import arguments


def hardness_schedule(alpha: float, loss_average: float | Tensor) -> Tensor:
    r"""The share of a negative's distance that is kept: lambda = exp(-alpha / J_avg).

    A large metric loss leaves the negatives where they are (lambda near 1); as it falls they are pulled toward their
    anchors (lambda near 0).

    Args:
        alpha: the value of J_avg at which lambda is 1/e, at least 0; 0 never pulls. It is in units of the metric loss,
            so a loss that is averaged over N tuples needs 1/N of the alpha of a loss that is summed.
        loss_average: J_avg, the running average of the metric loss of the real tuples; a number or a tensor of any
            shape. Infinity gives 1; 0 and below give 0, the limit from above.

    Shape:
        a tensor like `loss_average`; float64 if that is a number.

    Source:
        Zheng, Chen, Lu, Zhou, "Hardness-Aware Deep Metric Learning", CVPR 2019, arXiv 1903.05503. At J_avg = 0, where
        the paper's quotient is not defined, we take the limit.

    Raises:
        TypeError, ValueError: an alpha that is not a number, not finite or negative.

    Example:
        >>> hardness_schedule(7, 10.0)
        tensor(0.4966, dtype=torch.float64)
        >>> hardness_schedule(7, torch.tensor([0.0, torch.inf]))
        tensor([0., 1.])
    """
    return _limit(arguments.non_negative("alpha", alpha), loss_average)


def mixing_weight(beta: float, generator_average: float | Tensor) -> Tensor:
    r"""The weight of the real tuples: w = exp(-beta / J_gen), in J = w J(T) + (1 - w) J(T~).

    With a poor generator (J_gen large) all weight is on the real tuples, with a good one on the synthetic tuples.

    Args:
        beta: the value of J_gen at which w is 1/e, at least 0; 0 gives all weight to the real tuples.
        generator_average: J_gen, the running average of the generator's loss; a number or a tensor of any shape.
            Infinity gives 1; 0 and below give 0, the limit from above.

    Shape:
        a tensor like `generator_average`; float64 if that is a number.

    Source:
        As `hardness_schedule`.

    Raises:
        TypeError, ValueError: a beta that is not a number, not finite or negative.

    Example:
        >>> mixing_weight(1e4, 1e4)
        tensor(0.3679, dtype=torch.float64)
    """
    return _limit(arguments.non_negative("beta", beta), generator_average)


def pull_negatives(anchor: Tensor, positive: Tensor, negative: Tensor, lam: float | Tensor) -> Tensor:
    r"""Pull negatives toward their anchors, but not nearer than the positives.

    With d+ = |z - z+| and d- = |z - z-|, a negative farther away than the positive moves along the segment to its
    anchor until |z - z^-| = lambda d- + (1 - lambda) d+, and any other negative stays exactly where it is:

        z^- = z + [lambda d- + (1 - lambda) d+] (z- - z) / d-   if d+ < d- ,   else   z^- = z-

    The gradient goes to all three points, through d+ and d- as well. It is finite everywhere: where two points
    coincide a distance has a zero gradient.

    Args:
        anchor: z.
        positive: z+.
        negative: z-.
        lam: lambda in 0..1, a number or a tensor [...]; at 1 nothing moves, at 0 the negative is as near as the
            positive.

    Shape:
        anchor, positive, negative [..., d], which may broadcast -> [..., d].

    Source:
        As `hardness_schedule`; its reference code divides 0 by 0 where a negative coincides with its anchor. Half
        precision is computed in float32.

    Raises:
        ValueError: a number outside 0..1.

    Example:
        >>> z, pos, neg = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
        >>> pull_negatives(z, pos, neg, 0.5)
        tensor([0., 2.])
    """
    if not isinstance(lam, Tensor):
        arguments.fraction("lam", lam)
    elif lam.ndim:
        lam = lam.unsqueeze(-1)  # [..., 1]; a scalar stays one, which leaves the dtype as it is
    dtype = negative.dtype
    if dtype in (torch.float16, torch.bfloat16):
        anchor, positive, negative = anchor.float(), positive.float(), negative.float()
    to_positive = torch.linalg.vector_norm(positive - anchor, dim=-1, keepdim=True)  # [..., 1]
    to_negative = torch.linalg.vector_norm(negative - anchor, dim=-1, keepdim=True)
    farther = to_positive < to_negative
    ratio = to_positive / torch.where(farther, to_negative, 1)
    # The share of the way to the anchor. Counted from the negative, so that a share of 0 moves nothing at all.
    share = torch.where(farther, (1 - lam) * (1 - ratio), 0)
    return (negative - share * (negative - anchor)).to(dtype)


def _limit(rate: float, average: float | Tensor) -> Tensor:
    """exp(-rate / average), with its limit from above at averages of 0 and below."""
    if not isinstance(average, Tensor):
        average = torch.tensor(average, dtype=torch.float64, device="cpu")
    if rate == 0:
        return torch.ones_like(average)
    value = torch.exp(-rate / torch.where(average > 0, average, 1))
    return torch.where(average <= 0, 0, torch.where(average > 0, value, average))  # not a number stays that
