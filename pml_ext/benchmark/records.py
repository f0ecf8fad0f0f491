"""The logs of record-keeper, where it is installed, and how to take them back to a checkpoint.

Record-keeper only appends. A run that was killed between its last checkpoint and its next one has logged steps that it
will take again, so a checkpoint notes how long each log was and a resumed run cuts them to that length first. What
record-keeper has not written is not touched.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

Lengths = dict[str, dict[str, int]]
EVERY = 10  # steps between two rows
# PML's modules name what is to be recorded of them in these.
RECORDABLE = ["_record_these", "_record_these_stats"]


def are_kept() -> bool:
    """Whether runs are logged: PML 3 no longer brings record-keeper, and no number of a run depends on its logs."""
    return find_spec("record_keeper") is not None


def have_events() -> bool:
    """Whether the logs of runs are TensorBoard events too."""
    return are_kept() and find_spec("tensorboard") is not None


def missing() -> list[str]:
    """A line for the reader about the logs that there will not be."""
    if not are_kept():
        return ["no logs of the steps, and no curves of health in the report: record-keeper is not installed"]
    return [] if have_events() else ["no events for TensorBoard: it is not installed"]


@contextmanager
def keeping(folder: Path, *, writes: bool = True) -> Iterator[Any]:
    """Open a record-keeper that writes CSV files and `logs.db` (SQLite), and TensorBoard events, under `folder`.

    None where it is not installed, and unless `writes`.
    """
    if not (writes and are_kept()):
        yield None
        return
    from record_keeper import RecordKeeper, RecordWriter

    tensorboard = _events(folder / "tensorboard") if have_events() else None
    try:
        yield RecordKeeper(
            tensorboard_writer=tensorboard,
            record_writer=RecordWriter(str(folder / "records")),
            attributes_to_search_for=RECORDABLE,
        )
    finally:
        # On a full disk closing fails like the write before it, which is the error worth showing.
        if tensorboard is not None:
            with suppress(OSError):
                tensorboard.close()


def _events(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=str(folder))


def record_step(keeper: Any, step: int, values: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Record the losses of a step, the rates of the optimizers and what losses and miners say of themselves."""
    if keeper is None:
        return
    keeper.update_records(dict(values), step, parent_name="loss_histories")
    keeper.update_records(dict(parts["losses"]), step, recursive_types=[nn.Module, dict])
    for kind in ("miners", "models"):
        keeper.update_records(dict(parts[kind]), step)
    keeper.update_records(
        dict(parts["optimizers"]), step, custom_attr_func=lambda each: {"lr": each.param_groups[0]["lr"]}
    )


def record_metrics(keeper: Any, epoch: int, split: str, metrics: Mapping[str, float]) -> None:
    """Record what was measured on a split after an epoch, and write all that was recorded."""
    if keeper is not None:
        keeper.update_records({"epoch": epoch, **metrics}, epoch, parent_name=f"accuracies_{split}")
        keeper.save_records()


def lengths(folder: Path, keeper: Any) -> Lengths:
    """How long each log under `folder` is now: bytes of a file, the last id of a table."""
    if keeper is not None and keeper.tensorboard_writer is not None:
        keeper.tensorboard_writer.flush()
    if not (folder / "records" / "logs.db").exists():
        return {"files": {}, "tables": {}}
    with closing(_database(folder)) as database:
        tables = {
            table: database.execute(f"SELECT COALESCE(MAX(id), 0) FROM {table}").fetchone()[0]
            for table in _tables(database)
        }
    files = {str(path.relative_to(folder)): path.stat().st_size for path in _logs(folder, tables)}
    return {"files": files, "tables": tables}


def rewind(folder: Path, to: Lengths | None = None) -> None:
    """Cut the logs under `folder` back to the lengths that `lengths` returned, or to nothing."""
    to = {"files": {}, "tables": {}} if to is None else to
    if not (folder / "records" / "logs.db").exists() and not (folder / "tensorboard").exists():
        return
    (folder / "records").mkdir(exist_ok=True)
    with closing(_database(folder)) as database, database:
        tables = _tables(database)
        for path in _logs(folder, tables):
            length = to["files"].get(str(path.relative_to(folder)))
            if length is None:
                path.unlink()
            elif length < path.stat().st_size:
                os.truncate(path, length)
        for table in tables:
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


def _logs(folder: Path, tables: Sequence[str] | Mapping[str, Any]) -> list[Path]:
    """The files of record-keeper, one CSV file per table, and of TensorBoard."""
    written = [folder / "records" / f"{table}.csv" for table in tables]
    events = folder.glob("tensorboard/events.out.tfevents.*")
    return sorted([*(path for path in written if path.exists()), *events])


def _database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "records" / "logs.db")


def _tables(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return [name for (name,) in rows]
