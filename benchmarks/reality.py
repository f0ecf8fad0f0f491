r"""Losses of the catalog and of PML beside each other: each tuned by the same number of trials, then many seeds.

    python benchmarks/reality.py tune cub:CUB_200_2011 omniglot:DIR emoji/            # hours: goes on where it was
    python benchmarks/reality.py test cub:CUB_200_2011 omniglot:DIR emoji/            # the same
    python benchmarks/reality.py again cub:CUB_200_2011                               # a tenth of the runs anew
    python benchmarks/reality.py tune omniglot:DIR --track scratch --image-size 28    # two hours; so are glyphs
    python benchmarks/reality.py test cub:CUB_200_2011 --track fine-tuned --image-size 64    # an evening, not tuned
    python benchmarks/reality.py page                                                 # what has ended so far

Glyphs have no pretrained trunk: first their own is trained.

    python -m pml_ext.benchmark --data glyphs --trunk conv4 --image-size 32 --crop-scale .7 --flip 0 --epochs 24 \
        --losses MultiSimilarity --seeds 0 --out runs/trunk
    python benchmarks/reality.py tune glyphs --trunk conv4 --image-size 32 --weights runs/trunk/best/weights.pt

The hyperparameters and learning rates of a loss are chosen by the MAP@R of classes that it was not trained on and that
are not those of the test. Losses of one data set have the same features or initial weights, batches and steps.
"""

import argparse
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import image_options
import reality_page

from pml_ext.benchmark import Experiment, run
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.folder import ARGUMENTS, reopen
from pml_ext.benchmark.result import BASELINES
from pml_ext.benchmark.search import tune
from pml_ext.catalog import recipes

PML = (
    "AngularLoss",
    "ArcFaceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "FastAPLoss",
    "IntraPairVarianceLoss",
    "NCALoss",
    "NormalizedSoftmaxLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankedListLoss(margin=0.4, Tn=5)",
    "SignalToNoiseRatioContrastiveLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
)
METHODS = (*recipes, *(f"pml:{name}" for name in PML))
# As different as can be: of each family one or two.
DIFFERENT = (
    *("RAW", "MultiSimilarity", "BatchHard", "BatchAll", "SemiHard", "BinDeviance2018", "Binomial2020", "NCA"),
    *("Neighbour", "DistanceWeighted", "LiftedStructure", "Histogram", "NPair", "CenterNCA", "SmoothAP", "HCL", "XBM"),
    *("pml:ContrastiveLoss", "pml:ProxyAnchorLoss", "pml:ArcFaceLoss"),
)
TUNING_SEED = 1000  # the seeds of the tests are 0, 1, ...
SHARE = 0.1


@dataclass(frozen=True)
class Track:
    """How long each method trains, what is compared, and how often.

    Args:
        methods: by name.
        trials: of the search for each method; 0: each has its defaults.
        seeds: how many.
        budget: the arguments of `Experiment` that are the same for all.
    """

    methods: tuple[str, ...]
    trials: int
    seeds: int
    budget: Mapping[str, Any]


_SOONER = {"accelerate": True}  # losses of PML that form tuples would take most of the time
TRACKS = {
    # 200 steps as the protocol has them, looked at five times.
    "frozen": Track(METHODS, 15, 10, {"protocol": "frozen-head", "epochs": 5, "steps": 40} | _SOONER),
    # Batches of half the size and fewer steps, so that the 500 runs of a data set fit an evening, at 28 x 28 pixels.
    "scratch": Track(
        DIFFERENT,
        15,
        10,
        {"trunk": "conv4", "epochs": 3, "steps": 40, "batch_size": 64, "classes_per_batch": 16} | _SOONER,
    ),
    "fine-tuned": Track(
        ("RAW", "MultiSimilarity", "SemiHard", "Binomial2020", "XBM", "pml:ContrastiveLoss"),
        0,
        5,
        {"trunk": "efficientnet_lite0", "head": "pca", "embedding_size": 128, "epochs": 5, "steps": 40}
        | {"batch_size": 48, "classes_per_batch": 12, "schedule": "cosine"}
        | {"learning_rate": 1e-3, "trunk_learning_rate": 5e-4}
        | {"warmup": 10, "crop_scale": 0.5}
        | _SOONER,
    ),
}


def experiment(track: str, source: str, out: Path, methods: tuple[str, ...], **arguments: Any) -> Experiment:
    """What is the same for all methods of a data set, in a folder of its own."""
    plain = Experiment(data=source, losses=methods, **{**TRACKS[track].budget, **arguments})
    return replace(plain, out=str(out / track / Data.of(plain).name))


def tuned(whole: Experiment, trials: int) -> None:
    """Search the hyperparameters and rates of each method; the same number of trials for all."""
    where = Path(str(whole.out)) / "tuned"
    there = (where / "tune.json").exists()
    tune(replace(whole, seeds=(TUNING_SEED,), out=str(where)), trials, rates=True, resume=there, say=print)


def measured(whole: Experiment, seeds: tuple[int, ...], *, is_tuned: bool) -> None:
    """Train each method with further seeds, as it was tuned where it is, and test it on the classes kept for that."""
    where = Path(str(whole.out))
    losses = whole.losses
    if is_tuned:
        path = where / "tuned" / "tuned.json"
        if not path.exists():
            raise SystemExit(f"there is no {path}: `reality.py tune` comes first")
        found = {reality_page.method(loss): loss for loss in json.loads(path.read_text())["losses"]}
        if missing := [name for name in losses if reality_page.method(name) not in found]:
            raise SystemExit(f"not tuned yet: {', '.join(missing)}")
        losses = tuple(found[reality_page.method(name)] for name in losses)
    there = (where / "tested").exists()
    run(replace(whole, losses=losses, seeds=seeds, out=str(where / "tested")), resume=there, say=print)


def again(whole: Experiment, share: float) -> None:
    """Run a random part of what was tested once more; the page holds both beside each other."""
    where = Path(str(whole.out))
    lines = [line for line in reality_page.lines(where / "tested") if line["loss"] not in BASELINES]
    if not lines:
        raise SystemExit(f"there is nothing in {where / 'tested'}: `reality.py test` comes first")
    reopen(replace(whole, out=str(where / "tested")), whole.losses)  # an error if these are other arguments
    drawn = random.Random(0).sample(lines, max(1, round(share * len(lines))))
    for seed in sorted({line["seed"] for line in drawn}):
        losses = tuple(sorted(line["loss"] for line in drawn if line["seed"] == seed))
        one = where / "again" / f"seed{seed}"
        run(replace(whole, losses=losses, seeds=(seed,), out=str(one)), resume=(one / ARGUMENTS).exists(), say=print)


def main() -> None:
    """Read the command line, and do what it says for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "test", "again", "page"))
    parser.add_argument("data", nargs="*", help="as --data of python -m pml_ext.benchmark")
    parser.add_argument("--track", choices=TRACKS, default="frozen", help="default: frozen")
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="default: those of the track")
    parser.add_argument("--trials", type=int, help="of each loss, default: as the track has them")
    parser.add_argument("--seeds", type=int, help="how many, default: as the track has them")
    parser.add_argument("--share", type=float, default=SHARE, help=f"that is run again, default {SHARE}")
    parser.add_argument("--trunk-learning-rate", type=float, metavar="RATE", help="fine-tuned; default: the track's")
    image_options.add_to(parser, "runs/reality")
    given = parser.parse_args()
    arguments = image_options.arguments(given)
    track = TRACKS[given.track]
    if given.trunk_learning_rate is not None:
        if given.track != "fine-tuned":
            parser.error(f"argument --trunk-learning-rate: {given.track!r} has its own, or tunes it")
        arguments["trunk_learning_rate"] = given.trunk_learning_rate
    if given.what == "tune" and not track.trials:
        parser.error(f"argument --track: nothing is tuned in {given.track!r}, its methods have their defaults")
    methods, seeds = tuple(given.losses or track.methods), range(given.seeds or track.seeds)
    for source in given.data:
        whole = experiment(given.track, source, given.out, methods, **arguments)
        if given.what == "tune":
            tuned(whole, given.trials or track.trials)
        elif given.what == "test":
            measured(whole, tuple(seeds), is_tuned=track.trials > 0)
        elif given.what == "again":
            again(whole, given.share)
    if given.what == "page":
        reality_page.write(given.out)


if __name__ == "__main__":
    main()
