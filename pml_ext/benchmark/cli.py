"""The command `python -m pml_ext.benchmark`, generated from the fields of `Experiment`.

Until the arguments are known to be good, nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pml_ext.benchmark import config, folder, processes, streams
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.errors import BenchmarkError, explain
from pml_ext.benchmark.kinds import Several, Switch
from pml_ext.benchmark.parser import MODULE, TRAIN, OneLineParser, called, short

RESENT_AFTER = 0.01  # seconds
TUNE = "tune"
GROUPS = {
    "data": "data and splits",
    "losses": "losses and seeds",
    "network": "network",
    "training": "training",
    "running": "running",
}


class Terminated(KeyboardInterrupt):
    """The process was asked to end: as clean an end as Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None, prog: str = MODULE) -> int:
    """Run the command, which was called by `prog`, and return its exit code.

    0; 2 for a mistake or a failed write; 128 and the number of the signal that ended it, 130 for Ctrl-C.
    """
    streams.settle()
    words = list(sys.argv[1:] if arguments is None else arguments)
    tuning = words[:1] == [TUNE]
    given = vars(parser(tuning, prog).parse_args(words[tuning:]))
    resume, check, trials, rates = (
        given.pop(name, default)
        for name, default in (("resume", False), ("check", False), ("trials", 30), ("rates", False))
    )
    out = given.get("out")
    stop = partial(_stop, prog=prog, word=TUNE if tuning else TRAIN)
    try:
        with _ended_by_signals():
            experiment = _searched(given, resume) if tuning else _experiment(given, resume)
            out = experiment.out
            if check:
                return _check(experiment)
            _run(experiment, resume, trials if tuning else None, rates)
            if tuning:
                streams.say(
                    f"run them with: {called(prog, TRAIN)} --config {shlex.quote(str(Path(str(out), folder.TUNED)))}"
                )
    except Terminated as end:
        return stop("terminated", 128 + end.number, out)
    except KeyboardInterrupt:
        return stop("interrupted", 130, out)
    except processes.ToldError:
        return 2  # the first process has said why
    except BenchmarkError as error:
        return stop(str(error), 2)
    except MemoryError:
        return stop("out of memory", 2, out)
    except (OSError, sqlite3.Error) as error:
        return stop(explain(error), 2, out)
    return 0


def _run(experiment: Experiment, resume: bool, trials: int | None, rates: bool) -> None:
    import torch

    from pml_ext.benchmark import environment

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(environment.cores())
    if trials is None:
        from pml_ext.benchmark.runs import run

        with processes.joined() as team:
            # Each would have the date and the time of its own.
            experiment = replace(experiment, out=team.first(lambda: experiment.out))
            run(experiment, resume=resume, say=streams.say)
    else:
        if processes.from_environment()[1] > 1:
            raise BenchmarkError("a search runs in one process: start it without torchrun")
        from pml_ext.benchmark.search import tune

        tune(experiment, trials, rates=rates, resume=resume, say=streams.say)


def _check(experiment: Experiment) -> int:
    from pml_ext.benchmark.data import checked

    line, wrong = checked(experiment)
    for each in [line, *wrong]:
        streams.say(each)
    return 1 if wrong else 0


def _searched(given: dict[str, Any], resume: bool) -> Experiment:
    if resume and "out" not in given:
        raise BenchmarkError("a search is continued in its folder: give --out")
    return folder.named(Experiment(**((folder.searched(Path(given["out"])) if resume else {}) | given)))


def _experiment(given: dict[str, Any], resume: bool) -> Experiment:
    if not resume:
        return folder.named(Experiment(**given))
    out = Path(given["out"]) if "out" in given else folder.latest()
    return replace(folder.stored(out), **(given | {"out": str(out)}))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the signals that ask a process to end do so as Ctrl-C does; one that is ignored stays ignored."""

    def end(number: int, frame: Any) -> None:
        raise Terminated(number)

    def again(unraisable: Any) -> None:
        # What is raised at the end of an object is dropped: the signal is sent again when that is over.
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt):
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            threading.Timer(RESENT_AFTER, os.kill, (os.getpid(), number)).start()
        else:
            hook(unraisable)

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        wanted = []  # Python lets only that thread listen
    before = {}
    hook = sys.unraisablehook
    try:
        sys.unraisablehook = again if wanted else hook
        for number in wanted:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(message: str, code: int, out: str | None = None, *, prog: str, word: str) -> int:
    after = ""
    for kind, name in ((TRAIN, folder.ARGUMENTS), (TUNE, folder.SEARCH)):
        if out is not None and Path(out, name).exists():
            after = f"; continue with: {called(prog, kind)} --resume --out {shlex.quote(str(out))}"
    rank, size = processes.from_environment()
    who = f", process {rank} of {size}" if rank else ""
    streams.complain(f"{short(called(prog, word))}{who}: {' '.join(message.split())}{after if rank == 0 else ''}")
    return code


def parser(tuning: bool = False, prog: str = MODULE) -> OneLineParser:
    """The parser of the command, or of its search; what is not given is not in its namespace."""
    made = OneLineParser(
        prog=called(prog, TUNE if tuning else TRAIN),
        # What is not given is not in the namespace: it comes from a protocol, or from where the experiment was started.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        description="Search the hyperparameters of each loss, judged on validation classes; "
        f"{folder.TUNED} is a config that runs with what was found."
        if tuning
        else "Train one network with several losses, on your images or on images that come with the package, "
        "and compare how well it retrieves classes that it was not trained on. "
        f"The word {TUNE} before the flags searches hyperparameters instead: {called(prog, TUNE)} --help.",
        epilog="An interrupted search continues with --resume --out, more --trials or --losses add to it."
        if tuning
        else "An interrupted experiment continues with --resume; --resume --losses NCA --seeds 3 4 adds to a "
        "finished one. Everything is written under --out: results.jsonl, table.md, report.html, plots, checkpoints, "
        "and the logs of record-keeper (CSV, SQLite, TensorBoard). Several processes train each run together, each its "
        "share of a batch: torchrun --nproc-per-node 2 -m pml_ext.benchmark ...",
    )
    groups = {name: made.add_argument_group(title) for name, title in GROUPS.items()}
    for flag in config.flags():
        _add(groups[flag.metadata["group"]], flag)
    groups["running"].add_argument(
        "--resume",
        action="store_true",
        help=f"continue the experiment in --out, by default the last one in {folder.RUNS}",
    )
    if tuning:
        groups["running"].add_argument(
            "--trials",
            type=int,
            metavar="N",
            help="trials for each loss; the first one is the loss as it is. Default: 30",
        )
        groups["training"].add_argument(
            "--rates",
            action="store_true",
            help="search the learning rates too, for each loss its own: of the head, of a pretrained trunk, of a loss "
            "that has weights. Default: those that are given are kept",
        )
    else:
        groups["data"].add_argument(
            "--check",
            action="store_true",
            help="look at every image, name those that cannot be read and those that are on both sides of the split, "
            "and train nothing",
        )
    made.add_argument("--dataset", dest="data", help=argparse.SUPPRESS)  # its old name
    return made


def _add(group: Any, flag: Any) -> None:
    kind = flag.metadata["kind"]
    known = f": {', '.join(config.protocols())}" if flag.name == "protocol" else ""
    default = flag.metadata["none"] or _shown(flag.default)
    more: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    if not isinstance(kind, Switch):
        more = {"type": kind.parse, "metavar": flag.metadata["metavar"]}
        if isinstance(kind, Several):
            more["nargs"] = "+"
    group.add_argument(
        f"--{flag.name.replace('_', '-')}",
        dest=flag.name,
        help=f"{flag.metadata['help']}{known}. Default: {default}",
        **more,
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
