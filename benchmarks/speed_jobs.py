"""What is measured: our catalog, PML's losses and miners of the same formula, per-anchor loops, and the floor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from loops import Loop, loops
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from pml_ext import catalog, weightings
from pml_ext.base import BatchLoss, RowLoss, SampleLoss
from pml_ext.centers import GroupCenters
from pml_ext.wrappers import CentersAsReferences
from pml_ext.wrappers.base import LossWrapper

Family = Literal["row", "center", "mined", "batch", "wrapper", "PML's", "miner", "stock", "loop"]
Step = Callable[[], None]
FLOOR = "F"


class Setting(NamedTuple):
    """A batch: n embeddings of dimension d, per_class of each class."""

    n: int
    d: int
    per_class: int

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return max(1, self.n // self.per_class)

    @property
    def triplets(self) -> int:
        """How many valid triplets there are."""
        return self.n * (self.per_class - 1) * (self.n - self.per_class)


@dataclass(frozen=True)
class Job:
    """Something to measure.

    Args:
        name: of ours, that of the catalog; of others, that of ours with which it is to be compared.
        family: what kind of thing it is.
        make: of a setting, what is called with embeddings and labels: a loss, or what runs without a gradient.
        what: what it is, if the name does not say.
        has_gradient: whether there is a backward pass.
        bytes: of a setting, about the memory that it takes, where this can be too much.
        seconds: of a setting, about the time that it takes, where this can be too much.
        growth: about the power of n with which its time grows.
    """

    name: str
    family: Family
    make: Callable[[Setting], Callable[[Tensor, Tensor], Any]]
    what: str = ""
    has_gradient: bool = True
    bytes: Callable[[Setting], float] = lambda setting: 0.0
    seconds: Callable[[Setting], float] = lambda setting: 0.0
    growth: float = 2.5

    @property
    def side(self) -> str:
        """Ours, or whose it is: stock or loop."""
        return self.family if self.family in ("stock", "loop") else "ours"

    @property
    def key(self) -> str:
        """A name of its own."""
        return self.name if self.side == "ours" else f"{self.name}, {self.side}"

    def step(self, setting: Setting, x: Tensor, labels: Tensor, chunk_size: int | None = None) -> Step:
        """One forward and backward pass, ready to be run again and again."""
        function = self.make(setting)
        if chunk_size is not None:
            set_chunk_size(function, chunk_size)
        if not self.has_gradient:

            def step() -> None:
                with torch.no_grad():
                    function(x, labels)

        else:
            x = x.clone().requires_grad_()

            def step() -> None:
                x.grad = None
                function(x, labels).backward()

        return step


def batch(setting: Setting, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Embeddings on the sphere, around the center of their class with three times its noise, and labels, in no order.

    With less noise there are no hard negatives, and mining seems cheap.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(setting.n) // setting.per_class
    centers = torch.randn(int(labels[-1]) + 1, setting.d, generator=generator, dtype=dtype)
    noise = torch.randn(setting.n, setting.d, generator=generator, dtype=dtype)
    x = torch.nn.functional.normalize(centers[labels] + 3 * noise)
    order = torch.randperm(setting.n, generator=generator)
    return x[order].to(device), labels[order].to(device)


def floor(setting: Setting, device: str) -> Step:
    """The three products that a pair loss must compute, through autograd."""
    x, _ = batch(setting, device)
    grad = torch.randn(setting.n, setting.n, generator=torch.Generator().manual_seed(1)).to(device)

    def step() -> None:
        leaf = x.clone().requires_grad_()
        (leaf @ leaf.t()).backward(grad)

    return step


def all_jobs() -> list[Job]:
    """Everything that can be measured, but the floor."""
    return [*_ours(), *_miners(), *_stock(), *_loops()]


def _family(recipe: catalog.Recipe) -> Family:
    loss = recipe.loss
    if isinstance(loss, CentersAsReferences | SampleLoss):
        return "center"
    if isinstance(loss, RowLoss):
        return "row" if recipe.miner is None else "mined"
    if isinstance(loss, BatchLoss):
        return "batch"
    return "wrapper" if isinstance(loss, LossWrapper) or type(loss).__module__.startswith("pml_ext") else "PML's"


def _arguments(names: tuple[str, ...], setting: Setting) -> dict[str, int]:
    known = {"num_classes": setting.num_classes, "embedding_size": setting.d}
    return {name: known[name] for name in names}


def build(name: str, setting: Setting) -> catalog.Recipe:
    """The method of that name, or the loss of that class, for batches of that setting."""
    if name in catalog.recipes:
        overrides = _arguments(catalog.required(name), setting)
        if name == "XBM":
            overrides["memory_size"] = max(1024, setting.n)
        return catalog.build(name, **overrides)
    (make,) = [each for each in catalog.all_losses() if each.__name__ == name]
    arguments = {"weighting": weightings.multi_similarity} if name == "PairWeightedLoss" else {}
    return catalog.Recipe(name, make(**arguments), None, "")


def _ours() -> list[Job]:
    """Every method of the catalog, then the losses of which none is there with its defaults and without a miner."""
    setting = Setting(8, 8, 2)
    plain = {entry.make for entry in catalog.recipes.values()}
    names = [*catalog.recipes, *(each.__name__ for each in catalog.all_losses() if each not in plain)]
    jobs = [
        Job(
            name,
            _family(build(name, setting)),
            lambda setting, name=name: build(name, setting),
            bytes=_triplet_bytes if name == "Margin" else lambda setting: 0.0,
            seconds=_triplet_seconds if name == "Margin" else lambda setting: 0.0,
        )
        for name in names
    ]
    given = [
        Job(f"{name}, clusters given", "center", lambda setting, name=name: _with_given_clusters(name, setting))
        for name in ("ClusterNCA", "KmeanNCA")
    ]
    return [*jobs, *given]


class _GivenClusters(GroupCenters):
    """Groups of about half a class, found once: what the clusters cost is not measured."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Tensor | None = None

    def groups(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Half of the samples are in the first group of their class."""
        if self.found is None:
            self.found = torch.arange(len(labels), device=labels.device) % 2
        return self.found


def _with_given_clusters(name: str, setting: Setting) -> catalog.Recipe:
    recipe = build(name, setting)
    recipe.loss.centers = _GivenClusters()
    return recipe


def _miners() -> list[Job]:
    return [
        Job(each.__name__, "miner", lambda setting, each=each: each(), has_gradient=False)
        for each in catalog.all_miners()
        if each.__name__ != "ChainedMiner"
    ]


def _mined(loss: Any, miner: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, labels: loss(x, labels, miner(x, labels))


# Measured on one core of a server: bytes and seconds of PML's intermediate results.


def _triplet_bytes(setting: Setting) -> float:
    return 53.0 * setting.triplets


def _triplet_seconds(setting: Setting) -> float:
    return 6e-7 * setting.triplets


def _pair_of_pairs_bytes(setting: Setting) -> float:
    return 22.0 * setting.n * (setting.per_class - 1) * setting.n * (setting.n - setting.per_class)


def _pair_of_pairs_seconds(setting: Setting) -> float:
    return _pair_of_pairs_bytes(setting) * 3.2e-9


def _histogram_seconds(setting: Setting) -> float:
    return 4e-6 * setting.triplets


def _draw_seconds(setting: Setting) -> float:
    return 1.3e-6 * setting.n**2


def _stock() -> list[Job]:
    """What PML has of the same formula; where it differs, `what` says so."""
    triplets = {"bytes": _triplet_bytes, "seconds": _triplet_seconds}

    def stock(name: str, what: str, make: Callable[[], Any], **kwargs: Any) -> Job:
        return Job(name, "stock", lambda setting: make(), what, **kwargs)

    return [
        stock(
            "RAW",
            "MultiSimilarityLoss + MultiSimilarityMiner",
            lambda: _mined(pml_losses.MultiSimilarityLoss(), pml_miners.MultiSimilarityMiner()),
        ),
        stock("MultiSimilarity", "MultiSimilarityLoss", lambda: pml_losses.MultiSimilarityLoss()),
        stock(
            "BatchAll", "TripletMarginLoss, all triplets", lambda: pml_losses.TripletMarginLoss(margin=0.02), **triplets
        ),
        stock(
            "Triplet", "TripletMarginLoss, all triplets", lambda: pml_losses.TripletMarginLoss(margin=0.05), **triplets
        ),
        stock(
            "BatchHard",
            "TripletMarginLoss + BatchHardMiner",
            lambda: _mined(pml_losses.TripletMarginLoss(margin=0.2), pml_miners.BatchHardMiner()),
        ),
        stock("Contrastive2018", "ContrastiveLoss, averaged per batch", lambda: pml_losses.ContrastiveLoss(0.6, 1.2)),
        stock(
            "NCA",
            "NCALoss, of all references instead of the 32 nearest",
            lambda: pml_losses.NCALoss(softmax_scale=16, distance=LpDistance(power=2)),
        ),
        stock(
            "GeneralizedLiftedStructure", "GeneralizedLiftedStructureLoss", pml_losses.GeneralizedLiftedStructureLoss
        ),
        stock(
            "LiftedStructure",
            "LiftedStructureLoss",
            pml_losses.LiftedStructureLoss,
            bytes=_pair_of_pairs_bytes,
            seconds=_pair_of_pairs_seconds,
        ),
        stock("Histogram", "HistogramLoss", pml_losses.HistogramLoss, bytes=_triplet_bytes, seconds=_histogram_seconds),
        stock(
            "DistanceWeighted",
            "MarginLoss + DistanceWeightedMiner",
            lambda: _mined(pml_losses.MarginLoss(), pml_miners.DistanceWeightedMiner()),
            seconds=_draw_seconds,
        ),
        stock(
            "DistanceWeightedMiner",
            "DistanceWeightedMiner",
            pml_miners.DistanceWeightedMiner,
            has_gradient=False,
            seconds=_draw_seconds,
        ),
        Job(
            "XBM",
            "stock",
            lambda setting: pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), setting.d, max(1024, setting.n)),
            "CrossBatchMemory(ContrastiveLoss)",
        ),
    ]


def _loops() -> list[Job]:
    def made(loop: Loop) -> Callable[[Setting], Loop]:
        return lambda setting: loop

    return [
        Job(
            name,
            "loop",
            made(loop),
            "loop over anchors",
            seconds=lambda setting: 6e-4 * setting.n + 1e-7 * setting.n**2,
            growth=2,
        )
        for name, loop in loops.items()
    ]


def set_chunk_size(recipe: catalog.Recipe, chunk_size: int | None) -> None:
    """Let every row loss in the method keep its memory linear in the batch."""
    for module in recipe.loss.modules():
        if isinstance(module, RowLoss):
            module.chunk_size = chunk_size


FAMILIES: Mapping[str, str] = {
    "row": "row losses",
    "center": "losses of class centers",
    "batch": "losses of all pairs at once",
    "mined": "a miner and a row loss",
    "wrapper": "wrappers",
    "PML's": "PML's losses in the catalog",
    "miner": "miners alone (no gradient)",
}
