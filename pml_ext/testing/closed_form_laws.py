"""Laws of a closed form: losses and pair weights of the two sides of a block, as its loss has them by autograd.

Each says one thing that an author of a closed form easily gets wrong, and is tried on scores rather than embeddings, so
that its name is the cause. Positives are given in place [b, m] and gathered to few columns [b, k].
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext.closed_form import ABSENT, Sides, SideWeights
from pml_ext.masked import Counted, defined_rows
from pml_ext.testing.cases import Batch, Rows, Scores
from pml_ext.testing.law import assert_close, is_row_loss, law
from pml_ext.testing.row_laws import gradient_of

_TIES: tuple[Scores, ...] = ("grid", "equal")
IN_PLACE, GATHERED = "positives in place", "positives gathered"


def has_closed_form(loss: Any) -> bool:
    """A loss of rows that has a closed form."""
    return is_row_loss(loss) and loss.closed_form is not None


class Form(NamedTuple):
    """What a closed form makes of some rows, those that lack pairs left out.

    Args:
        layout: where the positives were.
        found: as the closed form returned it.
        losses: [b'].
        weights: by all columns, [b', m].
        counts: [b'].
        rows: which rows these are [b].
    """

    layout: str
    found: SideWeights
    losses: Tensor
    weights: Tensor
    counts: Tensor
    rows: Tensor


def forms(loss: Any, sim: Tensor, pos: Tensor, neg: Tensor, spare: int = 0) -> Iterator[Form]:
    """The closed form on both layouts of positives; not where it leaves the rows to autograd.

    Args:
        loss: has a closed form.
        sim: scores [b, m].
        pos: positives [b, m].
        neg: negatives [b, m].
        spare: columns without a pair that are added to both sides.
    """
    defined = defined_rows(pos.any(1), neg.any(1), loss.needs)
    pos_count, neg_count = (mask.sum(1, keepdim=True).to(sim.dtype) for mask in (pos, neg))
    negatives = _padded(torch.where(neg, sim, -ABSENT), spare, -ABSENT)
    k = max(1, int(pos.sum(1).max()))
    few = (~pos).long().argsort(dim=1, stable=True)[:, :k]
    gathered = torch.where(pos.gather(1, few), sim.gather(1, few), ABSENT)
    for columns, positives in ((None, torch.where(pos, sim, ABSENT)), (few, gathered)):
        is_gathered = columns is not None
        # Spare columns of gathered positives are somewhere.
        at = None if columns is None else torch.nn.functional.pad(columns, (0, spare))
        sides = Sides(_padded(positives, spare, ABSENT), negatives.clone(), pos_count, neg_count, at)
        found = type(loss).closed_form(sides, **loss.hyperparameters())
        if found is None:
            continue
        weights = torch.zeros_like(negatives, dtype=found.neg.dtype)
        if found.neg_column is None:
            weights += found.neg
        else:
            weights.scatter_add_(1, found.neg_column, found.neg)
        if columns is None:
            weights += found.pos
        else:
            weights.scatter_add_(1, columns, found.pos[:, :k])
        counts = torch.ones(len(sim), dtype=torch.long) if found.counts is None else found.counts
        layout = GATHERED if is_gathered else IN_PLACE
        yield Form(layout, found, found.losses[defined], weights[defined], counts[defined], defined)


def by_autograd(loss: Any, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Counted, Tensor]:
    """Losses, counts and weights that the closed form should have, of the rows that are defined."""
    defined = defined_rows(pos.any(1), neg.any(1), loss.needs)
    (losses, counts), weights = gradient_of(loss, sim, pos, neg)
    return Counted(losses[defined], counts[defined]), weights[defined]


def _padded(scores: Tensor, spare: int, far: float) -> Tensor:
    return torch.nn.functional.pad(scores, (0, spare), value=far)


@law("loss", "rows", has_closed_form, stage="closed form")
def closed_form_keeps_the_dtype(loss: Any, case: Rows) -> None:
    """float32 scores give float32 losses and pair weights, and integer counts."""
    sim, pos, neg = case.matrix
    for form in forms(loss, sim.float(), pos, neg):
        for name, x in (("losses", form.found.losses), ("pos", form.found.pos), ("neg", form.found.neg)):
            assert x.dtype == torch.float32, f"{name} of float32 scores are {x.dtype}, {form.layout}"
        assert not form.counts.is_floating_point(), f"counts are {form.counts.dtype}, {form.layout}"


@law("loss", "rows", has_closed_form, stage="closed form")
def few_columns_come_with_gathered_positives(loss: Any, case: Rows) -> None:
    """A closed form names the only columns of its negatives where the positives have been gathered, and else has all.

    Gathered sides are real numbers on the CPU, at which it may look to find out whether equals have to share.
    """
    for form in forms(loss, *case.matrix):
        if form.layout == IN_PLACE:
            assert form.found.neg_column is None, "neg_column is given, but the positives have not been gathered"


@law("loss", "rows", has_closed_form, stage="closed form")
def pair_weights_are_derivatives_by_the_score(loss: Any, case: Rows) -> None:
    """Positives have weights of at most 0, negatives of at least 0: not the positive weights of papers."""
    sim, pos, neg = case.matrix
    for form in forms(loss, sim, pos, neg):
        rounding = 1e-12 * max(1.0, form.weights.abs().max().item() if form.weights.numel() else 0.0)
        for name, mask, sign in (("positive", pos, 1), ("negative", neg, -1)):
            wrong = sign * form.weights[mask[form.rows]]
            assert bool((wrong <= rounding).all()), (
                f"a {name} has the weight {sign * wrong.max().item()}, {form.layout}"
            )


@law("loss", "rows", has_closed_form, stage="closed form")
def absent_pairs_cost_nothing(loss: Any, case: Rows) -> None:
    """Columns without a pair change nothing, and have no weight: a mean divides by the number of pairs."""
    sim, pos, neg = case.matrix
    for i in defined_rows(pos.any(1), neg.any(1), loss.needs).nonzero().flatten().tolist():
        row = slice(i, i + 1)
        packed = next((f for f in forms(loss, sim[row], pos[row], neg[row]) if f.layout == GATHERED), None)
        if packed is None:
            continue
        for form in forms(loss, sim[row], pos[row], neg[row], spare=3):
            assert_close(form.losses, packed.losses, f"loss with absent pairs, {form.layout}", 1e-12)
            weights = form.weights[:, : case.m]
            assert_close(weights, packed.weights, f"weights beside absent pairs, {form.layout}", 1e-12)
            outside = form.weights[:, torch.nn.functional.pad(~(pos[i] | neg[i]), (0, 3), value=True)]
            assert not outside.any(), f"absent pairs have the weights {outside}, {form.layout}"


@law("loss", "once", has_closed_form, stage="closed form")
def blocks_of_any_height_are_alike(loss: Any, case: Batch) -> None:
    """In a block of 41 equal rows, each row has the loss and the weights that it has alone."""
    sim, pos, neg = Rows(1, 8, density=1.0, inverted=loss.distance.is_inverted).matrix
    many = forms(loss, sim.repeat(41, 1), pos.repeat(41, 1), neg.repeat(41, 1))
    for high, alone in zip(many, forms(loss, sim, pos, neg), strict=False):
        assert_close(high.losses, alone.losses.repeat(41), f"41 equal rows, {high.layout}", 1e-12)
        assert_close(high.weights, alone.weights.repeat(41, 1), f"weights of 41 equal rows, {high.layout}", 1e-12)


@law("loss", "rows", has_closed_form, stage="closed form")
def closed_form_counts_as_the_loss_does(loss: Any, case: Rows) -> None:
    """Each row adds the same to the divisor as in the loss itself."""
    expected, _ = by_autograd(loss, *case.matrix)
    for form in forms(loss, *case.matrix):
        assert_close(form.counts, expected.counts, f"counts, {form.layout}", 0)


@law("loss", "rows", has_closed_form, stage="closed form")
def closed_form_is_the_loss(loss: Any, case: Rows) -> None:
    """Losses and pair weights are those of autograd on the pure function, where no two scores are equal.

    Also where a positive is only a little nearer than the nearest negative, which rarely happens by chance: hinges have
    their kinks there.
    """
    if case.has_ties:
        return
    sim, pos, neg = case.matrix
    near = ((f" where the {which} positive leads by little", _leading(sim, pos, neg, which)) for which in _LEADERS)
    for name, scores in (("", sim), *near):
        expected, weights = by_autograd(loss, scores, pos, neg)
        for form in forms(loss, scores, pos, neg):
            assert_close(form.losses, expected.losses, f"losses{name}, {form.layout}", 1e-10)
            assert_close(form.weights, weights, f"weights{name}, {form.layout}", 1e-10)


_LEADERS = ("farthest", "nearest")


def _leading(sim: Tensor, pos: Tensor, neg: Tensor, which: str) -> Tensor:
    """The scores, negatives moved so that the nearest is a little farther than that positive, by row."""
    gap = sim.new_tensor([0.1, 0.01, 0.3, 0.6])[torch.arange(len(sim)) % 4].unsqueeze(1)
    sign = 1 if which == "nearest" else -1
    positive = sign * torch.where(pos, sign * sim, -torch.inf).amax(1, keepdim=True)
    negative = torch.where(neg, sim, -torch.inf).amax(1, keepdim=True)
    moved = torch.where(neg, sim - negative + positive - gap, sim)
    return torch.where(moved.isfinite(), moved, sim)


@law("loss", "rows", has_closed_form, stage="closed form")
def equal_scores_share_their_weight(loss: Any, case: Rows) -> None:
    """Where scores are equal the pair weights are still those of autograd: equals share, and none is forgotten."""
    ties = (Rows(4, 8, scores=scores, inverted=case.inverted, seed=case.seed) for scores in _TIES)
    for matrix in (case.matrix, *(each.matrix for each in ties)):
        expected, weights = by_autograd(loss, *matrix)
        for form in forms(loss, *matrix):
            assert_close(form.losses, expected.losses, f"losses of equal scores, {form.layout}", 1e-10)
            assert_close(form.weights, weights, f"weights of equal scores, {form.layout}", 1e-10)


@law("loss", "rows", has_closed_form, stage="closed form")
def closed_form_passes_on_what_is_no_number(loss: Any, case: Rows) -> None:
    """A NaN score makes the loss of its row NaN, and no other loss; comparisons do not hide it."""
    sim, pos, neg = case.matrix
    defined = defined_rows(pos.any(1), neg.any(1), loss.needs).nonzero().flatten().tolist()
    for mask in (pos, neg):
        rows = [i for i in defined if mask[i].any()]
        if not rows:
            continue
        i = rows[case.seed % len(rows)]
        broken = sim.clone()
        broken[i, mask[i].nonzero()[0]] = torch.nan
        for form, clean in zip(forms(loss, broken, pos, neg), forms(loss, sim, pos, neg), strict=False):
            if form.layout != clean.layout:
                continue
            at = defined.index(i)
            others = [j for j in range(len(defined)) if j != at]
            assert bool(form.losses[at].isnan()), f"a NaN score gives the loss {form.losses[at].item()}, {form.layout}"
            assert_close(form.losses[others], clean.losses[others], f"rows beside that of a NaN, {form.layout}", 1e-12)
