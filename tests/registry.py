"""What there is to test, by name: everything exported, and the settings of it that the laws are tried on.

Exporting a class is enough to be in here. A class that needs constructor arguments of a known name gets them from
`ARGUMENTS`; settings that reach code which the defaults do not are in `MORE`; a law that a class need not keep is in
`EXCEPTIONS`, with the reason.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import TripletMarginMiner

from pml_ext import catalog, weightings, wrappers
from pml_ext.catalog import all_losses, all_miners, recipes
from pml_ext.centers import BatchCenters, RunningCenters
from pml_ext.losses import RAWLoss
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner, KNearestPositiveMiner

DIMENSION = 4
ARGUMENTS: dict[str, Callable[[], Any]] = {
    "num_classes": lambda: 12,
    "embedding_size": lambda: DIMENSION,
    "loss": RAWLoss,
    "centers": BatchCenters,
    "miner": KNearestPositiveMiner,
    "per_anchor": lambda: 1,
    "weighting": lambda: weightings.raw,
    "sizes": lambda: 2,
}

MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "CappedMiner": ({"miner": TripletMarginMiner(margin=1), "per_anchor": 2},),
    "AnchorContrastiveLoss": ({"average": False, "step": 0.5},),
    "BatchHardTripletLoss": ({"margin": None},),
    "ChainedMiner": ({"miners": (InverseDensityMiner(), KNearestPositiveMiner(k=2))},),
    "DistanceWeightedMiner": ({"nonzero_loss_cutoff": None, "dimension": 3},),
    "HardNegativeContrastiveLoss": ({"tau_plus": 0.3}, {"tau_plus": 0.1, "detach": False}, {"beta": 0}),
    "InverseDensityMiner": ({"num_negatives": 2, "max_z": 1.0},),
    "KNNSoftmaxLoss": ({"k": 2},),
    "DecoupledNCALoss": ({"k": 2, "alpha": 4, "beta": 1},),
    "LargeMarginNearestNeighborLoss": ({"k": None},),
    "LogSumExpPairLoss": ({"scale": 1, "bounded": True},),
    "PairWeightedLoss": tuple(
        {"weighting": each}
        for each in (
            weightings.binomial_deviance,
            weightings.contrastive,
            weightings.lifted_structure,
            weightings.multi_similarity,
            weightings.triplet,
        )
    ),
    "PNPLoss": ({"variant": "Dq", "alpha": 4, "temperature": 0.1}, {"variant": "Iu"}),
    "PositiveAwareMiner": ({"reference": "min", "absolute_margin": 0.1, "range_min": 1, "k": 2},),
    "RankedPullDevianceLoss": ({"sharp": True},),
    "RecallAtKLoss": ({"ranks": "upper"}, {"k": 1, "temperature": 0.1, "k_temperature": 0.5}),
    "SelectivelyContrastiveTripletLoss": ({"level": None, "temperature": 0.5, "lam": 0.3},),
    "SigmoidPairLoss": ({"bias": -10, "reduction": "mean"},),
    "SmoothAPLoss": ({"temperature": 0.1},),
    "SoftTripletLoss": ({"normalization": "triplet", "threshold": 0.0}, {"normalization": "legacy"}),
}

EXCEPTIONS: dict[str, dict[str, str]] = {
    "BranchLoss": {"rotation_changes_nothing": "slices are columns, which a rotation mixes"},
    "CenterLoss": {
        "nothing_waits_for_the_device": "on the CPU only, labels are checked to be numbers of centers",
    },
    "CentersAsReferences": {
        "one_pair_of_each_kind_is_enough": "the pairs are those of samples and centers",
        "all_pairs_equal_labels": "the pairs are those of samples and centers",
        "references_equal_to_the_batch_agree": "its references are the centers",
        "references_are_a_set": "its references are the centers",
        "a_single_reference_has_a_finite_loss": "its references are the centers",
    },
    "DecoupledNCALoss(k=2, alpha=4, beta=1)": {
        "equal_samples_are_treated_alike": "of equal positives the first is the one always kept",
    },
    "ExpandedReferences": {
        "one_pair_of_each_kind_is_enough": "of pairs that are given nobody says what lies between",
        "all_pairs_equal_labels": "of pairs that are given nobody says what lies between",
        "references_equal_to_the_batch_agree": "of pairs that are given nobody says what lies between",
    },
    "HardNegativeContrastiveLoss(tau_plus=0.1, detach=False)": {
        "pair_weights_are_derivatives_by_the_score": "as published: negatives easier than the tilted mean are pulled",
        "positives_are_pulled_and_negatives_pushed": "as published: negatives easier than the tilted mean are pulled",
    },
    "HistogramLoss": {"one_pair_of_each_kind_is_enough": "it is constant where histograms do not overlap"},
    "KNNSoftmaxLoss(k=2)": {"equal_samples_are_treated_alike": "of equal positives the first is the one always kept"},
    "LargeMarginNearestNeighborLoss": {"equal_samples_are_treated_alike": "of equal positives the first are targets"},
    "LargeMarginNearestNeighborLoss(k=None)": {},
    "MeanGapLoss": {"one_pair_of_each_kind_is_enough": "it keeps no pair of fewer than five positive ones"},
    "MinedLoss": {
        "one_pair_of_each_kind_is_enough": "it finds its pairs itself",
        "all_pairs_equal_labels": "it finds its pairs itself",
        "references_equal_to_the_batch_agree": "it finds its pairs itself",
    },
    "NPair": {
        "every_default_device_will_do": "PML makes the numbers of the pairs where it pleases",
        "batch_order_is_irrelevant": "of each class it takes the pair that comes first",
        "empty_batch_costs_nothing": "PML's regularizer takes the mean over no sample",
        "it_learns": "it takes one pair of each class, and inner products grow with lengths too: not in so few steps",
    },
    "RandomSliceLoss": {"rotation_changes_nothing": "slices are columns, which a rotation mixes"},
    "RankedPullDevianceLoss": {"equal_samples_are_treated_alike": "of equal positives one comes first"},
    "SemiHardTripletLoss": {"equal_samples_are_treated_alike": "of equal negatives the last is the nearest"},
}
_COMPETE = dict.fromkeys(
    ("positives_are_pulled_and_negatives_pushed", "pair_weights_are_derivatives_by_the_score"),
    "positives compete for ranks: one of them may be pushed back by another",
)
_PULLED = EXCEPTIONS["HardNegativeContrastiveLoss(tau_plus=0.1, detach=False)"]
EXCEPTIONS |= {
    "HCL": _PULLED,
    "H-SCL": _PULLED,
    "RecallAtKLoss": _COMPETE,
    "RecallAtKLoss(ranks=upper)": {},
    "SmoothAPLoss": _COMPETE,
    "SmoothAPLoss(temperature=0.1)": {
        **_COMPETE,
        "float32_keeps_small_distances_among_large_ones": "it takes differences of scores of far pairs, too",
    },
}

# Laws that a class breaks and should not, with what is wrong: a test fails as soon as the law holds.
FAULTS: dict[str, dict[str, str]] = {}


def exceptions(subject, name=""):
    """The laws that the subject need not keep or is known to break, each with the reason.

    Those of its class, or of the setting of it that has the name; those of the recipe of that name beside both.
    """
    own = type(subject).__name__
    of_class = {} if name in EXCEPTIONS and name.startswith(f"{own}(") else EXCEPTIONS.get(own, {})
    return of_class | EXCEPTIONS.get(name, {}) | FAULTS.get(own, {}) | FAULTS.get(name, {})


def make(cls, **arguments):
    """An instance: the arguments given, a known value for those that the class needs, its defaults for the others."""
    needed = (p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty and p.kind < 4)
    known = {name: ARGUMENTS[name]() for name in needed if name in ARGUMENTS}
    return cls(**(known | arguments))


def _named(classes):
    factories: dict[str, Callable[[], Any]] = {}
    for cls in classes:
        factories[cls.__name__] = partial(make, cls)
        for arguments in MORE.get(cls.__name__, ()):
            name = ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in arguments.items())
            factories[f"{cls.__name__}({name})"] = partial(make, cls, **arguments)
    return factories


def all_wrappers():
    """Every wrapper class of this package that is a loss."""
    classes = (getattr(wrappers, name) for name in wrappers.__all__)
    return [cls for cls in classes if issubclass(cls, BaseMetricLossFunction)]


# What remembers, beyond the classes above: PML's base classes of these are no losses of PML's.
STATEFUL: dict[str, Callable[[], Any]] = {
    "CrossBatchMemory": partial(make, wrappers.CrossBatchMemory, memory_size=32),
    "CrossBatchMemory(miner)": partial(make, wrappers.CrossBatchMemory, memory_size=32, miner=HardNegativePairMiner()),
    "CentersAsReferences(RunningCenters)": lambda: make(wrappers.CentersAsReferences, centers=make(RunningCenters)),
}
LOSSES = _named(all_losses())
WRAPPERS = _named(all_wrappers())
MINERS = _named(all_miners())
# Recipes that are more than a class with its defaults.
RECIPES = {
    name: partial(catalog.build, name, **{each: ARGUMENTS[each]() for each in catalog.required(name)})
    for name, entry in recipes.items()
    if not inspect.isclass(entry.make)
}
