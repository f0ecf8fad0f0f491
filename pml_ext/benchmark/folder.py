"""The folder of an experiment: made once, recognised when the experiment is resumed.

experiment.json              the arguments
results.jsonl                one line per finished run
table.md, plots/*.png        the comparison
<loss>-seed<n>/              one run: checkpoint.pt, records/ (record-keeper), tensorboard/
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pml_ext.benchmark import files
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.experiment import Experiment

RUNS = Path("runs")
ARGUMENTS = "experiment.json"


def named(experiment: Experiment) -> Experiment:
    """Give an experiment without `out` one that carries the date and the time."""
    if experiment.out is not None:
        return experiment
    return replace(experiment, out=str(RUNS / f"{experiment.dataset}-{datetime.now():%Y%m%d-%H%M%S}"))


def create(experiment: Experiment) -> Path:
    """Make the folder of a new experiment."""
    out = Path(str(named(experiment).out))
    if (out / ARGUMENTS).exists():
        raise BenchmarkError(f"{out} holds an experiment already: continue it with --resume, or choose another --out")
    if out.is_dir() and any(out.iterdir()):
        raise BenchmarkError(f"{out} is not empty: choose another --out")
    files.make_folder(out)
    files.write_json(out / ARGUMENTS, _without_out(experiment))
    return out


def reopen(experiment: Experiment) -> Path:
    """Return the folder of an experiment that was started before, if its arguments are the same."""
    out = Path(experiment.out) if experiment.out else latest()
    before, now = _without_out(stored(out)), _without_out(experiment)
    changed = [f"{name} {before[name]}, not {now[name]}" for name in before if before[name] != now[name]]
    if changed:
        raise BenchmarkError(
            f"the experiment in {out} has {'; '.join(changed)}: leave that out, or choose another --out"
        )
    files.make_folder(out)
    return out


def stored(out: Path) -> Experiment:
    """The experiment that was started in a folder."""
    try:
        arguments = json.loads((out / ARGUMENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchmarkError(f"there is no experiment in {out} to resume") from None
    except ValueError:
        raise BenchmarkError(f"{out / ARGUMENTS} is not JSON: start again with another --out") from None
    try:
        return Experiment(**arguments, out=str(out))
    except TypeError:
        raise BenchmarkError(f"{out / ARGUMENTS} is of another version: start again with another --out") from None


def latest() -> Path:
    """The experiment that was started last under `runs`."""
    started = sorted(RUNS.glob(f"*/{ARGUMENTS}"), key=lambda path: path.stat().st_mtime)
    if not started:
        raise BenchmarkError(f"there is no experiment in {RUNS.resolve()} to resume")
    return started[-1].parent


def _without_out(experiment: Experiment) -> dict[str, object]:
    return {name: value for name, value in experiment.arguments().items() if name != "out"}
