"""Laws of a loss as a part of PyTorch and of PML: reducers, copies, compilation, no synchronization, learning."""

import copy
import io
import pickle
from typing import Any

import torch
from pytorch_metric_learning import reducers as pml
from pytorch_metric_learning.reducers import BaseReducer, DivisorReducer, MeanReducer, SumReducer
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pml_ext import _pml
from pml_ext.testing.cases import Batch, all_pairs
from pml_ext.testing.law import (
    assert_close,
    assert_same,
    evaluate,
    fresh,
    is_ours,
    is_row_loss,
    law,
    modules_equal,
    outcome,
    reseed,
    seeded,
    unreduced,
)

_SIZES = {"element": 1, "pos_pair": 2, "neg_pair": 2, "triplet": 3}


@law("loss", "once")
def loss_dict_is_well_formed(loss: Any, case: Batch) -> None:
    """Its keys are `sub_loss_names()`, in PML 2; losses are 1-D with as many indices, or one scalar already reduced."""
    for regularizer in (None, LpRegularizer()):
        for batch in (case, Batch((1,), case.dimension)):
            entries = _loss_dict(_with(loss, None, regularizer), batch)
            # PML 2 asks for the names before, PML 3 reads them off the terms.
            if not _pml.HAS_TERMS:
                names = set(_with(loss, None, regularizer).sub_loss_names())
                assert set(entries) == names, f"the loss dict has {sorted(entries)}, sub_loss_names() {sorted(names)}"
            for name, entry in entries.items():
                _check_entry(name, entry, len(batch.labels))


@law("loss", "once")
def reducers_are_obeyed(loss: Any, case: Batch) -> None:
    """Every reducer of PML gives a finite scalar; from losses per anchor, the one that its name says."""
    entries = _loss_dict(loss, case)
    kinds = {entry["reduction_type"] for entry in entries.values()}
    weights = 0.5 + torch.rand(int(case.labels.max()) + 1, generator=seeded(6), dtype=torch.float64)
    reducers: list[BaseReducer] = [MeanReducer(), SumReducer()]
    others: dict[str, dict[str, Any]] = {
        "AvgNonZeroReducer": {},
        "ThresholdReducer": {"low": -1e9},
        "ClassWeightedReducer": {"weights": weights.clone()},
    }
    # PML 3 may have fewer.
    reducers += [getattr(pml, name)(**given) for name, given in others.items() if hasattr(pml, name)]
    if all("divisor" in entry or entry["reduction_type"] == "already_reduced" for entry in entries.values()):
        reducers.append(DivisorReducer())
    if "triplet" not in kinds and hasattr(pml, "PerAnchorReducer"):
        reducers.append(pml.PerAnchorReducer())
    for reducer in reducers:
        name = type(reducer).__name__
        try:
            value = evaluate(_with(loss, reducer), case.embeddings, case.labels).value
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
        if kinds == {"element"}:
            expected = sum(_reduced(name, entry, weights, case.labels) for entry in entries.values())
            assert_close(value, torch.as_tensor(expected), name)
        regularized = evaluate(_with(loss, reducer, LpRegularizer()), case.embeddings, case.labels).value
        norms = case.embeddings.norm(dim=1).mean()
        if name in ("MeanReducer", "SumReducer"):
            assert_close(regularized, value + norms, f"{name} with a regularizer")


@law("loss", "once", is_row_loss)
def losses_are_one_per_anchor(loss: Any, case: Batch) -> None:
    """The loss dict has one loss for each sample of the batch, in its order, and a divisor."""
    (entry,) = _loss_dict(loss, case).values()
    n = len(case.labels)
    assert entry["reduction_type"] == "element", f"the reduction type is {entry['reduction_type']}"
    assert entry["losses"].shape == (n,), f"losses have shape {tuple(entry['losses'].shape)} for {n} anchors"
    assert entry["indices"].tolist() == list(range(n)), f"indices are {entry['indices'].tolist()}"
    assert "divisor" in entry, "there is no divisor"


@law("loss", "once")
def copies_are_equal(loss: Any, case: Batch) -> None:
    """A copy, a pickled loss and a loss loaded from `state_dict` have the same value and gradient."""
    expected = outcome(loss, case)
    pickled = pickle.loads(pickle.dumps(loss))
    state = io.BytesIO()
    torch.save(loss.state_dict(), state)
    state.seek(0)
    loaded = copy.deepcopy(loss)
    loaded.load_state_dict(torch.load(state, weights_only=False))
    for name, other in (("deepcopy", copy.deepcopy(loss)), ("pickle", pickled), ("state_dict", loaded)):
        assert modules_equal(loss, other), f"{name} has another state"
        assert_same(evaluate(other, case.embeddings, case.labels), expected, name)


@law("loss", "once")
def calls_leave_no_trace(loss: Any, case: Batch) -> None:
    """A loss without state gives the same loss again, and its backward pass can run for every call."""
    if any(True for _ in loss.buffers()):
        return
    expected = outcome(loss, case)
    evaluate(loss, case.embeddings[1:], case.labels[1:])
    assert_same(evaluate(loss, case.embeddings, case.labels), expected, "called again")


@law("loss", "once", is_ours, stage="use")
def nothing_waits_for_the_device(loss: Any, case: Batch) -> None:
    """With labels, no operation reads the value of a tensor on the host: forward, backward and in the reducer.

    The loss runs on tensors that have shapes but no values: `item`, `nonzero`, `unique`, `if tensor`, `tolist` and
    indexing by a mask all fail on them.
    """
    # A copy: reducers of PML keep the last divisor, which here is none.
    loss, shape = copy.deepcopy(loss), case.embeddings.shape
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss(torch.empty(shape, requires_grad=True), torch.empty(shape[:1], dtype=torch.long)).backward()


@law("loss", "once", is_ours, stage="use", as_shipped_only=True)
def compiles_as_one_graph(loss: Any, case: Batch) -> None:
    """`torch.compile(fullgraph=True)` captures the loss on labels, and keeps value and gradient."""
    check_compiled(loss, case, "aot_eager")


def check_compiled(loss: Any, case: Batch, backend: str) -> None:
    """Hold a compiled loss against the loss; "aot_eager" is fast, "inductor" also makes the kernels."""
    torch._dynamo.reset()
    expected = evaluate(loss, case.embeddings, case.labels)
    reseed()
    embeddings = case.embeddings.clone().requires_grad_()
    value = torch.compile(fresh(loss), fullgraph=True, backend=backend)(embeddings, case.labels)
    (gradient,) = torch.autograd.grad(value, embeddings)
    assert_close(value.detach(), expected.value, f"value, compiled by {backend}")
    assert_close(gradient, expected.gradient, f"gradient, compiled by {backend}")


@law("loss", "once", stage="use", as_shipped_only=True)
def it_learns(loss: Any, case: Batch) -> None:
    """Thirty steps of Adam on random embeddings move those of a class together, and apart from the others."""
    reseed()
    loss = copy.deepcopy(loss)
    embeddings = case.embeddings.clone().requires_grad_()
    optimizer = torch.optim.Adam([embeddings, *loss.parameters()], lr=0.05)
    before = separation(embeddings, case.labels)
    for _ in range(30):
        optimizer.zero_grad()
        loss(embeddings, case.labels).backward()
        optimizer.step()
    after = separation(embeddings, case.labels)
    assert after > before + 0.1, (
        f"mean cosine of positives less that of negatives went from {before:.3f} to {after:.3f}"
    )


def separation(embeddings: Tensor, labels: Tensor) -> float:
    """Mean cosine similarity of the positive pairs, minus that of the negative pairs."""
    unit = torch.nn.functional.normalize(embeddings.detach())
    cosine, (pos, neg) = unit @ unit.T, all_pairs(labels)
    return (cosine[pos].mean() - cosine[neg].mean()).item()


def _with(loss: Any, reducer: BaseReducer | None, regularizer: Any = None) -> Any:
    """A copy of the loss with this reducer and, if there is one, a regularizer of the embeddings."""
    loss = copy.deepcopy(loss)
    if regularizer is not None:
        loss.embedding_regularizer, loss.embedding_reg_weight = regularizer, 1
    if reducer is not None or hasattr(loss, "set_reducer"):
        _pml.set_reducer(loss, reducer)
    return loss


def _loss_dict(loss: Any, case: Batch) -> dict[str, dict[str, Any]]:
    reseed()
    return unreduced(loss, case.embeddings, case.labels)


def _check_entry(name: str, entry: dict[str, Any], n: int) -> None:
    losses, indices, kind = entry["losses"], entry["indices"], entry["reduction_type"]
    if kind == "already_reduced":
        is_zero = not isinstance(losses, Tensor) and losses == 0
        assert is_zero or losses.ndim == 0, f"{name}: already reduced, but not a scalar: {losses}"
        return
    assert kind in _SIZES, f"{name}: the reduction type is {kind!r}"
    assert losses.ndim == 1, f"{name}: losses must be 1-D, they have shape {tuple(losses.shape)}"
    indices = (indices,) if isinstance(indices, Tensor) else indices
    assert len(indices) == _SIZES[kind], f"{name}: {len(indices)} index tensors for losses of type {kind}"
    for index in indices:
        assert index.shape == losses.shape, f"{name}: {tuple(index.shape)} indices for {tuple(losses.shape)} losses"
        assert not len(index) or 0 <= int(index.min()) <= int(index.max()) < n, f"{name}: indices {index.tolist()}"


def _reduced(name: str, entry: dict[str, Any], weights: Tensor, labels: Tensor) -> Tensor:
    """What PML's reducer of that name should make of losses per anchor."""
    losses: Tensor = entry["losses"]
    nonzero = losses[losses > 0]
    reduced: dict[str, Tensor] = {
        "MeanReducer": losses.mean(),
        "PerAnchorReducer": losses.mean(),
        "ThresholdReducer": losses.mean(),
        "SumReducer": losses.sum(),
        "AvgNonZeroReducer": nonzero.mean() if len(nonzero) else losses.sum() * 0,
        "ClassWeightedReducer": (losses * weights[labels[entry["indices"]]]).mean(),
        "DivisorReducer": losses.sum() / entry.get("divisor", 1),
    }
    return reduced[name]
