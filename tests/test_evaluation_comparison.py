"""compare() of two sets of embeddings, or files of them."""

import math

import numpy as np
import pytest
import torch

from pml_ext.evaluation import compare, evaluate, paired_difference


def noisy(noise, seed, n=200, classes=20):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.nn.functional.one_hot(labels) + noise * torch.randn(n, classes, generator=generator)


LABELS = torch.arange(200) % 20


def test_a_clear_difference():
    found = compare(noisy(0.3, 0), noisy(0.45, 1), LABELS)
    assert list(found) == ["recall_at_1", "mean_average_precision_at_r"]
    assert found.verdict("recall_at_1") == "first"
    assert compare(noisy(0.45, 1), noisy(0.3, 0), LABELS).verdict("recall_at_1") == "second"
    means = [evaluate(x, LABELS)["recall_at_1"] for x in (noisy(0.3, 0), noisy(0.45, 1))]
    assert found["recall_at_1"].mean == pytest.approx(means[0] - means[1])
    expected = paired_difference(
        *(evaluate(x, LABELS).per_query["recall_at_1"] for x in (noisy(0.3, 0), noisy(0.45, 1)))
    )
    assert found["recall_at_1"] == expected


def test_equal_methods():
    """In at most about 5 % of pairs of equal methods is one called better."""
    wrong = [compare(noisy(0.4, 2 * i), noisy(0.4, 2 * i + 1), LABELS).verdict("recall_at_1") for i in range(25)]
    assert sum(verdict != "not distinguishable" for verdict in wrong) <= 4
    same = compare(noisy(0.4, 0), noisy(0.4, 0), LABELS)
    assert same["recall_at_1"] == (0, 0, 0, 1)
    assert same.verdict("recall_at_1") == "not distinguishable"


def test_seeds():
    first, second = [noisy(0.35, i) for i in range(3)], [noisy(0.4, 10 + i) for i in range(4)]
    found = compare(first, second, LABELS)
    assert (len(found.first), len(found.second)) == (3, 4)
    assert "3 and 4 runs" in repr(found)
    values = [np.stack([evaluate(x, LABELS).per_query["recall_at_1"] for x in runs]) for runs in (first, second)]
    assert found["recall_at_1"] == paired_difference(*values)


def test_over_classes():
    narrow, wide = (compare(noisy(0.3, 0), noisy(0.45, 1), LABELS, over=over) for over in ("queries", "classes"))
    expected = paired_difference(*(run[0].per_query["recall_at_1"] for run in (wide.first, wide.second)), groups=LABELS)
    assert wide["recall_at_1"] == expected != narrow["recall_at_1"]


def test_files_and_lists(tmp_path):
    first, second = noisy(0.3, 0), noisy(0.45, 1)
    np.save(tmp_path / "first.npy", first.numpy())
    np.save(tmp_path / "second.npy", second.numpy())
    np.save(tmp_path / "labels.npy", LABELS.numpy())
    expected = repr(compare(first, second, LABELS))
    assert repr(compare(tmp_path / "first.npy", str(tmp_path / "second.npy"), tmp_path / "labels.npy")) == expected
    assert repr(compare([tmp_path / "first.npy"], [second], LABELS.tolist())) == expected
    assert repr(compare(first.tolist(), second.numpy(), LABELS)) == expected


def test_repr_is_at_most_a_screen():
    text = repr(compare(noisy(0.3, 0), noisy(0.45, 1), LABELS, k=(1, 10, 100), metrics=("recall", "r_precision")))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines[1:-1]] == ["recall_at_1", "recall_at_10", "recall_at_100", "r_precision"]
    assert "one run each" in lines[-1]


@pytest.mark.filterwarnings("ignore:no query has a reference")
def test_without_a_match():
    found = compare(torch.eye(3), 2 * torch.eye(3), [0, 1, 2])
    assert math.isnan(found["recall_at_1"].mean)
    assert found.verdict("recall_at_1") == "not distinguishable"
    assert "nan" in repr(found)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"over": "samples"}, "over must be 'queries' or 'classes', got 'samples'"),
        ({"metrics": ("NMI",)}, r"metrics must have a value for each query, got \['NMI'\]"),
        ({"level": 95}, "level must be between 0 and 1, got 95"),
        ({"second": torch.eye(3)}, "labels must have one label.* 3 embeddings"),
    ],
)
def test_bad_arguments(kwargs, message):
    arguments = {"first": torch.eye(4), "second": torch.eye(4), "labels": [0, 0, 1, 1]} | kwargs
    with pytest.raises(ValueError, match=message):
        compare(**arguments)
