"""Search spaces: for every hyperparameter a range that is worth trying, around the value of the recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["SPACES", "Range", "arguments", "between", "level", "number", "ranges", "times"]


@dataclass(frozen=True)
class Range:
    """The values of one hyperparameter that a search may try.

    Args:
        low: the smallest value.
        high: the largest value.
        default: the value without a search.
        log: whether values are drawn uniformly on a logarithmic scale. Default False.
        whole: whether values are whole numbers. Default False.

    Raises:
        ValueError: bounds that exclude the default, or a logarithmic scale with a bound that is not above 0.

    Example:
        >>> print(Range(4, 64, 16, log=True))
        4 to 64 (16), log
    """

    low: float
    high: float
    default: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.default <= self.high):
            raise ValueError(f"low <= default <= high must hold, got {self.low}, {self.default}, {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 where log, got {self.low}")

    def __str__(self) -> str:
        flags = [name for name in ("log", "whole") if getattr(self, name)]
        return ", ".join([f"{self.low:.4g} to {self.high:.4g} ({self.default:.4g})", *flags])

    @property
    def kind(self) -> type:
        """`int` or `float`."""
        return int if self.whole else float

    def at(self, share: float) -> float:
        """The value at a share, 0 to 1, of the way from low to high.

        >>> round(Range(1, 100, 10, log=True).at(0.5), 9), Range(1, 4, 3, whole=True).at(0.99)
        (10.0, 4)
        """
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


Around = Callable[[float], Range]
"""From the value of a recipe to the range around it."""


def times(factor: float) -> Around:
    """A factor up and down: for steepness, margins of differences, scales."""
    return lambda value: Range(value / factor, value * factor, value, log=True)


def level(reach: float, least: float = -math.inf) -> Around:
    """A step up and down: for a level of the distance, with any distance."""
    return lambda value: Range(max(value - reach, least), value + reach, value)


def between(low: float, high: float) -> Around:
    """From one number to another, and as far as the recipe's value."""
    return lambda value: Range(min(low, value), max(high, value), value)


def number(factor: float, least: int = 1) -> Around:
    """A count, a factor up and down."""
    return lambda value: Range(
        max(least, math.floor(value / factor)), math.ceil(value * factor), value, log=True, whole=True
    )


# By class and argument. An argument that is None or no number in a recipe, or 0 where its logarithm is searched, is
# left as it is; so is what only multiplies a loss, and what says how, not how much.
_DEVIANCE = {"alpha": times(4), "beta": times(4), "base": level(0.3), "balance": times(5)}
_ADAPTIVE = {"beta": times(4), "base": level(0.3), "epsilon": times(5), "adaptivity": between(0, 1)}
_TWO_LEVELS = {"pos_margin": level(0.3, least=0), "neg_margin": level(0.4, least=0)}
SPACES: Mapping[str, Mapping[str, Around]] = MappingProxyType(
    {
        # losses of this package
        "AdaptiveBinomialDevianceLoss": {"alpha": times(4), **_ADAPTIVE},
        "AnchorContrastiveLoss": _TWO_LEVELS,
        "BatchAllTripletLoss": {"margin": times(10)},
        "BatchHardTripletLoss": {"margin": times(5)},
        "BinomialDevianceLoss": _DEVIANCE,
        "CenterLoss": {"alpha": between(0.05, 1)},
        "ClampedNCALoss": {"pos_margin": level(0.15, least=0), "neg_margin": level(0.3, least=0)},
        "ClassCenterMarginLoss": {"center_margin": level(0.4, least=0), "sample_margin": level(0.3, least=0)},
        "DecoupledContrastiveLoss": {"temperature": times(5)},
        "DecoupledNCALoss": {"alpha": times(4), "beta": times(4), "k": number(4)},
        "EasyPositiveTripletLoss": {"margin": times(10)},
        "GeneralizedLiftedStructureLoss": _TWO_LEVELS,
        "HardNegativeContrastiveLoss": {"temperature": times(5), "beta": times(5), "tau_plus": between(0, 0.3)},
        "HardnessWeightedContrastiveLoss": {"temperature": times(5), "alpha": times(4)},
        "HistogramLoss": {"n_bins": number(4, least=2)},
        "KNNSoftmaxLoss": {"alpha": times(4), "k": number(4), "negative_weight": times(4)},
        "LargeMarginNearestNeighborLoss": {"k": number(3), "margin": times(10)},
        "LiftedStructureLoss": _TWO_LEVELS,
        "LinearPullDevianceLoss": {**_ADAPTIVE, "balance": times(5)},
        "LogSumExpPairLoss": {
            "alpha": times(4),
            "beta": times(4),
            "pos_margin": level(0.3),
            "neg_margin": level(0.3),
        },
        "MeanGapLoss": {"fraction": between(0.05, 1)},
        "MultiSimilarityLoss": {"alpha": times(5), "beta": times(4), "base": level(0.3)},
        "PNPLoss": {"temperature": times(5), "alpha": times(4), "b": times(4)},
        "RAWLoss": {"alpha": times(5), "beta": times(4), "gamma": level(0.3), "epsilon": times(5)},
        "RankedPullDevianceLoss": {"beta": times(4), "base": level(0.3)},
        "RecallAtKLoss": {"temperature": times(5), "k_temperature": times(4)},
        "SelectivelyContrastiveTripletLoss": {"temperature": times(5), "lam": times(4), "level": level(0.2)},
        "SemiHardTripletLoss": {"margin": times(4)},
        "SigmoidPairLoss": {"temperature": times(4)},
        "SmoothAPLoss": {"temperature": times(5)},
        "SoftTripletLoss": {"beta": times(5), "threshold": between(0, 0.69)},
        "SupAPLoss": {"temperature": times(5), "rho": times(4), "delta": times(4)},
        # miners
        "AmbiguousNegativeMiner": {"a": times(5), "k": number(4)},
        "DistanceWeightedMiner": {"cutoff": level(0.3, least=0), "nonzero_loss_cutoff": level(0.3, least=0)},
        "ExponentialPositiveMiner": {"num_positives": number(3), "scale": times(4)},
        "HardNegativePairMiner": {"epsilon": times(5)},
        "InverseDensityMiner": {"num_negatives": number(4), "per_positive": number(4)},
        "KNearestNegativeMiner": {"k": number(4)},
        "KNearestPositiveMiner": {"k": number(3)},
        "MultiSimilarityMiner": {"epsilon": times(5)},
        "PositiveAwareMiner": {"relative_margin": times(5)},
        "TripletMarginMiner": {"margin": times(5)},
        # wrappers and centers
        "AnchorWeightedLoss": {"alpha": times(5)},
        "BranchDiversityRegularizer": {"beta": times(5)},
        "BranchLoss": {"sizes": number(2, least=2)},
        "CodingRateRegularizer": {"distortion": times(4)},
        "CrossBatchMemory": {"memory_size": number(4)},
        "ExpandedReferences": {"n": number(2)},
        "KMeansCenters": {"n_clusters": number(2, least=2), "label_weight": between(0, 1)},
        "LearnedCenters": {"centers_per_class": number(3)},
        "RandomSliceLoss": {"sizes": number(2, least=2)},
        # losses of PML
        "ArcFaceLoss": {"margin": between(5, 50), "scale": times(4)},
        "CircleLoss": {"m": between(0.1, 0.6), "gamma": times(4)},
        "ContrastiveLoss": _TWO_LEVELS,
        "CosFaceLoss": {"margin": between(0.05, 0.6), "scale": times(4)},
        "IntraPairVarianceLoss": {"pos_eps": times(10), "neg_eps": times(10)},
        "MarginLoss": {"margin": times(4), "beta": level(0.4)},
        "NCALoss": {"softmax_scale": times(20)},
        "NTXentLoss": {"temperature": times(5)},
        "NormalizedSoftmaxLoss": {"temperature": times(5)},
        "ProxyAnchorLoss": {"margin": times(5), "alpha": times(4)},
        "ProxyNCALoss": {"softmax_scale": times(20)},
        "SignalToNoiseRatioContrastiveLoss": _TWO_LEVELS,
        "SoftTripleLoss": {
            "centers_per_class": number(3),
            "la": times(4),
            "gamma": times(5),
            "margin": times(10),
        },
        "SupConLoss": {"temperature": times(5)},
        "TripletMarginLoss": {"margin": times(5)},
        "TupletMarginLoss": {"margin": level(4), "scale": times(4)},
    }
)


def ranges(make: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges of one loss, miner or wrapper, around the given arguments or their defaults.

    Args:
        make: the class.
        args: the arguments in which it differs from the defaults.

    Example:
        >>> from pml_ext.losses import KNNSoftmaxLoss
        >>> for name, each in ranges(KNNSoftmaxLoss, {"k": None}).items():
        ...     print(name, each)
        alpha 4 to 64 (16), log
        negative_weight 0.25 to 4 (1), log
    """
    found = {}
    values = arguments(make) | dict(args)
    for name, around in SPACES.get(getattr(make, "__name__", ""), {}).items():
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        try:
            found[name] = around(value)
        except ValueError:  # a logarithm around 0: the recipe leaves this part out
            continue
    return found


def arguments(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a class and their defaults, those that it hands up to its bases too; None without a default."""
    found: dict[str, Any] = {}
    for base in getattr(make, "__mro__", (make,)):
        function = vars(base).get("__init__") if inspect.isclass(base) else base
        if inspect.isfunction(function):
            for name, parameter in inspect.signature(function).parameters.items():
                empty = parameter.default is inspect.Parameter.empty
                found.setdefault(name, None if empty else parameter.default)
    return found
