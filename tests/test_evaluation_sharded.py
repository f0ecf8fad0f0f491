"""Metrics of samples that are divided among processes: those of one process, exactly."""

import pytest
import torch

from pml_ext.evaluation import RetrievalAccuracyCalculator, sharded_accuracy
from pml_ext.testing import run_as_ranks

N = 121
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(15, (N,), generator=GENERATOR)
X = torch.randn(15, 8, generator=GENERATOR)[LABELS] + 1.1 * torch.randn(N, 8, generator=GENERATOR)
REFS, REF_LABELS = X[:50] + 0.5 * torch.randn(50, 8, generator=GENERATOR), LABELS[:50]
# The last two labels of the queries have no reference, or no other sample.
LABELS = torch.cat((LABELS[:-2], torch.tensor([77, 78])))


def on_several(calculator, cuts, **references):
    bounds = [0, *cuts, N]

    def of_rank(group):
        own = slice(bounds[group.rank], bounds[group.rank + 1])
        refs = (REFS[group.rank :: group.size], REF_LABELS[group.rank :: group.size]) if references else ()
        return sharded_accuracy(calculator, X[own], LABELS[own], *refs, group=group)

    return run_as_ranks(len(bounds) - 1, of_rank)


@pytest.mark.parametrize("cuts", [(40,), (0, 97), (13, 13, 110), (119,)])
@pytest.mark.parametrize(
    "how", [{}, {"avg_of_avgs": True}, {"return_per_class": True, "exclude": ("NMI", "AMI")}, {"k": None}, {"k": 3}]
)
def test_shards_are_as_one(how, cuts):
    calculator = RetrievalAccuracyCalculator(recall_at=(1, 8), device="cpu", **how)
    for references in ({}, {"references": True}):
        expected = calculator.get_accuracy(X, LABELS, *((REFS, REF_LABELS) if references else ()))
        for found in on_several(calculator, cuts, **references):
            assert list(found) == list(expected)
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, abs=1e-12), name


def test_a_mean_of_local_values_is_another_number():
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1",), device="cpu")
    whole = calculator.get_accuracy(X, LABELS)["recall_at_1"]
    local = sum(calculator.get_accuracy(X[i::2], LABELS[i::2])["recall_at_1"] for i in range(2)) / 2
    assert abs(local - whole) > 0.01


def test_the_calculator_stays_as_it_is():
    calculator = RetrievalAccuracyCalculator(device="cpu", include=("recall_at_1",))
    before = calculator.get_accuracy(X, LABELS)
    on_several(calculator, (40,))
    assert calculator.get_accuracy(X, LABELS) == before
    assert sharded_accuracy(calculator, X, LABELS) == before


def test_nobody_finds_a_match():
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1",), device="cpu")
    found = run_as_ranks(
        2, lambda g: sharded_accuracy(calculator, X[g.rank : g.rank + 1], LABELS[:1] + g.rank, group=g)
    )
    assert all(value["recall_at_1"] != value["recall_at_1"] for value in found)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, g: sharded_accuracy(c, X, ["a"] * N, group=g), TypeError, "labels must be numbers"),
        (lambda c, g: sharded_accuracy(c, X, LABELS[:3], group=g), ValueError, "with a label each"),
        (lambda c, g: sharded_accuracy(c, X, LABELS, X, group=g), ValueError, "given together"),
        (lambda c, g: sharded_accuracy(c, X[:, : 3 + g.rank], LABELS, group=g), ValueError, "dimensions and dtypes"),
        (lambda c, g: sharded_accuracy(c, X[:0], LABELS[:0], group=g), ValueError, "nothing to evaluate"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1",), device="cpu")
    with pytest.raises(error, match=message):
        run_as_ranks(2, lambda group: call(calculator, group), timeout=5)
