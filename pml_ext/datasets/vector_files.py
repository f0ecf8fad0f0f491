"""Vectors computed elsewhere, with their labels: `.npy`, `.npz` and `.pt` files."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pml_ext.datasets.samples import DataError, Samples, number

VECTORS = ("vectors", "embeddings", "features", "x")
LABELS = ("labels", "targets", "y")
FIELDS = ("split", "query", "gallery", "groups", "sequences")


def vector_file(file: str | Path, labels: str | Path | Any = None) -> Samples:
    """Read vectors and their labels. Nothing in a file is executed: no pickled objects are read.

    | file | what it holds |
    |---|---|
    | `.npy` | an array [n, d]; labels from `labels`, or from the file beside it: `a.npy` has `a_labels.npy` |
    | `.npz` | `vectors` (or embeddings, features, x) and `labels` (or targets, y), and optional keys |
    | `.pt` | a dictionary with the same keys, or a pair (vectors, labels) |

    Optional keys are `split`, `query`, `gallery`, `groups` and `sequences`.

    Args:
        file: the file.
        labels: labels of any kind, one per vector, or a file of them: `.npy`, `.pt`, or text with one per line. Default
            None: those in the file or beside it.

    Raises:
        DataError: a file that cannot be read or holds something else; no labels.

    Example:
        >>> vector_file("nowhere.npy")
        Traceback (most recent call last):
        ...
        pml_ext.datasets.samples.DataError: 'nowhere.npy' cannot be read: No such file or directory
    """
    path = Path(file)
    content = _content(path)
    if labels is None:
        labels = content.get("labels")
    if labels is None:
        labels = path.with_name(f"{path.stem}_labels.npy")
        if not labels.is_file():
            raise DataError(f"{str(path)!r} has no labels: expected {labels.name!r} beside it, or labels=")
    if isinstance(labels, (str, Path)):
        labels = _labels(Path(labels))
    return vectors(path.stem, content["vectors"], labels, **{name: content[name] for name in FIELDS if name in content})


def vectors(
    name: str,
    values: Any,
    labels: Any,
    *,
    split: Any = None,
    query: Any = None,
    gallery: Any = None,
    groups: Any = None,
    sequences: Any = None,
) -> Samples:
    """Make a data set of vectors that are in memory.

    Args:
        name: the name in tables.
        values: array or tensor [n, d]; whole numbers become float32.
        labels: one for each vector, of any kind.
        split: as in `Samples`, like the fields after it. Default None.
        query: Default None.
        gallery: Default None.
        groups: numbers or names. Default None.
        sequences: numbers or names. Default None.

    Raises:
        DataError: shapes that do not fit, vectors that are not finite.
    """
    try:
        rows = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: vectors must be numbers [n, d], got {type(values).__name__}: {error}") from error
    if not rows.is_floating_point() and not rows.is_complex():
        rows = rows.float()
    numbers, classes = number(labels)
    content = rows.detach().cpu().contiguous()
    return Samples(
        name=name,
        labels=numbers,
        classes=classes,
        vectors=content,
        split=None if split is None else tuple(str(word) for word in _plain(split)),
        query=_marks(name, "query", query),
        gallery=_marks(name, "gallery", gallery),
        groups=None if groups is None else number(_plain(groups), sort=False)[0],
        sequences=None if sequences is None else number(_plain(sequences), sort=False)[0],
        key=blake2b(content.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest(),
    )


def _content(path: Path) -> dict[str, Any]:
    found = _loaded(path)
    if isinstance(found, (tuple, list)) and len(found) == 2:
        return {"vectors": found[0], "labels": found[1]}
    if not isinstance(found, Mapping):
        return {"vectors": found}
    found = dict(found)
    for wanted, names in (("vectors", VECTORS), ("labels", LABELS)):
        key = next((name for name in names if name in found), None)
        if key is None and wanted == "vectors":
            keys = ", ".join(map(repr, found))
            raise DataError(f"{str(path)!r} must hold {' or '.join(names)}, got {keys or 'nothing'}")
        if key is not None:
            found[wanted] = found.pop(key)
    return found


def _labels(path: Path) -> Any:
    if path.suffix in (".npy", ".npz", ".pt"):
        found = _loaded(path)
        return found if not isinstance(found, Mapping) else _content(path)["labels"]
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _loaded(path: Path) -> Any:
    try:
        if path.suffix == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with path.open("rb") as stream:
                found = np.load(stream, allow_pickle=False)
                found = found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (
        Exception
    ) as error:  # what the readers of a damaged file raise: ValueError, RuntimeError, UnpicklingError, ...
        reason = " ".join(str(error).split(". ")[0].split())
        raise DataError(
            f"{str(path)!r} is not a readable {path.suffix} file: {reason or type(error).__name__}"
        ) from error
    return found


def _plain(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _marks(name: str, field: str, values: Any) -> Tensor | None:
    if values is None:
        return None
    marks = torch.as_tensor(values)
    if not bool(((marks == 0) | (marks == 1)).all()):
        raise DataError(f"{name}: {field} must be true or false for each vector")
    return marks.bool()
