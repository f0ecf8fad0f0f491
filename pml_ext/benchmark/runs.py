"""An experiment: all its runs, then the table and the plots."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import torch

from pml_ext.benchmark import evaluate, files, folder, lock, losses, records, result, table
from pml_ext.benchmark.checkpoint import DamagedError, epochs_done
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.device import torch_device
from pml_ext.benchmark.errors import BenchmarkError, check_extras, explain
from pml_ext.benchmark.evaluate import Metrics, NotFinite
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.result import UNTRAINED, Key, Result
from pml_ext.benchmark.training import Diverged, Run, identity, new_network

RESULTS = "results.jsonl"
TABLE = "table.md"
ERROR = "error.txt"
# What failed for a reason of its own is tried again when the experiment is continued; what diverged would diverge.
RAISED = "raised: "
LONG = 300.0  # seconds of training, from which on an estimate is worth a line

Say = Callable[[str], None]


def run(experiment: Experiment, *, resume: bool = False, say: Say = lambda line: None) -> list[Result]:
    """Run an experiment; write results, logs, the table and the plots under its `out`.

    A run has ended when its line is in `results.jsonl`, where it appears all at once. After every epoch there is a
    checkpoint, so that an interrupted experiment continues with the next epoch and ends with the same numbers.

    Args:
        experiment: the arguments.
        resume: continue the experiment in `out` (by default the last one in `runs`), whose losses and seeds are added
            to; with more epochs, its runs go on. Default: start a new one.
        say: called with each line for the reader. Default: silence.

    Returns:
        one result per seed and loss, the untrained network of each seed first; `error` is set in those that failed.

    Raises:
        BenchmarkError: `out` holds something else or is in use, a loss cannot be trained, a package is missing, or runs
            have failed (the others are finished then).
        OSError, sqlite3.Error: the disk is full, or `out` cannot be written to.
    """
    check_extras()
    from pml_ext.benchmark import plots  # noqa: F401 - needs the extras; what is wrong with it shows before the training

    torch_device(experiment.device)
    data = _data(experiment)
    for name in experiment.losses:
        losses.rehearse(
            name,
            classes=data[0].train_classes,
            embedding_size=experiment.embedding_size,
            images_per_class=data[0].images_per_class(experiment),
        )
    experiment = folder.reopen(experiment) if resume else folder.named(experiment)
    out = Path(str(experiment.out)) if resume else folder.create(experiment)
    with lock.held(out):
        before = _read(experiment, out)
        folder.start(out, experiment)
        for line in _plan(experiment, data[0], out):
            say(line)
        results = _runs(experiment, data, out, before, say)
        _report(experiment, data[0], out, results, say)
    failed = [f"{result.name_of(one.key)}: {one.error}" for one in results if one.error]
    if failed:
        raise BenchmarkError("; ".join(failed))
    return results


def _data(experiment: Experiment) -> list[Data]:
    """The data of each fold; one without folds."""
    return [Data.of(experiment, fold) for fold in _folds(experiment)]


def _folds(experiment: Experiment) -> Sequence[int | None]:
    return [None] if experiment.folds is None else range(experiment.folds)


def _keys(experiment: Experiment) -> Iterator[Key]:
    """Every run of an experiment, in its order."""
    for seed in experiment.seeds:
        yield UNTRAINED, seed, None
        for name in experiment.losses:
            for fold in _folds(experiment):
                yield name, seed, fold


def _read(experiment: Experiment, out: Path) -> list[Result]:
    """The results that are there, of runs of this experiment."""
    known = set(_keys(experiment))
    found = result.read(out / RESULTS)
    for one in found:
        if one.key not in known:
            raise BenchmarkError(
                f"{out / RESULTS} has a result of {result.name_of(one.key)}, which is no run of this experiment: "
                "remove its line, or add it to --losses and --seeds"
            )
    return found


def _ended(one: Result, experiment: Experiment) -> bool:
    """Whether a run is not to be continued."""
    if one.error:
        return not one.error.startswith(RAISED)
    return not one.trained or len(one.history) >= experiment.epochs


def _runs(experiment: Experiment, data: list[Data], out: Path, before: list[Result], say: Say) -> list[Result]:
    results = {one.key: one for one in before}
    keys = list(_keys(experiment))
    todo = [key for key in keys if key not in results or not _ended(results[key], experiment)]
    trained = [key for key in keys if key[0] != UNTRAINED]
    left = {
        key: experiment.epochs - epochs_done(folder.run_folder(out, *key), identity(*key))
        for key in todo
        if key[0] != UNTRAINED
    }
    progress = Progress(experiment.epochs * len(trained), done=experiment.epochs * len(trained) - sum(left.values()))

    def pace(seconds: float) -> None:
        expected = seconds * data[0].steps(experiment) * sum(left.values())
        if expected > LONG:
            say(f"about {_duration(expected)} of training, tests not counted")

    try:
        for key in todo:
            fold = key[2]
            one = _one(experiment, data[fold or 0], key, folder.run_folder(out, *key), progress, pace)
            pace = _silent
            results[key] = one
            result.write(out / RESULTS, [results[each] for each in keys if each in results])
            if not progress.shown:
                say(_line(one))
    finally:
        progress.close()
    return [results[key] for key in keys]


def _silent(seconds: float) -> None:
    """Say nothing."""


def _one(
    experiment: Experiment, data: Data, key: Key, where: Path, progress: Progress, pace: Callable[[float], None]
) -> Result:
    name, seed, fold = key
    where.mkdir(exist_ok=True)
    arguments = experiment.arguments()
    try:
        if name == UNTRAINED:
            metrics = _test_untrained(experiment, data, seed, where, progress)
            return Result(name, seed, metrics, [], None, arguments)
        run = Run(experiment, data, name, seed, where, progress, fold=fold, pace=pace)
        tested = run.train()
    except (Diverged, NotFinite) as error:
        return _failed(key, arguments, f"diverged: {error}")
    except (OSError, sqlite3.Error, MemoryError, BenchmarkError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a loss of one's own may raise anything; the other losses are none the worse for it
        files.write(where / ERROR, traceback.format_exc().encode())
        first = (str(error).strip().splitlines() or [""])[0][:300]
        return _failed(key, arguments, f"{RAISED}{type(error).__name__}: {first} (see {where / ERROR})")
    return Result(
        name,
        seed,
        tested.metrics,
        tested.history,
        mean(epoch["seconds"] for epoch in tested.history),
        arguments,
        failure=run.failure,
        fold=fold,
        best_epoch=tested.best_epoch,
        last=tested.last,
        validation=tested.validation,
    )


def _failed(key: Key, arguments: dict[str, object], error: str) -> Result:
    name, seed, fold = key
    return Result(name, seed, {}, [], None, arguments, error=error, fold=fold)


def _test_untrained(experiment: Experiment, data: Data, seed: int, where: Path, progress: Progress) -> Metrics:
    """Test the network of a seed before training, and record the result as epoch 0."""
    progress.who = f"{UNTRAINED} seed {seed}"
    device = torch_device(experiment.device)
    network = new_network(experiment, data, seed)
    embeddings = evaluate.embed(network, data.test, device=device, workers=experiment.workers, progress=progress)
    metrics = evaluate.measure(
        embeddings, data.test.labels, recall_at=experiment.recall_at, device=device, clusters=True
    )
    records.rewind(where)
    with records.keeping(where) as keeper:
        records.record_metrics(keeper, 0, "test", metrics)
        keeper.save_records()
    return metrics


def _plan(experiment: Experiment, data: Data, out: Path) -> list[str]:
    folds = experiment.folds or 1
    runs = len(experiment.losses) * len(experiment.seeds) * folds
    device = torch_device(experiment.device)
    threads = f" ({_number(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else ""
    chosen = (
        "the last epoch counts"
        if data.validation is None
        else f"choosing the epoch on {len(torch.unique(data.validation.labels))} others ({len(data.validation)} images)"
    )
    return [
        f"{data.name}: training on {data.train_classes} classes ({len(data.train)} images), {chosen}, "
        f"testing on {data.test_classes} other classes ({len(data.test)} images)",
        *data.notes,
        f"{', '.join(map(str, experiment.losses))}: {_number(runs, 'run')} of {_number(experiment.epochs, 'epoch')}, "
        f"{_number(data.steps(experiment), 'step')} each of {data.batch_size(experiment)} images, on {device}{threads}",
        *data.warnings(experiment),
        f"writing to {out}",
    ]


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    """A time in words.

    >>> _duration(400), _duration(40 * 3600)
    ('7 minutes', '40 hours')
    """
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 36000 else f"{seconds / 3600:.0f} hours"


def _line(one: Result) -> str:
    if one.error:
        return f"{result.name_of(one.key)}: {one.error}"
    took = f", {sum(epoch['seconds'] for epoch in one.history):.0f} s of training" if one.history else ""
    return f"{result.name_of(one.key)}: recall@1 {one.metrics['recall_at_1']:.1%}{took}"


def _report(experiment: Experiment, data: Data, out: Path, results: Sequence[Result], say: Say) -> None:
    """Write the table and the plots, then print: what is printed to may be gone."""
    from pml_ext.benchmark import plots

    files.write(out / TABLE, table.markdown(results).encode())
    try:
        drawn = ", ".join(map(str, plots.draw(experiment, data, out, results)))
    except (DamagedError, MemoryError) as error:
        drawn = f"none: {error or 'out of memory'}"
    except OSError as error:
        drawn = f"none: {explain(error)}"
    say("")
    say(table.text(results))
    say("")
    say(f"results: {out / RESULTS}")
    say(f"table:   {out / TABLE}")
    say(f"plots:   {drawn}")
    say(f"logs:    tensorboard --logdir {out}")
