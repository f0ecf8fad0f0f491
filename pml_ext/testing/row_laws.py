"""Laws of the pure function of a pair matrix: sim, pos, neg [.., n, m] -> one loss per anchor [.., n].

For a loss over all pairs at once there is one loss per matrix.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from pml_ext.base import BatchLoss
from pml_ext.masked import Counted, substitute
from pml_ext.testing.cases import Rows
from pml_ext.testing.law import assert_close, fresh, is_matrix_loss, is_row_loss, law, reseed


def call(loss: Any, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor | Counted:
    """The pure function of the loss, with the random state that it always has in these laws."""
    reseed()
    loss = fresh(loss)
    result: Tensor | Counted = (loss.per_batch if isinstance(loss, BatchLoss) else loss.per_anchor)(sim, pos, neg)
    return result


def prepared(loss: Any, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrix as the base class passes it on: rows that lack pairs substituted, or the whole matrix."""
    if not isinstance(loss, BatchLoss):
        return substitute(sim, pos, neg, loss.needs)
    *flat, defined = substitute(sim.flatten(-2), pos.flatten(-2), neg.flatten(-2), loss.needs)
    sim, pos, neg = (x.view(sim.shape) for x in flat)
    return sim, pos, neg, defined


def losses_of(loss: Any, sim: Tensor, pos: Tensor, neg: Tensor) -> Counted:
    """Losses and counts, 0 for anchors that lack pairs."""
    sim, pos, neg, defined = prepared(loss, sim, pos, neg)
    result = call(loss, sim, pos, neg)
    losses, counts = result if isinstance(result, Counted) else (result, defined.long())
    assert losses.shape == defined.shape, f"{tuple(losses.shape)} losses for {tuple(defined.shape)} anchors"
    assert counts.shape == defined.shape, f"{tuple(counts.shape)} counts for {tuple(defined.shape)} anchors"
    return Counted(torch.where(defined, losses, 0.0), torch.where(defined, counts, 0))


def gradient_of(loss: Any, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Counted, Tensor]:
    """Losses and counts, and the gradient of the sum of the losses by the scores."""
    sim = sim.detach().clone().requires_grad_()
    result = losses_of(loss, sim, pos, neg)
    (gradient,) = torch.autograd.grad(result.losses.sum(), sim)
    return Counted(result.losses.detach(), result.counts), gradient


@law("loss", "rows", is_matrix_loss)
def one_finite_number_per_anchor(loss: Any, case: Rows) -> None:
    """A finite loss, in the dtype of the scores, a count of at least 0, and a finite gradient for every anchor."""
    sim, pos, neg = case.matrix
    (losses, counts), gradient = gradient_of(loss, sim, pos, neg)
    assert losses.dtype == sim.dtype, f"losses are {losses.dtype}, scores {sim.dtype}"
    assert bool(losses.isfinite().all()), f"the losses are {losses}"
    assert counts.dtype == torch.long, f"counts are {counts.dtype}, in which they may not fit"
    assert bool((counts >= 0).all()), f"the counts are {counts}"
    assert bool(gradient.isfinite().all()), f"the gradient is {gradient}"


@law("loss", "rows", is_row_loss)
def anchors_are_independent(loss: Any, case: Rows) -> None:
    """An anchor alone has the loss, the count and the gradient that it has among others."""
    sim, pos, neg = case.matrix
    (losses, counts), gradient = gradient_of(loss, sim, pos, neg)
    for i in {0, case.n - 1}:
        row = slice(i, i + 1)
        alone, alone_gradient = gradient_of(loss, sim[row], pos[row], neg[row])
        assert_close(alone.losses, losses[row], f"anchor {i} alone", 1e-12)
        assert_close(alone.counts, counts[row], f"count of anchor {i} alone", 0)
        assert_close(alone_gradient, gradient[row], f"gradient of anchor {i} alone", 1e-12)


@law("loss", "rows", is_matrix_loss)
def leading_dimensions_are_batch_dimensions(loss: Any, case: Rows) -> None:
    """Two matrices in one call have the losses that they have one by one."""
    sim, pos, neg = case.matrix
    other = sim.flip(-1), neg, pos
    stacked = losses_of(loss, *(torch.stack(pair).unsqueeze(1) for pair in zip((sim, pos, neg), other, strict=True)))
    for k, matrix in enumerate(((sim, pos, neg), other)):
        expected = losses_of(loss, *matrix)
        assert_close(stacked.losses[k, 0], expected.losses, f"matrix {k} of 2", 1e-12)
        assert_close(stacked.counts[k, 0], expected.counts, f"counts of matrix {k} of 2", 0)


@law("loss", "rows", is_matrix_loss)
def column_order_is_irrelevant(loss: Any, case: Rows) -> None:
    """Permuted references give the same losses, and without ties the permuted gradient."""
    sim, pos, neg = case.matrix
    order = torch.arange(case.m).flip(0).roll(1)
    expected, gradient = gradient_of(loss, sim, pos, neg)
    actual, actual_gradient = gradient_of(loss, sim[:, order], pos[:, order], neg[:, order])
    assert_close(actual.losses, expected.losses, "permuted columns", 1e-12)
    assert_close(actual.counts, expected.counts, "counts of permuted columns", 0)
    if not case.has_ties:
        assert_close(actual_gradient, gradient[:, order], "gradient of permuted columns", 1e-12)


@law("loss", "rows", is_matrix_loss)
def unselected_pairs_have_no_influence(loss: Any, case: Rows) -> None:
    """Scores of +-1e4 at unselected pairs change nothing, and their gradient is exactly zero."""
    sim, pos, neg = case.matrix
    expected, gradient = gradient_of(loss, sim, pos, neg)
    for sign in (1, -1) if case.inverted else (-1,):
        junk = torch.where(pos | neg, sim, sign * 1e4)
        actual, actual_gradient = gradient_of(loss, junk, pos, neg)
        assert_close(actual.losses, expected.losses, f"junk of {sign * 1e4} outside the masks", 1e-12)
        assert_close(actual.counts, expected.counts, f"counts with junk of {sign * 1e4}", 0)
        assert_close(actual_gradient, gradient, f"gradient with junk of {sign * 1e4}", 1e-12)
        outside = actual_gradient[~(pos | neg)]
        assert not outside.any(), f"pairs outside the masks have the gradient {outside}"


@law("loss", "rows", is_matrix_loss)
def matrix_is_not_written_to(loss: Any, case: Rows) -> None:
    """Scores and masks are not modified."""
    *given, _ = prepared(loss, *case.matrix)
    versions = [x._version for x in given]
    call(loss, *given)
    for name, version, x in zip(("sim", "pos", "neg"), versions, given, strict=True):
        assert x._version == version, f"{name} was written to"


@law("loss", "rows", is_matrix_loss)
def positives_are_pulled_and_negatives_pushed(loss: Any, case: Rows) -> None:
    """The loss never grows with the score of a positive, and never falls with that of a negative."""
    sim, pos, neg = case.matrix
    gradient = gradient_of(loss, sim, pos, neg)[1]
    # Where an exact derivative is 0, a sum of rounded terms may be off it by their rounding.
    rounding = 1e-12 * max(1.0, gradient.abs().max().item())
    assert bool((gradient[pos] <= rounding).all()), f"a positive is pushed: {gradient[pos].max().item()}"
    assert bool((gradient[neg] >= -rounding).all()), f"a negative is pulled: {gradient[neg].min().item()}"


@law("loss", "rows", is_matrix_loss)
def large_scores_stay_finite(loss: Any, case: Rows) -> None:
    """Scores 1e4 times as large give finite losses and gradients, in float64 and in float32."""
    sim, pos, neg = case.matrix
    for dtype in (torch.float64, torch.float32):
        (losses, _), gradient = gradient_of(loss, (1e4 * sim).to(dtype), pos, neg)
        assert bool(losses.isfinite().all()), f"in {dtype} the losses are {losses}"
        assert bool(gradient.isfinite().all()), f"in {dtype} the gradient is {gradient}"


@law("loss", "rows", is_matrix_loss)
def float32_is_float64_rounded(loss: Any, case: Rows) -> None:
    """On scores that float32 holds exactly, float32 gives the float64 losses to 1e-5."""
    sim, pos, neg = case.matrix
    sim = sim.float()
    single, double = losses_of(loss, sim, pos, neg), losses_of(loss, sim.double(), pos, neg)
    assert single.losses.dtype == torch.float32, f"losses of float32 scores are {single.losses.dtype}"
    # A hundred roundings of 6e-8 of the largest number that occurs, which a steep loss scales with its slope.
    assert_close(single.losses, double.losses, "float32", 1e-5)


@law("loss", "once", is_matrix_loss, stage="function")
def levels_are_declared(loss: Any, case: Any) -> None:
    """No hyperparameter outside `levels` behaves as an absolute level of the score.

    Such a hyperparameter must be declared, because the base class negates levels when it negates distances. It is
    recognized by a loss that does not change when scores and hyperparameter are shifted together, but changes when only
    the scores are.
    """
    sim, pos, neg = Rows(16, 6, inverted=loss.distance.is_inverted).matrix
    sim = sim if loss.distance.is_inverted else sim / 2 - 1  # distances in [1, 2], so that they may move by 1
    here, there = losses_of(loss, sim, pos, neg).losses, losses_of(loss, sim + 1, pos, neg).losses
    for name in loss._hyperparameter_names:
        value = getattr(loss, name)
        if name in loss.levels or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        moved = copy.deepcopy(loss)
        vars(moved)[name] = value + 1  # whether the constructor takes it or not
        try:
            along = losses_of(moved, sim + 1, pos, neg).losses
        except (ArithmeticError, ValueError):
            continue  # no number that the formula could take
        is_level = torch.allclose(along, here) and not torch.allclose(there, here)
        assert not is_level, f"{name} is a level of the distance, but not in `levels`"
