"""What mining is given, checked."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from pml_ext import arguments


def as_tensor(given: Any) -> Tensor:
    """A tensor as it is, without its history; of anything else one on the CPU."""
    return given.detach() if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")


def vectors(name: str, given: Any) -> Tensor:
    """Embeddings [n, d] in the precision that they have, at least single; refused if they are not finite."""
    x = as_tensor(given)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if x.ndim != 2:
        raise ValueError(f"{name} must be embeddings of shape [n, d], got shape {tuple(x.shape)}")
    bad = ~x.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"{name} has {int(bad.sum())} rows that are NaN or infinite; the first is {int(bad.nonzero()[0])}"
        )
    return x


def integers(name: str, given: Any) -> Tensor:
    """Integers of any shape as int64."""
    x = as_tensor(given)
    if x.numel() and (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
        raise TypeError(f"{name} must be integers, got {x.dtype}")
    return x.long()


def indices(name: str, given: Any, size: int) -> Tensor:
    """Indices [k] of 0..size - 1, on the CPU."""
    x = integers(name, given).cpu()
    if x.ndim != 1:
        raise ValueError(f"{name} must be a list of indices, got shape {tuple(x.shape)}")
    outside = (x < 0) | (x >= size)
    if outside.any():
        raise ValueError(f"{name} must be in 0..{size - 1}, got {int(x[outside][0])}")
    return x


def candidates(given: Any, rows: int, size: int) -> Tensor:
    """Indices [rows, k] of the references; -1 is none."""
    x = integers("candidates", given)
    if x.ndim != 2 or len(x) != rows:
        raise ValueError(f"candidates must be one row of indices for each of {rows} anchors, got {tuple(x.shape)}")
    outside = (x < -1) | (x >= size)
    if outside.any():
        raise ValueError(f"candidates must be in -1..{size - 1}, got {int(x[outside][0])}")
    return x


def groups(given: Any, size: int) -> Tensor:
    """A group of each embedding, [size]."""
    x = integers("groups", given)
    if x.shape != (size,):
        raise ValueError(f"groups must be one integer for each of {size} embeddings, got shape {tuple(x.shape)}")
    return x


def count(name: str, value: Any) -> int:
    """Return an integer of at least 0."""
    arguments.non_negative(name, value)
    return 0 if value == 0 else int(arguments.count(name, value))


def optional(check: Callable[[str, Any], float], name: str, value: Any) -> float | None:
    """What a check makes of a value; None for None."""
    return None if value is None else check(name, value)


def choice(name: str, value: Any, choices: Any) -> str:
    """One of the values of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
    return str(value)
