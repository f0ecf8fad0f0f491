"""evaluate() against a double loop in Python numbers, and against the calculator."""

import math
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_ext import thresholds
from pml_ext.evaluation import RetrievalAccuracyCalculator, TorchKNN, evaluate, retrieval, scores
from pml_ext.evaluation.retrieval import AT_K, METRICS, OF_THE_RANKING
from pml_ext.evaluation.scores import retrieval_scores

KS = (1, 2, 5, 30)
EVERYTHING = (*AT_K, *OF_THE_RANKING)


def oracle(embeddings, labels, query, gallery, passed_over):
    """Return name -> value of each query (None without a match); passed_over(i, j) of two of the embeddings."""
    result = {name: [] for name in [f"{name}_at_{k}" for name in AT_K for k in KS] + list(OF_THE_RANKING)}
    for i in query:
        order = sorted(
            (sum((a - b) ** 2 for a, b in zip(embeddings[i], embeddings[j], strict=True)), place)
            for place, j in enumerate(gallery)
            if j != i and not passed_over(i, j)
        )
        found = [labels[gallery[place]] for _, place in order]
        hits = [label == labels[i] for label in found]
        r = sum(hits)

        def average_precision(depth, hits=hits, r=r):
            return sum(sum(hits[: j + 1]) / (j + 1) for j in range(min(depth, len(hits))) if hits[j]) / r

        if r == 0:
            for values in result.values():
                values.append(None)
            continue
        for k in KS:
            result[f"recall_at_{k}"].append(float(any(hits[:k])))
            result[f"precision_at_{k}"].append(sum(hits[:k]) / k)
            result[f"ir_recall_at_{k}"].append(sum(hits[:k]) / r)
            votes = Counter(found[:k])
            winner = next(label for label in found if votes[label] == max(votes.values()))
            result[f"knn_accuracy_at_{k}"].append(float(winner == labels[i]))
        result["mean_average_precision_at_r"].append(average_precision(r))
        result["mean_average_precision"].append(average_precision(len(hits)))
        result["r_precision"].append(sum(hits[:r]) / r)
        result["mean_reciprocal_rank"].append(1 / (hits.index(True) + 1))
    return result


def assert_equals_oracle(evaluation, expected):
    for name in evaluation:
        values = [math.nan if x is None else x for x in expected[name]]
        assert evaluation.per_query[name].tolist() == pytest.approx(values, abs=1e-12, rel=0, nan_ok=True), name
        known = [x for x in values if not math.isnan(x)]
        mean = sum(known) / len(known) if known else math.nan
        assert evaluation[name] == pytest.approx(mean, abs=1e-12, rel=0, nan_ok=True), name


@st.composite
def experiments(draw):
    """Integer coordinates with ties; queries and gallery are any parts of them, equal, apart or overlapping."""
    n, d = draw(st.integers(1, 25)), draw(st.integers(1, 2))
    width = draw(st.sampled_from([0, 1, 3, 50]))
    embeddings = draw(st.lists(st.lists(st.integers(-width, width), min_size=d, max_size=d), min_size=n, max_size=n))
    labels = draw(st.lists(st.sampled_from("aabc"), min_size=n, max_size=n))
    part = st.lists(st.sampled_from(range(n)), min_size=1, max_size=n, unique=True)
    query, gallery = draw(st.just(list(range(n))) | part), draw(st.just(list(range(n))) | part)
    groups = draw(st.none() | st.lists(st.integers(0, 3), min_size=n, max_size=n))
    ignore = draw(st.none() | st.integers(0, 2**16))
    return embeddings, labels, query, gallery, groups, ignore


@pytest.mark.filterwarnings("ignore:no query has a reference")
@pytest.mark.parametrize("way", ["counted", "searched", "as estimated", "tiny"])
@given(
    experiment=experiments(),
    metrics=st.just(EVERYTHING) | st.lists(st.sampled_from(EVERYTHING), min_size=1, unique=True),
    tile=st.integers(1, 30),
)
def test_equals_oracle(way, experiment, metrics, tile):
    embeddings, labels, query, gallery, groups, seed = experiment
    mask = None
    if seed is not None:
        mask = torch.rand(len(query), len(gallery), generator=torch.Generator().manual_seed(seed)) < 0.4

    def passed_over(i, j):
        by_group = groups is not None and groups[i] == groups[j]
        return by_group or (mask is not None and bool(mask[query.index(i), gallery.index(j)]))

    sizes = thresholds.TINY if way == "tiny" else {"TILE_CPU": tile, "DISTANCES": 8 * tile}
    with pytest.MonkeyPatch.context() as patch, thresholds.replaced(**sizes):
        if way in ("counted", "searched"):
            patch.setattr(scores, "_counting_limit", lambda *_: math.inf if way == "counted" else -1)
        evaluation = evaluate(
            np.array(embeddings),
            labels,
            k=KS,
            metrics=metrics,
            query=query,
            gallery=gallery,
            groups=groups,
            ignore=mask,
        )
    assert list(evaluation) == [
        full for name in metrics for full in ([f"{name}_at_{k}" for k in KS] if name in AT_K else [name])
    ]
    assert_equals_oracle(evaluation, oracle(embeddings, labels, query, gallery, passed_over))


def blobs(n=150, classes=11, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(classes, d, generator=generator)[labels] + torch.randn(n, d, generator=generator), labels


def test_equals_the_calculator():
    embeddings, labels = blobs()
    calculator = RetrievalAccuracyCalculator((1, 2, 4, 8), k=None, device="cpu")
    expected = calculator.get_accuracy(embeddings, labels)
    actual = evaluate(embeddings, labels, metrics=("recall", "precision", *OF_THE_RANKING, "NMI", "AMI"))
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, abs=1e-12, rel=0), name
    gallery = evaluate(embeddings, labels, metrics=OF_THE_RANKING, query=range(40), gallery=torch.arange(150) >= 40)
    expected = calculator.get_accuracy(
        embeddings[:40], labels[:40], embeddings[40:], labels[40:], include=OF_THE_RANKING
    )
    assert dict(gallery) == pytest.approx(expected, abs=1e-12, rel=0)


@settings(max_examples=max(10, settings().max_examples // 3))  # each has four clusterings
@given(seed=st.integers(0, 2**16), far=st.booleans(), k=st.integers(1, 10))
def test_tiny_thresholds_change_nothing(seed, far, k):
    """Values that are not integers: the same neighbors, votes and clusters, so the same numbers."""
    embeddings, labels = blobs(40, 6, 3, seed)
    if far:
        embeddings += 300 * torch.nn.functional.one_hot(labels % 2, 3)
    arguments = {"k": (k, 60), "metrics": METRICS, "groups": torch.arange(40) // 3}
    expected = evaluate(embeddings, labels, **arguments)
    distances, indices = TorchKNN()(embeddings, k, embeddings, True)
    with thresholds.tiny():
        actual = evaluate(embeddings, labels, **arguments)
        again = TorchKNN()(embeddings, k, embeddings, True)
    assert dict(actual) == pytest.approx(dict(expected), abs=1e-12, rel=0)
    assert torch.equal(again[1], indices)
    torch.testing.assert_close(again[0], distances, rtol=2e-3, atol=0)


def test_larger_data_and_large_classes():
    """Hundreds of embeddings cross the shipped sizes of tiles, and classes the limit of counting."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.where(torch.arange(700) < 300, 0, torch.arange(700) % 50)
    embeddings = torch.randint(-20, 21, (700, 3), generator=generator)
    everything = list(range(700))
    some = list(range(0, 700, 5))
    expected = oracle(embeddings.tolist(), labels.tolist(), some, everything, lambda i, j: False)
    assert_equals_oracle(evaluate(embeddings, labels, k=KS, metrics=EVERYTHING, query=some), expected)


def test_junk_of_person_reidentification():
    """Images of the same person by the same camera count neither as right nor as wrong."""
    embeddings = torch.tensor([[0.0], [0.1], [0.2], [0.4], [9.0]])
    person, camera = ["p", "p", "q", "p", "q"], [1, 1, 1, 2, 2]
    rows = [[p, str(c)] for p, c in zip(person, camera, strict=True)]
    evaluation = evaluate(embeddings, person, metrics=("recall",), k=(1, 2), query=[0], groups=rows)
    assert dict(evaluation) == {"recall_at_1": 0.0, "recall_at_2": 1.0}
    assert dict(evaluate(embeddings, person, metrics=("recall",), k=(1,), query=[0])) == {"recall_at_1": 1.0}


def test_normalized_is_by_the_cosine():
    embeddings = torch.tensor([[1.0, 0.0], [50.0, 1.0], [0.0, 2.0], [0.1, 0.9]])
    labels = [0, 0, 1, 1]
    assert evaluate(embeddings, labels, k=(1,), normalize=True)["recall_at_1"] == 1.0
    # The nearest of [1, 0] is [0.1, 0.9], at 1.62.
    assert evaluate(embeddings, labels, k=(1,)).per_query["recall_at_1"].tolist() == [0, 1, 1, 1]


def test_without_a_match():
    with pytest.warns(UserWarning, match="no query has a reference with its label"):
        evaluation = evaluate(torch.eye(3), [0, 1, 2])
    assert all(math.isnan(value) for value in evaluation.values())
    assert "3 queries without a match are left out" in repr(evaluation)


def test_only_clusters():
    embeddings, labels = blobs()
    evaluation = evaluate(embeddings, labels, metrics=("NMI",))
    assert list(evaluation) == ["NMI"]
    assert evaluation.per_query == evaluation.intervals == {}
    assert "NMI" in repr(evaluation)


def test_repr_and_intervals():
    embeddings, labels = blobs()
    evaluation = evaluate(embeddings, labels, metrics=("recall", "NMI"), k=(1, 8))
    text = repr(evaluation)
    interval = evaluation.intervals["recall_at_1"]
    assert interval.low < evaluation["recall_at_1"] < interval.high
    names, row, note = text.splitlines()
    assert names.split() == ["recall_at_1", "recall_at_8", "NMI"]
    assert row.startswith(f"{evaluation['recall_at_1']:.4f} [{interval.low:.4f}, {interval.high:.4f}]  ")
    assert note == "150 queries of 11 classes, 150 references; 95 % by bootstrap over queries"
    assert "<table>" in evaluation._repr_html_()
    assert evaluate(embeddings, labels, k=8)["recall_at_8"] == evaluation["recall_at_8"]
    many = repr(evaluate(embeddings, labels, k=range(1, 9)))
    assert len(many.splitlines()) == 8 + 2 + 1
    assert max(map(len, many.splitlines())) <= 118
    assert max(map(len, text.splitlines())) < 100
    wide = evaluation.intervals_over_classes()["recall_at_1"]
    assert wide.mean == pytest.approx(interval.mean)
    assert wide.high - wide.low != interval.high - interval.low


def test_files(tmp_path):
    embeddings, labels = blobs()
    names = np.array(["x", "y", "007"])[labels % 3]
    np.save(tmp_path / "x.npy", embeddings.numpy())
    np.save(tmp_path / "y.npy", names)
    assert dict(evaluate(tmp_path / "x.npy", str(tmp_path / "y.npy"))) == dict(evaluate(embeddings, labels % 3))


class Trap:
    """An object that leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


def test_files_that_are_not_arrays(tmp_path):
    np.save(tmp_path / "object.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.eye(2), b=np.eye(2))
    (tmp_path / "text.npy").write_text("0 1")
    (tmp_path / "empty.npy").touch()
    for name in ("object.npy", "text.npy", "empty.npy", "several.npz"):
        with pytest.raises(ValueError, match=f"embeddings: .*{name}' (is not an array|holds several)"):
            evaluate(tmp_path / name, [0])
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / "nothing.npy", [0])


X = torch.eye(4)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"k": 4.5}, TypeError, "k must be a sequence of integers, got 4.5"),
        ({"k": (1.5,)}, TypeError, r"k must be .* got \(1.5,\)"),
        ({"k": (True,)}, TypeError, r"k must be .* got \(True,\)"),
        ({"k": ()}, ValueError, r"k must have .* got \(\)"),
        ({"k": (0, 1)}, ValueError, r"k must have .* got \(0, 1\)"),
        ({"k": (1, 1)}, ValueError, r"k must have .* got \(1, 1\)"),
        ({"metrics": "recall"}, TypeError, "metrics must be a sequence of names, got 'recall'"),
        ({"metrics": ("recal",)}, ValueError, r"metrics must be different names from .* got \('recal',\)"),
        ({"metrics": ()}, ValueError, "metrics must be"),
        ({"query": [0, 4]}, ValueError, r"query must be different indices from 0 to 3, got \[0, 4\]"),
        ({"query": [-1]}, ValueError, "query must be different indices"),
        ({"gallery": [1, 1]}, ValueError, "gallery must be different indices"),
        ({"gallery": [True, False]}, ValueError, r"gallery must be booleans of shape \(4,\), got shape \(2,\)"),
        ({"gallery": [0.5]}, ValueError, "gallery must be booleans .* or indices, got torch.float32"),
        ({"query": torch.zeros(4, dtype=torch.bool)}, ValueError, "query is empty"),
        ({"groups": [1, 2]}, ValueError, "groups must have one label"),
        ({"ignore": torch.zeros(4, 3, dtype=torch.bool)}, ValueError, r"ignore must be .* \(4, 4\), got .* \(4, 3\)"),
        ({"ignore": torch.zeros(4, 4)}, ValueError, "ignore must be booleans .* got torch.float32"),
        ({"labels": [0, 1]}, ValueError, r"labels must have one label.* 4 embeddings, got shape \(2,\)"),
        ({"embeddings": X * math.nan}, ValueError, "embeddings has 4 rows that are NaN"),
        ({"embeddings": X[0]}, ValueError, r"embeddings must be .* \[n, d\]"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    arguments = {"embeddings": X, "labels": [0, 0, 1, 1]} | kwargs
    with pytest.raises(error, match=message):
        evaluate(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)


def test_every_metric_is_tested():
    assert {*EVERYTHING, "NMI", "AMI"} == set(METRICS)


def test_needs_no_pml():
    code = (
        "import sys; sys.modules['pytorch_metric_learning'] = None; sys.modules['faiss'] = None\n"
        "from pml_ext.evaluation import TorchKNN, evaluate, standings\n"
        "print(evaluate([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1], metrics=('recall', 'NMI'), k=(1,)))"
    )
    process = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("recall_at_1 ")
    assert "1.0000 [1.0000, 1.0000]" in process.stdout


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_thousand_recalls_are_one_histogram():
    """They take as many operations as one, and each is the mean of its queries."""
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(90, 4, generator=generator), torch.arange(90) % 40
    labels[7] = 77  # without a match
    counts, found = [], []
    for ks in ((3,), range(1, 1001)):
        with Operations() as watch:
            found.append(evaluate(embeddings, labels, k=list(ks), metrics=("recall",)))
        counts.append(watch.count)
    assert counts[0] == counts[1]
    one, all_of_them = found
    assert list(all_of_them) == list(all_of_them.per_query) == [f"recall_at_{k}" for k in range(1, 1001)]
    assert one["recall_at_3"] == all_of_them["recall_at_3"]
    for name, values in all_of_them.per_query.items():
        assert values.dtype == torch.float64
        assert values.isnan().nonzero().tolist() == [[7]]
        assert float(values.nanmean()) == all_of_them[name]
    copied = pickle.loads(pickle.dumps(all_of_them))
    assert dict(copied) == dict(all_of_them)
    assert torch.equal(copied.per_query["recall_at_9"][8:], all_of_them.per_query["recall_at_9"][8:])


def test_embeddings_among_themselves_are_not_copied(monkeypatch):
    given = []
    monkeypatch.setattr(retrieval, "retrieval_scores", lambda *data, **_: given.extend(data) or retrieval_scores(*data))
    evaluate(torch.randn(8, 3), [0, 1] * 4, metrics=("recall",))
    assert given[0] is given[2]
