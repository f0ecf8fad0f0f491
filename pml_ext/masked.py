"""The kernel: masks over a pair matrix and reductions under them. It knows torch and nothing else.

Everywhere `sim` is a matrix of scores [..., n, m], larger is closer, and `pos` and `neg` are disjoint boolean masks of
its shape. Rows are anchors, columns references. A reduction runs over the last dimension and keeps it with size 1
unless it says otherwise; an entry outside the mask has no influence and receives an exactly zero gradient.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_ext import thresholds

Needs = Literal["both", "positives", "negatives", "either"]


class Counted(NamedTuple):
    """One loss per anchor [..., n], and what each anchor adds to the divisor of the batch, an integer [..., n]."""

    losses: Tensor
    counts: Tensor


def is_eager() -> bool:
    """Whether operations run as they are called: not traced, nor under a function transform, nor in forward mode."""
    transformed = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return not (torch.compiler.is_compiling() or transformed)


def looks_are_free(numbers: Tensor) -> bool:
    """Whether to look at the numbers of a tensor waits for nothing: on the CPU, and neither traced nor fake."""
    return thresholds.LOOKS and is_eager() and type(numbers) is Tensor and numbers.device.type == "cpu"


# On the CPU a comparison into numbers and their conversion to booleans is four times as fast as one into booleans, and
# booleans taken for the bytes that they are become numbers eight times as fast.
def as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where the mask is true and 0 elsewhere."""
    return mask.view(torch.uint8).to(dtype)


def compared(comparison: Callable[..., Tensor], x: Tensor, level: Tensor | float) -> Tensor:
    """The mask comparison(x, level), as torch.gt(x, level); x and level must not require a gradient."""
    return comparison(x, level, out=torch.empty_like(x)).bool() if looks_are_free(x) else comparison(x, level)


def only(x: Tensor, mask: Tensor, far: float) -> Tensor:
    """The entries in the mask; to the others `far` is added: `FAR`, or minus `FAR`, which puts them beyond all."""
    return torch.add(x, as_numbers(~mask, x.dtype), alpha=far)


FAR = 1e30  # finite, because its product with 0 must be 0


def count(mask: Tensor) -> Tensor:
    """How many entries are in the mask, [..., 1]."""
    return mask.view(torch.uint8).sum(-1, keepdim=True, dtype=torch.int32)


def has_any(mask: Tensor) -> Tensor:
    """Whether any entry is in the mask, [..., 1]."""
    return mask.view(torch.uint8).amax(-1, keepdim=True).bool() if mask.shape[-1] else mask.any(-1, keepdim=True)


def of_rows(mask: Tensor, rows: Tensor) -> Tensor:
    """The mask in the rows [..., 1] that are true, and nothing in the others."""
    # As booleans they would be combined one by one.
    return (mask.view(torch.uint8) & rows.view(torch.uint8)).view(torch.bool)


def not_self(start: int, stop: int, m: int, device: torch.device) -> Tensor:
    """False where row and column are the same sample: rows start..stop of the negated identity, [stop - start, m]."""
    other = torch.ones(stop - start, m, dtype=torch.bool, device=device)
    other.diagonal(start).fill_(False)
    return other


def substitute(sim: Tensor, pos: Tensor, neg: Tensor, needs: Needs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replace rows that lack the pairs in `needs` by a harmless one, so that no formula meets an empty set.

    Such a row gets scores of 0, column 0 as its only positive and column 1 as its only negative; of a single column
    what it needs. The last value returned says which rows were left alone, [..., n].
    """
    defined = defined_rows(pos.any(-1), neg.any(-1), needs)
    keep = defined.unsqueeze(-1)
    column = torch.arange(sim.shape[-1], device=sim.device)
    return (
        torch.where(keep, sim, 0.0),
        torch.where(keep, pos, column == (1 if needs == "negatives" else 0)),
        torch.where(keep, neg, column == (0 if needs == "negatives" else 1)),
        defined,
    )


def are_numbers(sim: Tensor) -> bool:
    """Whether all scores are numbers, by a look at their sum, which cannot overflow."""
    return math.isfinite((sim.detach() if sim.requires_grad else sim).sum().item())


def all_known(sim: Tensor) -> bool:
    """Whether all scores are known to be numbers."""
    return looks_are_free(sim) and are_numbers(sim)


def unknown(sim: Tensor) -> Tensor:
    """0 for rows of numbers, not a number, in the gradient too, for others: sim [.., n, m] -> [.., n].

    To be added to what may pass over such scores: comparisons with them are false.
    """
    factor = torch.where(sim.detach().isfinite().all(-1, keepdim=True), 0.0, torch.nan)
    return (sim * factor).sum(-1)


def defined_rows(has_pos: Tensor, has_neg: Tensor, needs: Needs) -> Tensor:
    """Which rows have the pairs in `needs`, from whether they have positives and negatives."""
    match needs:
        case "both":
            return has_pos & has_neg
        case "positives":
            return has_pos
        case "negatives":
            return has_neg
        case "either":
            return has_pos | has_neg


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to full precision in float64 too (torch's own switches to x at 20, an error of 2e-9)."""
    return F.softplus(x, threshold=50.0)


def masked_logsumexp(x: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum of exponentials of the entries in the mask, [...].

    An empty mask gives about the most negative number of the dtype, with a gradient of 0. The fill value is finite,
    because minus infinity would make the gradient of an empty row NaN.
    """
    return x.masked_fill(~mask, torch.finfo(x.dtype).min).logsumexp(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries in the mask, [...]; 0 for an empty mask."""
    return masked_sum(x, mask) / mask.sum(-1).clamp(min=1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the entries in the mask, [...]."""
    return torch.where(mask, x, 0.0).sum(-1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Largest entry in the mask, [..., 1]; minus infinity for an empty mask."""
    return x.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)


def masked_min(x: Tensor, mask: Tensor) -> Tensor:
    """Smallest entry in the mask, [..., 1]; infinity for an empty mask."""
    return x.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)


def first_max(x: Tensor, mask: Tensor) -> Tensor:
    """Mask of the largest entry in the mask: one per row, the first of equal ones; none for an empty mask."""
    index = x.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    return mask & (torch.arange(x.shape[-1], device=x.device) == index)


def nearest(x: Tensor, mask: Tensor, k: int) -> Tensor:
    """Mask of the k largest entries in the mask, or of all if there are fewer; never more than k, even with ties."""
    if k >= x.shape[-1]:
        return mask
    if looks_are_free(x) and mask.numel():
        if int(count(mask).max()) <= k:
            return mask
        inside = only(x.detach(), mask, -FAR)
        near = mask & compared(torch.ge, inside, largest(inside, k).amin(-1, keepdim=True))
        if int(count(near).max()) <= k:
            return near
    order = x.masked_fill(~mask, -torch.inf).topk(k, dim=-1).indices
    return mask & torch.zeros_like(mask).scatter(-1, order, True)


def neighbors(sim: Tensor, pos: Tensor, neg: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """The positives and negatives closer than the (k+1)-th nearest reference; None means all.

    If no positive is that close, the nearest one is kept, so that only a row without positives ends with none.
    """
    if k is None or k >= sim.shape[-1]:
        return pos, neg
    scores = sim.masked_fill(~(pos | neg), -torch.inf)
    near = sim > largest(scores.detach(), k + 1).amin(-1, keepdim=True)
    near_pos = pos & near
    return near_pos | (first_max(sim, pos) & ~near_pos.any(-1, keepdim=True)), neg & near


def largest(x: Tensor, k: int, more: Tensor | None = None) -> Tensor:
    """The k largest numbers of each row in any order: x [.., m] and more [.., j] -> [.., k]."""
    # Those of x are among its k groups with the largest maxima: two small selections instead of one large one.
    size = thresholds.GROUP
    groups = x.shape[-1] // size
    if groups >= thresholds.GROUPS_FOR_EACH * k:
        grouped = x[..., : groups * size].unflatten(-1, (size, groups))
        best = grouped.amax(-2).topk(k, dim=-1, sorted=False).indices
        candidates = grouped.gather(-1, best.unsqueeze(-2).expand(*grouped.shape[:-1], k)).flatten(-2)
        x = torch.cat((candidates, x[..., groups * size :]), -1)
    return (x if more is None else torch.cat((x, more), -1)).topk(k, dim=-1, sorted=False).values


def kth_largest(x: Tensor, k: Tensor) -> Tensor:
    """The k-th largest number of each row, [..., 1]: x [..., m] of float32 or float64, k [..., 1] from 1 on.

    It is a constant to the gradient, and arbitrary for k < 1. Rows with different k are not sorted: floats have the
    order of their bits read as integers, so the bits of the k-th largest are found one by one, by counting.
    """
    x = x.detach()
    if x.shape[-1] <= thresholds.SORTED_LENGTH:
        return x.sort(-1, descending=True).values.gather(-1, (k - 1).clamp(0, x.shape[-1] - 1))
    integers = torch.int64 if x.dtype == torch.float64 else torch.int32
    largest = torch.iinfo(integers).max
    # float32 counts to 2^24.
    count_dtype = torch.float32 if x.shape[-1] < 1 << 24 else torch.float64
    hits, wanted = torch.empty_like(x), k.to(count_dtype)

    def number(bits: Tensor) -> Tensor:
        return torch.where(bits < 0, bits ^ largest, bits).view(x.dtype)

    found = torch.full_like(k, torch.iinfo(integers).min, dtype=integers)
    for bit in range(torch.iinfo(integers).bits - 1, -1, -1):
        # The first bit is the sign: all that is not negative is above all that is.
        step = torch.iinfo(integers).min if bit == torch.iinfo(integers).bits - 1 else 1 << bit
        higher = found ^ step
        enough = torch.ge(x, number(higher), out=hits).sum(-1, keepdim=True, dtype=count_dtype) >= wanted
        found = torch.where(enough, higher, found)
    result = number(found)
    # Below minus infinity there are integers that are no numbers.
    return torch.where(result.isnan(), -torch.inf, result)


def active_triplets(sim: Tensor, pos: Tensor, neg: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Triplets with s_n - s_p + margin > 0: each pair's signed number [.., n, m], each anchor's number [.., n].

    A negative counts 1 for every positive with which it is active, a positive -1 for every such negative. No triplet is
    formed: memory n * m numbers, time n * m log m. Constants to the gradient.
    """
    with torch.no_grad():
        blocks = zip(*(x.split(thresholds.TRIPLET_ROWS, dim=-2) for x in (sim, pos, neg)), strict=True)
        weights, counts = zip(*(_active_triplets(s, p, n, margin) for s, p, n in blocks), strict=True)
        return torch.cat(weights, dim=-2), torch.cat(counts, dim=-1)


def _active_triplets(sim: Tensor, pos: Tensor, neg: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    # Sorts the negatives and looks every positive up among them.
    m = sim.shape[-1]
    ordered, order = sim.masked_fill(~neg, -torch.inf).sort(-1)
    # Of a positive: how many negatives are not above its threshold; the others, at the end, are active with it.
    below = torch.searchsorted(ordered, torch.where(pos, sim - margin, torch.inf), right=True)
    active_neg = torch.where(pos, m - below, 0)
    # Of the negative at place r of the order: the number of positives of which at most r are below.
    hits = torch.zeros(*sim.shape[:-1], m + 1, dtype=sim.dtype, device=sim.device)
    hits = hits.scatter_add_(-1, below, pos.to(sim.dtype)).cumsum(-1)[..., :-1]
    active_pos = torch.where(neg, torch.zeros_like(sim).scatter_(-1, order, hits), 0.0)
    return active_pos - active_neg.to(sim.dtype), active_neg.sum(-1)


def informative(sim: Tensor, pos: Tensor, neg: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The positives below the anchor's greatest negative + epsilon, the negatives above its least positive - epsilon.

    The mining of the Multi-Similarity loss, and the informative pairs of RAW.
    """
    hardest_pos, hardest_neg = masked_min(sim, pos), masked_max(sim, neg)  # [.., n, 1]
    # What is not comparable is kept, so that it stays visible.
    return pos & ~(sim >= hardest_neg + epsilon), neg & ~(sim <= hardest_pos - epsilon)


def crossing(sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """The score as many standard deviations below the mean positive as above the mean negative, [..., 1].

    Halfway between the two means if neither side differs in itself. A constant: no gradient flows through it.
    """
    sim = sim.detach()  # in forward mode, too, which no_grad does not stop
    return crossing_point(*_mean_std(sim, pos), *_mean_std(sim, neg))


def crossing_point(mean_pos: Tensor, std_pos: Tensor, mean_neg: Tensor, std_neg: Tensor) -> Tensor:
    """Where two densities of these means and standard deviations are equally many deviations away, elementwise."""
    spread = std_pos + std_neg
    # Equal scores that were rounded differently have no spread.
    has_spread = spread > torch.finfo(spread.dtype).eps ** 0.75
    weighted = (std_neg * mean_pos + std_pos * mean_neg) / torch.where(has_spread, spread, 1.0)
    return torch.where(has_spread, weighted, (mean_pos + mean_neg) / 2)


def _mean_std(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    mean = masked_mean(x, mask).unsqueeze(-1)
    return mean, masked_mean(torch.where(mask, x - mean, 0.0).square(), mask).sqrt().unsqueeze(-1)
