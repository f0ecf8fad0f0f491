"""A list of photographs: a CSV file with one image per row."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pml_ext.datasets.collect import collect, read_text
from pml_ext.datasets.images import Box, Mode, absent
from pml_ext.datasets.samples import DataError, Samples, counted

SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}
BOX = ("x_1", "y_1", "x_2", "y_2")
# The names of OML's lists, and ours.
SAME = {"is_query": "query", "is_gallery": "gallery"}
KNOWN = ("path", "label", "split", "query", "gallery", "group", "sequence", *BOX)
YES, NO = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")
MOST = 5  # rows named in one message


def image_list(file: str | Path, mode: Mode = "RGB") -> Samples:
    """Read a CSV file whose first row names the columns; everything in it is text, nothing is guessed to be a number.

    | column | what it holds |
    |---|---|
    | `path` | the image; a relative path starts at the folder of the list |
    | `label` | the class: "007" and "7" are two, "NA" is one like any other |
    | `split` | "train", "validation" (or val, valid, dev), "test" or empty. Optional |
    | `query`, `gallery` | for test rows, 1 / true or 0 / false / empty; both may be true. Optional |
    | `group` | what no split divides (a video, an object); empty for a row of its own. Optional |
    | `sequence` | the gallery of a query leaves out its own sequence; empty for a row of its own. Optional |
    | `x_1, y_1, x_2, y_2` | the part of the upright image that is the sample, in pixels; empty for all. Optional |

    The lists of OML are read as they are, also their columns `is_query` and `is_gallery`; where such a list marks
    queries and has no test rows, its validation rows are the test set.

    Args:
        file: the list; commas, semicolons or tabs between the columns; UTF-8, with or without a byte order mark.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: with the row and the name: a missing column, an empty label, a file that does not exist or is listed
            twice or under two labels, an invalid split, mark or box.

    Example:
        >>> image_list("nowhere.csv")
        Traceback (most recent call last):
        ...
        pml_ext.datasets.samples.DataError: 'nowhere.csv' cannot be read: No such file or directory
    """
    table = _Table.read(Path(file))
    paths = tuple(os.path.normpath(table.path.parent / path) for path in table.column("path"))
    table.refuse("path", [not cell for cell in table.column("path")], "is empty")
    table.refuse("label", [not cell for cell in table.column("label")], "is empty")
    boxes = _boxes(table)
    _once(table, paths, boxes)
    if lost := absent(paths):
        table.refuse("path", [i in set(lost) for i in range(len(paths))], "is not there")
    split = _split(table)
    query, gallery = _marks(table, split)
    notes = []
    if query is not None and split is not None and "test" not in split:
        split = tuple("test" if word == "validation" else word for word in split)
        notes.append("its validation rows are the test")
    if unused := [name for name in table.names if name not in KNOWN]:
        notes.append(f"{counted(len(unused), 'column')} not used: {', '.join(unused[:MOST])}")
    return collect(
        table.path.stem,
        paths,
        table.column("label"),
        mode=mode,
        boxes=boxes,
        split=split,
        query=query,
        gallery=gallery,
        groups=_numbered(table, "group"),
        sequences=_numbered(table, "sequence"),
        notes=notes,
    )


@dataclass(frozen=True)
class _Table:
    path: Path
    names: tuple[str, ...]
    lines: tuple[int, ...]  # of each row, the line of the file on which it ends
    cells: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> _Table:
        text = read_text(path)
        header = text.partition("\n")[0]
        separator = max(",;\t", key=header.count)
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        rows, lines = [], []
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{str(path)!r}, line {reader.line_num}: {error}") from None
        names = tuple(SAME.get(name.lower(), name.lower()) for name in rows[0]) if rows else ()
        for name in ("path", "label"):
            if name not in names:
                found = ", ".join(map(repr, rows[0][:MOST])) if rows else "an empty file"
                raise DataError(f"{str(path)!r}: the first row must name the columns path and label, got {found}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{str(path)!r}: two columns are called {twice[0]!r}")
        for row, line in zip(rows, lines, strict=True):
            if len(row) != len(names):
                raise DataError(f"{str(path)!r}, line {line}: {len(row)} cells, but {len(names)} columns")
        if len(rows) < 2:
            raise DataError(f"{str(path)!r}: no rows below the names of the columns")
        columns = zip(*rows[1:], strict=True)
        return cls(path, names, tuple(lines[1:]), dict(zip(names, columns, strict=True)))

    def column(self, name: str) -> tuple[str, ...]:
        return self.cells[name]

    def refuse(self, name: str, wrong: Sequence[bool], reason: str) -> None:
        """Raise a DataError that names the first wrong cells of a column, unless there are none."""
        bad = [i for i, is_wrong in enumerate(wrong) if is_wrong]
        if not bad:
            return
        cell = self.cells[name][bad[0]]
        more = f" (and {len(bad) - 1:,} more, the next in line {self.lines[bad[1]]})" if len(bad) > 1 else ""
        shown = f"{name} {cell!r}" if cell else name
        raise DataError(f"{str(self.path)!r}, line {self.lines[bad[0]]}: {shown} {reason}{more}")


def _split(table: _Table) -> tuple[str, ...] | None:
    if "split" not in table.cells:
        return None
    words = [SPLITS.get(cell.lower(), cell.lower()) for cell in table.column("split")]
    known = ("train", "validation", "test", "")
    table.refuse("split", [word not in known for word in words], "must be train, validation, test or empty")
    if not any(words):
        return None
    table.refuse("split", [not word for word in words], "is empty, but other rows have one")
    return tuple(words)


def _marks(table: _Table, split: tuple[str, ...] | None) -> tuple[Tensor | None, Tensor | None]:
    given = [name for name in ("query", "gallery") if name in table.cells]
    if not given:
        return None, None
    if len(given) == 1:
        raise DataError(
            f"{str(table.path)!r}: the columns query and gallery must be given together, got {given[0]} alone"
        )
    marks = []
    for name in given:
        cells = [cell.lower() for cell in table.column(name)]
        table.refuse(name, [cell not in YES + NO for cell in cells], "must be 1, true, 0, false or empty")
        marks.append(torch.tensor([cell in YES for cell in cells]))
    if split is not None:
        marked = (marks[0] | marks[1]).tolist()
        wrong = [word == "train" and mark for word, mark in zip(split, marked, strict=True)]
        table.refuse("split", wrong, "is marked as query or gallery")
    for name, mark in zip(given, marks, strict=True):
        if not mark.any():
            raise DataError(f"{str(table.path)!r}: no row is marked as {name}")
    return marks[0], marks[1]


def _boxes(table: _Table) -> tuple[Box | None, ...] | None:
    given = [name for name in BOX if name in table.cells]
    if not given:
        return None
    if len(given) < len(BOX):
        missing = next(name for name in BOX if name not in given)
        raise DataError(f"{str(table.path)!r}: a box needs the columns {', '.join(BOX)}; {missing} is missing")
    boxes: list[Box | None] = []
    for i, corners in enumerate(zip(*(table.column(name) for name in BOX), strict=True)):
        box = _box(corners)
        if any(corners) and box is None:
            row = f"{str(table.path)!r}, line {table.lines[i]}"
            raise DataError(f"{row}: a box must be x_1 < x_2 and y_1 < y_2 in pixels, got {', '.join(corners)}")
        boxes.append(box)
    return tuple(boxes) if any(boxes) else None


def _box(corners: Sequence[str]) -> Box | None:
    try:
        left, top, right, bottom = map(float, corners)
    except ValueError:
        return None
    right_way = all(map(math.isfinite, (left, top, right, bottom))) and 0 <= left < right and 0 <= top < bottom
    return (left, top, right, bottom) if right_way else None


def _once(table: _Table, paths: Sequence[str], boxes: Sequence[Box | None] | None) -> None:
    first: dict[tuple[str, Box | None], int] = {}
    labels = table.column("label")
    for i, path in enumerate(paths):
        before = first.setdefault((path, boxes[i] if boxes else None), i)
        if before == i:
            continue
        row = f"{str(table.path)!r}, line {table.lines[i]}: {table.column('path')[i]!r}"
        if labels[before] == labels[i]:
            raise DataError(f"{row} is listed twice, first in line {table.lines[before]}")
        raise DataError(f"{row} has the label {labels[i]!r}, but {labels[before]!r} in line {table.lines[before]}")


def _numbered(table: _Table, name: str) -> Tensor | None:
    if name not in table.cells or not any(table.column(name)):
        return None
    position: dict[str | int, int] = {}
    cells = enumerate(table.column(name))
    return torch.tensor([position.setdefault(cell or row, len(position)) for row, cell in cells])
