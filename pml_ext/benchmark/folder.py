"""The folder of an experiment: made once, recognized when the experiment is continued.

experiment.json              the arguments
objects.json                 digests of the losses and the trunk that were objects
results.jsonl                one line per run that ended
table.md, plots/*.png        the comparison
report.html                  all of it on one page
best/                        the model that the validation classes chose
<loss>-seed<n>/              one run: checkpoint.pt, best/, queries.npz, records/ (record-keeper), tensorboard/
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pml_ext.benchmark import config, files
from pml_ext.benchmark.config import GROWING, MOVING, Experiment
from pml_ext.benchmark.errors import BenchmarkError

RUNS = Path("runs")
ARGUMENTS = "experiment.json"
OBJECTS = "objects.json"
NONE: Mapping[str, str] = MappingProxyType({})
SEARCH = "tune.json"  # the arguments of a search
TUNED = "tuned.json"  # what it found, as a config
RATES = "rates"  # among them: whether learning rates are searched
# What systems put into every folder. Names that begin with a dot, ours among them, are as good as not there too.
STRANGERS = ("lost+found", "Thumbs.db", "desktop.ini")


def named(experiment: Experiment) -> Experiment:
    """Give an experiment without `out` one that carries the date and the time."""
    if experiment.out is not None:
        return experiment
    return replace(experiment, out=str(RUNS / f"{data_name(experiment)}-{datetime.now():%Y%m%d-%H%M%S}"))


def data_name(experiment: Experiment) -> str:
    """What the data of an experiment are called in the names of files."""
    source = experiment.data if isinstance(experiment.data, str) else config.display_name(experiment.data)
    layout = source.partition(":")[0]
    return _safe(layout if layout != source and len(layout) > 1 else Path(source).stem or "data")


def run_folder(out: Path, loss: str, seed: int, fold: int | None = None) -> Path:
    """The folder of one run."""
    return out / f"{_safe(loss)}-seed{seed}{'' if fold is None else f'-fold{fold}'}"


def check_new(experiment: Experiment) -> Path:
    """The folder of a new experiment, if nothing is in the way."""
    out = Path(str(named(experiment).out))
    if (out / ARGUMENTS).exists():
        raise BenchmarkError(f"{out} holds an experiment already: continue it with --resume, or choose another --out")
    if out.is_dir() and any(each.name not in STRANGERS and not each.name.startswith(".") for each in out.iterdir()):
        raise BenchmarkError(f"{out} is not empty: choose another --out")
    return out


def start(out: Path, experiment: Experiment, losses: Sequence[str], objects: Mapping[str, str] = NONE) -> None:
    """Write down the arguments of an experiment, new or grown, with the names of its losses.

    Args:
        out: the folder.
        experiment: the arguments.
        losses: the name of each loss.
        objects: a digest of each object that took the place of a name. Default: there are none.

    Raises:
        BenchmarkError: an object of the same name is another one than before.
    """
    before = _objects(out)
    for name, digest in objects.items():
        if before.get(name, digest) != digest:
            raise BenchmarkError(f"{name} is not the object that the experiment in {out} has: choose another --out")
    if objects:
        files.write_json(out / OBJECTS, {**before, **objects})
    named_by = experiment.arguments() | {"losses": list(losses)}
    files.write_json(out / ARGUMENTS, {k: v for k, v in named_by.items() if k != "out"})


def of_its_own(experiment: Experiment, losses: Sequence[str], contents: Sequence[str]) -> Experiment:
    """Give an experiment without `out` one that the same experiment finds again, and no other.

    Args:
        experiment: the arguments.
        losses: the name of each loss.
        contents: digests of what names do not tell: objects, and the data.
    """
    if experiment.out is not None:
        return experiment
    told = {k: v for k, v in experiment.arguments().items() if k not in MOVING} | {"losses": list(losses)}
    digest = hashlib.sha256(json.dumps([told, list(contents)]).encode()).hexdigest()[:8]
    return replace(experiment, out=str(RUNS / f"{data_name(experiment)}-{digest}"))


def _objects(out: Path) -> dict[str, str]:
    return config.read_json(out / OBJECTS) if (out / OBJECTS).exists() else {}


def reopen(experiment: Experiment, losses: Sequence[str]) -> Experiment:
    """The experiment that was started before in `out`, with the losses, seeds and epochs that this one adds.

    Args:
        experiment: with `out`, or the last one is meant.
        losses: the names of its losses; one that is an object takes the place of the name that was written down.

    Raises:
        BenchmarkError: another argument differs, or more epochs would have changed the first ones too.
    """
    out = Path(experiment.out) if experiment.out else latest()
    then = arguments(out)
    grown = replace(
        experiment,
        out=str(out),
        losses=tuple(
            ({name: name for name in then["losses"]} | dict(zip(losses, experiment.losses, strict=True))).values()
        ),
        seeds=tuple(dict.fromkeys((*then["seeds"], *experiment.seeds))),
    )
    now = grown.arguments()
    changed = [
        f"{name} {then[name]}, not {now[name]}"
        for name in now
        if name not in (*GROWING, *MOVING) and then[name] != now[name]
    ]
    if grown.epochs < then["epochs"]:
        changed.append(f"epochs {then['epochs']}, not {grown.epochs}")
    if changed:
        raise BenchmarkError(
            f"the experiment in {out} has {'; '.join(changed)}: leave that out, or choose another --out"
        )
    if grown.epochs > then["epochs"] and grown.schedule != "constant":
        raise BenchmarkError(
            f"the experiment in {out} has a {grown.schedule} schedule over {then['epochs']} epochs: "
            f"for {grown.epochs}, choose another --out"
        )
    return grown


def stored(out: Path) -> Experiment:
    """The experiment that was started in a folder."""
    try:
        return Experiment(**(arguments(out) | {"out": str(out)}))
    except BenchmarkError as error:
        raise BenchmarkError(f"{out / ARGUMENTS}: {error}") from None


def searched(out: Path) -> dict[str, Any]:
    """The arguments of the search that was started in a folder."""
    if not (out / SEARCH).exists():
        raise BenchmarkError(f"there is no search in {out} to resume")
    found = config.read_json(out / SEARCH)
    return {name: value for name, value in found.items() if value is not None and name != RATES}


def searches_rates(out: Path) -> bool:
    """Whether the search that was started in a folder is one of learning rates, too."""
    return bool(config.read_json(out / SEARCH).get(RATES, False))


def arguments(out: Path) -> dict[str, Any]:
    """The arguments that were written down in a folder, as JSON has them, those that they lack at their defaults."""
    path = out / ARGUMENTS
    if not path.exists():
        raise BenchmarkError(f"there is no experiment in {out} to resume")
    found = config.read_json(path)
    if "dataset" in found:
        found = {"data": found.pop("dataset"), "validation": 0} | found  # of before there was a validation set
    flags = {flag.name: flag for flag in config.flags()}
    if not {"data", "losses", "seeds", "epochs"} <= set(found) <= set(flags):
        raise BenchmarkError(f"{path} is of another version: start again with another --out")
    for name, value in found.items():
        if value is not None or flags[name].default is not None:
            try:
                flags[name].metadata["kind"].check(name, value)
            except BenchmarkError as error:
                raise BenchmarkError(f"{path}: {error}") from None
    rest = {name: list(d) if isinstance(d := flag.default, tuple) else d for name, flag in flags.items()}
    return rest | found


def latest() -> Path:
    """The experiment that was started last under `runs`."""
    started = sorted(RUNS.glob(f"*/{ARGUMENTS}"), key=lambda path: path.stat().st_mtime)
    if not started:
        raise BenchmarkError(f"there is no experiment in {RUNS.resolve()} to resume")
    return started[-1].parent


def _safe(name: str) -> str:
    """A name as a part of a path: what may stand for something else is replaced, and then told apart by a digest."""
    plain = re.sub(r"[^\w .=+,()-]", "_", name).lstrip(".")[:100]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
