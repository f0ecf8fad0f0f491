"""An experiment: all its runs, then the table and the plots."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import torch

from pml_ext.benchmark import files, folder, losses, result, table
from pml_ext.benchmark.checkpoint import NAME, UNTRAINED, epochs_done, run_folder
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.errors import BenchmarkError, check_extras
from pml_ext.benchmark.experiment import Experiment
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.result import Result
from pml_ext.benchmark.testing import test_untrained
from pml_ext.benchmark.training import Diverged, Run

RESULTS = "results.jsonl"
TABLE = "table.md"

Say = Callable[[str], None]


def run(experiment: Experiment, *, resume: bool = False, say: Say = lambda line: None) -> list[Result]:
    """Run an experiment; write results, logs, the table and the plots under its `out`.

    A run is finished when its line is in `results.jsonl`, where it appears all at once. After every epoch there is a
    checkpoint, so that an interrupted experiment continues with the next epoch and ends with the same numbers.

    Args:
        experiment: the arguments.
        resume: continue the experiment in `out` (by default the last one in `runs`), which must have the same
            arguments. Default: start a new one.
        say: called with each line for the reader. Default: silence.

    Returns:
        one result per seed and loss, the untrained network of each seed first.

    Raises:
        BenchmarkError: `out` holds something else, a loss cannot be trained, a package is missing, or a loss diverged
            (the other runs are finished then).
        OSError, sqlite3.Error: the disk is full, or `out` cannot be written to.
    """
    check_extras()
    from pml_ext.benchmark import plots  # noqa: F401 - needs the extras; what is wrong with it shows before the training

    data = Data.load(experiment.dataset)
    for name in experiment.losses:
        losses.rehearse(
            name,
            classes=data.train_classes,
            embedding_size=experiment.embedding_size,
            images_per_class=data.images_per_class(experiment),
        )
    out = folder.reopen(experiment) if resume else folder.create(experiment)
    for line in _plan(experiment, data, out):
        say(line)
    results, diverged = _runs(experiment, data, out, say)
    _report(experiment, data, out, results, say)
    if diverged:
        raise BenchmarkError("; ".join(diverged))
    return results


def _runs(experiment: Experiment, data: Data, out: Path, say: Say) -> tuple[list[Result], list[str]]:
    results = result.read(out / RESULTS)
    diverged = []
    finished = {(r.loss, r.seed) for r in results}
    todo = [
        (name, seed)
        for seed in experiment.seeds
        for name in (UNTRAINED, *experiment.losses)
        if (name, seed) not in finished
    ]
    epochs = experiment.epochs * len(experiment.losses) * len(experiment.seeds)
    left = sum(experiment.epochs - epochs_done(run_folder(out, *job)) for job in todo if job[0] != UNTRAINED)
    progress = Progress(epochs, done=epochs - left)
    try:
        for name, seed in todo:
            try:
                results.append(_one(experiment, data, name, seed, run_folder(out, name, seed), progress))
            except Diverged as error:
                diverged.append(str(error))
                continue
            result.write(out / RESULTS, results)
            if not progress.shown:
                say(_line(results[-1]))
    finally:
        progress.close()
    return results, diverged


def _one(experiment: Experiment, data: Data, name: str, seed: int, where: Path, progress: Progress) -> Result:
    if not (where / NAME).exists() and where.exists():
        shutil.rmtree(where)  # logs of an epoch that was interrupted before the first checkpoint
    where.mkdir(exist_ok=True)
    if name == UNTRAINED:
        metrics = test_untrained(experiment, data, seed, where, progress)
        return Result(name, seed, metrics, [], None, experiment.arguments())
    run = Run(experiment, data, name, seed, where, progress)
    history = run.train()
    metrics = {metric: value for metric, value in history[-1].items() if metric != "seconds"}
    seconds = mean(epoch["seconds"] for epoch in history)
    return Result(name, seed, metrics, history, seconds, experiment.arguments(), run.failure)


def _plan(experiment: Experiment, data: Data, out: Path) -> list[str]:
    runs = len(experiment.losses) * len(experiment.seeds)
    device = experiment.torch_device()
    threads = f" ({_number(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else ""
    return [
        f"{experiment.dataset}: training on {data.train_classes} classes ({len(data.train)} images), "
        f"testing on {data.test_classes} other classes ({len(data.test)} images)",
        f"{', '.join(experiment.losses)}: {_number(runs, 'run')} of {_number(experiment.epochs, 'epoch')}, "
        f"{_number(data.steps(experiment), 'step')} each of {data.batch_size(experiment)} images, on {device}{threads}",
        f"writing to {out}",
    ]


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _line(result: Result) -> str:
    took = f", {sum(epoch['seconds'] for epoch in result.history):.0f} s of training" if result.history else ""
    return f"{result.loss}, seed {result.seed}: recall@1 {result.metrics['recall_at_1']:.1%}{took}"


def _report(experiment: Experiment, data: Data, out: Path, results: Sequence[Result], say: Say) -> None:
    from pml_ext.benchmark import plots

    say("")
    say(table.text(results))
    files.write(out / TABLE, table.markdown(results).encode())
    drawn = plots.draw(experiment, data, out, results)
    say("")
    say(f"results: {out / RESULTS}")
    say(f"table:   {out / TABLE}")
    say(f"plots:   {', '.join(map(str, drawn))}")
    say(f"logs:    tensorboard --logdir {out}")
