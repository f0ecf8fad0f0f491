"""Laws of the edges: equal scores, equal samples, a zero vector, a single reference, one sample that is no number."""

from typing import Any

import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.reducers import DivisorReducer, MeanReducer, SumReducer
from torch import Tensor

from pml_ext.pairs import PairMasks, label_masks
from pml_ext.testing.cases import Batch, all_pairs, as_pairs
from pml_ext.testing.law import (
    assert_close,
    assert_same,
    by_autograd,
    evaluate,
    fresh,
    is_matrix_loss,
    is_ours,
    is_row_loss,
    law,
    outcome,
    reseed,
    takes_pairs,
    unreduced,
    with_attributes,
)


@law("loss", "batch", is_matrix_loss, stage="engine")
def equal_scores_share_the_gradient_of_autograd(loss: Any, case: Batch) -> None:
    """Where scores are equal, exactly, the engine has the value and the gradient of ordinary autograd."""
    exact, embeddings = on_a_grid(loss, case)
    plain, pairs = by_autograd(exact), as_pairs(all_pairs(case.labels))
    for what, given in (("labels", (case.labels,)), ("pairs", (None, pairs))):
        assert_same(evaluate(exact, embeddings, *given), evaluate(plain, embeddings, *given), f"equal scores, {what}")
    if case.ref_emb is not None:
        refs = _grid(case.ref_emb / case.scale), case.ref_labels
        actual, expected = (evaluate(each, embeddings, case.labels, None, *refs) for each in (exact, plain))
        assert_same(actual, expected, "equal scores, references")


@law("loss", "batch", is_matrix_loss)
def equal_samples_are_treated_alike(loss: Any, case: Batch) -> None:
    """Two equal samples of one class have the same gradient: exchanging them does not change the batch."""
    exact, embeddings = on_a_grid(loss, case)
    embeddings, labels = torch.cat((embeddings, embeddings)), torch.cat((case.labels, case.labels))
    gradient = evaluate(exact, embeddings, labels).gradient
    first, second = gradient.chunk(2)
    assert_close(first, second, "gradients of samples and of their copies")


def on_a_grid(loss: Any, case: Batch) -> tuple[Any, Tensor]:
    """The loss with inner products, and embeddings of few values, so that scores are exact and many are equal."""
    unscaled = with_attributes(loss, distance=DotProductSimilarity(normalize_embeddings=False))
    return unscaled, _grid(case.embeddings / case.scale)


def _grid(x: Tensor) -> Tensor:
    return (x.clamp(-1, 1) * 2).round() / 2


@law("loss", "batch", is_matrix_loss, stage="engine")
def divisors_agree_with_autograd(loss: Any, case: Batch) -> None:
    """With every reducer, the engine gives the result of ordinary autograd: its divisor is that of the loss."""
    if case.has_ties:
        return
    for reducer in (DivisorReducer(), SumReducer(), MeanReducer()):
        if is_row_loss(loss) or not isinstance(reducer, DivisorReducer):
            reduced = with_attributes(loss, reducer=reducer)
            actual, expected = (
                evaluate(each, case.embeddings, case.labels) for each in (reduced, by_autograd(reduced))
            )
            assert_same(actual, expected, type(reducer).__name__)
    entries = [losses_of(each, case.embeddings, case.labels) for each in (loss, by_autograd(loss))]
    assert_close(entries[0]["losses"], entries[1]["losses"], "losses that are not reduced")
    found, wanted = (torch.as_tensor(entry.get("divisor", 1)).item() for entry in entries)
    assert found == wanted, f"the divisor is {found}, by autograd {wanted}"


def losses_of(loss: Any, *batch: Any) -> dict[str, Any]:
    """The first entry of what a loss hands to its reducer, its losses a tensor; a zero if it is nothing."""
    reseed()
    entry = next(iter(unreduced(loss, *batch).values()), {"losses": 0})
    return {**entry, "losses": torch.as_tensor(entry["losses"], dtype=batch[0].dtype)}


@law("loss", "once", is_matrix_loss)
def references_that_nobody_is_compared_with_change_nothing(loss: Any, case: Batch) -> None:
    """Additional references that are in no pair do not change the loss, for one or several anchors and references."""
    for n, m in ((1, 1), (1, 3), (4, 1), (4, 2)):
        x, y = case.embeddings[:n], case.labels[:n]
        refs, ref_labels = case.embeddings[-m:] + 0.25, case.labels[-m:]
        more = torch.cat((refs, case.embeddings[:3] - 0.5))
        pos, neg = label_masks(y, ref_labels)
        masks = PairMasks(*(torch.cat((mask, torch.zeros(n, 3, dtype=torch.bool)), 1) for mask in (pos, neg)))
        expected = evaluate(loss, x, None, masks, more)
        assert_same(evaluate(loss, x, y, None, refs, ref_labels), expected, f"{n} anchors, {m} references")


@law("loss", "once", takes_pairs)
def a_single_reference_has_a_finite_loss(loss: Any, case: Batch) -> None:
    """One reference, for one anchor and for several: a finite loss and a finite gradient."""
    for n in (1, 4):
        evaluate(loss, case.embeddings[:n], case.labels[:n], None, case.embeddings[-1:], case.labels[-1:])


@law("loss", "once", is_matrix_loss)
def labels_of_references_are_not_ignored(loss: Any, case: Batch) -> None:
    """If the references are the batch with other labels, these labels decide the pairs, or they are refused."""
    x, y = case.embeddings, case.labels
    other = y.flip(0)
    assert not torch.equal(other, y)
    reseed()
    try:
        value = fresh(loss)(x, y, None, x, other)
    except ValueError:
        return
    expected = evaluate(loss, x, y, None, x.clone(), other)
    assert_close(value, expected.value, "the batch as its own references, with other labels")


@law("loss", "once")
def one_zero_vector_moves_no_mountains(loss: Any, case: Batch) -> None:
    """A vector that is zero, or half zero, has a gradient of ordinary size, in half precision too.

    Where vectors are normalized, one without a direction has a gradient of 0.
    """
    usual = outcome(loss, case).gradient.abs().max().item()
    for what, columns in (("a zero vector", slice(None)), ("a vector half of zeros", slice(case.dimension // 2))):
        embeddings = case.embeddings.clone()
        embeddings[2, columns] = 0
        for dtype in (torch.float64, torch.float32, torch.float16) if is_ours(loss) else (torch.float64,):
            gradient = evaluate(loss, embeddings.to(dtype), case.labels).gradient
            largest = gradient.abs().max().item()
            assert largest <= 1e3 * max(usual, 1.0), f"{what} in {dtype} brings a gradient of {largest:.3g}"
            normalizes = is_ours(loss) and loss.distance.normalize_embeddings
            if normalizes and columns == slice(None):
                assert not gradient[2].any(), f"{what} in {dtype} has the gradient {gradient[2].tolist()}"


@law("loss", "once")
def what_is_no_number_makes_the_loss_none(loss: Any, case: Batch) -> None:
    """With a NaN or infinite sample in the batch, the loss is not finite, so that a diverging run is recognized."""
    for broken in (torch.nan, torch.inf):
        for k in (0, len(case.labels) - 1):
            embeddings = case.embeddings.clone()
            embeddings[k, :2] = broken
            reseed()
            value = fresh(loss)(embeddings.requires_grad_(), case.labels)
            assert not bool(value.isfinite()), f"sample {k} is {broken}, and the loss {value.item()}"


@law("loss", "once", is_row_loss)
def what_is_no_number_stays_with_its_anchor(loss: Any, case: Batch) -> None:
    """A NaN anchor compared with references has a NaN loss; losses and gradients of other anchors do not change."""
    refs, ref_labels = case.embeddings + 0.25, case.labels
    for broken in (torch.nan, torch.inf):
        embeddings = case.embeddings.clone()
        embeddings[1, 0] = broken
        others = torch.arange(len(embeddings)) != 1
        found = []
        for x in (embeddings, case.embeddings):
            x = x.clone().requires_grad_()
            losses = losses_of(loss, x, case.labels, None, refs, ref_labels)["losses"]
            found.append((losses.detach(), torch.autograd.grad(losses[others].sum(), x)[0][others]))
        (losses, gradient), (expected, wanted) = found
        assert not bool(losses[1].isfinite()), f"an anchor of {broken} has the loss {losses[1].item()}"
        assert_close(losses[others], expected[others], f"losses beside an anchor of {broken}")
        assert_close(gradient, wanted, f"gradients beside an anchor of {broken}")
