"""The record of one finished run, and the file of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pml_ext.benchmark import environment, files
from pml_ext.benchmark.errors import BenchmarkError


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Result:
    """One finished run: one loss with one seed.

    Args:
        loss: the name of the loss; "untrained" for the network before training.
        seed: the seed.
        metrics: what the last epoch gave, on the unseen classes.
        history: the same after each epoch, with the seconds of training that it took.
        seconds_per_epoch: mean seconds of training per epoch, testing not counted; None if untrained.
        arguments: the arguments of the experiment.
        failure: what was wrong with the embeddings when they were last looked at, in one line, "collapsed: ..." say; ""
            if nothing was.
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
    date: str = field(default_factory=_now)
    hardware: dict[str, Any] = field(default_factory=environment.hardware)
    commit: str | None = field(default_factory=environment.commit)
    versions: dict[str, str] = field(default_factory=environment.versions)


def read(path: Path) -> list[Result]:
    """The results in a `results.jsonl`. A last line without its end is not a result and is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    results = []
    for number, line in enumerate(lines, 1):
        try:
            record = {"failure": ""} | json.loads(line)
            results.append(Result(**{f.name: record[f.name] for f in fields(Result)}))
        except (ValueError, KeyError, TypeError):
            raise BenchmarkError(f"{path}, line {number} is not a result; remove it to run it again") from None
    return results


def write(path: Path, results: Sequence[Result]) -> None:
    """Write all results, one per line; whatever happens meanwhile, the file holds the old ones or the new ones."""
    files.write(path, "".join(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results).encode())
