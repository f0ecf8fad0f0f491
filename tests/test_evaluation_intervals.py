"""Intervals and comparisons against closed cases, scipy and simulated experiments whose truth is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pml_ext import thresholds
from pml_ext.evaluation import intervals
from pml_ext.evaluation.intervals import bootstrap_interval, mean_interval, paired_difference, standings

NAN = math.nan

# ----------------------------------------------------------------------------------------------- over seeds and folds


def test_interval_of_a_table():
    """t of 2 degrees of freedom is 4.302653; the standard deviation of 1, 2, 3 is 1."""
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5, 3, 3), rel=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_interval_equals_scipy(level):
    x = np.random.default_rng(0).normal(size=7)
    expected = stats.ttest_1samp(x, 0).confidence_interval(level)
    assert mean_interval(x, level=level)[1:3] == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("diverged", [None, NAN, math.inf, -math.inf])
def test_seeds_that_diverged_are_counted(diverged):
    interval = mean_interval([0.5, diverged, 0.7, diverged])
    assert interval[:3] == mean_interval([0.5, 0.7])[:3]
    assert interval[3:] == (2, 4)
    assert str(interval).endswith("(2 of 4)")
    assert str(mean_interval([0.25, diverged])) == "0.25 (1 of 2)"
    nothing = mean_interval([diverged])
    assert nothing[3:] == (0, 1)
    assert all(math.isnan(x) for x in nothing[:3])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_covers(n):
    generator = np.random.default_rng(n)
    found = [mean_interval(generator.normal(3, 2, n)) for _ in range(1000)]
    assert np.mean([x.low <= 3 <= x.high for x in found]) == pytest.approx(0.95, abs=0.02)


# ------------------------------------------------------------------------------------------------------- over queries


def test_bootstrap_equals_the_binomial():
    """The mean of n zeros and ones drawn with replacement is a binomial share."""
    values = [1.0] * 30 + [0.0] * 70
    interval = bootstrap_interval(values, resamples=20_000)
    expected = [stats.binom.ppf(p, 100, 0.3) / 100 for p in (0.025, 0.975)]
    assert interval[:3] == pytest.approx((0.3, *expected), abs=0.01)


def test_bootstrap_covers():
    generator = np.random.default_rng(0)
    found = [bootstrap_interval(generator.random(150) < 0.7, resamples=300, seed=i) for i in range(400)]
    assert np.mean([x.low <= 0.7 <= x.high for x in found]) == pytest.approx(0.94, abs=0.025)


def test_bootstrap_of_groups_covers():
    """Queries of one class are alike: drawn one by one, they promise too much."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    alone, together = [], []
    for i in range(200):
        values = generator.normal(size=40)[groups] + 0.5 * generator.normal(size=400)
        alone.append(bootstrap_interval(values, resamples=200, seed=i))
        together.append(bootstrap_interval(values, groups=groups, resamples=200, seed=i))
    assert np.mean([x.low <= 0 <= x.high for x in together]) == pytest.approx(0.94, abs=0.04)
    assert np.mean([x.low <= 0 <= x.high for x in alone]) < 0.6


def test_bootstrap_of_groups_of_any_size_is_that_of_queries_repeated():
    values, groups = [0.0, 1.0, 1.0, 0.0], ["b", "a", "a", "b"]
    interval = bootstrap_interval(values, groups=groups, resamples=4000)
    assert interval[:3] == (0.5, 0.0, 1.0)


def test_queries_without_a_value_are_left_out():
    interval = bootstrap_interval([NAN, 1.0, 0.0, NAN, 1.0], groups=[0, 0, 1, 2, 2])
    assert interval.mean == pytest.approx(2 / 3)
    assert interval[3:] == (3, 5)
    nothing = bootstrap_interval([NAN, NAN])
    assert math.isnan(nothing.mean)
    assert nothing[3:] == (0, 2)


def test_few_at_a_time_changes_nothing(monkeypatch):
    expected = bootstrap_interval([0.0, 1.0, 1.0], resamples=50)
    monkeypatch.setattr(thresholds, "DRAWS", 12)
    assert bootstrap_interval([0.0, 1.0, 1.0], resamples=50).mean == expected.mean
    drawn = np.concatenate(list(intervals._drawn_counts(3, 50, 0)))
    assert drawn.shape == (50, 3)
    assert (drawn.sum(axis=1) == 3).all()


# ------------------------------------------------------------------------------------------------------- two methods


def simulated(generator, seeds, others, n, spread, of_seed, mixed, difference=0.0):
    """Values of two methods for the same queries: query, seed and the rest are normal."""
    query = generator.normal(0, spread, n)

    def method(s, shift):
        own = query + generator.normal(0, 0.3, n) + shift
        return own + generator.normal(0, of_seed, s)[:, None] + generator.normal(0, mixed, (s, n))

    return method(seeds, difference), method(others, 0.0)


@pytest.mark.parametrize(
    "experiment",
    [(1, 1, 100, 1.0, 0.0, 0.5), (3, 3, 150, 1.0, 0.1, 0.3), (3, 5, 150, 0.3, 0.2, 0.3), (5, 5, 150, 1.0, 0.03, 1.0)],
)
def test_paired_difference_covers(experiment):
    generator = np.random.default_rng(1)
    found = [
        paired_difference(*simulated(generator, *experiment, difference=0.1), resamples=200, seed=i) for i in range(300)
    ]
    assert np.mean([x.low <= 0.1 <= x.high for x in found]) == pytest.approx(0.95, abs=0.03)


def test_paired_difference_of_one_seed_is_the_paired_test():
    generator = np.random.default_rng(0)
    first = generator.normal(0.1, 1, 300)
    second = first + generator.normal(-0.05, 0.3, 300)
    actual = paired_difference(first, second, resamples=20_000)
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    assert actual.mean == pytest.approx(first.mean() - second.mean())
    assert actual[1:3] == pytest.approx((low, high), abs=0.002)
    assert actual.p_value == pytest.approx(expected.pvalue, rel=0.2)


def test_paired_difference_of_seeds_alone_is_welchs_test():
    """Queries that are all alike say nothing more than their mean."""
    first, second = np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.45, 0.3, 0.5])
    actual = paired_difference(first[:, None].repeat(20, 1), second[:, None].repeat(20, 1))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert actual[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6)
    assert actual.p_value == pytest.approx(expected.pvalue, rel=1e-6)


def test_paired_difference_is_antisymmetric():
    first, second = simulated(np.random.default_rng(0), 3, 4, 50, 1, 0.1, 0.1)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert (one.mean, one.low, one.high, one.p_value) == pytest.approx(
        (-other.mean, -other.high, -other.low, other.p_value)
    )


def test_equal_methods_do_not_differ():
    values = np.random.default_rng(0).random((1, 50))
    assert paired_difference(values, values) == (0, 0, 0, 1)


def test_groups_of_queries_widen_the_difference():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    first, second = generator.normal(size=(2, 20))[:, groups]
    alone = paired_difference(first, second)
    together = paired_difference(first, second, groups=groups)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)
    expected = paired_difference(first[::10], second[::10])
    assert together == pytest.approx(expected)


def test_diverged_seeds_and_queries_without_a_value():
    first, second = simulated(np.random.default_rng(0), 2, 3, 40, 1, 0.1, 0.1)
    expected = paired_difference(first, second)

    def spoiled(x):
        x = np.insert(x, 7, NAN, axis=1)
        return np.insert(x, 1, NAN, axis=0)

    assert paired_difference(spoiled(first), spoiled(second)) == expected
    assert all(math.isnan(x) for x in paired_difference(first, np.full((2, 40), NAN)))
    with pytest.raises(ValueError, match="second has values for other queries"):
        paired_difference(np.insert(first, 7, NAN, axis=1), np.insert(second, 8, NAN, axis=1))


# --------------------------------------------------------------------------------------------------- several methods


def test_standings_of_clear_methods():
    queries = torch.arange(400) % 10
    found = standings({"middle": queries < 6, "worst": queries < 2, "best": queries < 9})
    assert {name: (x.first, x.last) for name, x in found.items()} == {"middle": (2, 2), "worst": (3, 3), "best": (1, 1)}
    assert [name for name, x in found.items() if x.is_best] == ["best"]
    assert found["best"].to_best is None
    assert found["middle"].to_best.mean == pytest.approx(-0.3)
    assert list(found) == ["middle", "worst", "best"]


def test_standings_of_equal_methods():
    values = np.random.default_rng(0).random((3, 200))
    found = standings(dict.fromkeys("abcd", values))
    assert all((x.first, x.last, x.is_best) == (1, 4, True) for x in found.values())


def test_standings_promise_all_at_once():
    """Ten equal methods: in at most 5 % of experiments one of 45 pairs is called different."""
    generator = np.random.default_rng(0)
    wrong = 0
    for i in range(120):
        query = generator.normal(size=60)
        methods = {str(j): query + generator.normal(0, 0.2, (3, 1)) + generator.normal(size=(3, 60)) for j in range(10)}
        found = standings(methods, resamples=100, seed=i)
        wrong += any((x.first, x.last) != (1, 10) for x in found.values())
    assert wrong <= 0.05 * 120 + 6


def test_standings_count_seeds_that_diverged():
    values = np.random.default_rng(0).random((3, 50))
    half = values.copy()
    half[1] = NAN
    found = standings({"all": values, "some": half, "none": np.full((2, 50), NAN)})
    assert {name: (x.valid, x.total) for name, x in found.items()} == {"all": (3, 3), "some": (2, 3), "none": (0, 2)}
    assert math.isnan(found["none"].mean)
    assert (found["none"].is_best, found["none"].to_best, found["none"].first, found["none"].last) == (
        False,
        None,
        1,
        3,
    )
    everything = standings({"none": np.full((2, 50), NAN)})
    assert not everything["none"].is_best


def test_a_best_of_few_runs_hides_nobody():
    """Two runs far apart have the best mean: nothing is distinguishable from it, but something worse than another."""
    queries = np.arange(200) % 10
    methods = {
        "unsteady": np.stack([queries < 10, queries < 8]),
        "good": np.stack([queries < 8, queries < 8, queries < 8]),
        "bad": np.stack([queries < 3, queries < 3, queries < 3]),
    }
    found = standings(methods)
    assert {name: x.is_best for name, x in found.items()} == {"unsteady": True, "good": True, "bad": False}
    assert found["bad"].to_best.p_value > 0.05
    assert (found["bad"].first, found["bad"].last) == (2, 3)


@settings(deadline=None)
@given(st.integers(2, 12), st.floats(0, 0.4), st.integers(0, 3), st.integers(0, 2**31))
def test_the_best_are_those_that_can_be_the_first(count, gap, diverged, seed):
    generator = np.random.default_rng(seed)
    query = generator.normal(size=40)
    methods = {str(i): query + gap * i + generator.normal(0, 0.3, (2, 40)) for i in range(count)}
    methods |= {f"diverged {i}": np.full((2, 40), NAN) for i in range(diverged)}
    found = standings(methods, resamples=60)
    assert all(x.is_best == (x.first == 1 and x.valid > 0) for x in found.values())
    assert max((x for x in found.values() if x.valid), key=lambda x: x.mean).is_best


def test_one_reading_of_ranks_and_of_the_best():
    """B is below A at a level that survives the comparisons with A, but not those of all 66 pairs."""
    noise = np.random.default_rng(0).normal(size=200)
    noise -= noise.mean()
    a = np.random.default_rng(1).normal(size=200)
    close = {str(i): a + 1e-3 * np.roll(noise, i) for i in range(10)}
    found = standings({"A": a, "B": a - 3 * noise.std() / 200**0.5 - noise, **close})
    assert 0.05 / 66 < found["B"].to_best.p_value < 0.05 / 11
    assert found["B"].first == 1
    assert found["B"].is_best


def test_holm_of_its_paper():
    """The example of every textbook: .01, .04, .03, .005 of four."""
    assert intervals._holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


# ------------------------------------------------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0], level=95), "level must be between 0 and 1, got 95"),
        (lambda: bootstrap_interval([1.0], level=0), "level must be between 0 and 1, got 0"),
        (lambda: bootstrap_interval([[1.0]]), r"values must be one number for each query, got shape \(1, 1\)"),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples must be at least 1, got 0"),
        (lambda: bootstrap_interval([1.0, 2.0], groups=[1]), r"groups must be one for each of 2 queries"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "same queries, got {'first': 2, 'second': 1}"),
        (lambda: paired_difference([], []), r"first must be .* got shape \(1, 0\)"),
        (lambda: standings({"a": np.zeros((1, 2, 3))}), r"a must be .* got shape \(1, 2, 3\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_resamples_are_an_integer():
    with pytest.raises(TypeError, match="resamples must be an integer, got True"):
        bootstrap_interval([1.0], resamples=True)
