"""Every loss of the catalog and of PML, each tuned by the same number of trials, on frozen features; then many seeds.

    python benchmarks/reality.py tune cub:CUB_200_2011 cars196:CARS omniglot:DIR emoji/    # hours: goes on where it was
    python benchmarks/reality.py test cub:CUB_200_2011 cars196:CARS omniglot:DIR emoji/    # the same
    python benchmarks/reality.py again cub:CUB_200_2011                                    # a tenth of the runs anew
    python benchmarks/reality.py page                                                      # what has ended so far

The hyperparameters and learning rates of a loss are chosen by the MAP@R of classes that it was not trained on and that
are not those of the test. Losses of one data set have the same features, initial heads, batches and steps.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import reality_page

from pml_ext.benchmark import Experiment, run
from pml_ext.benchmark.data import Data
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
    "RankedListLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
)
METHODS = (*recipes, *(f"pml:{name}" for name in PML))
TUNING_SEED = 1000  # the seeds of the tests are 0, 1, ...
TRIALS, SEEDS, SHARE = 15, 10, 0.1
# 200 steps as the protocol has them, looked at five times.
BUDGET = {"protocol": "frozen-head", "epochs": 5, "steps": 40}


def experiment(source: str, out: Path, methods: tuple[str, ...], **arguments: Any) -> Experiment:
    """What is the same for all methods of a data set, in a folder of its own."""
    plain = Experiment(data=source, losses=methods, **BUDGET, **arguments)
    return replace(plain, out=str(out / Data.of(plain).name))


def tuned(source: str, out: Path, methods: tuple[str, ...], trials: int, **arguments: Any) -> None:
    """Search the hyperparameters and rates of each method; the same number of trials for all."""
    whole = experiment(source, out, methods, **arguments)
    where = Path(str(whole.out)) / "tuned"
    there = (where / "tune.json").exists()
    tune(replace(whole, seeds=(TUNING_SEED,), out=str(where)), trials, rates=True, resume=there, say=print)


def measured(source: str, out: Path, seeds: tuple[int, ...], **arguments: Any) -> None:
    """Train what was found with further seeds, and test it on the classes kept for that."""
    whole = experiment(source, out, METHODS, **arguments)
    where = Path(str(whole.out))
    found = tuple(json.loads((where / "tuned" / "tuned.json").read_text())["losses"])
    there = (where / "tested").exists()
    run(replace(whole, losses=found, seeds=seeds, out=str(where / "tested")), resume=there, say=print)


def again(source: str, out: Path, share: float, **arguments: Any) -> None:
    """Run a random part of what was tested once more; the page holds both beside each other."""
    whole = experiment(source, out, METHODS, **arguments)
    where = Path(str(whole.out))
    lines = [line for line in reality_page.lines(where / "tested") if line["loss"] not in reality_page.UNTRAINED]
    drawn = random.Random(0).sample(lines, max(1, round(share * len(lines))))
    for loss, seed in sorted((line["loss"], line["seed"]) for line in drawn):
        one = where / "again" / f"{len(loss)}-{reality_page.plain(loss)}-{seed}"
        if not (one / "results.jsonl").exists():
            run(replace(whole, losses=(loss,), seeds=(seed,), out=str(one)), resume=None, say=print)


def main() -> None:
    """Read the command line, and do what it says for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "test", "again", "page"))
    parser.add_argument("data", nargs="*", help="as --data of python -m pml_ext.benchmark")
    parser.add_argument("--losses", nargs="+", default=METHODS, metavar="NAME", help="default: all")
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"of each loss, default {TRIALS}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many, default {SEEDS}")
    parser.add_argument("--share", type=float, default=SHARE, help=f"that is run again, default {SHARE}")
    parser.add_argument("--image-size", nargs="+", type=int, help="of whole images; default: that of the protocol")
    parser.add_argument("--cache", default=None, help="where features are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/reality"), help="default: runs/reality")
    given = parser.parse_args()
    arguments: dict[str, Any] = {"cache": given.cache}
    if given.image_size:
        arguments |= {"image_size": tuple(given.image_size), "shorter_side": min(given.image_size)}
    for source in given.data:
        if given.what == "tune":
            tuned(source, given.out, tuple(given.losses), given.trials, **arguments)
        elif given.what == "test":
            measured(source, given.out, tuple(range(given.seeds)), **arguments)
        elif given.what == "again":
            again(source, given.out, given.share, **arguments)
    if given.what == "page":
        reality_page.write(given.out)


if __name__ == "__main__":
    main()
