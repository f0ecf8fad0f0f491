"""Laws of any batch: the loss is finite, and exactly 0 where there is nothing to compare."""

from typing import Any

import torch
from pytorch_metric_learning.distances import (
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
    SNRDistance,
)
from torch import Tensor

from pml_ext.masked import Needs
from pml_ext.testing.cases import Batch, all_pairs
from pml_ext.testing.law import (
    assert_close,
    evaluate,
    fresh,
    is_matrix_loss,
    is_pair_module,
    law,
    outcome,
    reseed,
    takes_pairs,
    with_attributes,
)


@law("loss", "batch", stage="call")
def any_batch_has_a_finite_loss(loss: Any, case: Batch) -> None:
    """The loss is a finite scalar, with finite gradients by the embeddings and by every parameter of the loss."""
    outcome(loss, case)
    loss = fresh(loss)
    parameters = dict(loss.named_parameters())
    if parameters:
        reseed()
        loss(case.embeddings.clone().requires_grad_(), case.labels).backward()
    for name, parameter in parameters.items():
        gradient = parameter.grad
        assert gradient is None or bool(gradient.isfinite().all()), f"the gradient by {name} is {gradient}"


@law("loss", "batch", is_matrix_loss)
def no_anchor_no_loss(loss: Any, case: Batch) -> None:
    """A batch in which no anchor has the pairs that the loss needs has a loss of exactly 0, with a zero gradient."""
    if _is_defined(case.labels, loss.needs):
        return
    value, gradient = outcome(loss, case)
    assert value.item() == 0, f"the loss is {value.item()}"
    assert not gradient.any(), f"the gradient is {gradient}"


@law("loss", "batch")
def batch_is_not_written_to(loss: Any, case: Batch) -> None:
    """Embeddings and labels are not modified."""
    reseed()
    embeddings, labels = case.embeddings.clone(), case.labels.clone()
    fresh(loss)(embeddings, labels)
    for name, x, before in (("embeddings", embeddings, case.embeddings), ("labels", labels, case.labels)):
        # Writing to `data` does not count as a new version, writing the same values does not change them.
        assert x._version == 0, f"{name} were written to"
        assert torch.equal(x, before), f"{name} were changed"


_DEGENERATE = {
    "one sample": Batch((1,)),
    "one class": Batch((4,)),
    "all labels different": Batch((1, 1, 1, 1)),
    "duplicates": Batch((2, 3, 1), layout="duplicates"),
    "a collapsed batch": Batch((2, 2), layout="collapsed"),
    "zero vectors": Batch((2, 2), layout="zeros"),
    "zero vectors only": Batch((2, 2), scale=0.0),
    "tiny vectors": Batch((2, 2), scale=1e-30),
    "long vectors": Batch((2, 2), scale=1e6),
}


@law("loss", "once", stage="batch")
def degenerate_batches_have_a_finite_loss(loss: Any, case: Batch) -> None:
    """One sample, one class, all labels different, duplicates, a collapsed batch, zero vectors: the loss is finite."""
    for name, batch in _DEGENERATE.items():
        batch = Batch(batch.sizes, case.dimension, batch.layout, batch.scale)
        for dtype in (torch.float64, torch.float32):
            try:
                evaluate(loss, batch.embeddings.to(dtype), batch.labels)
            except AssertionError as error:
                raise AssertionError(f"{name}, {dtype}: {error}") from None


@law("loss", "once", stage="batch")
def empty_batch_costs_nothing(loss: Any, case: Batch) -> None:
    """No samples at all: a loss of exactly 0."""
    value, _ = evaluate(loss, case.embeddings[:0], case.labels[:0])
    assert value.item() == 0, f"the loss is {value.item()}"


@law("loss", "once", is_matrix_loss, stage="batch")
def no_references_cost_nothing(loss: Any, case: Batch) -> None:
    """Nothing to compare with: a loss of exactly 0, with a zero gradient."""
    value, gradient = evaluate(loss, case.embeddings, case.labels, None, case.embeddings[:0], case.labels[:0])
    assert value.item() == 0, f"the loss is {value.item()}"
    assert not gradient.any(), f"the gradient is {gradient}"


@law("loss", "once", takes_pairs, stage="batch")
def one_pair_of_each_kind_is_enough(loss: Any, case: Batch) -> None:
    """A single positive pair, farther than a single negative pair, moves the embeddings."""
    embeddings = torch.eye(3, case.dimension, dtype=torch.float64)
    embeddings[2] = embeddings[0]
    embeddings[2, 1] = 0.3
    labels = torch.arange(3) // 2
    pairs = tuple(torch.tensor([index]) for index in (0, 1, 0, 2))
    gradient = evaluate(loss, embeddings, labels, pairs).gradient
    assert bool(gradient[1:].any()), "one positive and one negative pair have a zero gradient"


_DISTANCES = (
    LpDistance(),
    LpDistance(p=1),
    LpDistance(power=2),
    LpDistance(normalize_embeddings=False),
    CosineSimilarity(),
    DotProductSimilarity(normalize_embeddings=False),
    SNRDistance(),
)


@law("loss", "once", is_pair_module, stage="batch")
def every_distance_is_welcome(loss: Any, case: Batch) -> None:
    """The loss is finite with each of PML's distances."""
    for distance in _DISTANCES:
        try:
            evaluate(with_attributes(loss, distance=distance), case.embeddings, case.labels)
        except Exception as error:
            kind = f"{type(distance).__name__}(p={distance.p}, power={distance.power})"
            raise AssertionError(f"with {kind}: {error}") from error


@law("loss", "once", stage="batch")
def half_precision_is_close(loss: Any, case: Batch) -> None:
    """float16 and bfloat16 embeddings, and autocast, give a finite loss close to that of float32."""
    for dtype in (torch.float16, torch.bfloat16):
        embeddings = case.embeddings.to(dtype)
        expected = evaluate(loss, embeddings.float(), case.labels)
        # The result itself may be of the type of the embeddings, and bfloat16 keeps 8 bits.
        half = evaluate(loss, embeddings, case.labels)
        assert_close(half.value, expected.value, f"{dtype}", 2**-7)
        with torch.autocast("cpu", dtype=dtype):
            autocast = evaluate(loss, embeddings.float(), case.labels)
        assert_close(autocast.value, expected.value, f"autocast to {dtype}", 2**-7)


def _is_defined(labels: Tensor, needs: Needs) -> bool:
    pos, neg = (mask.any(-1) for mask in all_pairs(labels))
    defined = {"both": pos & neg, "positives": pos, "negatives": neg, "either": pos | neg}[needs]
    return bool(defined.any())
