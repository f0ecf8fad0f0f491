"""The command `python -m pml_ext.benchmark`."""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pml_ext.benchmark import environment, folder
from pml_ext.benchmark.errors import BenchmarkError, explain
from pml_ext.benchmark.experiment import Experiment
from pml_ext.benchmark.run import run
from pml_ext.trainers.methods import methods

COMMAND = "python -m pml_ext.benchmark"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0; 2 for a mistake or a failed write; 130 if interrupted."""
    given = vars(_parser().parse_args(arguments))
    resume = given.pop("resume", False)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(environment.cores())
    out = given.get("out")
    try:
        experiment = _experiment(given, resume)
        out = experiment.out
        run(experiment, resume=resume, say=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        return _stop("interrupted", 130, out)
    except BenchmarkError as error:
        return _stop(str(error), 2)
    except (OSError, sqlite3.Error) as error:
        return _stop(explain(error), 2, out)
    return 0


def _experiment(given: dict[str, Any], resume: bool) -> Experiment:
    if not resume:
        return folder.named(Experiment(**given))
    out = Path(given["out"]) if "out" in given else folder.latest()
    return replace(folder.stored(out), **(given | {"out": str(out)}))


def _stop(message: str, code: int, out: str | None = None) -> int:
    started = out is not None and os.path.exists(os.path.join(out, folder.ARGUMENTS))
    after = f"; continue with: {COMMAND} --resume --out {shlex.quote(str(out))}" if started else ""
    print(f"pml_ext.benchmark: {message}{after}", file=sys.stderr)
    return code


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"pml_ext.benchmark: {message}\n")


def _parser() -> argparse.ArgumentParser:
    default = Experiment()
    parser = _OneLineParser(
        prog=COMMAND,
        # What is not given is not in the namespace: a resumed experiment takes it from where it was started.
        argument_default=argparse.SUPPRESS,
        description="Train one small network with several losses and compare how well it retrieves classes that it was "
        "not trained on.",
        epilog="An interrupted experiment continues with --resume. Everything is written under --out: results.jsonl, "
        "table.md, plots, checkpoints, and the logs of record-keeper (CSV, SQLite, TensorBoard).",
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        metavar="NAME",
        help=f"names of pml_ext.catalog, of PML losses, or {', '.join(methods)}; 'all' is the whole catalog. "
        f"Default: {' '.join(default.losses)}",
    )
    parser.add_argument("--dataset", metavar="NAME", help=f"glyphs or digits. Default: {default.dataset}")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"default: {default.epochs}")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help=f"one run per loss and seed. Default: {default.seeds[0]}"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... Default: cuda where there is one")
    parser.add_argument("--out", metavar="DIR", help=f"default: {folder.RUNS}/<dataset>-<date>-<time>")
    parser.add_argument(
        "--resume",
        action="store_true",
        help=f"continue the experiment in --out, by default the last one in {folder.RUNS}",
    )
    return parser
