"""An experiment: all its runs, then the table and the plots."""

from __future__ import annotations

import io
import sqlite3
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pml_ext.benchmark import difference, evaluate, files, folder, frozen, keep, lock, losses, records, result, table
from pml_ext.benchmark.checkpoint import DamagedError, epochs_done
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.data import VECTORS, Data
from pml_ext.benchmark.device import torch_device
from pml_ext.benchmark.difference import QUERIES
from pml_ext.benchmark.errors import BenchmarkError, check_extras, explain
from pml_ext.benchmark.evaluate import NotFinite
from pml_ext.benchmark.events import Callback, Event, RunEnded, RunStarted, Teller
from pml_ext.benchmark.fingerprint import fingerprint
from pml_ext.benchmark.losses import LossSpec
from pml_ext.benchmark.pace import Pace
from pml_ext.benchmark.processes import Team, team
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.result import BASELINES, FROZEN_TRUNK, UNTRAINED, UNTRAINED_HEAD, Key, Result
from pml_ext.benchmark.results import Results
from pml_ext.benchmark.training import Diverged, Run, identity, network_of, new_network
from pml_ext.evaluation import Evaluation

RESULTS = "results.jsonl"
TABLE = "table.md"
ERROR = "error.txt"
EMBEDDINGS = "embeddings.npy"  # of the test classes, where the folds' are going to be joined
NAMED = 12  # losses in the line that says what is going to happen
# What failed for a reason of its own is tried again when the experiment is continued; what diverged would diverge.
RAISED = "raised: "
LONG = 300.0  # seconds of training, from which on an estimate is worth a line

Say = Callable[[str], None]


def run(
    experiment: Experiment,
    *,
    resume: bool | None = False,
    say: Say | None = None,
    callbacks: Iterable[Callback] = (),
    from_python: bool = False,
) -> Results:
    """Run an experiment; write results, logs, the table and the plots under its `out`.

    A run has ended when its line is in `results.jsonl`, where it appears all at once. After every epoch there is a
    checkpoint, so that an interrupted experiment continues with the next epoch and ends with the same numbers.

    Args:
        experiment: the arguments.
        resume: continue the experiment in `out` (by default the last one in `runs`), whose losses and seeds are added
            to; with more epochs, its runs go on. None continues it if it is there. Default False: start a new one.
        say: called with each line for the reader. Default: silence, or `print` of what must be known if `from_python`.
        callbacks: called with the events of the runs. Default ().
        from_python: return what there is when the user interrupts, and when runs fail. Default False: raise then.

    Returns:
        one result per seed and loss, the untrained network of each seed first; `error` is set in those that failed.

    Raises:
        BenchmarkError: `out` holds something else or is in use, a loss cannot be trained, a package is missing, or runs
            have failed (the others are finished then).
        OSError, sqlite3.Error: the disk is full, or `out` cannot be written to.
    """
    check_extras()
    from pml_ext.benchmark import plots  # needs the extras; what is wrong with it shows before the training

    together = team()
    if not together.is_first:
        callbacks, say = (), _silence
    tell, warn, say = Teller(callbacks), say or (print if from_python else _silence), say or _silence
    torch_device(experiment.device)
    specs = losses.parse_all(experiment.losses)
    data: list[Data] = []
    objects = _objects(experiment, specs)
    if resume is None:
        if experiment.out is None:
            data = _data(experiment)
            contents = [*objects.values(), *(each.samples.key for each in data[:1] if each.samples is not None)]
            experiment = folder.of_its_own(experiment, [spec.name for spec in specs], contents)
        resume = (Path(str(experiment.out)) / folder.ARGUMENTS).exists()
    if resume:
        experiment = folder.reopen(experiment, [spec.name for spec in specs])
        specs = losses.parse_all(experiment.losses)
        out = Path(str(experiment.out))
    else:
        experiment = replace(experiment, out=together.first(lambda: str(folder.named(experiment).out)))
        out = folder.check_new(experiment)
    data = data or _data(experiment)
    weights: dict[str, int] = {}
    for spec in specs:
        _check_method(spec, experiment)
        weights[spec.name] = losses.rehearse(
            spec,
            classes=data[0].train_classes,
            embedding_size=experiment.embedding_size,
            images_per_class=data[0].images_per_class(experiment),
        )
    joined: list[Result] = []
    interrupted = False
    with ExitStack() as held:
        jobs = Jobs(experiment, {spec.name: spec for spec in specs}, out, say, tell, together)

        def begin() -> list[Result]:
            files.make_folder(out)
            held.enter_context(lock.held(out))
            if not resume:
                folder.check_new(experiment)  # another process may have come and gone meanwhile
            before = jobs.read()
            folder.start(out, experiment, list(jobs.specs), objects)
            return before

        together.meet()  # none still looks at the folder as it was
        before = together.first(begin)
        for line in [*_plan(jobs, data[0]), *_trained_with(jobs, weights)]:
            say(line)
        if from_python and objects:
            warn(_in_memory(objects, out))
        try:
            jobs.data = _prepared(experiment, data, say, together)
            results = jobs.run(before)

            def end() -> list[Result]:
                if from_python and results == before and (out / plots.REPORT).exists():
                    return _concatenated(experiment, jobs.data, out, results)
                return _report(experiment, jobs.data, out, results, say)

            joined = together.first(end)
        except KeyboardInterrupt:
            if not from_python:
                raise
            results, interrupted = jobs.read(), True
    failed = [f"{result.name_of(one.key)}: {one.error}" for one in results if one.error]
    if failed and not from_python:
        raise BenchmarkError("; ".join(failed))
    return Results(tuple(results), experiment, tuple(jobs.data or data), interrupted, tuple(joined))


def _silence(line: str) -> None:
    pass


def _prepared(experiment: Experiment, data: list[Data], say: Say, together: Team) -> list[Data]:
    """The data as the networks take them; the first process computes features, the others find them."""
    made: list[list[Data]] = []
    together.first(lambda: made.append(frozen.prepared(experiment, data, say)))
    return made[0] if made else frozen.prepared(experiment, data, say)


def _data(experiment: Experiment) -> list[Data]:
    return [Data.of(experiment, fold) for fold in _folds(experiment)]


def _objects(experiment: Experiment, specs: Sequence[LossSpec]) -> dict[str, str]:
    """Digests of the losses and the trunk that are objects, by name."""
    found = {spec.name: fingerprint(spec.given) for spec in specs if spec.in_memory}
    if not isinstance(experiment.trunk, str):
        found["trunk"] = fingerprint(experiment.trunk)
    return found


def _in_memory(objects: Mapping[str, str], out: Path) -> str:
    names = ", ".join(list(objects)[:NAMED]) + (", ..." if len(objects) > NAMED else "")
    return (
        f"in memory only: {names}. Results are in {out}; give the same objects again to continue there, "
        "the command line cannot."
    )


def _folds(experiment: Experiment) -> Sequence[int | None]:
    return [None] if experiment.folds is None else range(experiment.folds)


def _check_method(spec: LossSpec, experiment: Experiment) -> None:
    """Raise BenchmarkError for arguments that a method with optimizers of its own would not heed."""
    heeded = {"optimizer": "adam", "schedule": "constant", "warmup": 0, "clip": None, "amp": "none", "ema": 0}
    heeded |= {"accumulate": 1, "cached_chunk": None, "accelerate": False}
    unheeded = [name for name, default in heeded.items() if getattr(experiment, name) != default]
    if spec.method is not None and unheeded:
        raise BenchmarkError(f"{spec.name} trains in its own way, without {', '.join(unheeded)}: leave that out")


class Jobs:
    """The runs of an experiment.

    Args:
        experiment: the arguments.
        specs: the losses by name.
        out: the folder.
        say: called with each line for the reader.
        tell: called with the events of the runs.
        team: the processes that do them together; the first one writes.

    Attributes:
        data: of each fold; to be set before `run`.
    """

    def __init__(
        self,
        experiment: Experiment,
        specs: dict[str, LossSpec],
        out: Path,
        say: Say,
        tell: Callable[[Event], None],
        team: Team,
    ) -> None:
        self.experiment, self.specs, self.out, self.say, self.tell = experiment, specs, out, say, tell
        self.team = team
        self.data: list[Data] = []
        self._clock: Pace | None = Pace(experiment.workers)

    def keys(self, data: Data | None = None) -> list[Key]:
        """Every run, in its order; without the data, all that there could be."""
        found: list[Key] = []
        for seed in self.experiment.seeds:
            found += [(name, seed, None) for name in self._baselines(seed, data)]
            found += [(name, seed, fold) for name in self.specs for fold in _folds(self.experiment)]
        return found

    def _baselines(self, seed: int, data: Data | None) -> Sequence[str]:
        if data is None:
            return BASELINES
        if not data.pretrained:
            return (UNTRAINED,)
        # A frozen trunk, and a head of principal components, are the same for every seed.
        first = seed == self.experiment.seeds[0]
        head = (UNTRAINED_HEAD,) if first or data.head is None else ()
        return (FROZEN_TRUNK, *head) if first else head

    def read(self) -> list[Result]:
        """The results that are there.

        Raises:
            BenchmarkError: one is of no run of this experiment.
        """
        known = set(self.keys())
        found = result.read(self.out / RESULTS)
        for one in found:
            if one.key not in known:
                raise BenchmarkError(
                    f"{self.out / RESULTS} has a result of {result.name_of(one.key)}, which is no run of this "
                    "experiment: remove its line, or add it to --losses and --seeds"
                )
        return found

    def folder(self, key: Key) -> Path:
        """The folder of a run."""
        return folder.run_folder(self.out, *key)

    def run(self, before: list[Result]) -> list[Result]:
        """Do what is left to do, and write every result when it is there."""
        results = {one.key: one for one in before}
        keys = self.keys(self.data[0])
        todo = [key for key in keys if key not in results or not self._ended(results[key])]
        left = self.team.first(
            lambda: {key: self.experiment.epochs - self._done(key) for key in todo if key[0] in self.specs}
        )
        total = self.experiment.epochs * sum(key[0] in self.specs for key in keys)
        progress = Progress(total, done=total - sum(left.values()), shown=None if self.team.is_first else False)
        try:
            for key in todo:
                one = self._one(key, progress, sum(left.values()))
                left.pop(key, None)
                results[key] = one
                if self.team.is_first:
                    result.write(self.out / RESULTS, [results[each] for each in keys if each in results])
                self.tell(RunEnded(one))
                if not progress.shown:
                    self.say(_line(one))
        finally:
            progress.close()
        return [results[key] for key in keys]

    def _ended(self, one: Result) -> bool:
        """Whether a run is not to be continued."""
        if one.error:
            return not one.error.startswith(RAISED)
        return not one.trained or len(one.history) >= self.experiment.epochs

    def _done(self, key: Key) -> int:
        return epochs_done(self.folder(key), identity(*key))

    def _one(self, key: Key, progress: Progress, epochs_left: int) -> Result:
        name, seed, fold = key
        where, data, arguments = self.folder(key), self.data[fold or 0], self._arguments()

        def pace(seconds: float) -> None:
            known = None if self._clock is None else self._clock.step(seconds)
            if known is not None:
                self._clock = None  # it is said once
                expected = known * data.steps(self.experiment) * epochs_left
                if expected > LONG:
                    of_trunk = data.pretrained and data.trunk.name != VECTORS and not self.experiment.frozen
                    less = "; with frozen, which trains the head alone, far less" if of_trunk else ""
                    self.say(f"about {_duration(expected)} of training, tests not counted{less}")

        self.team.first(lambda: where.mkdir(exist_ok=True))
        try:
            if name not in self.specs:
                measured = self._test_baseline(name, seed, data, where, progress)
                if self.team.is_first:
                    files.write(where / QUERIES, evaluate.per_query(measured))
                return Result(name, seed, dict(measured), [], None, arguments)
            self.tell(RunStarted(name, seed, fold))
            run = Run(
                self.experiment,
                data,
                self.specs[name],
                seed,
                where,
                progress,
                fold=fold,
                pace=pace,
                tell=self.tell,
                team=self.team,
            )
            tested = run.train()
            if self.team.is_first:
                files.write(where / QUERIES, evaluate.per_query(tested.test))
                if fold is not None:
                    files.write(where / EMBEDDINGS, _saved(tested.embeddings))
                keep.keep(where, tested.network, data, tested.metrics, arguments | identity(*key), out=self.out)
        except (Diverged, NotFinite) as error:
            return _failed(key, arguments, f"diverged: {error}")
        except (OSError, sqlite3.Error, MemoryError, BenchmarkError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a loss of one's own may raise anything; the others are none the worse for it
            if self.team.size > 1:  # but other processes wait for this one, and hear of it by its end
                raise
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

    def _arguments(self) -> dict[str, Any]:
        return self.experiment.arguments() | {"losses": list(self.specs)}

    def _test_baseline(self, name: str, seed: int, data: Data, where: Path, progress: Progress) -> Evaluation:
        """Test the network of a seed before training, or its trunk alone, and record the result as epoch 0."""
        progress.who = f"{name} seed {seed}"
        device = torch_device(self.experiment.device)
        network = new_network(self.experiment, data, seed)
        embeddings = evaluate.embed(
            network.trunk if name == FROZEN_TRUNK else network,
            data.test,
            device=device,
            workers=self.experiment.workers,
            progress=progress,
            team=self.team,
        )
        recall_at = self.experiment.recall_at
        measured = evaluate.measure(
            embeddings, data.test, recall_at=recall_at, device=device, clusters=True, team=self.team
        )
        if self.team.is_first:
            records.rewind(where)
        with records.keeping(where, writes=self.team.is_first) as keeper:
            records.record_metrics(keeper, 0, "test", dict(measured))
        return measured


def _failed(key: Key, arguments: dict[str, Any], error: str) -> Result:
    name, seed, fold = key
    return Result(name, seed, {}, [], None, arguments, error=error, fold=fold)


def _plan(jobs: Jobs, data: Data) -> list[str]:
    experiment = jobs.experiment
    runs = len(jobs.specs) * len(experiment.seeds) * (experiment.folds or 1)
    device = torch_device(experiment.device)
    threads = f" ({_number(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else ""
    names = list(jobs.specs) if len(jobs.specs) <= NAMED else [*list(jobs.specs)[:NAMED], "..."]
    return [
        data.describe(),
        *data.notes,
        f"{', '.join(names)}: {_number(runs, 'run')} of {_number(experiment.epochs, 'epoch')}, "
        f"{_number(data.steps(experiment), 'step')} each of {data.batch_size(experiment)} images, on {device}{threads}",
        *data.warnings(experiment),
        *records.missing(),
        f"writing to {jobs.out}",
    ]


def _trained_with(jobs: Jobs, weights: Mapping[str, int]) -> list[str]:
    """A line for the losses that have weights of their own, which are trained too."""
    rates = {
        name: dict(spec.rates).get("loss_learning_rate", jobs.experiment.loss_learning_rate)
        for name, spec in jobs.specs.items()
    }
    some = [f"{name} ({count:,} at {rates[name]:g})" for name, count in weights.items() if count]
    named = ", ".join(some[:NAMED]) + (", ..." if len(some) > NAMED else "")
    return [f"losses with weights of their own, and their learning rate: {named}"] if some else []


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


def _saved(embeddings: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, embeddings.numpy(), allow_pickle=False)
    return stream.getvalue()


def _concatenated(experiment: Experiment, data: list[Data], out: Path, results: Sequence[Result]) -> list[Result]:
    """A row for each loss and seed of what the models of all folds say together, their embeddings side by side."""
    if experiment.folds is None:
        return []
    found = []
    for loss, runs in table.by_loss([one for one in results if one.fold is not None and not one.error]).items():
        for seed in experiment.seeds:
            folders = [folder.run_folder(out, *one.key) for one in runs if one.seed == seed]
            if len(folders) < experiment.folds or not all((each / EMBEDDINGS).exists() for each in folders):
                continue
            parts = [torch.from_numpy(np.load(each / EMBEDDINGS, allow_pickle=False)) for each in folders]
            measured = evaluate.measure(
                torch.cat(parts, dim=1) / len(parts) ** 0.5,
                data[0].test,
                recall_at=experiment.recall_at,
                device=torch_device(experiment.device),
                clusters=True,
            )
            found.append(Result(f"{loss}, {experiment.folds} folds joined", seed, dict(measured), [], None, {}))
    return found


def _report(experiment: Experiment, data: list[Data], out: Path, results: Sequence[Result], say: Say) -> list[Result]:
    """Write the table and the plots, then print: what is printed to may be gone. Returns the rows of joined folds."""
    from pml_ext.benchmark import plots

    joined = _concatenated(experiment, data, out, results)
    rows = [*results, *joined]
    standing = difference.standing(out, results)
    notes = [data[0].chance()]
    files.write(out / TABLE, table.markdown(rows, standing, notes).encode())
    chosen = keep.choose(results)
    try:
        if chosen is not None:
            fold = data[chosen.fold or 0]
            network = network_of(experiment, fold, folder.run_folder(out, *chosen.key), *chosen.key)
            keep.keep(out, network, fold, chosen.metrics, chosen.arguments | identity(*chosen.key), out=out)
        drawn = plots.draw(experiment, data[0], out, results)
        shown = {"report": str(drawn[0])} if drawn else {}
        if drawn[1:]:
            shown["plots"] = f"{drawn[1].parent}: {', '.join(each.stem for each in drawn[1:])}"
    except (DamagedError, MemoryError) as error:
        shown = {"plots": f"none: {error or 'out of memory'}"}
    except OSError as error:
        shown = {"plots": f"none: {explain(error)}"}
    say("")
    say(table.text(rows, standing, notes))
    say("")
    say(f"results: {out / RESULTS}")
    say(f"table:   {out / TABLE}")
    for name, where in shown.items():
        say(f"{name + ':':8} {where}")
    if chosen is not None and (out / keep.BEST).is_dir():
        say(f"model:   {out / keep.BEST} ({result.name_of(chosen.key)}, by its MAP@R on the validation classes)")
    if records.have_events():
        say(f"logs:    tensorboard --logdir {out}")
    return joined
