"""The logs of PML's record-keeper, and how to take them back to a checkpoint.

Record-keeper only appends. A run that was killed between its last checkpoint and its next one has logged steps that it
will take again, so a checkpoint notes how long each log was and a resumed run cuts them to that length first.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_metric_learning.utils import logging_presets

Lengths = dict[str, dict[str, int]]


@contextmanager
def keeping(folder: Path) -> Iterator[Any]:
    """Open a record-keeper that writes CSV files and `logs.db` (SQLite), and TensorBoard events, under `folder`."""
    keeper, _, tensorboard = logging_presets.get_record_keeper(str(folder / "records"), str(folder / "tensorboard"))
    try:
        yield keeper
    finally:
        # On a full disk closing fails like the write before it, which is the error worth showing.
        with suppress(OSError):
            tensorboard.close()


def hooks(keeper: Any) -> Any:
    """PML's hooks, which test and record.

    Their own checkpoints are not used: they are written in place, a full disk is taken for a warning and the previous
    ones are deleted even so, and no random state is saved.
    """
    return logging_presets.get_hook_container(keeper, save_models=False, validation_split_name="test", log_freq=10)


def lengths(folder: Path, keeper: Any) -> Lengths:
    """How long each log under `folder` is now: bytes of a file, the last id of a table."""
    keeper.tensorboard_writer.flush()
    files = {str(path.relative_to(folder)): path.stat().st_size for path in _logs(folder)}
    with closing(_database(folder)) as database:
        tables = {
            table: database.execute(f"SELECT COALESCE(MAX(id), 0) FROM {table}").fetchone()[0]
            for table in _tables(database)
        }
    return {"files": files, "tables": tables}


def rewind(folder: Path, to: Lengths) -> None:
    """Cut the logs under `folder` back to the lengths that `lengths` returned."""
    for path in _logs(folder):
        length = to["files"].get(str(path.relative_to(folder)))
        if length is None:
            path.unlink()
        elif length < path.stat().st_size:
            os.truncate(path, length)
    with closing(_database(folder)) as database, database:
        for table in _tables(database):
            if table in to["tables"]:
                last = to["tables"][table]
                database.execute(f"DELETE FROM {table} WHERE id > ?", (last,))
                database.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (last, table))
            else:
                database.execute(f"DROP TABLE {table}")


def series(folder: Path, table: str, columns: Sequence[str]) -> dict[str, list[float]]:
    """Columns of a table that a run has logged in `folder`, by name, beside the "step" of each row; {} without it."""
    if not (folder / "records" / "logs.db").exists():
        return {}
    with closing(_database(folder)) as database:
        if table not in _tables(database):
            return {}
        rows = database.execute(f"SELECT [~iteration~], {', '.join(columns)} FROM {table} ORDER BY id").fetchall()
    return {name: list(values) for name, values in zip(("step", *columns), zip(*rows, strict=True), strict=True)}


def _logs(folder: Path) -> list[Path]:
    return sorted([*folder.glob("records/*.csv"), *folder.glob("tensorboard/events.*")])


def _database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "records" / "logs.db")


def _tables(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return [name for (name,) in rows]
