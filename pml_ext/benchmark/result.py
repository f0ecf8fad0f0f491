"""The record of one run that ended, well or badly, and the file of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pml_ext.benchmark import environment, files
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.shown import LONGEST, one_line, table

# Rows of the table that no loss has trained.
UNTRAINED = "untrained"
FROZEN_TRUNK = "frozen trunk"
UNTRAINED_HEAD = "untrained head"
BASELINES = (UNTRAINED, FROZEN_TRUNK, UNTRAINED_HEAD)

Key = tuple[str, int, int | None]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, repr=False)
class Result:
    """One run that ended: one loss with one seed, on one fold.

    Args:
        loss: the name of the loss; "untrained", "frozen trunk" or "untrained head" for a network without training.
        seed: the seed.
        metrics: on the test classes, after the epoch that was best on the validation classes, or the last epoch without
            them; {} if the run failed.
        history: of each epoch: "epoch", "seconds" of training, the mean "loss", and the metrics on the validation
            classes, or on the test classes where there are none.
        seconds_per_epoch: mean seconds of training per epoch, testing not counted; None if untrained.
        arguments: the arguments of the experiment.
        failure: what was wrong with the embeddings at the last health check, in one line, for example "collapsed: ...";
            "" if nothing was.
        error: why the run has no metrics, in one line, for example "diverged: ..."; "" if it has metrics.
        fold: which of the folds of the training classes chose the epoch; None without folds.
        best_epoch: the epoch that `metrics` are of; None if untrained or failed.
        last: on the test classes, the metrics of the last epoch; {} if untrained or failed.
        validation: on the validation classes, the metrics of `best_epoch`; {} without them.
        date: when the run ended, UTC.
        hardware: what it ran on.
        commit: the git commit of `pml_ext`, if it ran from a checkout.
        versions: of Python and the packages.
    """

    loss: str
    seed: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds_per_epoch: float | None
    arguments: dict[str, Any]
    failure: str = ""
    error: str = ""
    fold: int | None = None
    best_epoch: int | None = None
    last: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    date: str = field(default_factory=_now)
    hardware: dict[str, Any] = field(default_factory=environment.hardware)
    commit: str | None = field(default_factory=environment.commit)
    versions: dict[str, str] = field(default_factory=environment.versions)

    @property
    def key(self) -> Key:
        """What tells it from the other runs of an experiment."""
        return self.loss, self.seed, self.fold

    @property
    def trained(self) -> bool:
        """Whether a loss has trained it."""
        return self.loss not in BASELINES

    def row(self) -> dict[str, Any]:
        """What a row of a data frame has of it."""
        return {
            "loss": self.loss,
            "seed": self.seed,
            "fold": self.fold,
            **self.metrics,
            **{f"last_{name}": value for name, value in self.last.items()},
            **{f"validation_{name}": value for name, value in self.validation.items()},
            "best_epoch": self.best_epoch,
            "epochs": len(self.history),
            "seconds_per_epoch": self.seconds_per_epoch,
            "failure": self.failure,
            "error": self.error,
        }

    def __repr__(self) -> str:
        lines = [one_line(name_of(self.key), LONGEST)]
        if self.error:
            lines.append(one_line(f"failed: {self.error}", LONGEST))
        lines += [f"  {name:30} {100 * value:5.1f} %" for name, value in self.metrics.items()]
        return "\n".join([*lines, *(f"  {one_line(line, LONGEST)}" for line in self._about())])

    def _repr_html_(self) -> str:
        rows = [(name, f"{100 * value:.1f} %") for name, value in self.metrics.items()]
        notes = [*([f"failed: {self.error}"] if self.error else []), *self._about()]
        return table(("metric", "test classes"), rows, caption=name_of(self.key), notes=notes)

    def _about(self) -> list[str]:
        took = None if self.seconds_per_epoch is None else f"{self.seconds_per_epoch:.2f} seconds of training each"
        chosen = None if self.best_epoch is None else f"of epoch {self.best_epoch} of {len(self.history)}"
        lines = [", ".join(each for each in (chosen, took) if each), self.failure]
        return [line for line in lines if line]


def read(path: Path) -> list[Result]:
    """The results in a `results.jsonl`. A last line without its end is not a result and is left out.

    Raises:
        BenchmarkError: a line is not a result, or a run has two.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    results: dict[Key, tuple[int, Result]] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            one = _checked(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = f" ({error})" if isinstance(error, _WrongError) else ""
            raise BenchmarkError(f"{path}, line {number} is not a result{reason}; remove it to run it again") from None
        if one.key in results:
            raise BenchmarkError(
                f"{path}, lines {results[one.key][0]} and {number} are of the same run, {name_of(one.key)}: "
                "remove one of them"
            )
        results[one.key] = number, one
    return [one for _, one in results.values()]


def write(path: Path, results: Sequence[Result]) -> None:
    """Write all results, one per line; whatever happens meanwhile, the file holds the old ones or the new ones."""
    files.write(path, "".join(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results).encode())


def name_of(key: Key) -> str:
    """A run in words.

    >>> name_of(("RAW", 3, None)), name_of(("RAW", 3, 1))
    ('RAW, seed 3', 'RAW, seed 3, fold 1')
    """
    loss, seed, fold = key
    return f"{loss}, seed {seed}" + ("" if fold is None else f", fold {fold}")


class _WrongError(ValueError):
    """What is wrong with a line."""


def _checked(record: Any) -> Result:
    """A result from JSON, if each of its fields is what it must be."""
    if not isinstance(record, dict):
        raise _WrongError("not an object")
    told = {each.name: record[each.name] for each in fields(Result) if each.name in record}
    missing = [name for name in _NEEDED if name not in told]
    if missing:
        raise _WrongError(f"without {', '.join(missing)}")
    for name, value in told.items():
        if not _TYPES[name](value):
            raise _WrongError(f"{name} cannot be {json.dumps(value)[:60]}")
    one = Result(**(_EARLIER | told))
    if not one.error and "recall_at_1" not in one.metrics:
        raise _WrongError("neither metrics nor an error")
    if one.trained and not one.error and not one.history:
        raise _WrongError("no history")
    if one.best_epoch is not None and not 1 <= one.best_epoch <= len(one.history):
        raise _WrongError(f"best_epoch {one.best_epoch} of {len(one.history)}")
    return one


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _share(value: Any) -> bool:
    return _number(value) and (math.isnan(value) or 0 <= value <= 1)


def _metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(_share(each) for each in value.values())


def _history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(epoch, dict) and "recall_at_1" in epoch and all(_number(each) for each in epoch.values())
        for epoch in value
    )


def _optional(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "loss": lambda value: _text(value) and bool(value),
    "seed": _whole,
    "metrics": _metrics,
    "history": _history,
    "seconds_per_epoch": _optional(lambda value: _number(value) and math.isfinite(value) and value >= 0),
    "arguments": _object,
    "failure": _text,
    "error": _text,
    "fold": _optional(_whole),
    "best_epoch": _optional(_whole),
    "last": _metrics,
    "validation": _metrics,
    "date": _text,
    "hardware": _object,
    "commit": _optional(_text),
    "versions": _object,
}
_NEEDED = ("loss", "seed", "metrics", "history", "seconds_per_epoch", "arguments", "date", "hardware", "versions")
_EARLIER = {"commit": None}  # never that of the reader
