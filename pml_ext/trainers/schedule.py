"""How hard the synthetic negatives are, and how much they count, as training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.synthesis import hardness_schedule, mixing_weight


@final
class HardnessSchedule(nn.Module):
    r"""The running averages of hardness-aware learning, and the two factors that are computed from them.

        lambda = exp(-alpha / J_avg) ,   w = exp(-beta / J_gen)

    J_avg is the average of the metric loss of the real tuples, J_gen that of the generator's loss, both over the last
    full `period` of training steps. Until the first one is full both are infinite: lambda = 1, w = 1.

    A step whose losses are not both finite, as happens in mixed precision, is left out.

    All of its state is in its buffers, so `state_dict` holds it; among the `loss_funcs` of a PML trainer it is saved
    and loaded by PML's `HookContainer`. It holds no gradients, and updating it does not wait for the device.

    Args:
        alpha: the value of J_avg at which lambda is 1/e, at least 0, in units of the metric loss. Default 7.
        beta: the value of J_gen at which w is 1/e, at least 0, in units of the generator's loss. Default 1e4.
        period: the number of steps between two updates of the averages, at least 1. Default 64; the length of an epoch
            makes J_avg the paper's "average over the last epoch".

    Attributes:
        j_m, j_syn, j_gen, j_recon, j_soft, j_ce: losses of the last step (see `HardnessAwareTerms`), scalar tensors
            without gradient, where PML's record-keeper finds them. They exist from the first step on.
        lam, mixing_weight: lambda and w of the last step, likewise.
        hardness_real, hardness_synthetic, hardness_regenerated: of the negatives of the last step, likewise.

    Source:
        Zheng et al., "Hardness-Aware Deep Metric Learning", CVPR 2019, arXiv 1903.05503. The period of 64 steps is
        that of the reference code, whose averages begin at 1e6 and whose J_avg is the metric loss after its
        multiplication by w, and with weight decay added; here it is the plain loss, as in the paper.

    Raises:
        TypeError, ValueError: an alpha or beta that is not a number, not finite or negative; a period that is not an
            integer or below 1.

    Example:
        >>> schedule = HardnessSchedule(alpha=1, period=2)
        >>> for loss in (1.0, 3.0):
        ...     print(float(schedule.factors()[0]))
        ...     schedule.update(torch.tensor(loss), torch.tensor(1.0))
        1.0
        1.0
        >>> float(schedule.metric_average), round(float(schedule.factors()[0]), 4)
        (2.0, 0.6065)
    """

    metric_average: Tensor
    generator_average: Tensor
    metric_sum: Tensor
    generator_sum: Tensor
    steps: Tensor

    def __init__(self, alpha: float = 7, beta: float = 1e4, period: int = 64) -> None:
        super().__init__()
        self.alpha: float = arguments.non_negative("alpha", alpha)
        self.beta: float = arguments.non_negative("beta", beta)
        arguments.count("period", period)
        self.period = period
        self.register_buffer("metric_average", torch.tensor(torch.inf))
        self.register_buffer("generator_average", torch.tensor(torch.inf))
        self.register_buffer("metric_sum", torch.tensor(0.0))
        self.register_buffer("generator_sum", torch.tensor(0.0))
        self.register_buffer("steps", torch.tensor(0))
        _pml.record(self, ("alpha", "beta", "period"))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Lambda and the weight of the real tuples in the next step, scalars."""
        return (
            hardness_schedule(self.alpha, self.metric_average),
            mixing_weight(self.beta, self.generator_average),
        )

    @torch.no_grad()
    def update(self, metric_loss: Tensor, generator_loss: Tensor) -> None:
        """Add the two losses of a step, scalars, to the averages."""
        self.to(metric_loss.device)
        metric_loss, generator_loss = metric_loss.squeeze(), generator_loss.squeeze()  # some are a vector of one
        finite = metric_loss.isfinite() & generator_loss.isfinite()
        self.metric_sum += torch.where(finite, metric_loss, 0)
        self.generator_sum += torch.where(finite, generator_loss, 0)
        self.steps += finite
        full = self.steps.eq(self.period)
        for average, total in (
            (self.metric_average, self.metric_sum),
            (self.generator_average, self.generator_sum),
        ):
            average.copy_(torch.where(full, total / self.period, average))
            total.copy_(torch.where(full, 0, total))
        self.steps.copy_(torch.where(full, 0, self.steps))

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Keep what happened in a step, as attributes; copies, without gradient."""
        _pml.record(self, values)
        for name, value in values.items():
            setattr(self, name, value.detach().clone())
