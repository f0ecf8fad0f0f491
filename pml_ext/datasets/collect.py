"""From files and their labels to a data set: the last step of every source of image files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from pml_ext.datasets.images import Box, ImageFiles, Mode, absent, look
from pml_ext.datasets.samples import DataError, Samples, counted, number


def collect(
    name: str,
    paths: Iterable[str | Path],
    labels: Sequence[str],
    *,
    mode: Mode = "RGB",
    sort: bool = True,
    boxes: tuple[Box | None, ...] | None = None,
    split: Sequence[str] | None = None,
    query: Tensor | None = None,
    gallery: Tensor | None = None,
    groups: Tensor | None = None,
    sequences: Tensor | None = None,
    notes: Sequence[str] = (),
) -> Samples:
    """Make a data set of image files; the headers are read, and the necessary conversions are noted.

    Args:
        name: the name in tables.
        paths: the files.
        labels: the class of each.
        mode: "RGB", or "L" for gray. Default "RGB".
        sort: number the classes by name; False for the order of appearance. Default True.
        boxes: the part of each image that is the sample. Default None: all of it.
        split: as in `Samples`, like the fields after it. Default None.
        query: Default None.
        gallery: Default None.
        groups: Default None.
        sequences: Default None.
        notes: other remarks for the user. Default ().

    Raises:
        DataError: a file does not exist.
    """
    files = ImageFiles(tuple(map(str, paths)), mode, boxes)
    if lost := absent(files.paths):
        more = f" (and {len(lost) - 1:,} more of {len(files.paths):,})" if len(lost) > 1 else ""
        raise DataError(f"{name}: {files.paths[lost[0]]!r} is not there{more}")
    numbers, classes = number(labels, sort)
    converted, broken = look(files)
    return Samples(
        name=name,
        labels=numbers,
        classes=classes,
        image=files,
        paths=files.paths,
        split=None if split is None else tuple(split),
        query=query,
        gallery=gallery,
        groups=groups,
        sequences=sequences,
        notes=(*converted, *notes),
        unreadable=broken,
        key=files.key(),
    )


def place(name: str, root: Path, places: Sequence[str], hint: str) -> Path:
    """The first of several places under a folder that exists.

    Raises:
        DataError: none of them is; the message says how the files are laid out.
    """
    for inner in places:
        if (root / inner).exists():
            return root / inner
    raise DataError(f"{name}: none of {', '.join(places)} is in {str(root)!r}; {hint}")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: a file cannot be read or is not such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}"
        ) from None


def read_rows(path: Path, columns: str, header: int = 0) -> list[list[str]]:
    """The rows of a text file with columns separated by blanks; the last column may contain blanks.

    Args:
        path: the file.
        columns: the names of the columns, for messages: for example "id path".
        header: the number of lines to skip. Default 0.

    Raises:
        DataError: a row with fewer columns, or no rows.
    """
    names = columns.split()
    rows = []
    for at, line in enumerate(read_text(path).splitlines()[header:], start=header + 1):
        if line.strip():
            row = line.split(maxsplit=len(names) - 1)
            if len(row) < len(names):
                raise DataError(f"{str(path)!r}, line {at}: expected {columns}, got {line!r}")
            rows.append([cell.strip() for cell in row])
    if not rows:
        raise DataError(f"{str(path)!r} has no rows; expected {counted(len(names), 'column')}: {columns}")
    return rows
