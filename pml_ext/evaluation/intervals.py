"""Intervals over seeds, folds and queries, and which of several methods are distinguishable."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pml_ext import arguments, thresholds

Floats = NDArray[np.float64]

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean with an interval, and how many of the values were finite."""

    mean: float
    low: float
    high: float
    valid: int
    total: int

    def __str__(self) -> str:
        text = f"{self.mean:.4g}"
        if not np.isnan(self.low):
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        return text if self.valid == self.total else f"{text} ({self.valid} of {self.total})"


class Difference(NamedTuple):
    """The difference between two methods, first minus second: mean, interval, and p-value of no difference."""

    mean: float
    low: float
    high: float
    p_value: float


class Standing(NamedTuple):
    """One method among several.

    Args:
        mean: over queries and the seeds that did not diverge.
        valid: how many seeds did not diverge.
        total: how many seeds there were.
        to_best: the difference to the method with the best mean; None for that method, and for one that diverged.
        is_best: whether it is not distinguishable from the best: no other method is significantly better, so ``first``
            is 1. False for a method that diverged with every seed.
        first: the best rank, from 1, that is compatible with the comparisons with all others.
        last: the worst such rank.
    """

    mean: float
    valid: int
    total: int
    to_best: Difference | None
    is_best: bool
    first: int
    last: int


def mean_interval(values: Sequence[float | None], *, level: float = 0.95) -> Interval:
    r"""Give the mean of independent runs, seeds or folds, with Student's interval.

    .. math::

        \bar{x} \pm t_{n - 1, (1 + \text{level}) / 2} \, s / \sqrt{n}

    Args:
        values: one number for each of n runs; None, NaN or infinite for a run that diverged.
        level: confidence level (default 0.95).

    Returns:
        The interval of the runs that did not diverge: valid of total. It is NaN for fewer than two, the mean NaN for
        none.

    Raises:
        ValueError: ``level`` is not between 0 and 1.

    Source:
        Student, "The probable error of a mean", 1908. It assumes normally distributed values; folds of one data set are
        not independent, so their interval is somewhat too narrow.

    Example:
        >>> print(mean_interval([0.5, 0.6, 0.7, float("nan")]))
        0.6 [0.3516, 0.8484] (3 of 4)
    """
    _check_level(level)
    x = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    finite = x[np.isfinite(x)]
    n = len(finite)
    if n < 2:
        return Interval(float(finite[0]) if n else np.nan, np.nan, np.nan, n, len(x))
    half = _t_quantile(level, n - 1) * finite.std(ddof=1) / np.sqrt(n)
    mean = float(finite.mean())
    return Interval(mean, float(mean - half), float(mean + half), n, len(x))


def bootstrap_interval(
    values: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Give the mean over queries with the percentile interval of the bootstrap.

    Args:
        values: one number for each query [n]; those that are NaN are left out.
        groups: [n], the group of each query, for example its class; the queries of a group are drawn together (default
            ``None``: each query alone). Queries of one class are correlated, so that drawing classes gives a wider
            interval, which holds for other classes.
        level: confidence level (default 0.95).
        resamples: how often n queries, or as many groups as there are, are drawn with replacement (default 2000).
        seed: seed of the draws (default 0).

    Raises:
        ValueError: ``values`` is not [n]; ``level`` is not between 0 and 1; ``resamples`` is less than 1.

    Source:
        Efron, "Bootstrap methods: another look at the jackknife", 1979.

    Example:
        >>> interval = bootstrap_interval([0.0, 1.0, 1.0, 1.0] * 25)
        >>> interval.mean, interval.low < 0.7, interval.high > 0.8
        (0.75, True, True)
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"values must be one number for each query, got shape {x.shape}")
    return bootstrap_intervals({"values": x}, groups=groups, level=level, resamples=resamples, seed=seed)["values"]


def bootstrap_intervals(
    values: Mapping[str, ArrayLike],
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Give :func:`bootstrap_interval` of several metrics of the same queries, which are drawn once for all of them.

    Args:
        values: name -> one number for each query [n]; a query is NaN in all of them or in none.
        groups: see :func:`bootstrap_interval`.
        level: see :func:`bootstrap_interval`.
        resamples: see :func:`bootstrap_interval`.
        seed: see :func:`bootstrap_interval`.

    Raises:
        ValueError: the metrics are not of the same queries; see :func:`bootstrap_interval`.
    """
    _check_level(level)
    if not values:
        return {}
    aligned, known = _aligned(values)
    total, valid = len(known), int(known.sum())
    rows = [row for x in aligned.values() for row in x]
    if len(rows) < len(aligned):  # all of them NaN
        return dict.fromkeys(values, Interval(np.nan, np.nan, np.nan, 0, total))
    drawn = _resampled_means(np.stack(rows), _group_ids(groups, total, known), resamples, seed)
    lows, highs = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return {
        name: Interval(float(row.mean()), float(low), float(high), valid, total)
        for name, row, low, high in zip(values, rows, lows, highs, strict=True)
    }


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    r"""Compare two methods by their values for the same queries, over queries and over seeds.

    .. math::

        \bar{x} - \bar{y} \pm t_\nu \sqrt{v_q + v_s - v_{qs}}

    where :math:`v_q` is the variance of the difference, averaged over the seeds, when queries are drawn again by the
    bootstrap, the same ones for both methods; :math:`v_s` that of the two means over seeds; :math:`v_{qs}` the part
    that both contain, the variance that is due neither to the query nor to the seed alone; :math:`\nu` the degrees of
    freedom by Welch and Satterthwaite. With one seed each, only :math:`v_q` is known: the result is about these two
    networks, not about the methods.

    Args:
        first: one number for each query [n], or for each seed and query [s, n].
        second: the same for the other method and the same queries; it may have other seeds. A seed whose values are all
            NaN has diverged and is left out; a query that is NaN in all other seeds has no value and is left out.
        groups: [n], queries that are drawn together, see :func:`bootstrap_interval` (default ``None``: each query
            alone).
        level: confidence level (default 0.95).
        resamples: how often queries are drawn again (default 2000).
        seed: seed of the draws (default 0).

    Returns:
        The difference; all of it NaN if one of the methods has diverged with each seed.

    Raises:
        ValueError: the queries of the two are not the same in number or in which are NaN; ``level`` is not between 0
            and 1; ``resamples`` is less than 1.

    Source:
        Welch, "The generalization of Student's problem", 1947; Satterthwaite, 1946; Owen, "The pigeonhole bootstrap",
        2007, for two crossed factors. Seeds are not drawn again, because with three seeds a nominal 95 % interval of
        the bootstrap covers 75 %.

    Example:
        >>> right, wrong = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
        >>> difference = paired_difference(right, wrong)
        >>> round(difference.mean, 3), difference.low > 0, difference.p_value < 0.01
        (0.1, True, True)
    """
    _check_level(level)
    methods, known = _aligned({"first": first, "second": second})
    ids = _group_ids(groups, len(known), known)
    parts = {name: _Parts.of(x, ids, resamples, seed) for name, x in methods.items()}
    return _difference(parts["first"], parts["second"], level)


def standings(
    methods: Mapping[str, ArrayLike],
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Standing]:
    """Say which methods are not distinguishable from the best, and which ranks each of them can have.

    Every pair of methods is compared as by :func:`paired_difference`, with Holm's correction for all pairs. The ranks
    are those that the significant differences leave: a method comes after those that are better, before those that are
    worse. A method is distinguishable from the best if any other is better: with probability ``level`` the truly best
    method is among those that are not distinguishable from the best.

    Args:
        methods: name -> one number for each query [n], or for each seed and query [s, n]; larger is better.
        groups: [n], queries that are drawn together, see :func:`bootstrap_interval` (default ``None``: each query
            alone).
        level: confidence level (default 0.95): with that probability none of the claims is wrong.
        resamples: how often queries are drawn again (default 2000).
        seed: seed of the draws (default 0).

    Returns:
        Name -> standing, in the order given. A method that diverged with each seed is not the best, and has the ranks
        from 1 to the last.

    Raises:
        ValueError: see :func:`paired_difference`.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", 1979; ranks from comparisons of all pairs:
        Mogstad, Romano, Shaikh and Wilhelm, "Inference for ranks", 2024. Holm's correction holds for any dependence
        between the comparisons, so with fifty methods, 1225 pairs, only large differences are significant.

    Example:
        >>> queries = np.arange(300) % 10
        >>> found = standings({"A": queries < 8, "B": queries < 5, "C": queries > 1})
        >>> {name: (x.is_best, x.first, x.last) for name, x in found.items()}
        {'A': (True, 1, 2), 'B': (False, 3, 3), 'C': (True, 1, 2)}
    """
    _check_level(level)
    aligned, known = _aligned(methods)
    ids = _group_ids(groups, len(known), known)
    parts = {name: _Parts.of(x, ids, resamples, seed) for name, x in aligned.items()}
    alive = [name for name, part in parts.items() if len(part.seeds)]
    best = max(alive, key=lambda name: parts[name].mean, default=None)

    to_best = {name: _difference(parts[name], parts[best], level) for name in alive if best and name != best}
    pairs = [(a, b) for i, a in enumerate(alive) for b in alive[i + 1 :]]
    differences = [_difference(parts[a], parts[b], level) for a, b in pairs]
    significant = _holm([x.p_value for x in differences]) < 1 - level
    above, below = dict.fromkeys(methods, 0), dict.fromkeys(methods, 0)
    for (a, b), difference, is_significant in zip(pairs, differences, significant, strict=True):
        if is_significant:
            winner, loser = (a, b) if difference.mean > 0 else (b, a)
            above[loser] += 1
            below[winner] += 1
    return {
        name: Standing(
            part.mean,
            len(part.seeds),
            _seeds_of(methods[name]),
            to_best.get(name),
            name in alive and above[name] == 0,
            1 + above[name],
            len(methods) - below[name],
        )
        for name, part in parts.items()
    }


class _Parts(NamedTuple):
    """What the comparisons need of one method."""

    units: int  # how many are drawn: groups, or queries
    seeds: Floats  # [s], means over the queries
    drawn: Floats  # [resamples], means over seeds and queries drawn again
    mixed: float  # the variance of the mean that is neither the queries' nor the seeds'

    @staticmethod
    def of(x: Floats, groups: NDArray[np.int64], resamples: int, seed: int) -> "_Parts":
        s, n = x.shape
        if s == 0:
            return _Parts(0, np.empty(0), np.full(resamples, np.nan), np.nan)
        count = int(groups.max()) + 1
        values, seeds = x.mean(axis=0), x.mean(axis=1)
        mixed = 0.0
        if s > 1:
            # Of what is drawn together, too.
            rest = x - values - seeds[:, None] + x.mean()
            sums = np.stack([np.bincount(groups, row, count) for row in rest])
            mixed = float((sums**2).sum() / ((s - 1) * s * n**2))
        return _Parts(count, seeds, _resampled_means(values[None], groups, resamples, seed)[0], mixed)

    @property
    def mean(self) -> float:
        return float(self.seeds.mean()) if len(self.seeds) else np.nan


def _difference(first: _Parts, second: _Parts, level: float) -> Difference:
    from scipy import stats

    if not (len(first.seeds) and len(second.seeds)):
        return Difference(np.nan, np.nan, np.nan, np.nan)
    mean = first.mean - second.mean
    of_queries = float((first.drawn - second.drawn).var(ddof=1)) if len(first.drawn) > 1 else 0.0
    of_seeds, squares = 0.0, 0.0
    for seeds in (first.seeds, second.seeds):
        if len(seeds) > 1:
            variance = float(seeds.var(ddof=1)) / len(seeds)
            of_seeds += variance
            squares += variance**2 / (len(seeds) - 1)
    variance = max(of_queries + of_seeds - first.mixed - second.mixed, of_queries, of_seeds)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    squares += of_queries**2 / max(1, first.units - 1)
    freedom = variance**2 / squares
    error = np.sqrt(variance)
    half = _t_quantile(level, freedom) * error
    return Difference(mean, float(mean - half), float(mean + half), float(2 * stats.t.sf(abs(mean) / error, freedom)))


def _aligned(methods: Mapping[str, ArrayLike]) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
    """Return the seeds that did not diverge [s, n'] of each method, and which queries [n] have values."""
    arrays = {name: np.atleast_2d(np.asarray(x, dtype=np.float64)) for name, x in methods.items()}
    for name, x in arrays.items():
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} must be one number for each query, or each seed and query, got shape {x.shape}")
    counts = {name: x.shape[1] for name, x in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the methods must be compared on the same queries, got {counts}")
    known: NDArray[np.bool_] | None = None
    for name, x in arrays.items():
        arrays[name] = x = x[~np.isnan(x).all(axis=1)]
        for row in x:
            if known is not None and not np.array_equal(known, ~np.isnan(row)):
                raise ValueError(f"{name} has values for other queries than the seeds before it")
            known = ~np.isnan(row)
    if known is None:
        known = np.ones(next(iter(counts.values()), 0), dtype=bool)
    return {name: x[:, known] for name, x in arrays.items()}, known


def _seeds_of(x: ArrayLike) -> int:
    return len(np.atleast_2d(np.asarray(x)))


def _group_ids(groups: ArrayLike | None, n: int, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(known.sum())
    ids = np.asarray(groups)
    if ids.shape != (n,):
        raise ValueError(f"groups must be one for each of {n} queries, got shape {ids.shape}")
    return np.unique(ids[known], return_inverse=True)[1].astype(np.int64)


def _resampled_means(x: Floats, groups: NDArray[np.int64], resamples: int, seed: int) -> Floats:
    """Return the means of rows [r, n] over groups drawn with replacement: [r, resamples]."""
    resamples = arguments.count("resamples", resamples)
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count).astype(np.float64)
    sums = np.stack([np.bincount(groups, row, count) for row in x])
    return np.concatenate([sums @ drawn.T / (drawn @ sizes) for drawn in _drawn_counts(count, resamples, seed)], axis=1)


def _drawn_counts(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of so many is drawn, [r, count], until there are as many rows as resamples."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows := max(1, thresholds.DRAWS // count)):
        size = min(rows, resamples - start)
        places = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _holm(p_values: Sequence[float]) -> Floats:
    """Return Holm's adjusted p-values."""
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _t_quantile(level: float, freedom: float) -> Any:
    from scipy import stats

    return stats.t.ppf((1 + level) / 2, freedom)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
