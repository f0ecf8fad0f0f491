"""Accelerated stock losses and miners against PML's own: values, gradients, lists, errors, state."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import sys
import warnings
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytorch_metric_learning.trainers", reason="about PML 2: its losses, run faster")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from of_pml import (
    DistributedLossWrapper,
    DistributedMinerWrapper,
    distances,
    losses,
    miners,
    reducers,
    regularizers,
    trainers,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pml_ext import engine, thresholds
from pml_ext.analysis import NoPairWeightsError, pair_weights
from pml_ext.stock import NotAcceleratedError, accelerate
from pml_ext.stock import loss as loss_module
from pml_ext.stock.checks import why_stock
from pml_ext.stock.coverage import PASSED_THROUGH, REFUSED, coverage, statement
from pml_ext.stock.forms import FORMS
from pml_ext.stock.forms.active_counts import active_counts
from pml_ext.stock.mined import Mined
from pml_ext.stock.miners import MINERS

F64 = torch.float64
LOSSES: dict[str, Callable[[], Any]] = {
    "Circle": lambda: losses.CircleLoss(m=0.3, gamma=20),
    "Contrastive": lambda: losses.ContrastiveLoss(pos_margin=0.2, neg_margin=1.1),
    "FastAP": lambda: losses.FastAPLoss(num_bins=7),
    "FastAPPower1": lambda: losses.FastAPLoss(distance=distances.LpDistance()),
    "Histogram": lambda: losses.HistogramLoss(n_bins=20),
    "RankedList": lambda: losses.RankedListLoss(margin=0.4, Tn=3, Tp=1, imbalance=0.3),
    "GeneralizedLifted": lambda: losses.GeneralizedLiftedStructureLoss(neg_margin=0.9, pos_margin=0.1),
    "IntraPairVariance": lambda: losses.IntraPairVarianceLoss(pos_eps=0.1, neg_eps=0.2),
    "IntraPairVarianceLp": lambda: losses.IntraPairVarianceLoss(distance=distances.LpDistance()),
    "Lifted": lambda: losses.LiftedStructureLoss(neg_margin=0.9),
    "Margin": lambda: losses.MarginLoss(),
    "MarginLearned": lambda: losses.MarginLoss(nu=0.1, beta=0.9, learn_beta=True).double(),
    "MarginClasses": lambda: losses.MarginLoss(nu=0.1, beta=0.9, learn_beta=True, num_classes=6).double(),
    "MultiSimilarity": lambda: losses.MultiSimilarityLoss(),
    "NCA": lambda: losses.NCALoss(softmax_scale=3),
    "NTXent": lambda: losses.NTXentLoss(temperature=0.1),
    "NTXentLp": lambda: losses.NTXentLoss(distance=distances.LpDistance(power=2)),
    "SNR": lambda: losses.SignalToNoiseRatioContrastiveLoss(neg_margin=2),
    "SupCon": lambda: losses.SupConLoss(),
    "Triplet": lambda: losses.TripletMarginLoss(margin=0.2),
    "TripletCosine": lambda: losses.TripletMarginLoss(margin=0.2, distance=distances.CosineSimilarity()),
    "TripletSmooth": lambda: losses.TripletMarginLoss(margin=0.2, smooth_loss=True),
    "TripletSwap": lambda: losses.TripletMarginLoss(margin=0.2, swap=True),
    "Tuplet": lambda: losses.TupletMarginLoss(scale=8),
}
# Of exact duplicates PML's gradient by the angle is not a number, and its histogram raises.
WITHOUT_EQUALS = ("Tuplet", "Histogram")
REDUCERS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "nonzero": reducers.AvgNonZeroReducer,
    "low": lambda: reducers.ThresholdReducer(low=0.1),
    "high": lambda: reducers.ThresholdReducer(high=0.8),
    "negative low": lambda: reducers.ThresholdReducer(low=-1, high=0.6),
    "classes": lambda: reducers.ClassWeightedReducer(torch.linspace(0.2, 1.3, 6, dtype=F64)),
    "anchors": reducers.PerAnchorReducer,
    "anchors nonzero": lambda: reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
}
MINED: dict[str, Callable[[], Any]] = {
    "MultiSimilarity": lambda: miners.MultiSimilarityMiner(epsilon=0.2),
    "PairMargin": lambda: miners.PairMarginMiner(pos_margin=0.4, neg_margin=1.2),
    "PairMarginCosine": lambda: miners.PairMarginMiner(0.7, 0.1, distance=distances.CosineSimilarity()),
    "Easy": lambda: miners.BatchEasyHardMiner(),
    "HardRange": lambda: miners.BatchEasyHardMiner("hard", "easy", (0.2, 1.2), (0.5, 1.5)),
    "SemihardPositive": lambda: miners.BatchEasyHardMiner("semihard", "hard"),
    "EasyCosine": lambda: miners.BatchEasyHardMiner("hard", "semihard", distance=distances.CosineSimilarity()),
    "BatchHard": lambda: miners.BatchHardMiner(),
    "HDC": lambda: miners.HDCMiner(),
    "HDCFew": lambda: miners.HDCMiner(0.07, distance=distances.CosineSimilarity()),
    **{
        f"Triplet {kind}": lambda kind=kind: miners.TripletMarginMiner(0.3, kind)
        for kind in ("all", "hard", "semihard", "easy")
    },
    "TripletCosine": lambda: miners.TripletMarginMiner(0.2, "semihard", distance=distances.CosineSimilarity()),
}


@pytest.fixture(autouse=True)
def _every_size_is_accelerated():
    with thresholds.replaced(STOCK_PAYS=0):
        yield


def batch(seed, n, classes, *, equal=False):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, 4, dtype=F64, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    if equal and n > 2:
        embeddings[1] = embeddings[0]
    return embeddings, labels


def run(loss, embeddings, *args, ref_emb=None, **kwargs):
    """Value and gradients, or the name of the error."""
    leaf = embeddings.detach().clone().requires_grad_()
    leaves = [leaf, *loss.parameters()]
    if ref_emb is not None:
        kwargs["ref_emb"] = ref_emb.detach().clone().requires_grad_()
        leaves.append(kwargs["ref_emb"])
    try:
        value = loss(leaf, *args, **kwargs)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return type(error).__name__
    except NotImplementedError:
        return "NotImplementedError"
    found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
    return [value.detach(), *(torch.zeros_like(a) if b is None else b for a, b in zip(leaves, found, strict=True))]


def assert_same(found, expected, tolerance=1e-11):
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@contextmanager
def told_by_pml():
    """Where a loss may say that it runs as PML's own, and PML says what it says by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* runs as PML's own")
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # its HistogramLoss
        warnings.filterwarnings("ignore", "DistributedLossWrapper is being used in a non-distributed setting")
        yield


def strictly(loss, chunk_size=None):
    return accelerate(loss, chunk_size=chunk_size)


cases = st.tuples(st.integers(0, 999), st.integers(2, 14), st.integers(1, 6), st.booleans())


@pytest.mark.parametrize("name", LOSSES)
@given(case=cases, reducer=st.sampled_from(sorted(REDUCERS)), chunk=st.sampled_from([None, 1, 3]), data=st.data())
@settings(max_examples=12)
def test_loss_equals_stock(name, case, reducer, chunk, data):
    seed, n, classes, equal = case
    embeddings, labels = batch(seed, n, classes, equal=equal and name not in WITHOUT_EQUALS)
    loss = LOSSES[name]()
    if REDUCERS[reducer]() is not None:
        loss.set_reducer(REDUCERS[reducer]())
    kind = data.draw(st.sampled_from(["labels", "pairs", "triplets", "repeated", "references"]))
    args: tuple[Any, ...] = (labels,)
    references: dict[str, Any] = {}
    if kind == "references":
        other, ref_labels = batch(seed + 1, data.draw(st.integers(1, 9)), classes)
        references = {"ref_emb": other, "ref_labels": ref_labels}
    elif kind == "pairs":
        args = (labels, miners.PairMarginMiner(pos_margin=0.3, neg_margin=1.3)(embeddings, labels))
    elif kind == "triplets":
        args = (labels, miners.TripletMarginMiner(margin=0.3)(embeddings, labels))
    elif kind == "repeated":
        pairs = miners.PairMarginMiner(pos_margin=0, neg_margin=9)(embeddings, labels)
        args = (labels, tuple(torch.cat([each, each[::2]]) for each in pairs))
    with told_by_pml():
        expected = run(loss, embeddings, *args, **references)
        with thresholds.tiny() if seed % 2 else thresholds.replaced(STOCK_PAYS=0):
            assert_same(run(accelerate(loss, chunk_size=chunk), embeddings, *args, **references), expected)


@pytest.mark.parametrize("name", MINED)
@given(case=cases, with_references=st.booleans(), grid=st.booleans(), chunk=st.sampled_from([None, 1, 3]))
@settings(max_examples=15)
def test_miner_equals_stock(name, case, with_references, grid, chunk):
    seed, n, classes, equal = case
    embeddings, labels = batch(seed, n, classes, equal=equal)
    embeddings = embeddings.round() + 0.5 if grid else embeddings
    miner = MINED[name]()
    others = batch(seed + 1, 7, classes) if with_references else ()
    expected = miner(embeddings, labels, *others)
    # Between equal scores the last bit decides, which may depend on how many rows are made together.
    mined = accelerate(miner, chunk_size=None if grid or equal else chunk)
    with thresholds.tiny() if seed % 2 else thresholds.replaced(STOCK_PAYS=0):
        found = mined(embeddings, labels, *others)
        tuple(found)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
    if grid and "Multi" in name:  # PML sorts by score, and equal ones as its sort leaves them
        assert [sorted(zip(*found[i : i + 2], strict=True)) for i in (0, 2)] == [
            sorted(zip(*expected[i : i + 2], strict=True)) for i in (0, 2)
        ]
    else:
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for counter in ("num_triplets", "num_pos_pairs", "num_neg_pairs"):
        assert getattr(mined, counter, 0) == getattr(miner, counter, 0)


@pytest.mark.parametrize("name", LOSSES)
@given(
    case=cases,
    miner=st.sampled_from(sorted(MINED)),
    reducer=st.sampled_from(sorted(REDUCERS)),
    chunk=st.sampled_from([None, 3]),
)
@settings(max_examples=8)
def test_mined_loss_equals_stock(name, case, miner, reducer, chunk):
    seed, n, classes, equal = case
    embeddings, labels = batch(seed, n, classes, equal=equal and name not in WITHOUT_EQUALS)
    loss, stock_miner = LOSSES[name](), MINED[miner]()
    if REDUCERS[reducer]() is not None:
        loss.set_reducer(REDUCERS[reducer]())
    with told_by_pml():
        expected = run(loss, embeddings, labels, stock_miner(embeddings, labels))
        fast_loss = accelerate(loss, chunk_size=chunk)
        fast_miner = accelerate(stock_miner, chunk_size=None if equal else chunk)
        assert_same(run(fast_loss, embeddings, labels, fast_miner(embeddings, labels)), expected)


def test_masks_pass_without_lists():
    embeddings, labels = batch(0, 12, 3)
    for miner in (
        miners.MultiSimilarityMiner(),
        miners.TripletMarginMiner(),
        miners.PairMarginMiner(),
        miners.HDCMiner(),
    ):
        for loss in (
            losses.MultiSimilarityLoss(),
            losses.TripletMarginLoss(),
            losses.ContrastiveLoss(),
            losses.NCALoss(),
        ):
            fast_loss, fast_miner = accelerate(loss, miner, strict=True)
            mined = fast_miner(embeddings, labels)
            fast_loss(embeddings, labels, mined)
            assert not mined.is_made


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that was made."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [each.untyped_storage().nbytes() // 8 for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.found = max(self.found, *sizes, 0)
        return made


@pytest.mark.parametrize("miner", [None, "MultiSimilarity", "EasyCosine", "BatchHard", "Triplet semihard"])
@pytest.mark.parametrize("name", ["MultiSimilarity", "Contrastive", "NCA", "Triplet"])
def test_in_chunks_nobody_makes_the_whole_matrix(name, miner):
    embeddings, labels = batch(0, 90, 3)[0].requires_grad_(), torch.arange(90) // 3
    found = []
    for chunk in (None, 6):
        loss, mined = accelerate(LOSSES[name](), MINED[miner]() if miner else None, chunk_size=chunk)
        with Largest() as seen, thresholds.replaced(STOCK_PAYS=0, STOCK_BLOCK=6 * 90):
            loss(embeddings, labels, mined(embeddings, labels) if miner else None).backward()
        found.append(seen.found)
    assert found[0] >= 90 * 90
    assert found[1] <= 3 * 6 * 90


@pytest.mark.parametrize("name", ["Contrastive", "NTXent", "Triplet", "MultiSimilarity"])
def test_short_lists_are_left_to_stock(name):
    embeddings, labels = batch(0, 40, 10)
    pairs = miners.PairMarginMiner(pos_margin=0, neg_margin=9)(embeddings, labels)
    short = tuple(each[:3] for each in pairs)
    with thresholds.replaced(STOCK_PAYS=0.01, STOCK_LISTED=12.5):
        for indices, is_short in ((pairs, False), (short, True)):
            for chunk in (None, 6):
                reason = why_stock(
                    accelerate(LOSSES[name](), chunk_size=chunk), embeddings, labels, indices, None, None
                )
                left = is_short and chunk is None and name != "MultiSimilarity"
                assert reason == ("" if left else None)
        triplets = miners.TripletMarginMiner(margin=1)(embeddings, labels)
        reason = why_stock(accelerate(LOSSES[name]()), embeddings, labels, triplets, None, None)
        assert reason == ("" if name == "Triplet" else None)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("name", ["MultiSimilarity", "PairMargin", "Easy", "BatchHard", "Triplet semihard"])
def test_what_was_mined_is_counted_without_lists(name, chunk):
    embeddings, labels = batch(0, 12, 3)
    stock, fast = MINED[name](), accelerate(MINED[name](), chunk_size=chunk)
    stock(embeddings, labels)
    mined = fast(embeddings, labels)
    for counter in ("num_triplets", "num_pos_pairs", "num_neg_pairs"):
        assert getattr(fast, counter, 0) == getattr(stock, counter, 0)
    assert not getattr(mined, "is_made", False)


@pytest.mark.parametrize("miner", ["MultiSimilarity", "EasyCosine", "BatchHard", "Triplet semihard"])
@pytest.mark.parametrize("loss", ["Contrastive", "Triplet", "NCA"])
def test_memory_in_chunks_equals_stock(loss, miner):
    stock = losses.CrossBatchMemory(LOSSES[loss](), 4, memory_size=20, miner=MINED[miner]())
    fast = accelerate(stock, chunk_size=3)
    for step in range(4):
        embeddings, labels = batch(step, 8, 3)
        with told_by_pml():
            assert_same(run(fast, embeddings, labels), run(stock, embeddings, labels))


GAPS = {
    "any": lambda near, far: far,
    "of a grid": lambda near, far: (far * 10).round() / 20,
    "as large as the margin": lambda near, far: far * 0.02,
    "some roundings from the border": lambda near, far: near[:, :1] + far.sign() * torch.finfo(far.dtype).eps * 0.4,
    "of the positives": lambda near, far: near[:, :1] + 0 * far,
}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@given(
    seed=st.integers(0, 10**6), sizes=st.tuples(*map(st.integers, (1, 1, 1), (5, 30, 33))), margin=st.floats(-0.3, 1)
)
@settings(max_examples=20)
def test_looked_up_triplets_are_those_that_comparisons_count(gap, dtype, seed, sizes, margin):
    rows, columns, positives = sizes
    generator = torch.Generator().manual_seed(seed)
    near = torch.randn(rows, positives, dtype=dtype, generator=generator)
    near = (near * 10).round() / 20 if "grid" in gap else near * 0.02 - margin if "large" in gap else near
    far = GAPS[gap](near, torch.randn(rows, columns, dtype=dtype, generator=generator))
    far = far + margin if "border" in gap else far
    far = far.masked_fill(torch.rand(rows, columns, generator=generator) < 0.1, torch.finfo(dtype).max)
    there = (torch.rand(rows, positives, generator=generator) < 0.8).to(dtype)
    for compare in (torch.gt, torch.ge):
        found = active_counts(near, far, there, (compare, -margin))
        active = compare(near[:, :, None] - far[:, None], -margin) * there[:, :, None]
        assert torch.equal(found.of_far, active.sum(1))
        assert torch.equal(found.of_near * there, active.sum(2))
    near[0, 0] = torch.nan
    assert active_counts(near, far, there, (torch.gt, -margin)) is None


def test_triplets_of_a_list_by_rows():
    embeddings, labels = batch(0, 12, 3)
    triplets = miners.TripletMarginMiner(margin=0.4)(embeddings, labels)
    repeated = tuple(torch.cat([each.flip(0), each[::3]]) for each in triplets)
    for options in ({}, {"smooth_loss": True}):
        for reducer in (None, reducers.MeanReducer(), reducers.ThresholdReducer(low=0.1, high=0.3)):
            loss = losses.TripletMarginLoss(margin=0.2, reducer=reducer, **options)
            for chunk in (None, 5):
                fast = accelerate(loss, strict=True, chunk_size=chunk)
                assert_same(run(fast, embeddings, labels, repeated), run(loss, embeddings, labels, repeated))


def test_mined_in_chunks_from_what_the_embeddings_were():
    embeddings, labels = batch(0, 12, 3)
    miner = miners.MultiSimilarityMiner(epsilon=0.1)
    expected = miner(embeddings, labels)
    fast = accelerate(miner, chunk_size=5)
    found = fast(embeddings, labels)
    embeddings.neg_().add_(0.3)
    fast.epsilon, fast.distance.power = 5, 2
    assert_same_lists(found, expected)


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_loss_takes_the_scores_of_its_miner_where_they_are_its_own(chunk, monkeypatch):
    embeddings, labels = batch(0, 12, 3)
    calls = []
    plain = distances.LpDistance.compute_mat

    def counted(self, query, references):
        calls.append(len(query))
        return plain(self, query, references)

    monkeypatch.setattr(distances.LpDistance, "compute_mat", counted)

    def number_of_rows(loss, changed=False):
        fast, miner = accelerate(loss, miners.TripletMarginMiner(), chunk_size=chunk)
        vectors = embeddings.clone()
        mined = miner(vectors, labels)
        if changed:
            vectors.mul_(-1)
        calls.clear()
        with torch.no_grad():
            fast(vectors, labels, mined)
        return sum(calls)

    own = number_of_rows(losses.TripletMarginLoss())
    assert own == (0 if chunk is None else 12)
    squared = losses.TripletMarginLoss(distance=distances.LpDistance(power=2))
    assert number_of_rows(squared) == number_of_rows(losses.TripletMarginLoss(), changed=True) == own + 12


def test_a_mined_tuple_is_a_tuple():
    embeddings, labels = batch(0, 12, 3)
    miner = miners.TripletMarginMiner()
    expected = miner(embeddings, labels)

    def fresh():
        return accelerate(miner)(embeddings, labels)

    a, _, _ = fresh()
    assert torch.equal(a, expected[0])
    assert torch.equal(torch.cat(fresh()), torch.cat(expected))
    matrix = torch.randn(12, 12)
    assert torch.equal(matrix[fresh()[0], fresh()[2]], matrix[expected[0], expected[2]])
    assert all(torch.equal(one, other) for one, other in zip(tuple(fresh()), expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(fresh()[1:], expected[1:], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(copy.deepcopy(fresh()), expected, strict=True))
    assert all(
        torch.equal(one, other) for one, other in zip(pickle.loads(pickle.dumps(fresh())), expected, strict=True)
    )
    assert len(fresh() + (a,)) == 4  # noqa: RUF005
    assert repr(fresh()).startswith("(tensor(")
    value = losses.MarginLoss()(embeddings, labels, fresh())
    assert torch.equal(value, losses.MarginLoss()(embeddings, labels, expected))


def test_it_is_the_stock_loss_in_everything_else():
    loss = losses.MarginLoss(learn_beta=True, num_classes=3)
    fast = accelerate(loss)
    assert isinstance(fast, losses.MarginLoss)
    assert type(fast).__name__ == "MarginLoss"
    assert fast.beta is loss.beta
    assert fast.state_dict().keys() == loss.state_dict().keys()
    fast.margin = 0.7
    assert loss.margin == 0.2
    embeddings, labels = batch(0, 9, 3)
    assert_same(
        run(fast.double(), embeddings, labels),
        run(losses.MarginLoss(margin=0.7, learn_beta=True, num_classes=3).double(), embeddings, labels),
    )
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), accelerate(fast)):
        assert_same(run(twin, embeddings, labels), run(fast, embeddings, labels))
    assert "accelerated" in repr(fast)


def test_the_stock_path_has_the_twins_hyperparameters():
    fast = accelerate(losses.ContrastiveLoss())
    fast.neg_margin = 0.3
    embeddings, labels = batch(0, 9, 3)
    with pytest.warns(
        UserWarning, match="ContrastiveLoss runs as PML's own: half precision follows rules of PML's own"
    ):
        found = fast(embeddings.half(), labels)
    assert torch.equal(found, losses.ContrastiveLoss(neg_margin=0.3)(embeddings.half(), labels))


def test_regularizer_and_several_reducers():
    embeddings, labels = batch(3, 10, 3)
    for make in (losses.ContrastiveLoss, losses.MultiSimilarityLoss):
        loss = make(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.3)
        assert_same(run(accelerate(loss, strict=True), embeddings, labels), run(loss, embeddings, labels))
    both = reducers.MultipleReducers({"pos_loss": reducers.SumReducer()}, reducers.AvgNonZeroReducer())
    loss = losses.ContrastiveLoss(reducer=both)
    assert_same(run(accelerate(loss, strict=True), embeddings, labels), run(loss, embeddings, labels))


def test_second_derivative():
    embeddings, labels = batch(3, 8, 3)
    found = []
    for loss in (losses.NTXentLoss(), accelerate(losses.NTXentLoss())):
        leaf = embeddings.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf, labels), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        found.append(second)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_containers():
    embeddings, labels = batch(5, 12, 3)
    stock = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.2))
    fast = accelerate(stock)
    assert type(fast) is losses.SelfSupervisedLoss
    assert fast.loss is not stock.loss
    assert torch.allclose(fast(embeddings, embeddings + 0.1), stock(embeddings, embeddings + 0.1), rtol=1e-12)
    pair = [losses.NTXentLoss(), losses.TripletMarginLoss()]
    stock = losses.MultipleLosses(pair, [miners.MultiSimilarityMiner(), None], [1, 0.5])
    assert torch.allclose(accelerate(stock)(embeddings, labels), stock(embeddings, labels), rtol=1e-12)
    held = accelerate({"metric_loss": losses.NTXentLoss(), "classifier": losses.SoftTripleLoss(3, 4)})
    assert "accelerated" in repr(held["metric_loss"])
    assert type(held["classifier"]) is losses.SoftTripleLoss


@pytest.mark.parametrize("miner", [None, *MINED])
@pytest.mark.parametrize("loss", ["Contrastive", "NTXent", "Triplet", "Margin", "NCA", "MultiSimilarity"])
def test_memory_equals_stock(loss, miner):
    mined = None if miner is None else MINED[miner]()
    stock = losses.CrossBatchMemory(LOSSES[loss](), 4, memory_size=20, miner=mined)
    fast = accelerate(stock)
    assert isinstance(fast, losses.CrossBatchMemory)
    for step in range(4):
        embeddings, labels = batch(step, 8, 3)
        outer = miners.BatchHardMiner()(embeddings, labels) if step == 3 else None
        with told_by_pml():
            assert_same(run(fast, embeddings, labels, outer), run(stock, embeddings, labels, outer))
    assert torch.equal(fast.embedding_memory, stock.embedding_memory)
    assert accelerate(fast).loss is not fast.loss


def test_a_memory_forms_no_lists():
    fast = accelerate(losses.CrossBatchMemory(losses.NTXentLoss(), 4, memory_size=20))
    embeddings, labels = batch(0, 8, 3)
    fast(embeddings, labels)
    given = fast.create_indices_tuple(embeddings, labels, fast.embedding_memory[:8], labels, None, True)
    assert not given.is_made


def test_what_cannot_be_accelerated():
    embeddings, labels = batch(0, 9, 3)

    class Own(losses.NTXentLoss):
        pass

    with pytest.warns(UserWarning, match="Own stays as it is: Own is a subclass of NTXentLoss"):
        assert type(accelerate(Own())) is Own
    with pytest.raises(NotAcceleratedError, match="AngularLoss cannot be accelerated"):
        accelerate(losses.AngularLoss(), strict=True)
    drawn = accelerate(losses.TripletMarginLoss(triplets_per_anchor=3), strict=True)
    with pytest.raises(NotAcceleratedError, match="triplets_per_anchor is a number"):
        drawn(embeddings, labels)
    with pytest.raises(ValueError, match="chunk_size must"):
        accelerate(losses.NTXentLoss(), chunk_size=0)
    loss = accelerate(losses.NTXentLoss(reducer=reducers.DoNothingReducer()))
    assert "not accelerated: DoNothingReducer returns the losses" in repr(loss)
    with pytest.raises(ValueError, match="labels and indices_tuple cannot both be None"):
        accelerate(losses.NTXentLoss())(embeddings)


def test_few_scores_are_left_to_stock():
    loss, miner = accelerate(losses.NCALoss(), miners.TripletMarginMiner(), strict=True)
    embeddings, labels = batch(0, 9, 3)
    with thresholds.replaced(STOCK_PAYS=1):
        assert type(miner(embeddings, labels)) is tuple
        assert torch.equal(loss(embeddings, labels), losses.NCALoss()(embeddings, labels))


def test_of_few_scores_is_looked_once_what_they_are(monkeypatch):
    embeddings, labels = batch(0, 9, 3)
    asked = []
    monkeypatch.setattr(loss_module, "why_stock", lambda *given: asked.append(given) or why_stock(*given))
    loss, other = losses.NCALoss(), accelerate(losses.NCALoss(reducer=reducers.DoNothingReducer()))
    fast = accelerate(loss, strict=True)
    with thresholds.replaced(STOCK_PAYS=1):
        for _ in range(3):
            assert torch.equal(fast(embeddings, labels), loss(embeddings, labels))
        assert len(asked) == 1
        with pytest.warns(UserWarning, match="NCALoss runs as PML's own: DoNothingReducer"):
            other(embeddings, labels)
    fast.collect_stats = True
    with pytest.raises(NotAcceleratedError, match="it collects statistics"):
        fast(*batch(0, 12, 3))


def test_ratios_of_variances_pay_from_32_samples():
    embeddings, labels = batch(0, 32, 8)
    with thresholds.replaced(STOCK_PAYS=1):
        for make, expected in ((losses.SignalToNoiseRatioContrastiveLoss, None), (losses.ContrastiveLoss, "")):
            assert why_stock(accelerate(make()), embeddings, labels, None, None, None) == expected


def test_of_a_chunk_only_its_rows_stay(monkeypatch):
    # Small tensors that lived on among large ones that are freed left holes in the heap: five times the memory.
    kind, made = FORMS[losses.MarginLoss], []
    summarize = kind.summarize

    def watched(self, *args, **kwargs):
        assert all(each() is None for each in made)
        found = summarize(self, *args, **kwargs)
        made.extend(map(weakref.ref, found))
        return found

    monkeypatch.setattr(kind, "summarize", watched)
    embeddings, labels = batch(0, 12, 3)
    accelerate(losses.MarginLoss(), chunk_size=4)(embeddings, labels)
    assert len(made) == 9


def test_the_lists_name_only_classes_of_pml():
    for kind in (*FORMS, *MINERS):
        assert kind.__module__.startswith("pytorch_metric_learning.")


def test_every_class_of_pml_has_a_statement():
    found = coverage()
    assert found["NTXentLoss"] == ("accelerated", "")
    assert found["ThresholdConsistentMarginLoss"][0] == "refused"
    assert all(why for state, why in found.values() if state != "accelerated")
    assert {kind.__name__ for kind in (*FORMS, *MINERS)} <= {name for name, each in found.items() if not each[1]}
    assert not {*PASSED_THROUGH, *REFUSED} & {*FORMS, *MINERS}
    assert "| TripletMarginMiner | accelerated |  |" in statement()


@pytest.mark.skipif(not hasattr(losses, "SmoothAPLoss"), reason="of PML 2.9")
def test_a_refused_loss_names_ours():
    with pytest.warns(UserWarning, match=r"SmoothAPLoss stays as it is: .* use pml_ext.losses.SmoothAPLoss"):
        assert type(accelerate(losses.SmoothAPLoss())) is losses.SmoothAPLoss
    with pytest.raises(NotAcceleratedError, match=r"use pml_ext.losses.SmoothAPLoss"):
        accelerate(losses.SmoothAPLoss(), strict=True)


@pytest.mark.parametrize("name", ["Contrastive", "NTXent", "Triplet"])
def test_float32(name):
    embeddings, labels = batch(1, 60, 5)
    loss = LOSSES[name]()
    expected = run(loss, embeddings.float(), labels)
    assert_same(run(accelerate(loss, strict=True), embeddings.float(), labels), expected, 2e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PML's HistogramLoss
def test_the_benchmark_measures_and_writes(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import accelerate as benchmark

    setting = benchmark.Setting(16, 8, 4)
    lines = []
    for name in benchmark.SUBJECTS:
        for side in benchmark.SIDES:
            benchmark.step_of(name, side, setting, None)()
    about = {"hardware": {"cpu": "a CPU"}, "versions": {"torch": "2", "pytorch-metric-learning": "2"}, "commit": "c"}
    job = {"n": 16, "d": 8, "per_class": 4, "chunk_size": None, **about}
    lines.append({"name": "NTXentLoss", "side": "stock", "died": "over 8 GB", **job})
    lines.append({"name": "NTXentLoss", "side": "accelerated", "ratio": 1.5, "megabytes": 12.0, **job})
    table = benchmark.table(lines)
    assert "| NTXentLoss | dies: over 8 GB | 1.5 |  |  | 12 |" in table
    benchmark.picture(lines, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def lists_of(embeddings, labels, kind):
    miner = miners.PairMarginMiner(0.3, 1.3) if kind == "pairs" else miners.TripletMarginMiner(0.3)
    return tuple(miner(embeddings, labels))


def assert_equals_stock(loss, *args, **kwargs):
    with told_by_pml():
        assert_same(run(accelerate(loss), *args, **kwargs), run(loss, *args, **kwargs))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_lists_that_name_no_pairs_are_those_of_stock(name, kind):
    embeddings, labels = batch(0, 10, 3)
    lists = lists_of(embeddings, labels, kind)
    from_the_end = tuple(torch.where(torch.arange(len(each)) % 3 == 0, each - 10, each) for each in lists)
    broken = [from_the_end, (lists[0][:-1], *lists[1:]), (lists[0], lists[1][:1], *lists[2:])]
    broken += [tuple(each.to(dtype) for each in lists) for dtype in (torch.int32, torch.int16, torch.float32)]
    for place in range(len(lists)):
        for wrong in (10, 12, -11):
            broken.append(tuple(each.clone() for each in lists))
            broken[-1][place][0] = wrong
    for each in broken:
        assert_equals_stock(LOSSES[name](), embeddings, labels, each)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_numbers_that_are_none(name, number):
    embeddings, labels = batch(0, 10, 3)
    lists = lists_of(embeddings, labels, "pairs")
    for broken in (embeddings.index_fill(0, torch.tensor([3]), number), torch.full_like(embeddings, number)):
        for indices in (None, lists):
            assert_equals_stock(LOSSES[name](), broken, labels, indices)
    broken = embeddings.index_fill(0, torch.tensor([3]), number)
    for make in MINED.values():
        assert_same_lists(accelerate(make())(broken, labels), make()(broken, labels))


def test_scores_that_are_no_numbers():
    embeddings, labels = batch(0, 10, 3)
    embeddings[3] = 1.0  # no variance
    for make in (losses.TripletMarginLoss, losses.NTXentLoss):
        loss = make(distance=distances.SNRDistance())
        assert_equals_stock(loss, embeddings, labels)


def assert_same_lists(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["Contrastive", "NTXent", "Triplet", "NCA"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float16, torch.bfloat16])
def test_labels_of_any_type(name, dtype):
    embeddings, labels = batch(0, 10, 3)
    others, ref_labels = batch(1, 7, 3)
    assert_equals_stock(LOSSES[name](), embeddings, labels.to(dtype))
    assert_equals_stock(LOSSES[name](), embeddings, labels, ref_emb=others, ref_labels=ref_labels.to(dtype))
    miner = miners.TripletMarginMiner()
    assert_same_lists(accelerate(miner)(embeddings, labels.to(dtype)), miner(embeddings, labels.to(dtype)))


class Projected(distances.LpDistance):
    """A distance that is learned."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.eye(4, dtype=F64)[:3] + 0.1)

    def compute_mat(self, query_emb, ref_emb):
        return torch.cdist(query_emb @ self.matrix.mT, ref_emb @ self.matrix.mT)


def test_what_is_learned_keeps_its_gradient():
    embeddings, labels = batch(0, 10, 3)
    temperature = losses.NTXentLoss()
    temperature.temperature = torch.nn.Parameter(torch.tensor(0.2, dtype=F64))
    weights = losses.NTXentLoss()
    weights.reducer = reducers.ClassWeightedReducer(torch.ones(3, dtype=F64))
    weights.reducer.weights = torch.nn.Parameter(weights.reducer.weights)
    for loss in (temperature, losses.TripletMarginLoss(distance=Projected()), weights):
        expected = run(loss, embeddings, labels)
        fast = accelerate(loss)
        with pytest.warns(UserWarning, match="learned"):
            assert_same(run(fast, embeddings, labels), expected)
        assert any(bool(each.any()) for each in expected[2:])


@pytest.mark.parametrize("make", [torch.tensor, lambda number: torch.tensor([number])])
def test_hyperparameters_that_are_tensors(make):
    embeddings, labels = batch(0, 10, 3)
    for kind, name in (
        (losses.MultiSimilarityLoss, "beta"),
        (losses.NTXentLoss, "temperature"),
        (losses.TripletMarginLoss, "margin"),
        (losses.IntraPairVarianceLoss, "pos_eps"),
        (losses.MarginLoss, "beta"),
    ):
        loss = kind()
        setattr(loss, name, make(0.3))
        assert_equals_stock(loss, embeddings, labels)


def test_hooks():
    embeddings, labels = batch(0, 10, 3)
    distance, reducer = distances.CosineSimilarity(), reducers.MeanReducer()
    distance.register_forward_hook(lambda module, given, found: found * 2)
    assert_equals_stock(losses.NTXentLoss(distance=distance), embeddings, labels)
    assert_same(
        run(accelerate(losses.NTXentLoss(distance=distance), chunk_size=3), embeddings, labels),
        run(losses.NTXentLoss(distance=distance), embeddings, labels),
    )
    reducer.register_forward_hook(lambda module, given, found: found * 3)
    assert_equals_stock(losses.NTXentLoss(reducer=reducer), embeddings, labels)
    loss = losses.NTXentLoss()
    loss.register_forward_hook(lambda module, given, found: found * 5)
    assert_equals_stock(loss, embeddings, labels)
    accelerate(loss).register_forward_hook(lambda module, given, found: found * 7)
    assert len(loss._forward_hooks) == 1


@pytest.mark.parametrize("name", LOSSES)
def test_pair_weights_are_those_of_stock(name):
    embeddings, labels = batch(0, 10, 3)
    loss = LOSSES[name]()
    with told_by_pml():
        try:
            expected = pair_weights(loss, embeddings, labels)
        except NoPairWeightsError as error:
            with pytest.raises(NoPairWeightsError, match=re.escape(str(error))):
                pair_weights(accelerate(loss), embeddings, labels)
            return
        found = pair_weights(accelerate(loss), embeddings, labels)
    assert expected.weights.any()
    torch.testing.assert_close(found.weights, expected.weights)


def test_without_the_engine_stock_computes(monkeypatch):
    embeddings, labels = batch(0, 10, 3)
    asked = []
    compute_loss = losses.NTXentLoss.compute_loss
    monkeypatch.setattr(losses.NTXentLoss, "compute_loss", lambda *given: asked.append(0) or compute_loss(*given))
    loss, miner = accelerate(losses.NTXentLoss(), miners.MultiSimilarityMiner())
    mined = miner(embeddings, labels)
    value = loss(embeddings, labels, mined)
    assert isinstance(mined, Mined)
    assert not asked
    with engine.disabled():
        torch.testing.assert_close(loss(embeddings, labels, mined), value)
        assert type(miner(embeddings, labels)) is tuple
    assert asked


@pytest.mark.parametrize("name", ["NTXent", "Triplet", "Contrastive"])
def test_ways_of_differentiation(name):
    embeddings, labels = batch(0, 10, 3)
    loss = LOSSES[name]()
    with torch.inference_mode():
        others = embeddings.flip(0) * 1
    found = []
    for each in (loss, accelerate(loss)):
        leaf = embeddings.clone().requires_grad_()
        value = each(leaf, labels, None, others, labels.flip(0))
        (of_leaf,) = torch.autograd.grad(value, leaf)
        ref = others.clone().requires_grad_()
        (of_ref,) = torch.autograd.grad(each(embeddings, labels, None, ref, labels.flip(0)), ref)
        of_function = torch.func.grad(lambda x, each=each: each(x, labels))(embeddings)
        with torch.inference_mode():
            inferred = each(embeddings * 1, labels)
        found.append([value.detach(), of_leaf, of_ref, of_function, inferred])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("name", ["NTXent", "Triplet", "SNR", "FastAP"])
def test_vectors_without_a_direction(name):
    embeddings, labels = batch(0, 10, 3)
    for length in (0, 1e-14, 1e-12, 3e-12):
        short = embeddings.clone()
        short[2] *= length / short[2].norm()
        assert_equals_stock(LOSSES[name](), short, labels)


def test_snr_in_other_norms():
    embeddings, labels = batch(0, 10, 3)
    others, ref_labels = batch(1, 7, 3)
    for norm in ({"p": 1}, {"normalize_embeddings": False}):
        loss = losses.TripletMarginLoss(margin=0.4, distance=distances.SNRDistance(**norm))
        assert_equals_stock(loss, embeddings, labels)
        assert_equals_stock(loss, embeddings, labels, ref_emb=others, ref_labels=ref_labels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own decompositions
def test_forward_differentiation():
    embeddings, labels = batch(0, 10, 3)
    found = []
    for loss in (losses.NTXentLoss(), accelerate(losses.NTXentLoss())):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(embeddings, torch.ones_like(embeddings))
            found.append(list(torch.autograd.forward_ad.unpack_dual(loss(dual, labels))))
    assert_same(found[1], found[0])


def test_a_cascade_narrows_what_it_was_given():
    embeddings, labels = batch(0, 12, 3)
    stock, fast = miners.HDCMiner(), accelerate(miners.HDCMiner())
    for miner in (stock, fast):
        miner.set_idx_externally(miners.TripletMarginMiner(margin=1)(embeddings, labels), labels)
    for _ in range(3):
        assert_same_lists(fast(embeddings, labels), stock(embeddings, labels))
    for miner in (stock, fast):
        miner.reset_idx()
    assert_same_lists(fast(embeddings, labels), stock(embeddings, labels))


def test_a_mined_tuple_holds_nothing_in_a_circle():
    embeddings, labels = batch(0, 10, 3)
    miner = accelerate(miners.TripletMarginMiner())
    gc.collect()
    gc.disable()
    try:
        scores = weakref.ref(miner(embeddings, labels).scores)
        miner(embeddings, labels)
        assert scores() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [8, 10, 12])
def test_a_mined_tuple_of_another_batch(size):
    embeddings, labels = batch(0, 10, 3)
    others, other_labels = batch(7, size, 3)
    for make in (miners.TripletMarginMiner, miners.MultiSimilarityMiner):
        fast = accelerate(make())
        for loss in LOSSES.values():
            with told_by_pml():
                expected = run(loss(), others, other_labels, make()(embeddings, labels))
                assert_same(run(accelerate(loss()), others, other_labels, fast(embeddings, labels)), expected)


def test_more_containers():
    embeddings, labels = batch(5, 12, 3)
    pair = {"a": losses.NTXentLoss(), "b": losses.TripletMarginLoss()}
    several = losses.MultipleLosses(pair, {"a": miners.MultiSimilarityMiner()}, {"a": 1, "b": 0.5})
    assert_equals_stock(several, embeddings, labels)
    wrapped = DistributedLossWrapper(losses.NTXentLoss())
    assert "accelerated" in repr(accelerate(wrapped))
    assert_equals_stock(wrapped, embeddings, labels)
    assert accelerate(DistributedMinerWrapper(miners.TripletMarginMiner())).miner.stock is miners.TripletMarginMiner
    assert accelerate(None, strict=True) is None


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML 2's trainers show losses
def test_a_trainer_of_pml_reaches_the_same_weights():
    embeddings, labels = batch(3, 24, 4)
    data = torch.utils.data.TensorDataset(embeddings.float(), labels)
    made = []
    for convert in (lambda *items: items, accelerate):
        torch.manual_seed(0)
        trunk = torch.nn.Linear(4, 4)
        loss, miner = convert(losses.MarginLoss(learn_beta=True), miners.MultiSimilarityMiner(epsilon=0.3))
        trainer = trainers.MetricLossOnly(
            models={"trunk": trunk, "embedder": torch.nn.Identity()},
            optimizers={
                "trunk_optimizer": torch.optim.SGD(trunk.parameters(), 0.1),
                "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1),
            },
            batch_size=12,
            loss_funcs={"metric_loss": loss},
            mining_funcs={"tuple_miner": miner},
            dataset=data,
            dataloader_num_workers=0,
        )
        trainer.train(num_epochs=4)
        made.append([*(each.detach() for each in trunk.parameters()), loss.beta.detach()])
    assert_same(made[1], made[0], 1e-5)
    assert not torch.equal(made[0][-1], torch.tensor([1.2]))
