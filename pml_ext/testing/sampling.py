"""Whether the random draws of a miner have the distribution that it declares."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence


def subset_probabilities(weights: Sequence[float], k: int) -> dict[frozenset[int], float]:
    """The probability of each set of k items, drawn one after another without replacement, in proportion to weights.

    Sums over the orders in which a set may be drawn: for a handful of items.

    Example:
        >>> subset_probabilities([1.0, 1.0, 2.0], 1)
        {frozenset({0}): 0.25, frozenset({1}): 0.25, frozenset({2}): 0.5}
    """
    total, result = sum(weights), dict[frozenset[int], float]()
    for order in itertools.permutations(range(len(weights)), min(k, len(weights))):
        probability, left = 1.0, total
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        result[frozenset(order)] = result.get(frozenset(order), 0.0) + probability
    return result


def inclusion_probabilities(weights: Sequence[float], k: int) -> list[float]:
    """The probability of each item to be among k drawn without replacement.

    Example:
        >>> [round(p, 3) for p in inclusion_probabilities([1.0, 1.0, 2.0], 2)]
        [0.583, 0.583, 0.833]
    """
    subsets = subset_probabilities(weights, k)
    return [sum(p for subset, p in subsets.items() if i in subset) for i in range(len(weights))]


def assert_frequencies(
    drawn: Iterable[Hashable], expected: Mapping[Hashable, float], significance: float = 1e-6
) -> None:
    """Pearson's chi-square test of independent outcomes against their probabilities.

    Args:
        drawn: the outcomes, one for each draw: items, or frozensets of items.
        expected: the probability of every outcome that is possible.
        significance: the probability of rejecting a correct sampler; with a fixed seed, a sampler fails always or
            never.

    Raises:
        AssertionError: an outcome is impossible or the frequencies are too far off.
    """
    counts = Counter(drawn)
    n = sum(counts.values())
    impossible = {outcome: count for outcome, count in counts.items() if expected.get(outcome, 0.0) == 0.0}
    assert not impossible, f"impossible outcomes were drawn: {impossible}"
    possible = {outcome: p for outcome, p in expected.items() if p > 0.0}
    rare = [outcome for outcome, p in possible.items() if n * p < 5]
    if rare:
        raise ValueError(f"{n} draws are too few for a chi-square test: {rare} are expected less than 5 times")
    chi2 = sum((counts[outcome] - n * p) ** 2 / (n * p) for outcome, p in possible.items())
    limit = _chi_square_quantile(len(possible) - 1, significance)
    observed = {outcome: round(counts[outcome] / n, 4) for outcome in possible}
    assert chi2 <= limit, f"chi-square is {chi2:.1f}, above {limit:.1f}: drawn {observed}, declared {dict(possible)}"


def _chi_square_quantile(freedom: int, significance: float) -> float:
    """The Wilson-Hilferty approximation, within a percent or two of the quantile."""
    if freedom == 0:
        return 1e-9
    z = _normal_quantile(significance)
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + z * math.sqrt(spread)) ** 3


def _normal_quantile(significance: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - significance)
