"""Tuning: the same number of trials for every loss, judged on validation classes, written as a config that runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from pml_ext.benchmark import files, folder, frozen, lock, losses
from pml_ext.benchmark.config import Experiment, read_json
from pml_ext.benchmark.data import Data, VectorPart
from pml_ext.benchmark.errors import BenchmarkError, check_extras
from pml_ext.benchmark.evaluate import CHOSEN_BY, NotFinite
from pml_ext.benchmark.kinds import Whole
from pml_ext.benchmark.learning import trunk_rate
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.training import Diverged, Run
from pml_ext.spaces import Range, times

STORAGE = "trials.db"
TABLE = "tuned.md"
TRIAL = ".trial"  # the folder of the trial that is running
DIGITS = 4  # significant ones of a value: what is written down is what was tried
RATE_FACTOR = 10  # up and down, of a learning rate
STARTUP = 8  # trials drawn at random before the sampler learns from them
# Of a study, what may be given anew when it is continued.
MOVING = ("losses", "device", "workers", "out", "cache", "config")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """The result of the search for one loss.

    Args:
        loss: the loss as it was given.
        best: the loss with the best values.
        values: these values.
        score: mean MAP@R on the validation classes, of the best epoch, over folds and seeds.
        default: the same score with the default values of the loss, its first trial.
        trials: number of trials.
    """

    loss: str
    best: str
    values: dict[str, float]
    score: float
    default: float
    trials: int


def tune(
    experiment: Experiment,
    trials: int = 30,
    *,
    rates: bool = False,
    resume: bool = False,
    say: Say = lambda line: None,
) -> list[Tuned]:
    """Search the declared space of every loss, each with the same number of trials.

    A trial trains as the experiment says and is judged on the validation classes alone, by the mean over folds and
    seeds; the test classes are never used. The first trial of a loss has its default values. Trials are drawn by
    optuna's TPE with random numbers that depend on the first seed and the number of finished trials, so that an
    interrupted search continues as if it had not been interrupted; an interrupted trial is repeated.

    Args:
        experiment: what a trial trains: data, network, epochs, seeds, folds. Its losses are searched.
        trials: number of trials for each loss. Default 30.
        rates: whether to search the learning rates too, separately for each loss, by a factor of 10 up and down: those
            of the head, of a pretrained trunk that is trained, and of a loss with parameters. Default False: those of
            the experiment.
        resume: continue the search in `out`, with more trials or further losses if these are given. Default False.
        say: called with each line for the reader. Default: silence.

    Returns:
        one result for each loss; they are written to `tuned.md`, and to `tuned.json` as a config for `--config`.

    Raises:
        BenchmarkError: optuna is missing, there are no validation classes, a loss has no search space, or `out` holds
            something else.
    """
    check_extras()
    if find_spec("optuna") is None:
        raise BenchmarkError('tune needs optuna: pip install "pml_ext[benchmark]"')
    trials = Whole(1).check("trials", trials)
    experiment, out = _place(experiment, resume, rates)
    rates = rates or (resume and folder.searches_rates(out))
    known = {str(loss): losses.searched(loss) for loss in experiment.losses}
    _check_space({} if rates else known)
    data = [Data.of(experiment, fold) for fold in ([None] if experiment.folds is None else range(experiment.folds))]
    searched = {name: _with_rates(each, experiment, data[0]) for name, each in known.items()} if rates else known
    _check_space(searched)
    if any(each.validation is None for each in data):
        raise BenchmarkError(f"{data[0].name} has no validation classes to judge by: give --validation or --folds")
    files.make_folder(out)
    with lock.held(out):
        files.write_json(out / folder.SEARCH, experiment.arguments() | {"out": None, folder.RATES: rates})
        trainings = trials * len(searched) * len(data) * len(experiment.seeds)
        say(f"{data[0].name}: {trials} trials for each of {', '.join(searched)}, {trainings} trainings in all")
        for line in data[0].notes:
            say(line)
        if rates:
            say("the learning rates are searched too, for each loss its own")
        say(f"writing to {out}")
        data = frozen.prepared(experiment, data, say)
        with _stored(out / STORAGE) as storage:
            studies = {name: _study(name, storage) for name in searched}
            done = sum(min(trials, len(_finished(study))) for study in studies.values())
            progress = Progress(trials * len(searched), done=done)
            try:
                found = [
                    _search(experiment, data, searched[name], studies[name], trials, out / TRIAL, progress, say)
                    for name in searched
                ]
            finally:
                progress.close()
                shutil.rmtree(out / TRIAL, ignore_errors=True)
        _write(experiment, found, out)
    for line in _table(found):
        say(line)
    say(f"the best values are in {out / folder.TUNED}")
    return found


def suggested(trial: Any, space: Mapping[str, Range]) -> dict[str, float]:
    """Draw the values of a trial of optuna, rounded to what is worth writing down."""
    values: dict[str, float] = {}
    for name, each in space.items():
        if each.whole:
            values[name] = trial.suggest_int(name, int(each.low), int(each.high), log=each.log)
        else:
            values[name] = rounded(trial.suggest_float(name, each.low, each.high, log=each.log), each)
    return values


def rounded(value: float, within: Range) -> float:
    """A value to four significant digits, inside its range.

    >>> rounded(0.123456, Range(0, 1, 0.5)), rounded(0.33333333, Range(0.33333333, 1, 0.5))
    (0.1235, 0.33333333)
    """
    return min(max(float(f"{value:.{DIGITS}g}"), within.low), within.high)


def _check_space(searched: Mapping[str, losses.Searched]) -> None:
    for loss, each in searched.items():
        if not each.space:
            raise BenchmarkError(f"{loss} has nothing to tune: no range is declared for its arguments; leave it out")


def _with_rates(searched: losses.Searched, experiment: Experiment, data: Data) -> losses.Searched:
    """The same with the learning rates that are not given, around those of the experiment."""
    text = searched.written({})
    spec = losses.parse(text)
    if spec.method is not None:
        return searched
    rates = {"learning_rate": experiment.learning_rate}
    if data.pretrained and not experiment.frozen and not isinstance(data.train, VectorPart):
        rates["trunk_learning_rate"] = trunk_rate(experiment, pretrained=True)
    recipe = spec.build(classes=data.train_classes, embedding_size=experiment.embedding_size)
    if any(weight.requires_grad for weight in recipe.loss.parameters()):
        rates["loss_learning_rate"] = experiment.loss_learning_rate
    found = {name: times(RATE_FACTOR)(rate) for name, rate in rates.items() if rate and name not in spec.rates}
    return replace(searched, space={**searched.space, **found})


def _place(experiment: Experiment, resume: bool, rates: bool) -> tuple[Experiment, Path]:
    if not resume:
        named = folder.named(experiment)
        if (Path(str(named.out)) / folder.SEARCH).exists():
            raise BenchmarkError(f"{named.out} holds a search already: continue it with --resume")
        return named, folder.check_new(named)
    if experiment.out is None:
        raise BenchmarkError("a search is continued in its folder: give --out")
    out = Path(experiment.out)
    if not (out / folder.SEARCH).exists():
        raise BenchmarkError(f"there is no search in {out} to resume")
    then, now = read_json(out / folder.SEARCH), experiment.arguments()
    changed = [f"{k} {then.get(k)}, not {now[k]}" for k in now if k not in MOVING and then.get(k) != now[k]]
    if rates and not folder.searches_rates(out):
        changed.append("rates False, not True")
    if changed:
        raise BenchmarkError(f"the search in {out} has {'; '.join(changed)}: leave that out, or choose another --out")
    return experiment, out


@contextmanager
def _stored(path: Path) -> Iterator[Any]:
    """The trials in a SQLite file."""
    import optuna
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = URL.create("sqlite", database=str(path.resolve())).render_as_string(hide_password=False)
    try:
        storage = optuna.storages.RDBStorage(url)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(getattr(error.__cause__ or error, "orig", None) or error).splitlines()[0]
        raise BenchmarkError(f"{path} cannot be used: {reason}") from error


def _study(name: str, storage: Any) -> Any:
    import optuna
    from optuna.trial import TrialState

    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # its process is gone: we hold the lock
    return study


def _finished(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _search(
    experiment: Experiment,
    data: Sequence[Data],
    searched: losses.Searched,
    study: Any,
    trials: int,
    where: Path,
    progress: Progress,
    say: Say,
) -> Tuned:
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    name = study.study_name
    while (count := len(_finished(study))) < trials:
        # A sampler of its own for every trial: an interrupted search draws on as if it had not been.
        study.sampler = TPESampler(seed=experiment.seeds[0] + count, n_startup_trials=STARTUP)
        if count == 0 and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial({key: each.default for key, each in searched.space.items()})
        trial = study.ask()
        try:
            values = suggested(trial, searched.space)
            spec = searched.written(values if count else {})
            progress.who = f"{name}, trial {count + 1} of {trials}"
            score = _score(experiment, data, spec, where)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("written", spec)
        trial.set_user_attr("values", values)
        study.tell(trial, score)
        progress.epoch_done(f"{name} {score:.4f}")
        if not progress.shown:
            say(f"trial {count + 1}: {spec}: {score:.4f}")
    done = _finished(study)[:trials]
    best = max(done, key=lambda trial: (trial.value, -trial.number))
    written, values = best.user_attrs["written"], best.user_attrs["values"]
    return Tuned(name, written, values, best.value, done[0].value, len(done))


def _score(experiment: Experiment, data: Sequence[Data], spec: str, where: Path) -> float:
    """Mean over folds and seeds of the best epoch's MAP@R on validation classes; 0 if it diverges."""
    scores = []
    quiet = Progress(0, shown=False)
    for fold, part in enumerate(data):
        for seed in experiment.seeds:
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir()
            try:
                run = Run(experiment, part, losses.parse(spec), seed, where, quiet, fold=fold)
                run.fit()
                history = [epoch[CHOSEN_BY] for epoch in run.history]
            except (Diverged, NotFinite):
                return 0.0
            scores.append(max((value for value in history if not math.isnan(value)), default=0.0))
    return mean(scores)


def _write(experiment: Experiment, found: Sequence[Tuned], out: Path) -> None:
    arguments = {
        name: value
        for name, value in experiment.arguments().items()
        if value is not None and name not in ("out", "config", "protocol", "device")
    }
    if not isinstance(experiment.data, str):
        del arguments["data"]
    files.write_json(out / folder.TUNED, arguments | {"losses": [each.best for each in found]})
    files.write(out / TABLE, ("\n".join(_table(found)) + "\n").encode())


def _table(found: Sequence[Tuned]) -> list[str]:
    rows = [
        f"| {each.loss} | {each.default:.4f} | {each.score:.4f} | {each.trials} "
        f"| {json.dumps(each.values)[1:-1] if each.score > each.default else 'as it is'} |"
        for each in found
    ]
    return [
        "MAP@R on the validation classes, of the best epoch:",
        "",
        "| loss | as it is | tuned | trials | values |",
        "|---|---|---|---|---|",
        *rows,
    ]
