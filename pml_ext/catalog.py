"""The methods of the literature by name: what each is made of, and the tables of the README.

`python -m pml_ext.catalog` prints the tables; `python -m pml_ext.catalog README.md` writes them into that file.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss, MarginLoss, NPairsLoss, SoftTripleLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import Tensor

from pml_ext import losses, miners, spaces, wrappers
from pml_ext.centers import BatchCenters, KMeansCenters, LearnedCenters
from pml_ext.losses import (
    AdaptiveBinomialDevianceLoss,
    AnchorContrastiveLoss,
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BinomialDevianceLoss,
    CenterLoss,
    ClampedNCALoss,
    ClassCenterMarginLoss,
    DecoupledNCALoss,
    EasyPositiveTripletLoss,
    GeneralizedLiftedStructureLoss,
    HistogramLoss,
    KNNSoftmaxLoss,
    LargeMarginNearestNeighborLoss,
    LiftedStructureLoss,
    LinearPullDevianceLoss,
    LogSumExpPairLoss,
    MeanGapLoss,
    MultiSimilarityLoss,
    RankedPullDevianceLoss,
    RAWLoss,
    SemiHardTripletLoss,
    SoftTripletLoss,
)
from pml_ext.miners import (
    ChainedMiner,
    DistanceWeightedMiner,
    ExponentialPositiveMiner,
    HardNegativePairMiner,
    InverseDensityMiner,
    KNearestNegativeMiner,
    KNearestPositiveMiner,
)
from pml_ext.wrappers import (
    AnchorWeightedLoss,
    BranchDiversityRegularizer,
    BranchLoss,
    CentersAsReferences,
    CrossBatchMemory,
    MinedLoss,
    RandomSliceLoss,
)
from pml_ext.wrappers.mined import mined_pairs


@dataclass(frozen=True)
class Recipe:
    """A named method, ready to use: its parts drop into PML's trainers as `loss_funcs` and `mining_funcs`.

    Args:
        name: the name in the literature.
        loss: a PML loss.
        miner: a PML miner, or None if the loss takes all pairs.
        source: where the method comes from, and what it is there.
    """

    name: str
    loss: Any
    miner: Any
    source: str

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mine, then compute the loss: embeddings [n, d], labels [n] -> a scalar."""
        pairs = None if self.miner is None else mined_pairs(self.miner, self.loss, embeddings, labels)
        loss: Tensor = self.loss(embeddings, labels, pairs)
        return loss


@dataclass(frozen=True)
class Part:
    """An argument of a part that is itself made of parts: what makes it, and its arguments."""

    make: Callable[..., Any]
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """How to make a recipe: a loss, a miner or None, and the arguments in which they differ from their defaults.

    An argument that is a class, a distance say, or a `Part`, or a tuple of these, is made anew for every recipe. What
    `pml_ext.spaces` says of an argument's range is replaced by what `space` says; None takes it out. An override of an
    argument in `shared` is one of another part's argument too.
    """

    loss: Callable[..., Any]
    miner: Callable[..., Any] | None = None
    source: str = ""
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    miner_args: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, spaces.Range | None] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


_hard_negatives = Part(HardNegativePairMiner, {"distance": LpDistance})
_near_and_drawn = Part(ChainedMiner, {"miners": (InverseDensityMiner, KNearestPositiveMiner, _hard_negatives)})
_lifted_2020 = {"alpha": 2, "beta": 40, "pos_base": 0, "neg_base": 0, "scale": 2, "distance": CosineSimilarity}

# Of embeddings that are of unit length already, and of their means, which are not to be.
_euclidean = Part(LpDistance, {"normalize_embeddings": False})
_squared = Part(LpDistance, {"power": 2, "normalize_embeddings": False})

recipes: Mapping[str, Entry] = MappingProxyType(
    {
        "RAW": Entry(RAWLoss, source="OpenReview Skf5qiC5KQ, 2018"),
        "BatchAll": Entry(BatchAllTripletLoss, source="Hermans et al. 2017, arXiv 1703.07737; margin of the 2018 zoo"),
        "ABatchAll": Entry(AnchorWeightedLoss, source="the 2018 zoo", loss_args={"loss": BatchAllTripletLoss}),
        "AHardPair": Entry(AnchorWeightedLoss, source="the 2018 zoo", loss_args={"loss": LogSumExpPairLoss}),
        "ATriplet": Entry(AnchorWeightedLoss, source="the 2018 zoo", loss_args={"loss": SoftTripletLoss}),
        "BatchHard": Entry(BatchHardTripletLoss, source="Hermans et al. 2017, arXiv 1703.07737"),
        "Contrastive2018": Entry(AnchorContrastiveLoss, source="Hadsell et al. 2006; the 2018 zoo"),
        "GeneralizedLiftedStructure": Entry(
            GeneralizedLiftedStructureLoss, source="Hermans et al. 2017, arXiv 1703.07737"
        ),
        "LiftedStructure": Entry(LiftedStructureLoss, source="Song et al. 2016, arXiv 1511.06452"),
        "MultiSimilarity": Entry(
            MultiSimilarityLoss, source="Wang et al. 2019, arXiv 1904.06627, without mining (see RAW)"
        ),
        "SemiHard": Entry(SemiHardTripletLoss, source="Schroff et al. 2015 (FaceNet), arXiv 1503.03832"),
        "SoftTriplet": Entry(
            SoftTripletLoss, source="the 2018 zoo's Triplet, after Hermans et al. 2017", loss_args={"threshold": 0.7}
        ),
        "Triplet": Entry(
            BatchAllTripletLoss,
            source="Weinberger, Saul 2009; Schroff et al. 2015; as PML's TripletMarginLoss",
            loss_args={"margin": 0.05},
        ),
        "BinDeviance2018": Entry(
            BinomialDevianceLoss, HardNegativePairMiner, source="Yi et al. 2014, arXiv 1407.4979; the 2018 zoo"
        ),
        "DistWeightBinDeviance": Entry(
            BinomialDevianceLoss,
            InverseDensityMiner,
            source="the 2018 zoo, after Wu et al. 2017",
            miner_args={"distance": CosineSimilarity},
        ),
        "DistWeight": Entry(
            LargeMarginNearestNeighborLoss,
            ExponentialPositiveMiner,
            source="the 2018 zoo",
            loss_args={"k": 1, "margin": 0.01, "distance": CosineSimilarity},
        ),
        "DistWeightContrastive": Entry(
            AnchorContrastiveLoss,
            InverseDensityMiner,
            source="the 2018 zoo, after Wu et al. 2017",
            loss_args={"pos_margin": 0.7, "neg_margin": 1.2},
        ),
        "DistWeightNeighbour": Entry(
            BinomialDevianceLoss,
            ChainedMiner,
            source="the 2018 zoo, after Wu et al. 2017",
            loss_args={"beta": 20, "base": 1, "scale": 1, "distance": LpDistance},
            miner_args=_near_and_drawn.args,
        ),
        "DistanceMatch": Entry(
            RankedPullDevianceLoss,
            ChainedMiner,
            source="the 2018 zoo, after Wu et al. 2017",
            miner_args={
                "miners": (
                    Part(InverseDensityMiner, {"num_negatives": 3, "per_positive": 3}),
                    KNearestPositiveMiner,
                    _hard_negatives,
                )
            },
        ),
        "DistanceWeighted": Entry(
            MarginLoss, DistanceWeightedMiner, source="Wu et al. 2017, arXiv 1706.07567; PML's loss"
        ),
        "Margin": Entry(MarginLoss, source="Wu et al. 2017, arXiv 1706.07567, over all triplets; PML's loss"),
        "MarginDeviance": Entry(AdaptiveBinomialDevianceLoss, source="the 2018 zoo"),
        "MarginPositive": Entry(LinearPullDevianceLoss, source="the 2018 zoo"),
        "Binomial2020": Entry(
            BinomialDevianceLoss, source="the 2020 zoo, with equal slopes (balance=20 as coded)", loss_args={"beta": 40}
        ),
        "Binomial2020Mined": Entry(
            BinomialDevianceLoss, MultiSimilarityMiner, source="the 2020 zoo; PML's miner", loss_args={"beta": 40}
        ),
        "Contrastive2020": Entry(
            AnchorContrastiveLoss,
            source="the 2020 zoo, without jumps of its value (step=0.5 as coded)",
            loss_args={"pos_margin": 1, "neg_margin": 0.5, "average": False, "distance": CosineSimilarity},
            space={"pos_margin": spaces.Range(0.7, 1, 1), "neg_margin": spaces.Range(0.1, 0.9, 0.5)},
        ),
        "HardMining2020": Entry(
            LargeMarginNearestNeighborLoss,
            MultiSimilarityMiner,
            source="the 2020 zoo: mean (1 - s_ip) + mean s_in; PML's miner",
            loss_args={"k": None, "margin": 1, "distance": CosineSimilarity},
        ),
        "Lifted2020": Entry(
            LogSumExpPairLoss,
            source="the 2020 zoo, after Hermans et al. 2017, arXiv 1703.07737",
            loss_args=_lifted_2020,
        ),
        "Lifted2020Mined": Entry(
            LogSumExpPairLoss,
            MultiSimilarityMiner,
            source="the 2020 zoo, after Hermans et al. 2017; PML's miner",
            loss_args=_lifted_2020,
        ),
        "NCA": Entry(KNNSoftmaxLoss, source="Goldberger et al. 2004; the 2018 zoo's k-NN form"),
        "Center": Entry(CenterLoss, source="Wen et al. 2016"),
        "CenterNCA": Entry(
            CentersAsReferences,
            source="the 2018 zoo",
            loss_args={
                "loss": Part(KNNSoftmaxLoss, {"alpha": 16, "k": None, "distance": _squared}),
                "centers": Part(BatchCenters, {"detach": True}),
                "normalize_embeddings": True,
            },
        ),
        "CenterPair": Entry(
            CentersAsReferences,
            source="the 2018 zoo's CenterTripletLoss, with its sign corrected",
            loss_args={
                "loss": Part(ClampedNCALoss, {"distance": _euclidean}),
                "centers": BatchCenters,
                "normalize_embeddings": True,
            },
        ),
        "ClassCenterMargin": Entry(
            ClassCenterMarginLoss, source="the 2018 zoo's CenterLoss, with its sign corrected (not that of Wen et al.)"
        ),
        "ClusterNCA": Entry(
            CentersAsReferences,
            source="the 2018 zoo, after Rippel et al. 2016 (Magnet), arXiv 1511.05939",
            loss_args={
                "loss": Part(KNNSoftmaxLoss, {"alpha": 16, "k": None, "distance": _squared}),
                "centers": Part(KMeansCenters, {"n_clusters": 16, "label_weight": 0.5}),
                "leave_one_out": True,
                "normalize_embeddings": True,
            },
        ),
        "KmeanNCA": Entry(
            CentersAsReferences,
            source="what the 2018 zoo's KmeanLoss, which cannot be run, was to be",
            loss_args={
                "loss": Part(KNNSoftmaxLoss, {"alpha": 16, "k": None, "distance": _squared}),
                "centers": Part(KMeansCenters, {"n_clusters": 3, "per_class": True}),
                "leave_one_out": True,
                "normalize_embeddings": True,
            },
            space={"label_weight": None},  # classes are clustered one by one
        ),
        "MCA": Entry(
            CentersAsReferences,
            source="the 2018 zoo; as SoftTriple and ProxyNCA, with the nearest negatives only",
            loss_args={
                "loss": Part(
                    MinedLoss,
                    {
                        "loss": Part(KNNSoftmaxLoss, {"alpha": 16, "k": None}),
                        # The same as by the distance, from the scores that the loss has.
                        "miner": Part(KNearestNegativeMiner, {"k": 32, "distance": Part(LpDistance, {"power": 2})}),
                    },
                ),
                "centers": Part(LearnedCenters, {"centers_per_class": 3}),
            },
        ),
        "GaussianLDA": Entry(
            KNNSoftmaxLoss,
            source="the 2018 zoo (neither Gaussian nor LDA: k-NN softmax on the distance itself)",
            loss_args={"alpha": 30, "k": 16, "distance": LpDistance},
        ),
        "SoftmaxNeig": Entry(
            KNNSoftmaxLoss,
            source="the 2018 zoo",
            loss_args={"alpha": 50, "k": None, "negative_weight": 0.5, "distance": LpDistance},
        ),
        "GradNCA": Entry(DecoupledNCALoss, source="the 2018 zoo"),
        "Neighbour": Entry(
            LargeMarginNearestNeighborLoss, source="the 2018 zoo's online form of Weinberger, Saul 2009 (LMNN)"
        ),
        "NeighbourHard": Entry(EasyPositiveTripletLoss, source="the 2018 zoo (hard in its negative only)"),
        "GaussianMetric": Entry(MeanGapLoss, source="the 2018 zoo (nothing in it is Gaussian)"),
        "Histogram": Entry(HistogramLoss, source="Ustinova, Lempitsky 2016, arXiv 1611.00822"),
        "BinBranch": Entry(
            BranchLoss,
            source="the 2018 zoo, after Opitz et al. 2017 (BIER); BinDeviance2018 on each of 3 slices",
            loss_args={
                "loss": Part(MinedLoss, {"loss": BinomialDevianceLoss, "miner": HardNegativePairMiner}),
                "sizes": 3,
            },
        ),
        "DevBranch": Entry(
            BranchLoss,
            source="the 2018 zoo's DistWeightDevBranch; DistWeightBinDeviance on each of 3 slices",
            loss_args={
                "loss": Part(
                    MinedLoss,
                    {
                        "loss": BinomialDevianceLoss,
                        "miner": Part(InverseDensityMiner, {"distance": CosineSimilarity}),
                    },
                ),
                "sizes": 3,
            },
        ),
        "BDWNeighbour": Entry(
            BranchLoss,
            source="the 2018 zoo; DistWeightNeighbour, with a base of 0.7, on each of 3 slices",
            loss_args={
                "loss": Part(
                    MinedLoss,
                    {
                        "loss": Part(
                            BinomialDevianceLoss, {"beta": 20, "base": 0.7, "scale": 1, "distance": LpDistance}
                        ),
                        "miner": _near_and_drawn,
                    },
                ),
                "sizes": 3,
            },
        ),
        "EnsembleDWNeighbour": Entry(
            RandomSliceLoss,
            source="the 2018 zoo; DistWeightNeighbour on each of 3 slices of shuffled columns",
            loss_args={
                "loss": Part(
                    MinedLoss,
                    {
                        "loss": Part(BinomialDevianceLoss, {"beta": 20, "base": 1, "scale": 1, "distance": LpDistance}),
                        "miner": _near_and_drawn,
                    },
                ),
                "sizes": 3,
            },
        ),
        "JSDivBranch": Entry(
            BranchLoss,
            source="the 2018 zoo's JSDivKNNSoftmax, with a true Jensen-Shannon divergence",
            loss_args={
                "loss": Part(KNNSoftmaxLoss, {"alpha": 40, "k": 100, "distance": LpDistance}),
                "sizes": 4,
                "embedding_regularizer": Part(BranchDiversityRegularizer, {"sizes": 4, "beta": 40}),
            },
            shared={"sizes": "embedding_regularizer.sizes"},
        ),
        "NPair": Entry(
            NPairsLoss,
            source="Sohn 2016, with its inner products and its L2 term (weight 3e-3 / 4 each); PML's loss",
            loss_args={
                "distance": Part(DotProductSimilarity, {"normalize_embeddings": False}),
                "embedding_regularizer": Part(LpRegularizer, {"p": 2, "power": 2}),
                "embedding_reg_weight": 0.0015,
            },
            space={"embedding_reg_weight": spaces.Range(5e-5, 0.05, 0.0015, log=True)},
        ),
        "SoftTriple": Entry(SoftTripleLoss, source="Qian et al. 2019, arXiv 1909.05235; PML's loss"),
        "XBM": Entry(
            CrossBatchMemory,
            source="Wang et al. 2020, arXiv 1912.06798; PML's loss",
            loss_args={"loss": ContrastiveLoss},
        ),
    }
)


def build(name: str, **overrides: Any) -> Recipe:
    """Make the recipe of that name; keyword overrides go to its loss, those called `miner.<argument>` to its miner.

    Of a loss or miner made of parts, an override goes to the outermost part that names it as an argument;
    `<argument>.<name>` begins at the part that is that argument.

    Raises:
        ValueError: no recipe has that name; the message lists the nearest, or all.
        TypeError: an argument without a default is missing (see `needs`), or no part takes an override.

    Example:
        >>> recipe = build("BinDeviance2018", base=0.4, **{"miner.epsilon": 0.2})
        >>> recipe.loss.base, recipe.miner.epsilon
        (0.4, 0.2)
        >>> recipe = build("CenterNCA", alpha=8)
        >>> recipe.loss.loss.alpha
        8
    """
    entry = _entry(name)
    missing = [argument for argument in needs(name) if argument not in overrides]
    if missing:
        raise TypeError(f"{name} needs {', '.join(missing)}: give {' and '.join(f'{each}=' for each in missing)}")
    # Those that the caller gives for a part by name are that part's.
    overrides = {entry.shared[each]: overrides[each] for each in entry.shared if each in overrides} | overrides
    parts = {"loss": Part(entry.loss, entry.loss_args)}
    if entry.miner is not None:
        parts["miner"] = Part(entry.miner, entry.miner_args)
    plain = {key: value for key, value in overrides.items() if "." not in key}
    parts["loss"], others = _overridden(parts["loss"], plain)
    for key in (key for key in overrides if "." in key):
        place, _, argument = key.partition(".")
        own_miner = place == "miner" and "miner" in parts
        changed = _within(Part(Recipe, parts) if own_miner else parts["loss"], place, {argument: overrides[key]})
        if changed is None:
            raise TypeError(f"{name} has no part that takes {key}; searched are {', '.join(space(name)) or 'none'}")
        parts = dict(changed.args) if own_miner else parts | {"loss": changed}
    loss = parts["loss"].make(**(_made(parts["loss"].args, others) | others))
    return Recipe(name, loss, _made_value(parts.get("miner")), entry.source)


def space(name: str) -> dict[str, spaces.Range]:
    """What a search may change in a recipe, and from where to where: the keywords of `build`.

    Example:
        >>> for keyword, values in space("BinDeviance2018").items():
        ...     print(keyword, values)
        alpha 0.5 to 8 (2), log
        beta 12.5 to 200 (50), log
        base 0.2 to 0.8 (0.5)
        balance 0.2 to 5 (1), log
        miner.epsilon 0.01 to 0.25 (0.05), log
    """
    entry = _entry(name)
    root = Part(entry.loss, entry.loss_args)
    found = _ranges(root)
    miner = [] if entry.miner is None else [("miner", Part(entry.miner, entry.miner_args))]
    for place, part in [*_places(root), *miner, *(("miner", inner) for _, each in miner for _, inner in _places(each))]:
        for key, values in _ranges(part).items():
            found.setdefault(f"{place}.{key}" if place == "miner" or key in found else key, values)
    for key, replaced in entry.space.items():
        found.pop(key, None)
        if replaced is not None:
            found[key] = replaced
    return found


def needs(name: str) -> tuple[str, ...]:
    """The arguments that `build` must be given for that recipe: those of its loss that have no default.

    Example:
        >>> needs("RAW"), needs("MCA")
        ((), ('num_classes', 'embedding_size'))
    """
    entry = _entry(name)
    return tuple(_needs(Part(entry.loss, entry.loss_args)))


def _entry(name: str) -> Entry:
    if name not in recipes:
        by_lower = {each.lower(): each for each in recipes}
        near = [by_lower[each] for each in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(recipes))}"
        raise ValueError(f"no recipe is called {name!r}: {hint}")
    return recipes[name]


def _as_part(value: Any) -> Part | None:
    return value if isinstance(value, Part) else Part(value) if inspect.isclass(value) else None


def _overridden(part: Part, overrides: Mapping[str, Any]) -> tuple[Part, dict[str, Any]]:
    """The part with the overrides that it or a part of it names, and those that none of them names."""
    named = {*inspect.signature(part.make).parameters, *part.args}
    args = dict(part.args) | {k: v for k, v in overrides.items() if k in named}
    others = {k: v for k, v in overrides.items() if k not in named}
    for key, value in args.items():
        if key in overrides:
            continue
        if isinstance(value, tuple):
            members = []
            for member in value:
                inner = _as_part(member)
                changed, others = (member, others) if inner is None else _overridden(inner, others)
                members.append(changed)
            args[key] = tuple(members)
        elif (inner := _as_part(value)) is not None and others:
            args[key], others = _overridden(inner, others)
    return Part(part.make, args), others


def _places(part: Part) -> Iterator[tuple[str, Part]]:
    """Every part of a part, outermost first, with the name of the argument that it is; `miner` for what a miner has."""
    level = [("", part)]
    while level:
        inner = [
            ("miner" if place == "miner" else key, found)
            for place, outer in level
            for key, value in outer.args.items()
            for member in (value if isinstance(value, tuple) else (value,))
            if (found := _as_part(member)) is not None
        ]
        yield from inner
        level = inner


def _within(part: Part, place: str, override: Mapping[str, Any]) -> Part | None:
    """The part with an override in the outermost of its parts that is the argument `place` and takes it."""
    if (target := _as_part(part.args.get(place))) is not None:
        changed, others = _overridden(target, override)
        if not others:
            return Part(part.make, {**part.args, place: changed})
    for key, value in part.args.items():
        if (inner := _as_part(value)) is not None and (found := _within(inner, place, override)) is not None:
            return Part(part.make, {**part.args, key: found})
    return None


def _ranges(part: Part) -> dict[str, spaces.Range]:
    return spaces.ranges(part.make, part.args)


_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _needs(part: Part) -> dict[str, None]:
    """The names of the arguments that have no default and are not given, in order: the keys."""
    names: dict[str, None] = {}
    for parameter in inspect.signature(part.make).parameters.values():
        inner = _as_part(part.args.get(parameter.name))
        if inner is not None:
            names |= _needs(inner)
        elif parameter.default is parameter.empty and parameter.kind not in (_ARGS, _KWARGS):
            names |= {} if parameter.name in part.args else {parameter.name: None}
    return names


def _made(args: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _made_value(v) for k, v in args.items() if k not in overrides}


def _made_value(value: Any) -> Any:
    if isinstance(value, Part):
        return value.make(**_made(value.args, {}))
    if isinstance(value, tuple):
        return tuple(_made_value(each) for each in value)
    return value() if inspect.isclass(value) else value


def all_losses() -> list[type]:
    """Every loss class of this package, by name."""
    return [getattr(losses, name) for name in losses.__all__]


def all_miners() -> list[type]:
    """Every miner class of this package, by name."""
    return [getattr(miners, name) for name in miners.__all__]


def all_wrappers() -> list[type]:
    """Every wrapper class of this package, by name."""
    return [getattr(wrappers, name) for name in wrappers.__all__]


def tables() -> str:
    """The README's tables of losses, miners, wrappers and recipes, in Markdown."""
    return "\n\n".join(
        (
            "**Losses**\n\n" + _class_table(all_losses()),
            "**Miners**\n\n" + _class_table(all_miners()),
            "**Wrappers**\n\n" + _class_table(all_wrappers()),
            "**Methods of the literature**, by `pml_ext.catalog.build(name)`\n\n" + _recipe_table(),
        )
    )


def _class_table(classes: list[type]) -> str:
    rows = (f"| `{cls.__name__}({', '.join(_own_arguments(cls))})` | {_first_line(cls)} |" for cls in classes)
    return "\n".join(("| class and defaults | what it does |", "|---|---|", *rows))


def _recipe_table() -> str:
    rows = (
        f"| {name} | {_made_of(entry.loss, entry.loss_args)} | {_made_of(entry.miner, entry.miner_args)} "
        f"| {entry.source} |"
        for name, entry in recipes.items()
    )
    return "\n".join(("| name | loss | miner | source |", "|---|---|---|---|", *rows))


def _made_of(part: Callable[..., Any] | None, args: Mapping[str, Any]) -> str:
    return "" if part is None else f"`{_call(part.__name__, args)}`" if args else f"`{part.__name__}`"


def _call(name: str, args: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{k}={_written(v)}' for k, v in args.items())})"


def _written(value: Any) -> str:
    if isinstance(value, Part):
        return _call(value.make.__name__, value.args)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value.__name__}()" if inspect.isclass(value) else repr(value)


def _own_arguments(cls: type) -> list[str]:
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind < p.VAR_KEYWORD]
    return [p.name if p.default is p.empty else f"{p.name}={_written(p.default)}" for p in parameters]


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


_MARKED = re.compile(r"(<!-- tables: python -m pml_ext.catalog README.md -->\n).*(<!-- end of tables -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The text of a README with the tables between its two marks brought up to date."""
    text, found = _MARKED.subn(lambda mark: f"{mark[1]}\n{tables()}\n\n{mark[2]}", text)
    if not found:
        raise ValueError("the marks of the tables are missing in the README")
    return text


def main() -> None:
    """Print the tables, or write them into the README that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", nargs="?", type=Path, help="the file to bring up to date")
    readme = parser.parse_args().readme
    if readme is None:
        print(tables())
    else:
        readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
