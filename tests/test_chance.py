"""What is expected by chance: against every order there is, against random embeddings, worked by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_ext.evaluation import chance_level, evaluate

METRICS = ["recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "mean_average_precision_at_r", "r_precision"]


def over_all_orders(right, total, ks):
    """The mean of each metric over every order of the references of one query."""
    found = {}
    for places in itertools.combinations(range(total), right):
        hits = [place in places for place in range(total)]
        for k in ks:
            found.setdefault(f"recall_at_{k}", []).append(any(hits[:k]))
        precision = [sum(hits[: i + 1]) / (i + 1) for i in range(right)]
        found.setdefault("mean_average_precision_at_r", []).append(
            sum(p for p, hit in zip(precision, hits, strict=False) if hit) / right
        )
        found.setdefault("r_precision", []).append(sum(hits[:right]) / right)
    return {name: float(np.mean(values)) for name, values in found.items()}


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9))
def test_it_is_the_mean_over_all_orders(labels):
    found = chance_level(labels, k=(1, 2, 4))
    each = [over_all_orders(labels.count(x) - 1, len(labels) - 1, (1, 2, 4)) for x in labels if labels.count(x) > 1]
    for name, value in found.items():
        expected = np.mean([one[name] for one in each]) if each else math.nan
        assert value == pytest.approx(expected, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("case", ["all", "query and gallery", "sequences"])
def test_random_embeddings_reach_it(case):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 3 // 1
    chosen = {}
    if case != "all":
        chosen = {"query": torch.arange(40) < 25, "gallery": torch.arange(40) >= 15}  # ten are both
    if case == "sequences":
        chosen["groups"] = torch.arange(40) % 7
    runs = [evaluate(torch.randn(40, 8, generator=generator), labels, **chosen) for _ in range(400)]
    expected = chance_level(labels, **chosen)
    assert set(expected) == set(runs[0])
    for name, value in expected.items():
        values = np.array([run[name] for run in runs])
        assert abs(values.mean() - value) < 4 * values.std() / math.sqrt(len(runs)) + 1e-9, name


def test_fewer_classes_are_easier():
    few, many = (chance_level([i % classes for i in range(400)]) for classes in (4, 40))
    assert all(few[name] > many[name] for name in METRICS)


def test_names_and_numbers_are_labels_alike():
    numbers = [3, 3, 1, 1, 1]
    assert chance_level(numbers) == chance_level([str(x) for x in numbers]) == chance_level(np.array(numbers))


def test_where_nothing_can_be_found_it_is_no_number():
    assert all(math.isnan(value) for value in chance_level([0, 1, 2]).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must have one or more different integers, each at least 1"),
        ({"query": [False, False, False]}, "query is empty"),
        ({"gallery": [0, 7]}, "gallery must be different indices from 0 to 2"),
        ({"groups": [1, 2]}, "groups"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        chance_level([0, 0, 1], **arguments)
