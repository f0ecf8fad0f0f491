"""Laws of what a loss remembers: running centers, queues, the positions of seeds."""

import copy
import io
from typing import Any

import torch
from torch import Tensor

from pml_ext.testing.cases import Batch
from pml_ext.testing.law import assert_close, assert_same, evaluate, law, modules_equal, reseed
from pml_ext.testing.number_laws import LABELS


def has_state(loss: Any) -> bool:
    """A loss with buffers, which calls may change."""
    return any(True for _ in loss.buffers())


def trained(loss: Any, embeddings: Tensor, labels: Tensor) -> Any:
    """A copy of the loss after a call in training mode."""
    loss = copy.deepcopy(loss).train()
    reseed()
    loss(embeddings, labels)
    return loss


@law("loss", "once")
def evaluation_changes_no_state(loss: Any, case: Batch) -> None:
    """A call in eval mode leaves the state as it is, also one with a gradient."""
    loss = trained(loss, case.embeddings, case.labels).eval()
    before = copy.deepcopy(loss)
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            loss(case.embeddings[:4] + 0.5, case.labels[:4])
        assert modules_equal(loss, before), "a call in eval mode changes the state"


@law("loss", "once", has_state)
def a_bad_batch_is_survived(loss: Any, case: Batch) -> None:
    """After a batch with a NaN or infinite sample the state is finite, and the next batch has a finite loss."""
    for broken in (torch.nan, torch.inf, -torch.inf):
        bad = case.embeddings.clone()
        bad[1] = broken
        after = trained(trained(loss, case.embeddings, case.labels), bad, case.labels)
        for name, buffer in after.named_buffers():
            assert bool(buffer.isfinite().all()), f"a sample of {broken} stays in {name}"
        evaluate(after, case.embeddings, case.labels)


@law("loss", "once", has_state)
def state_comes_back_from_a_file(loss: Any, case: Batch) -> None:
    """With labels of every dtype, fractions among them, a loaded loss is equal to the one that was saved."""
    for dtype in LABELS:
        for labels in ((case.labels / 2).to(dtype), case.labels.to(dtype)):
            try:
                saved = trained(loss, case.embeddings, labels)
            except (TypeError, ValueError, IndexError):
                continue  # labels that are numbers of centers have no fractions
            file = io.BytesIO()
            torch.save(saved.state_dict(), file)
            file.seek(0)
            loaded = copy.deepcopy(loss)
            loaded.load_state_dict(torch.load(file, weights_only=True))
            assert modules_equal(saved, loaded), f"another state is loaded than was saved, labels of {dtype}"
            expected = evaluate(saved, case.embeddings + 0.25, labels)
            assert_same(evaluate(loaded, case.embeddings + 0.25, labels), expected, f"loaded, labels of {dtype}")


@law("loss", "once", has_state)
def a_narrow_batch_narrows_no_state(loss: Any, case: Batch) -> None:
    """Labels and embeddings of a narrower dtype do not reduce the precision of the state."""
    loss = trained(loss, case.embeddings, case.labels)
    before = {name: buffer.dtype for name, buffer in loss.named_buffers()}
    loss = trained(loss, case.embeddings.float(), case.labels.to(torch.int8))
    for name, buffer in loss.named_buffers():
        wide = torch.promote_types(before[name], buffer.dtype)
        assert buffer.dtype == wide, f"{name} was {before[name]} and became {buffer.dtype}"


@law("loss", "once")
def inference_before_training_does_no_harm(loss: Any, case: Batch) -> None:
    """Training after a call under `inference_mode` is the same as after a call under `no_grad`."""
    found = []
    for mode in (torch.inference_mode, torch.no_grad):
        called = copy.deepcopy(loss).train()
        reseed()
        with mode():
            called(case.embeddings.clone(), case.labels.clone())
        for _ in range(2):
            reseed()
            embeddings = case.embeddings.clone().requires_grad_()
            value = called(embeddings, case.labels)
            (gradient,) = torch.autograd.grad(value, embeddings)
        found.append((value.detach(), gradient))
    (value, gradient), (expected, wanted) = found
    assert_close(value, expected, "after a call under inference_mode")
    assert_close(gradient, wanted, "gradient after a call under inference_mode")
