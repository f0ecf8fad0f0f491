"""Embeddings and labels of any kind, as an evaluation or a diagnosis is given them, checked."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray[Any, Any] | Sequence[Any]
Strings = np.ndarray[Any, np.dtype[np.str_]]


def loaded(name: str, given: Array | str | Path) -> Array:
    """Return an array, read from its file ``.npy`` if that is what is given; nothing in the file is executed."""
    if not isinstance(given, (str, Path)):
        return given
    try:
        array = np.load(given, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name}: {str(given)!r} is not an array of numbers or strings in NumPy's format") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{name}: {str(given)!r} holds several arrays, give one of them")
    return array


def checked_embeddings(name: str, embeddings: Array, device: torch.device) -> Tensor:
    """Return embeddings [n, d] in float32; refuse what is none, and NaN or infinite ones."""
    x = torch.as_tensor(embeddings, dtype=torch.float32, device=device).detach()
    if x.ndim != 2:
        raise ValueError(f"{name} must be embeddings of shape [n, d], got shape {tuple(x.shape)}")
    # In blocks that stay in the cache: of a million vectors the copies would be larger than they are.
    bad = torch.cat([~torch.isfinite(some).all(dim=1) for some in x.split(1 << 10)])
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name} has {int(bad.sum())} rows that are NaN or infinite in float32; the first is {row}")
    return x


def checked_labels(name: str, labels: Array, count: int) -> Tensor | Strings:
    """Return labels [n] or [n, l], as float64, int64 or strings; refuse other shapes and NaN."""
    x = _array(name, labels)
    if x.ndim not in (1, 2) or len(x) != count:
        raise ValueError(
            f"{name} must have one label, or one row of labels, for each of {count} embeddings, "
            f"got shape {tuple(x.shape)}"
        )
    if isinstance(x, Tensor) and torch.isnan(x).any():
        raise ValueError(f"{name} has NaN labels")
    return x


def _array(name: str, labels: Array) -> Tensor | Strings:
    if isinstance(labels, Tensor):
        x = labels.detach().cpu()
    else:
        array = np.asarray(labels)
        # Numbers among strings would silently become strings.
        if array.dtype.kind in "OU" and array.size:
            items = array.ravel().tolist() if array.dtype.kind == "O" else _items(labels)
            if not all(isinstance(item, str) for item in items):
                raise TypeError(f"{name} must be numbers or strings, got {array.ravel()[:3].tolist()!r} ...")
            return array.astype(np.str_)
        if array.dtype.kind not in "biufOU":
            raise TypeError(f"{name} must be numbers or strings, got {array.dtype}")
        x = torch.as_tensor(array.astype(np.int64) if array.size == 0 else array, device="cpu")
    return x.double() if x.is_floating_point() else x.long()


def _items(labels: Array) -> list[Any]:
    if isinstance(labels, (str, bytes)) or not isinstance(labels, (Sequence, np.ndarray)):
        return [labels]
    return [item for row in labels for item in _items(row)]


def class_ids(*all_labels: Tensor | Strings) -> tuple[Tensor, ...]:
    """Replace each label, or row of labels, of several arrays by its rank among all the distinct ones."""
    strings = [isinstance(labels, np.ndarray) and labels.size > 0 for labels in all_labels]
    if any(strings):
        if not all(is_string or len(x) == 0 for is_string, x in zip(strings, all_labels, strict=True)):
            raise ValueError("some labels are strings and others numbers: none of them are equal")
        whole = np.concatenate([np.asarray(labels).astype(np.str_) for labels in all_labels])
        found = np.unique(whole, return_inverse=True, axis=0 if whole.ndim == 2 else None)[1]
        ids = torch.from_numpy(found.reshape(-1))
    else:
        labels = torch.cat([x if isinstance(x, Tensor) else torch.zeros(x.shape, device="cpu") for x in all_labels])
        # The search for equal rows is much the slower one.
        ids = labels.unique(dim=0 if labels.ndim == 2 else None, return_inverse=True)[1]
    return tuple(torch.split(ids, [len(x) for x in all_labels]))


def warn_of_own(query: Tensor, query_labels: Tensor, reference: Tensor, reference_labels: Tensor) -> None:
    """Warn if the references begin with the queries: then each finds itself."""
    n = len(query)
    if torch.equal(reference[:n], query) and torch.equal(reference_labels[:n], query_labels):
        warnings.warn(
            f"the references begin with the {n} queries, but ref_includes_query is False: every query finds itself",
            stacklevel=3,
        )
