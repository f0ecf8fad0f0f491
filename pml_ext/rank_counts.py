"""The core of the losses on ranks: how many other positives and how many negatives come before each positive.

With the scores s_j of one anchor, its positives P and negatives N, for each p in P

    ahead_p  = sum_{j in P, j != p} h+(s_j - s_p) ,     before_p = sum_{k in N} h-(s_k - s_p)

so that 1 + ahead_p is the rank of p among the positives and 1 + ahead_p + before_p its rank among all; the anchor
itself is in no list. h- is a `Step`; h+ is its sigmoid, or the exact 1[x >= 0], without a gradient. A head makes the
loss of an anchor of these numbers. Positives are taken one after another: n * m * p steps in n * m numbers of memory.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.closed_form import Sides, SideWeights, above, absent
from pml_ext.masked import count, is_eager, looks_are_free, masked_mean

# (ahead, before, there) -> losses, [.., n, k] -> [.., n]; `there` says in which places there is a positive.
Head = Callable[[Tensor, Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """A step from 0 to 1 at 0, as soft as the temperature, which may keep rising instead of staying at 1.

    sigmoid(x / temperature) + start 1[x > 0] up to `reach`, and offset + slope (x - reach) beyond it.
    """

    temperature: float
    start: float = 0.0
    reach: float = math.inf
    slope: float = 0.0
    offset: float = 0.0

    @staticmethod
    def rising(temperature: float, rho: float, delta: float, start: float, offset: float | None) -> "Step":
        """One that rises by `rho` from `delta` on; without a jump there if there is no offset."""
        flat = start + 1 / (1 + math.exp(-min(delta / temperature, 700.0)))
        return Step(temperature, start, delta, rho, flat if offset is None else offset)

    def value(self, x: Tensor) -> Tensor:
        """The step."""
        y = torch.sigmoid(x / self.temperature)
        if self.start:
            y = y + self.start * (x > 0)
        if self.reach < math.inf:
            y = torch.where(x > self.reach, self.offset + self.slope * (x - self.reach), y)
        return y

    def rate(self, x: Tensor) -> Tensor:
        """Its derivative."""
        z = x / self.temperature
        y = torch.sigmoid(z) * torch.sigmoid(-z) / self.temperature
        return y if self.reach == math.inf else torch.where(x > self.reach, self.slope, y)

    def bend(self, x: Tensor) -> Tensor:
        """The derivative of that."""
        z = x / self.temperature
        y = torch.sigmoid(z) * torch.sigmoid(-z) * (torch.sigmoid(-z) - torch.sigmoid(z)) / self.temperature**2
        return y if self.reach == math.inf else torch.where(x > self.reach, 0.0, y)

    def value_and_rate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, where no gradient is taken; overwrites x."""
        far = above(x, self.reach) if self.reach < math.inf else None
        ahead = above(x, 0) if self.start else None
        beyond = None if far is None else (x - self.reach).mul_(self.slope).add_(self.offset)
        z = x.div_(self.temperature)
        # Not y - y^2, which is 0 where y is nearly 1.
        rate = torch.sigmoid(-z)
        y = z.sigmoid_()
        rate.mul_(y).div_(self.temperature)
        if ahead is not None:
            y.add_(ahead, alpha=self.start)
        if far is not None and beyond is not None:
            y.lerp_(beyond, far)
            rate.lerp_(torch.full_like(rate, self.slope), far)
        return y, rate


def average_precision(ahead: Tensor, before: Tensor, there: Tensor) -> Tensor:
    """The head of average precision: one minus the mean of rank among positives over rank."""
    return masked_mean(before / (1 + ahead + before), there)


def rank_losses(sim: Tensor, pos: Tensor, neg: Tensor, step: Step, exact: bool, head: Head) -> Tensor:
    """What a head makes of the ranks in each row: sim, pos, neg [.., n, m] -> [.., n].

    Args:
        sim: scores.
        pos: positives.
        neg: negatives.
        step: h-, and h+ unless that is exact.
        exact: whether positives are counted exactly among themselves.
        head: from ranks to losses.
    """
    # Transforms of functions and forward mode follow plain operations only.
    counts = _counts if is_eager() or torch.compiler.is_compiling() else _plain_counts
    ahead, before = counts(sim, pos, neg, list(step), exact)
    return head(ahead, before, pos)


def rank_weights(sides: Sides, step: Step, exact: bool, head: Head) -> SideWeights | None:
    """The same from the two sides of a block, with pair weights; None where positives have not been gathered."""
    if sides.columns is None:
        return None
    there = ~absent(sides.pos)  # NaN is, and makes the loss one
    pos, neg = sides.pos.masked_fill(~there, 0.0), sides.neg
    k = pos.shape[1]
    rows = there.to(pos.dtype)
    ahead, before = torch.zeros_like(pos), torch.zeros_like(pos)
    keep = k * neg.numel() <= thresholds.RANK_SLOPES
    kept: list[Tensor | None] = []
    own: list[Tensor] = []
    for r in range(k):
        values, rates = step.value_and_rate(neg - pos[:, r : r + 1])
        before[:, r] = values.sum(1)
        kept.append(rates if keep else None)
        if exact:
            # A place without a positive has no rank, which must not be one that nothing can be divided by.
            ahead[:, r] = ((pos >= pos[:, r : r + 1]) & there).sum(1).sub_(1).clamp_(min=0)
        else:
            values, rates = step.value_and_rate(pos - pos[:, r : r + 1])
            own.append(rates.mul_(rows))
            values = values.mul_(rows)
            values[:, r], rates[:, r] = 0, 0
            ahead[:, r] = values.sum(1)
    losses, by_ahead, by_before = _headed(head, ahead, before, there)
    weights_neg, weights_pos = torch.zeros_like(neg), torch.zeros_like(pos)
    for r in range(k):
        found = kept[r]
        rates = step.value_and_rate(neg - pos[:, r : r + 1])[1] if found is None else found
        pushed = rates.mul_(by_before[:, r : r + 1])
        weights_neg.add_(pushed)
        weights_pos[:, r] -= pushed.sum(1)
        if not exact:
            moved = own[r].mul_(by_ahead[:, r : r + 1])
            weights_pos.add_(moved)
            weights_pos[:, r] -= moved.sum(1)
    return SideWeights(losses, weights_pos, weights_neg)


def _headed(head: Head, ahead: Tensor, before: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and their derivatives by the numbers in `ahead` and `before`."""
    with torch.enable_grad():
        leaves = ahead.requires_grad_(), before.requires_grad_()
        losses = head(*leaves, there)
        if not losses.requires_grad:  # in inference mode nobody asks for weights
            return losses, torch.zeros_like(ahead), torch.zeros_like(before)
        by_ahead, by_before = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
    return losses.detach(), by_ahead, by_before


# Positives are compared a few at a time, in operators of their own, whose blocks neither the backward pass keeps nor a
# compiler unrolls.


class _Block(NamedTuple):
    """Some positives of each anchor [.., n, c], and what they are compared with [.., n, c, m]."""

    columns: Tensor
    gap: Tensor
    rivals: Tensor
    negatives: Tensor


def _blocks(sim: Tensor, pos: Tensor, neg: Tensor, look: bool) -> Iterator[_Block]:
    """All positives in blocks of about 2^20 comparisons; every column may be one where nobody may look."""
    column = torch.arange(sim.shape[-1], device=sim.device)
    columns, there = _compact(pos, column) if look else (column.expand(sim.shape), pos)
    size = max(1, thresholds.SOFT_TRIPLETS // max(1, sim.numel()))
    for place, is_there in zip(columns.split(size, -1), there.split(size, -1), strict=True):
        some, wide = place.unsqueeze(-1), is_there.unsqueeze(-1)
        gap = sim.unsqueeze(-2) - sim.gather(-1, place).unsqueeze(-1)
        rivals = wide & pos.unsqueeze(-2) & (some != column)
        yield _Block(place, gap, rivals, wide & neg.unsqueeze(-2))


def _compact(pos: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of the positives of each row, as many as the row with most has, and which of them are there."""
    number = count(pos)
    k = int(number.max()) if number.numel() else 0
    place = torch.where(pos, pos.cumsum(-1) - 1, k)
    columns = place.new_zeros(*pos.shape[:-1], k + 1).scatter_(-1, place, column.expand(pos.shape))
    return columns[..., :k], torch.arange(k, device=pos.device) < number


def _block_counts(block: _Block, step: Step, exact: bool) -> tuple[Tensor, Tensor]:
    ahead = (block.gap >= 0).to(block.gap.dtype) if exact else Step(step.temperature).value(block.gap)
    return torch.where(block.rivals, ahead, 0.0).sum(-1), torch.where(block.negatives, step.value(block.gap), 0.0).sum(
        -1
    )


def _plain_counts(sim: Tensor, pos: Tensor, neg: Tensor, numbers: list[float], exact: bool) -> tuple[Tensor, Tensor]:
    """`ahead` and `before` in the columns of the positives, 0 in others, [.., n, m] each."""
    found = [_block_counts(block, Step(*numbers), exact) for block in _blocks(sim, pos, neg, look=False)]
    ahead, before = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    return ahead, before


@torch.library.custom_op("pml_ext::rank_counts", mutates_args=())
def _counts(sim: Tensor, pos: Tensor, neg: Tensor, numbers: list[float], exact: bool) -> tuple[Tensor, Tensor]:
    ahead, before = torch.zeros_like(sim), torch.zeros_like(sim)
    for block in _blocks(sim, pos, neg, looks_are_free(sim)):
        for total, part in zip((ahead, before), _block_counts(block, Step(*numbers), exact), strict=True):
            total.scatter_add_(-1, block.columns, part)
    return ahead, before


@torch.library.custom_op("pml_ext::rank_slopes", mutates_args=())
def _slopes(
    sim: Tensor, pos: Tensor, neg: Tensor, by_ahead: Tensor, by_before: Tensor, numbers: list[float], exact: bool
) -> Tensor:
    """The derivative of sum(by_ahead * ahead + by_before * before) by the scores, [.., n, m]."""
    result, step = torch.zeros_like(sim), Step(*numbers)
    for block in _blocks(sim, pos, neg, looks_are_free(sim)):
        slopes = torch.where(block.negatives, step.rate(block.gap), 0.0) * _of(by_before, block)
        if not exact:
            slopes += torch.where(block.rivals, Step(step.temperature).rate(block.gap), 0.0) * _of(by_ahead, block)
        result += slopes.sum(-2)
        result.scatter_add_(-1, block.columns, -slopes.sum(-1))
    return result


def _of(values: Tensor, block: _Block) -> Tensor:
    """Those of the positives of a block, [.., n, c, 1]."""
    return values.gather(-1, block.columns).unsqueeze(-1)


def _curvature(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The derivatives of sum(grad * slopes) by the scores and by both weights."""
    sim, pos, neg, by_ahead, by_before = ctx.saved_tensors
    numbers, exact = ctx.settings
    step, smooth = Step(*numbers), Step(numbers[0])
    by_sim, of_ahead, of_before = torch.zeros_like(sim), torch.zeros_like(sim), torch.zeros_like(sim)
    for block in _blocks(sim, pos, neg, looks_are_free(sim)):
        change = grad.unsqueeze(-2) - _of(grad, block)
        of_before.scatter_add_(
            -1, block.columns, torch.where(block.negatives, step.rate(block.gap) * change, 0.0).sum(-1)
        )
        bends = torch.where(block.negatives, step.bend(block.gap), 0.0) * _of(by_before, block)
        if not exact:
            of_ahead.scatter_add_(
                -1, block.columns, torch.where(block.rivals, smooth.rate(block.gap) * change, 0.0).sum(-1)
            )
            bends += torch.where(block.rivals, smooth.bend(block.gap), 0.0) * _of(by_ahead, block)
        bends *= change
        by_sim += bends.sum(-2)
        by_sim.scatter_add_(-1, block.columns, -bends.sum(-1))
    return by_sim, None, None, of_ahead, of_before, None, None


def _slopes_times(ctx: Any, by_ahead: Tensor, by_before: Tensor) -> tuple[Tensor | None, ...]:
    numbers, exact = ctx.settings
    return _slopes(*ctx.saved_tensors, by_ahead, by_before, numbers, exact), None, None, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:-2])
    ctx.settings = inputs[-2:]


@_counts.register_fake
def _(sim: Tensor, pos: Tensor, neg: Tensor, numbers: list[float], exact: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sim), torch.empty_like(sim)


@_slopes.register_fake
def _(
    sim: Tensor, pos: Tensor, neg: Tensor, by_ahead: Tensor, by_before: Tensor, numbers: list[float], exact: bool
) -> Tensor:
    return torch.empty_like(sim)


_counts.register_autograd(_slopes_times, setup_context=_save)
_slopes.register_autograd(_curvature, setup_context=_save)
