"""RetrievalAccuracyCalculator against a brute-force oracle, against PML, and where PML is wrong."""

import copy
import json
import logging
import math
import pickle
import subprocess
import sys
import textwrap
from collections import defaultdict
from itertools import chain
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from of_pml import AccuracyCalculator, FaissKNN, GlobalEmbeddingSpaceTester, HookContainer
from record_keeper import RecordKeeper, RecordWriter
from sklearn.datasets import load_digits

from pml_ext.evaluation import RECALL_AT, RetrievalAccuracyCalculator, TorchKNN
from pml_ext.evaluation.clustering import scikit_kmeans

# Drawn references can begin with the queries by chance.
pytestmark = pytest.mark.filterwarnings("ignore:the references begin with")

CPU = torch.device("cpu")
CLUSTERING = ("NMI", "AMI")
PML_KNN_METRICS = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
)


class Case(NamedTuple):
    query: list[list[float]]
    query_labels: list
    reference: list[list[float]]
    reference_labels: list
    ref_includes_query: bool

    def tensors(self):
        return (
            torch.tensor(self.query, dtype=torch.float32),
            torch.tensor(self.query_labels),
            torch.tensor(self.reference, dtype=torch.float32),
            torch.tensor(self.reference_labels),
            self.ref_includes_query,
        )


# ---------------------------------------------------------------- the oracle: one query at a time, in Python numbers


def oracle(case, recall_at, k="max_bin_count", avg="queries", match=lambda a, b: a == b):
    """Return name -> value (a list over classes if avg is "per_class")."""
    self_count = int(case.ref_includes_query)
    if k == "max_bin_count":
        k = max(sum(match(a, b) for b in case.reference_labels) for a in case.query_labels) - self_count
    elif k is None:
        k = len(case.reference)
    values = defaultdict(lambda: defaultdict(list))  # metric -> label -> values of its queries
    for i, (q, label) in enumerate(zip(case.query, case.query_labels, strict=True)):
        neighbours = sorted(
            (sum((a - b) ** 2 for a, b in zip(q, r, strict=True)), j)
            for j, r in enumerate(case.reference)
            if not (case.ref_includes_query and i == j)
        )
        hits = [match(label, case.reference_labels[j]) for _, j in neighbours]
        r = sum(hits)
        if r == 0:
            continue

        def average_precision(depth, hits=hits, r=r):
            return sum(sum(hits[: j + 1]) / (j + 1) for j in range(min(depth, len(hits))) if hits[j]) / r

        scores = {f"recall_at_{x}": float(any(hits[:x])) for x in recall_at}
        scores["precision_at_1"] = float(hits[0])
        scores["r_precision"] = sum(hits[:r]) / r
        scores["mean_average_precision_at_r"] = average_precision(r)
        scores["mean_average_precision"] = average_precision(k)
        scores["mean_reciprocal_rank"] = 1 / (hits.index(True) + 1) if any(hits[:k]) else 0.0
        for name, value in scores.items():
            values[name][label].append(value)

    def mean(xs):
        return sum(xs) / len(xs) if xs else math.nan

    names = [f"recall_at_{x}" for x in recall_at] + list(PML_KNN_METRICS)
    result = {}
    for name in names:
        by_class = [mean(values[name][label]) for label in sorted(values[name])]
        if avg == "per_class":
            result[name] = by_class or [math.nan] * len(set(case.query_labels))
        elif avg == "classes":
            result[name] = mean(by_class)
        else:
            result[name] = mean([x for xs in values[name].values() for x in xs])
    return result


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, abs=1e-12, rel=0, nan_ok=True), name


@st.composite
def cases(draw, smallest_label=-2):
    """Integer coordinates: many duplicates and ties, all distances exact. Classes of every size, lone queries."""
    d = draw(st.integers(1, 3))
    label = st.integers(smallest_label, 3)

    def split(min_size, max_size):
        row = st.tuples(st.lists(st.integers(-2, 2).map(float), min_size=d, max_size=d), label)
        return draw(st.lists(row, min_size=min_size, max_size=max_size))

    query = split(1, 10)
    kind = draw(st.sampled_from(["self", "self and more", "gallery"]))
    reference = {
        "self": lambda: query,
        "self and more": lambda: query + split(1, 6),
        "gallery": lambda: split(1, 10),
    }[kind]()
    return Case(*map(list, zip(*query, strict=True)), *map(list, zip(*reference, strict=True)), kind != "gallery")


recall_lists = st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True)


@pytest.mark.parametrize(
    "knn_func", [TorchKNN(), TorchKNN(chunk_size=3), FaissKNN(), None], ids=["torch", "chunks", "faiss", "counted"]
)
@given(case=cases(), recall_at=recall_lists, avg=st.sampled_from(["queries", "classes", "per_class"]))
def test_equals_oracle(knn_func, case, recall_at, avg):
    calculator = RetrievalAccuracyCalculator(
        recall_at,
        exclude=CLUSTERING,
        avg_of_avgs=avg == "classes",
        return_per_class=avg == "per_class",
        device=CPU,
        knn_func=knn_func,
    )
    assert_same(calculator.get_accuracy(*case.tensors()), oracle(case, recall_at, avg=avg))


@given(case=cases(), recall_at=recall_lists, k=st.none() | st.integers(1, 25))
def test_any_k(case, recall_at, k):
    """Recall does not depend on k; MAP and MRR are cut at k, as in PML, and at no recall's k."""
    names = ("mean_average_precision", "mean_reciprocal_rank", "precision_at_1", *(f"recall_at_{x}" for x in recall_at))
    calculator = RetrievalAccuracyCalculator(recall_at, include=names, k=k, device=CPU, knn_func=TorchKNN())
    expected = oracle(case, recall_at, k=k)
    assert_same(calculator.get_accuracy(*case.tensors()), {name: expected[name] for name in names})


@given(case=cases(), recall_at=recall_lists, data=st.data())
def test_include_and_exclude(case, recall_at, data):
    expected = oracle(case, recall_at)
    chosen = st.lists(st.sampled_from(sorted(expected)), max_size=4, unique=True)
    include, exclude = data.draw(chosen), data.draw(chosen)
    names = [x for x in (include or expected) if x not in exclude]
    at_construction = RetrievalAccuracyCalculator(
        recall_at, include=include, exclude=(*exclude, *CLUSTERING), device=CPU, knn_func=TorchKNN()
    )
    at_call = RetrievalAccuracyCalculator(recall_at, device=CPU, knn_func=TorchKNN())
    for accuracies in (
        at_construction.get_accuracy(*case.tensors()),
        at_call.get_accuracy(*case.tensors(), include=include, exclude=(*exclude, *CLUSTERING)),
    ):
        assert_same(accuracies, {name: expected[name] for name in names})


@given(case=cases(), recall_at=recall_lists)
def test_custom_label_comparison(case, recall_at):
    """Labels match if equal modulo 2; NaN where nothing matches."""
    calculator = RetrievalAccuracyCalculator(
        recall_at,
        exclude=CLUSTERING,
        label_comparison_fn=lambda a, b: torch.remainder(a, 2) == torch.remainder(b, 2),
        device=CPU,
        knn_func=TorchKNN(),
    )
    # PML's MAP@R and R-precision take R from a class, so they are defined for equality only.
    names = ("precision_at_1", "mean_reciprocal_rank", *(f"recall_at_{x}" for x in recall_at))
    expected = oracle(case, recall_at, match=lambda a, b: a % 2 == b % 2)
    actual = calculator.get_accuracy(*case.tensors())
    assert_same({name: actual[name] for name in names}, {name: expected[name] for name in names})


@given(case=cases(smallest_label=0), recall_at=recall_lists)
def test_rows_of_labels_with_custom_comparison(case, recall_at):
    """Multi-label data: two labels per sample, which match if they share one."""
    case = case._replace(
        query_labels=[(x, x % 2 + 4) for x in case.query_labels],
        reference_labels=[(x, x % 2 + 4) for x in case.reference_labels],
    )
    names = tuple(f"recall_at_{x}" for x in recall_at)
    calculator = RetrievalAccuracyCalculator(
        recall_at,
        include=names,
        label_comparison_fn=lambda a, b: (a == b).any(dim=-1),
        device=CPU,
        knn_func=TorchKNN(),
    )
    expected = oracle(case, recall_at, match=lambda a, b: bool(set(a) & set(b)))
    assert_same(calculator.get_accuracy(*case.tensors()), {name: expected[name] for name in names})


def test_labels_that_do_not_match_themselves():
    calculator = RetrievalAccuracyCalculator(
        (1,), exclude=CLUSTERING, label_comparison_fn=torch.ne, device=CPU, knn_func=TorchKNN()
    )
    accuracies = calculator.get_accuracy(torch.eye(2), torch.arange(2))
    assert (accuracies["recall_at_1"], accuracies["precision_at_1"], accuracies["mean_reciprocal_rank"]) == (1, 1, 1)


# ------------------------------------------------------------------------------------------------ labels of any kind


LABEL_MAPS = {
    "beyond float32": lambda x: x + 2**24,
    "beyond float64": lambda x: x + 2**60,
    "negative": lambda x: x - 10**9,
    "close in float64": lambda x: 1.0 + x * 2.0**-40,
    "rows": lambda x: [5, x, x],
}


@pytest.mark.parametrize("name", LABEL_MAPS)
@given(case=cases(), return_per_class=st.booleans())
def test_label_values_do_not_matter(name, case, return_per_class):
    """Every increasing relabelling gives the same numbers in the same order."""
    calculator = RetrievalAccuracyCalculator(
        exclude=CLUSTERING, return_per_class=return_per_class, device=CPU, knn_func=TorchKNN()
    )
    query, query_labels, reference, reference_labels, ref_includes_query = case.tensors()

    def relabel(labels):
        dtype = torch.float64 if name == "close in float64" else torch.int64
        return torch.tensor([LABEL_MAPS[name](x) for x in labels.tolist()], dtype=dtype)

    expected = calculator.get_accuracy(query, query_labels, reference, reference_labels, ref_includes_query)
    actual = calculator.get_accuracy(
        query, relabel(query_labels), reference, relabel(reference_labels), ref_includes_query
    )
    np.testing.assert_equal(actual, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint16, np.int64, np.float16, np.float64, bool])
def test_numpy_input(dtype):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(20, 4, generator=generator)
    labels = torch.randint(2, (20,), generator=generator)
    calculator = RetrievalAccuracyCalculator(exclude=CLUSTERING, device=CPU)
    expected = calculator.get_accuracy(embeddings, labels)
    assert calculator.get_accuracy(embeddings.numpy().astype(np.float64), labels.numpy().astype(dtype)) == expected


@pytest.mark.parametrize("kind", [list, np.array, lambda x: np.array(x, dtype=object), tuple])
def test_labels_that_are_strings(kind):
    embeddings, labels = blobs(60, 5)
    names = ["Grünspecht", "007", "7", "NA", "<b>"]
    by_rank = torch.tensor([sorted(names).index(names[label]) for label in labels])
    calculator = RetrievalAccuracyCalculator(return_per_class=True, exclude=CLUSTERING, device=CPU)
    strings = kind([names[label] for label in labels])
    expected = calculator.get_accuracy(embeddings, by_rank)
    assert calculator.get_accuracy(embeddings, strings) == expected
    rows = kind([["a", names[label]] for label in labels])
    assert calculator.get_accuracy(embeddings.tolist(), rows) == expected
    clusters = RetrievalAccuracyCalculator(include=CLUSTERING, device=CPU)
    assert clusters.get_accuracy(embeddings, strings) == pytest.approx(clusters.get_accuracy(embeddings, labels))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a", 1, "b", None], TypeError, "query_labels must be numbers or strings"),
        ([None] * 4, TypeError, "query_labels must be numbers or strings"),
        (np.array(["2026-01-01"] * 4, dtype="datetime64[D]"), TypeError, "query_labels must be .* datetime64"),
        (["a", "b", "a"], ValueError, r"query_labels must have one label.* got shape \(3,\)"),
    ],
)
def test_labels_that_are_none(labels, error, message):
    with pytest.raises(error, match=message):
        ours().get_accuracy(torch.eye(4), labels)


def test_strings_and_numbers_do_not_mix():
    with pytest.raises(ValueError, match="some labels are strings and others numbers"):
        ours().get_accuracy(torch.eye(2), ["1", "2"], torch.eye(2), [1, 2])
    with pytest.raises(ValueError, match="these are strings"):
        ours(label_comparison_fn=lambda a, b: a == b).get_accuracy(torch.eye(2), ["1", "2"])


def test_mixed_label_types():
    calculator = RetrievalAccuracyCalculator((1,), include=("recall_at_1",), device=CPU)
    embeddings = torch.eye(3)
    labels = torch.tensor([2**24, 2**24 + 1, 2**24])
    assert calculator.get_accuracy(embeddings, labels, embeddings, labels.double()) == {"recall_at_1": 1.0}
    assert calculator.get_accuracy(embeddings[:1], labels[:1], embeddings[1:2], labels[1:2].double()) == {
        "recall_at_1": pytest.approx(math.nan, nan_ok=True)
    }


# --------------------------------------------------------------------------------------------------- agreement with PML


def blobs(n, classes, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centers = torch.randn(classes, d, generator=generator)
    return centers[labels] + torch.randn(n, d, generator=generator), labels


@pytest.mark.parametrize("k", [3, 40, None, "max_bin_count"])
@pytest.mark.parametrize("avg", [{}, {"avg_of_avgs": True}, {"return_per_class": True}])
@pytest.mark.parametrize("split", ["self", "gallery", "self and more"])
def test_equals_pml(k, avg, split, caplog):
    caplog.set_level(logging.ERROR)  # both warn that MAP@R is cut off where k is small
    embeddings, labels = blobs(120, 9)
    args = {
        "self": (embeddings, labels),
        "gallery": (embeddings[:50], labels[:50], embeddings[50:], labels[50:]),
        "self and more": (embeddings[:50], labels[:50], embeddings, labels, True),
    }[split]
    expected = AccuracyCalculator(k=k, device=CPU, kmeans_func=scikit_kmeans, **avg).get_accuracy(*args)
    actual = RetrievalAccuracyCalculator((1, 5, 64), k=k, device=CPU, **avg).get_accuracy(*args)
    for name, value in expected.items():
        # PML computes the reciprocal rank in float32.
        tolerance = 1e-6 if name == "mean_reciprocal_rank" else 1e-12
        assert actual[name] == pytest.approx(value, abs=tolerance, rel=0), name
    assert set(actual) - set(expected) == {"recall_at_1", "recall_at_5", "recall_at_64"}
    assert actual["recall_at_1"] == expected["precision_at_1"]


def test_default_k_gives_what_pml_gives_with_all_references():
    embeddings, labels = blobs(100, 9, seed=1)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    expected = AccuracyCalculator(include=names, device=CPU).get_accuracy(embeddings, labels)
    assert RetrievalAccuracyCalculator(include=names, device=CPU).get_accuracy(embeddings, labels) == expected


def test_recall_does_not_deepen_the_search_when_excluded():
    asked = []

    def knn(query, k, reference, ref_includes_query):
        asked.append(k)
        return TorchKNN()(query, k, reference, ref_includes_query)

    calculator = RetrievalAccuracyCalculator((1, 20), exclude=CLUSTERING, device=CPU, knn_func=knn)
    embeddings, labels = blobs(40, 20)
    largest = int(labels.bincount().max())
    calculator.get_accuracy(embeddings, labels)
    calculator.get_accuracy(embeddings, labels, exclude=("recall_at_20",))
    calculator.get_accuracy(embeddings, labels, include=("recall_at_1",))
    assert asked == [20, largest - 1, 1]


def test_custom_metric_of_a_subclass():
    class Calculator(RetrievalAccuracyCalculator):
        def calculate_columns(self, knn_labels, **kwargs):
            return knn_labels.shape[1]

        def requires_knn(self):
            return [*super().requires_knn(), "columns"]

    embeddings, labels = blobs(30, 3)
    calculator = Calculator((1, 25), k=4, include=("columns", "recall_at_25"), device=CPU)
    assert calculator.get_accuracy(embeddings, labels)["columns"] == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copied):
    calculator = RetrievalAccuracyCalculator((1, 4), exclude=CLUSTERING, device=CPU)
    twin = copied(calculator)
    twin.return_per_class = True
    embeddings, labels = blobs(30, 3)
    assert isinstance(calculator.get_accuracy(embeddings, labels)["recall_at_4"], float)
    assert len(twin.get_accuracy(embeddings, labels)["recall_at_4"]) == 3


# ------------------------------------------------------------- where stock PML is wrong or fails, and this class is not


def stock(**kwargs):
    return AccuracyCalculator(**{"device": CPU, "exclude": CLUSTERING, **kwargs})


def ours(**kwargs):
    return RetrievalAccuracyCalculator(**{"device": CPU, "exclude": CLUSTERING, **kwargs})


def test_fault_k_beyond_the_references(caplog):
    caplog.set_level(logging.ERROR)
    embeddings, labels = blobs(6, 2)
    names = ("mean_average_precision",)
    assert stock(include=names, k=50).get_accuracy(embeddings, labels)["mean_average_precision"] > 1
    expected = stock(include=names, k=5).get_accuracy(embeddings, labels)
    assert ours(include=names, k=50).get_accuracy(embeddings, labels) == expected
    recall = ours(recall_at=(5, 1000), include=("recall_at_5", "recall_at_1000")).get_accuracy(embeddings, labels)
    assert recall == {"recall_at_5": 1.0, "recall_at_1000": 1.0}


def test_fault_naive_recall_of_small_classes():
    """With k="max_bin_count" and pairs as classes, PML looks at one neighbour, whatever the k of the recall."""
    # Every nearest neighbour is of the other class, the second nearest of the first and the last point of the same.
    embeddings = torch.tensor([[0.0], [1.0], [2.1], [3.3]])
    labels = torch.tensor([0, 1, 0, 1])
    assert stock(k="max_bin_count").determine_k(torch.tensor([2, 2]), 4, True) == 1
    accuracies = ours(recall_at=(1, 2)).get_accuracy(embeddings, labels)
    assert (accuracies["recall_at_1"], accuracies["recall_at_2"]) == (0.0, 0.5)


def test_fault_large_labels():
    embeddings = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    labels = torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1])
    assert stock().get_accuracy(embeddings, labels)["precision_at_1"] == 1.0
    assert ours().get_accuracy(embeddings, labels)["precision_at_1"] == 0.0


def test_fault_reciprocal_rank_alone():
    embeddings, labels = blobs(20, 3)
    names = ("mean_reciprocal_rank",)
    with pytest.raises(TypeError):
        stock(include=names).get_accuracy(embeddings, labels)
    expected = stock().get_accuracy(embeddings, labels)["mean_reciprocal_rank"]
    assert ours(include=names, k=None).get_accuracy(embeddings, labels) == {
        "mean_reciprocal_rank": pytest.approx(expected, abs=1e-6)
    }


def test_fault_device_as_string():
    with pytest.raises(AttributeError):
        AccuracyCalculator(device="cpu")
    embeddings, labels = blobs(20, 3)
    assert ours(device="cpu").get_accuracy(embeddings, labels) == ours().get_accuracy(embeddings, labels)


def test_fault_no_label_in_common(caplog):
    embeddings = torch.eye(4)
    labels = torch.arange(4)
    with pytest.raises(RuntimeError, match="k > 0"):
        stock(k="max_bin_count").get_accuracy(embeddings, labels, embeddings, labels + 4)
    accuracies = ours().get_accuracy(embeddings, labels, embeddings, labels + 4)
    assert all(math.isnan(value) for value in accuracies.values())
    assert "No query has a reference with its label" in caplog.text
    per_class = ours(return_per_class=True).get_accuracy(embeddings, labels, embeddings, labels + 4)
    np.testing.assert_equal(per_class, dict.fromkeys(per_class, [math.nan] * 4))


@pytest.mark.parametrize("n", [1, 3])
def test_all_classes_of_size_one(n):
    accuracies = ours().get_accuracy(torch.eye(n), torch.arange(n))
    assert all(math.isnan(value) for value in accuracies.values())


def test_no_reference():
    accuracies = ours().get_accuracy(torch.eye(2), torch.arange(2), torch.empty(0, 2), torch.empty(0))
    assert all(math.isnan(value) for value in accuracies.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_fault_embeddings_that_are_not_finite(bad):
    embeddings = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    query = embeddings.clone()
    query[1] = bad
    if math.isnan(bad):
        # faiss returns -1, which PML takes for the last reference.
        assert stock(k=1).get_accuracy(query[1:2], labels[2:3], embeddings, labels)["precision_at_1"] == 1.0
    with pytest.raises(ValueError, match=r"query has 1 rows that are NaN or infinite in float32; the first is 1"):
        ours().get_accuracy(query, labels)
    with pytest.raises(ValueError, match=r"reference has 1 rows"):
        ours().get_accuracy(embeddings, labels, query, labels)


@pytest.mark.parametrize("knn_func", [FaissKNN(), TorchKNN()])
def test_distances_beyond_float32_are_refused(knn_func):
    embeddings, labels = blobs(30, 3)
    with pytest.raises(ValueError, match=r"too large|did not return"):
        ours(knn_func=knn_func).get_accuracy(embeddings * 1e25, labels)


def test_fault_rows_of_labels():
    embeddings, labels = blobs(30, 3)
    rows = torch.stack([labels, torch.zeros_like(labels)], dim=1)
    with pytest.raises(RuntimeError):
        stock().get_accuracy(embeddings, rows)
    assert ours().get_accuracy(embeddings, rows) == ours().get_accuracy(embeddings, labels)


# ------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"recall_at": ()}, ValueError, r"one or more.*\(\)"),
        ({"recall_at": (1, 0)}, ValueError, r"at least 1, got \(1, 0\)"),
        ({"recall_at": (1, -3)}, ValueError, r"\(1, -3\)"),
        ({"recall_at": (True,)}, TypeError, r"\(True,\)"),
        ({"recall_at": (1, 2.0)}, TypeError, r"\(1, 2.0\)"),
        ({"recall_at": 4}, TypeError, "got 4"),
        ({"recall_at": "cub"}, TypeError, "got 'cub'"),
        ({"recall_at": ("1",)}, TypeError, "sequence of integers"),
        ({"k": 0}, ValueError, "got 0"),
        ({"k": -1}, ValueError, "got -1"),
        ({"k": 2.0}, TypeError, "k must be an integer, got 2.0"),
        ({"k": True}, TypeError, "k must be an integer, got True"),
        ({"k": "max"}, TypeError, "k must be an integer, got 'max'"),
        ({"include": "recall_at_1"}, TypeError, "include .* got 'recall_at_1'"),
        ({"include": ("recall_at_3",)}, ValueError, r"include has \['recall_at_3'\]"),
        ({"exclude": ("recall",)}, ValueError, r"exclude has \['recall'\]"),
        ({"avg_of_avgs": True, "return_per_class": True}, ValueError, "mutually exclusive"),
        ({"label_comparison_fn": torch.ne}, NotImplementedError, "clustering"),
    ],
)
def test_bad_constructor_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        RetrievalAccuracyCalculator(device=CPU, **kwargs)


X, Y = torch.eye(4), torch.arange(4)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, Y[:3]), {}, r"query_labels .* each of 4 embeddings, got shape \(3,\)"),
        ((X, Y, X, Y[:3]), {}, r"reference_labels .* got shape \(3,\)"),
        ((X, torch.tensor(1)), {}, r"query_labels .* got shape \(\)"),
        ((X, Y[:, None, None]), {}, r"query_labels .* got shape \(4, 1, 1\)"),
        ((X[0], Y), {}, r"query .* got shape \(4,\)"),
        ((X, Y, X[:, :2], Y), {}, r"\(4, 4\).*\(4, 2\).*do not fit"),
        ((X, Y, X, Y[:, None]), {}, r"\(4,\).*\(4, 1\) do not fit"),
        ((X[:0], Y[:0], X, Y), {}, "query is empty"),
        ((X, Y, X), {}, "without reference_labels"),
        ((X, Y), {"reference_labels": Y}, "without reference"),
        ((X, torch.tensor([0, 1, math.nan, 1])), {}, "query_labels has NaN"),
        ((X, Y, X[:2], Y[:2], True), {}, "reference does not begin with"),
        ((X, Y, X.flip(0), Y, True), {}, "reference does not begin with"),
        ((X, Y, X, Y.flip(0), True), {}, "reference_labels does not begin with"),
        ((X, Y + 2**24, X, Y + 2**24 + 1, True), {}, "reference_labels does not begin with"),
        ((X, Y), {"include": ("recall",)}, "include has"),
    ],
)
def test_bad_input(args, kwargs, message):
    def knn(*_):
        raise AssertionError("computed before the arguments were checked")

    with pytest.raises(ValueError, match=message):
        ours(knn_func=knn).get_accuracy(*args, **kwargs)


def test_a_neighbor_twice_is_refused():
    twice = torch.tensor([[1, 1], [2, 3], [3, 0], [0, 1]])
    calculator = ours(recall_at=(2,), include=("recall_at_2",), knn_func=lambda *_: (twice.float(), twice))
    with pytest.raises(ValueError, match="returned a reference twice for one query"):
        calculator.get_accuracy(X, torch.zeros(4))


def test_the_query_itself_is_refused():
    itself = torch.tensor([[1], [1], [0], [0]])
    calculator = ours(recall_at=(1,), include=("recall_at_1",), knn_func=lambda *_: (itself.float(), itself))
    with pytest.raises(ValueError, match="returned a query as its own neighbor"):
        calculator.get_accuracy(X, torch.zeros(4))
    assert calculator.get_accuracy(X, torch.zeros(4), X.flip(0), torch.zeros(4)) == {"recall_at_1": 1.0}


@pytest.mark.filterwarnings("error")
def test_forgotten_ref_includes_query():
    calculator = ours(recall_at=(1,), include=("recall_at_1",))
    with pytest.warns(UserWarning, match="begin with the 2 queries, but ref_includes_query is False"):
        assert calculator.get_accuracy(X[:2], Y[:2], X, Y) == {"recall_at_1": 1.0}
    calculator.get_accuracy(X[:2], Y[:2], X, Y, ref_includes_query=True)
    calculator.get_accuracy(X[:2], Y[:2], X, Y + 1)
    calculator.get_accuracy(X[:2], Y[:2], X.flip(0), Y.flip(0))


def test_recall_is_in_the_order_of_k():
    embeddings, labels = blobs(30, 3)
    calculator = ours(recall_at=(100, 2, 10, 1))
    names = [name for name in calculator.get_accuracy(embeddings, labels) if name.startswith("recall")]
    assert names == ["recall_at_1", "recall_at_2", "recall_at_10", "recall_at_100"]
    assert list(calculator.get_accuracy(embeddings, labels, include=("recall_at_10", "recall_at_2"))) == [
        "recall_at_2",
        "recall_at_10",
    ]


@pytest.mark.parametrize("seed", range(4))
def test_nmi_of_separated_classes_is_1(seed):
    """In any order of the samples: k-means that begins with samples drawn at random joins and splits classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(300) % 30
    embeddings = 10 * torch.randn(30, 16, generator=generator)[labels] + torch.randn(300, 16, generator=generator)
    order = torch.randperm(300, generator=generator)
    accuracies = RetrievalAccuracyCalculator(include=CLUSTERING, device=CPU).get_accuracy(
        embeddings[order], labels[order]
    )
    assert accuracies == pytest.approx({"NMI": 1.0, "AMI": 1.0})


def test_nmi_of_collapsed_embeddings():
    accuracies = RetrievalAccuracyCalculator(include=CLUSTERING, device=CPU).get_accuracy(
        torch.ones(6, 2), torch.arange(6) % 3
    )
    assert accuracies == pytest.approx({"NMI": 0.0, "AMI": 0.0})


@pytest.mark.parametrize("indices", [torch.full((4, 1), -1), torch.full((4, 1), 4), torch.zeros(4, 2).long()])
def test_bad_knn_func(indices):
    calculator = ours(recall_at=(1,), include=("recall_at_1",), knn_func=lambda *_: (indices.float(), indices))
    with pytest.raises(ValueError, match=r"knn_func .* did not return 1 of 4 references for each of 4 queries"):
        calculator.get_accuracy(X, torch.zeros(4))


def test_custom_comparison_refuses_labels_that_float32_merges():
    calculator = ours(label_comparison_fn=lambda a, b: a == b)
    with pytest.raises(ValueError, match="16777216 to 16777219 are not exact"):
        calculator.get_accuracy(X, Y + 2**24)


def test_recall_at_is_sorted_and_unique():
    assert RetrievalAccuracyCalculator([8, np.int64(1), 8], device=CPU).recall_at == (1, 8)
    assert all(RetrievalAccuracyCalculator(ks, device=CPU).recall_at == ks for ks in RECALL_AT.values())


# ----------------------------------------------------------------------------------------- PML's tester, end to end


@pytest.fixture(scope="module")
def digits():
    """Three splits of real images: query and gallery of digits 5 to 9, and others of 8 and 9 only."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    keep = labels >= 5
    images, labels = images[keep], labels[keep]

    def dataset(start, end):
        return torch.utils.data.TensorDataset(images[start:end], labels[start:end])

    small = labels[300:600] >= 8
    other = torch.utils.data.TensorDataset(images[300:600][small], labels[300:600][small])
    return {"query": dataset(0, 100), "gallery": dataset(100, 300), "other": other}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6))


@pytest.mark.parametrize("knn_func", [None, FaissKNN(), TorchKNN()], ids=["counted", "faiss", "torch"])
@pytest.mark.parametrize(
    ("query", "references"),
    [
        ("query", ["query"]),
        ("query", ["gallery"]),
        ("query", ["gallery", "query"]),
        ("query", ["other"]),
        ("other", ["query", "gallery"]),
    ],
)
def test_tester_equals_brute_force(digits, model, query, references, knn_func):
    recall_at = (1, 2, 4, 8, 16, 1000)
    tester = GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0,
        batch_size=64,
        data_device=CPU,
        accuracy_calculator=RetrievalAccuracyCalculator(
            recall_at, exclude=CLUSTERING, device="cpu", knn_func=knn_func, k="max_bin_count"
        ),
    )
    accuracies = tester.test(digits, 0, model, splits_to_eval=[(query, list(references))])[query]

    def embedded(split):
        images, labels = digits[split].tensors
        with torch.no_grad():
            return torch.nn.functional.normalize(model(images)).double().tolist(), labels.tolist()

    splits = sorted(references, key=lambda split: split != query)
    reference, reference_labels = (list(chain(*parts)) for parts in zip(*map(embedded, splits), strict=True))
    expected = oracle(Case(*embedded(query), reference, reference_labels, query in references), recall_at)
    assert accuracies.pop("epoch") == 0
    # The oracle is in float64: two nearly equal distances may change places.
    for name, value in expected.items():
        assert accuracies[f"{name}_level0"] == pytest.approx(value, abs=1e-4 if "recall" not in name else 0), name


def test_record_keeper_logs_recall(digits, model, tmp_path):
    """The names are columns of a database, and one can be the metric that chooses the best epoch."""
    record_keeper = RecordKeeper(record_writer=RecordWriter(str(tmp_path)))
    hooks = HookContainer(record_keeper, primary_metric="recall_at_8", validation_split_name="query")
    tester = GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0,
        data_device=CPU,
        accuracy_calculator=RetrievalAccuracyCalculator((1, 8), exclude=CLUSTERING, device=CPU),
        end_of_testing_hook=hooks.end_of_testing_hook,
    )
    accuracies = tester.test({"query": digits["query"]}, 3, model)["query"]
    record_keeper.save_records()
    assert hooks.get_best_epoch_and_accuracy(tester, "query") == (3, accuracies["recall_at_8_level0"])
    history = hooks.get_accuracy_history(tester, "query", return_all_metrics=True)
    assert history["recall_at_1_level0"] == [accuracies["recall_at_1_level0"]]


# -------------------------------------------------------------------------------------------------------- without faiss


@pytest.mark.pml2("its accuracy calculator")
def test_without_faiss():
    """In a process that cannot import faiss: PML fails, ours gives the same metrics."""
    code = """
        import json, sys
        sys.modules["faiss"] = None
        import torch
        import pml_ext.evaluation as evaluation
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        try:
            AccuracyCalculator()
        except NameError as error:
            assert "Faiss" in str(error) or "faiss" in str(error)
        else:
            raise AssertionError("PML no longer needs faiss")
        stock = AccuracyCalculator(
            include=("precision_at_1",), knn_func=evaluation.TorchKNN(), kmeans_func=len, device=torch.device("cpu")
        )
        calculator = evaluation.RetrievalAccuracyCalculator((1, 50), device="cpu")
        embeddings, labels = (torch.tensor(x) for x in json.load(sys.stdin))
        first, second = (calculator.get_accuracy(embeddings, labels) for _ in range(2))
        assert first == second
        assert stock.get_accuracy(embeddings, labels)["precision_at_1"] == first["precision_at_1"]
        print(json.dumps(first))
    """
    embeddings, labels = blobs(120, 4)
    embeddings += 3 * torch.nn.functional.one_hot(labels, embeddings.shape[1])
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        input=json.dumps([embeddings.tolist(), labels.tolist()]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    actual = json.loads(process.stdout)
    expected = RetrievalAccuracyCalculator((1, 50), device=CPU).get_accuracy(embeddings, labels)
    assert actual == expected
