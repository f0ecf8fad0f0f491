"""Losses of own rows whose references travel around: no process ever holds those of all.

A loss that can do with that has a streamed form: stages of terms, each an elementwise function of the scores that is
reduced over an anchor's references by a sum, a logarithm of a sum of exponentials or a maximum, all of which are taken
block by block; and `combine`, which makes the anchor's loss of the reduced numbers. A later stage knows what earlier
ones found, as constants. One round for each stage, and one backward, in which the gradient of a block travels with it.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_ext import losses
from pml_ext.base import RowLoss
from pml_ext.masked import defined_rows, softplus
from pml_ext.ranks import Ranks

# Rows and columns of a block of scores.
BLOCK = 192

Numbers = dict[str, Tensor]  # [n] by name
# Reduced how, values and mask [b, c].
Term = tuple[str, Tensor, Tensor]
Stage = Callable[[Tensor, Tensor, Tensor, Numbers], dict[str, Term]]


class Streamed(NamedTuple):
    """What a loss needs of each row, stage by stage, and the losses [n] from that."""

    stages: tuple[Stage, ...]
    combine: Callable[[Numbers], Tensor]


def streamed(loss: RowLoss) -> Streamed | None:
    """The streamed form of a loss, or None."""
    make = _FORMS.get(type(loss))
    return None if make is None else make(**loss.hyperparameters())


def _two_sides(alpha: float, beta: float, pos_margin: float, neg_margin: float) -> Stage:
    def stage(sim: Tensor, pos: Tensor, neg: Tensor, known: Numbers) -> dict[str, Term]:
        return {"pull": ("lse", -alpha * (sim - pos_margin), pos), "push": ("lse", beta * (sim - neg_margin), neg)}

    return stage


def _soft_sum(known: Numbers, *, alpha: float, beta: float, bounded: bool = True, scale: float = 1.0) -> Tensor:
    pull, push = known["pull"], known["push"]
    if bounded:
        pull, push = softplus(pull), softplus(push)
    return scale * (pull / alpha + push / beta)


def _hardest(sim: Tensor, pos: Tensor, neg: Tensor, known: Numbers) -> dict[str, Term]:
    return {"farthest": ("max", -sim, pos), "nearest": ("max", sim, neg)}


def _raw(*, alpha: float, beta: float, gamma: float, epsilon: float) -> Streamed:
    sides = _two_sides(alpha, beta, gamma, gamma)

    def informative(sim: Tensor, pos: Tensor, neg: Tensor, known: Numbers) -> dict[str, Term]:
        # As `informative` of whole rows.
        pos = pos & ~(sim >= known["nearest"].unsqueeze(1) + epsilon)
        neg = neg & ~(sim <= -known["farthest"].unsqueeze(1) - epsilon)
        return sides(sim, pos, neg, known)

    return Streamed((_hardest, informative), partial(_soft_sum, alpha=alpha, beta=beta))


def _multi_similarity(*, alpha: float, beta: float, base: float) -> Streamed:
    return Streamed((_two_sides(alpha, beta, base, base),), partial(_soft_sum, alpha=alpha, beta=beta))


def _log_sum_exp(
    *, alpha: float, beta: float, pos_margin: float, neg_margin: float, scale: float, bounded: bool
) -> Streamed:
    combine = partial(_soft_sum, alpha=alpha, beta=beta, bounded=bounded, scale=scale)
    return Streamed((_two_sides(alpha, beta, pos_margin, neg_margin),), combine)


def _lifted(*, neg_margin: float, pos_margin: float) -> Streamed:
    return Streamed(
        (_two_sides(1, 1, pos_margin, neg_margin),), lambda known: torch.relu(known["pull"] + known["push"])
    )


def _means(known: Numbers, *, pull: float = 1.0, push: float = 1.0, average: bool = True) -> Tensor:
    numbers = (known["positives"].clamp(min=1), known["negatives"].clamp(min=1)) if average else (1, 1)
    return pull * known["pull"] / numbers[0] + push * known["push"] / numbers[1]


def _binomial(*, alpha: float, beta: float, base: float, scale: float, balance: float) -> Streamed:
    def stage(sim: Tensor, pos: Tensor, neg: Tensor, known: Numbers) -> dict[str, Term]:
        return {
            "pull": ("sum", softplus(-alpha * (sim - base)), pos),
            "push": ("sum", softplus(beta * (sim - base)), neg),
        }

    return Streamed((stage,), partial(_means, pull=scale / alpha, push=scale * balance / beta))


def _contrastive(*, pos_margin: float, neg_margin: float, average: bool, step: float) -> Streamed:
    def stage(sim: Tensor, pos: Tensor, neg: Tensor, known: Numbers) -> dict[str, Term]:
        beyond = torch.where(sim > neg_margin, sim - neg_margin + step, 0.0)
        return {"pull": ("sum", torch.relu(pos_margin - sim), pos), "push": ("sum", beyond, neg)}

    return Streamed((stage,), partial(_means, average=average))


def _batch_hard(*, margin: float | None) -> Streamed:
    def combine(known: Numbers) -> Tensor:
        violation = known["nearest"] + known["farthest"]
        return softplus(violation) if margin is None else torch.relu(violation + margin)

    return Streamed((_hardest,), combine)


def _knn(*, alpha: float, k: int | None, negative_weight: float) -> Streamed | None:
    if k is not None:
        return None

    def stage(sim: Tensor, pos: Tensor, neg: Tensor, known: Numbers) -> dict[str, Term]:
        return {"pull": ("lse", alpha * sim, pos), "push": ("lse", alpha * sim, neg)}

    return Streamed((stage,), lambda known: softplus(known["push"] + math.log(negative_weight) - known["pull"]))


_FORMS: dict[type, Callable[..., Streamed | None]] = {
    losses.AnchorContrastiveLoss: _contrastive,
    losses.BatchHardTripletLoss: _batch_hard,
    losses.BinomialDevianceLoss: _binomial,
    losses.GeneralizedLiftedStructureLoss: _lifted,
    losses.KNNSoftmaxLoss: _knn,
    losses.LogSumExpPairLoss: _log_sum_exp,
    losses.MultiSimilarityLoss: _multi_similarity,
    losses.RAWLoss: _raw,
}


class Job(NamedTuple):
    """A loss of own rows in a ring.

    Args:
        loss: whose scores and needs it has.
        form: its streamed form.
        ranks: who has how many samples.
        labels: of all.
    """

    loss: RowLoss
    form: Streamed
    ranks: Ranks
    labels: Tensor

    @property
    def number(self) -> int:
        """How many processes there are."""
        return self.ranks.group.size

    def owner(self, step: int) -> int:
        """Whose samples are here after so many steps."""
        return (self.ranks.group.rank - step) % self.number

    def passed(self, x: Tensor, step: int) -> tuple[Tensor, Any]:
        """What comes in the place of a block that is sent on, and the exchange to wait for."""
        group = self.ranks.group
        coming = x.new_empty(self.ranks.sizes[self.owner(step + 1)], *x.shape[1:])
        return coming, group.pass_on(x, (group.rank + 1) % group.size, coming, (group.rank - 1) % group.size)

    def blocks(self, step: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Of the rows here against those of another: which rows, which columns, positives and negatives."""
        first, n = self.ranks.offset, self.ranks.sizes[self.ranks.group.rank]
        owner = self.owner(step)
        begin, m = sum(self.ranks.sizes[:owner]), self.ranks.sizes[owner]
        for i in range(0, n, BLOCK):
            rows = slice(i, min(i + BLOCK, n))
            for j in range(0, m, BLOCK):
                columns = slice(j, min(j + BLOCK, m))
                of_rows, of_columns = (
                    torch.arange(start + part.start, start + part.stop, device=self.labels.device)
                    for start, part in ((first, rows), (begin, columns))
                )
                same = self.labels[of_rows].unsqueeze(1) == self.labels[of_columns]
                yield rows, columns, same & (of_rows.unsqueeze(1) != of_columns), ~same


def ring_losses(job: Job, x: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of own samples x [n_r, d], and what each adds to the divisor."""
    found: tuple[Tensor, Tensor] = _Rows.apply(x, job)
    return found


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, job: Job) -> tuple[Tensor, Tensor]:
        x = x.detach().contiguous()
        known: Numbers = {"positives": x.new_zeros(len(x)), "negatives": x.new_zeros(len(x))}
        ties: Numbers = {}
        for number, stage in enumerate(job.form.stages):
            found: Numbers = {}
            held = x
            for step in range(job.number):
                coming, pending = job.passed(held, step) if step + 1 < job.number else (held, None)
                for rows, columns, pos, neg in job.blocks(step):
                    if number == 0:
                        known["positives"][rows] += pos.sum(1)
                        known["negatives"][rows] += neg.sum(1)
                    sim = job.loss.similarity(x[rows], held[columns])
                    for name, term in stage(sim, pos, neg, _of(known, rows)).items():
                        _take_in(name, term, rows, found, ties, len(x))
                if pending is not None:
                    pending.wait()
                held = coming
            known |= found
        ctx.job, ctx.known, ctx.ties, ctx.slopes = job, known, ties, {}
        ctx.save_for_backward(x)
        if len(x) == 0:  # but the others were passed on
            counts = torch.zeros(0, dtype=torch.long, device=x.device)
            ctx.mark_non_differentiable(counts)
            return x.sum(-1), counts
        is_defined = defined_rows(known["positives"] > 0, known["negatives"] > 0, job.loss.needs)
        with torch.enable_grad():
            # A row that has not what it needs may hold extremes of nothing.
            leaves = {name: torch.where(is_defined, value, 0.0).requires_grad_() for name, value in known.items()}
            values = torch.where(is_defined, job.form.combine(leaves), 0.0)
            slopes = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
        ctx.slopes = {name: slope for name, slope in zip(leaves, slopes, strict=True) if slope is not None}
        counts = is_defined.long()
        ctx.mark_non_differentiable(counts)
        return values.detach(), counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        job: Job = ctx.job
        by_rows, held, by_held = torch.zeros_like(x), x, torch.zeros_like(x)
        slopes = {name: slope * grad for name, slope in ctx.slopes.items()}
        for step in range(job.number):
            coming, pending = job.passed(held, step) if step + 1 < job.number else (held, None)
            for rows, columns, pos, neg in job.blocks(step):
                with torch.enable_grad():
                    own, other = (part.detach().requires_grad_() for part in (x[rows], held[columns]))
                    sim = job.loss.similarity(own, other)
                    known, total = _of(ctx.known, rows), sim.new_zeros(())
                    for stage in job.form.stages:
                        for name, term in stage(sim, pos, neg, known).items():
                            if name in slopes:
                                weights = _weights(term, known[name], ctx.ties.get(name, grad)[rows])
                                weights = weights * slopes[name][rows].unsqueeze(1)
                                total = total + (torch.where(weights != 0, term[1], 0.0) * weights).sum()
                if total.requires_grad:
                    of_rows, of_columns = torch.autograd.grad(total, (own, other))
                    by_rows[rows] += of_rows
                    by_held[columns] += of_columns
            if pending is not None:
                pending.wait()
            # After the last step too: the gradient of a block comes home.
            by_held, sent = job.passed(by_held, step)
            sent.wait()
            held = coming
        return by_rows + by_held, None


def _of(known: Numbers, rows: slice) -> Numbers:
    return {name: values[rows] for name, values in known.items()}


def _take_in(name: str, term: Term, rows: slice, found: Numbers, ties: Numbers, n: int) -> None:
    """Reduce one more block."""
    kind, values, mask = term
    if name not in found:
        # As `masked_logsumexp` has it for no entry.
        start = {"sum": 0.0, "lse": torch.finfo(values.dtype).min, "max": -torch.inf}[kind]
        found[name] = values.new_full((n,), start)
        if kind == "max":
            ties[name] = values.new_zeros(n)
    before = found[name][rows]
    if kind == "sum":
        found[name][rows] = before + torch.where(mask, values, 0.0).sum(1)
    elif kind == "lse":
        here = values.masked_fill(~mask, -torch.inf).logsumexp(1)
        found[name][rows] = torch.where(mask.any(1), torch.logaddexp(before, here), before)
    else:
        here = values.masked_fill(~mask, -torch.inf).amax(1)
        number = ((values == here.unsqueeze(1)) & mask).sum(1).to(values.dtype)
        old = ties[name][rows]
        ties[name][rows] = torch.where(here > before, number, torch.where(here == before, old + number, old))
        found[name][rows] = torch.maximum(before, here)


def _weights(term: Term, reduced: Tensor, ties: Tensor) -> Tensor:
    """The derivative of a reduced number by the values of a block."""
    kind, values, mask = term
    values, reduced = values.detach(), reduced.unsqueeze(1)
    if kind == "sum":
        return mask.to(values.dtype)
    if kind == "lse":
        return torch.where(mask, (values - reduced).exp(), 0.0)
    return ((values == reduced) & mask).to(values.dtype) / ties.unsqueeze(1).clamp(min=1)
