"""Checks of arguments. Every error names the argument and the value that was given."""

import math
from typing import Any

import torch
from torch import Tensor


def finite(name: str, value: float) -> float:
    """Return `value` if it is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value


def positive(name: str, value: float) -> float:
    """Return `value` if it is a finite number above 0."""
    if finite(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return value


def non_negative(name: str, value: float) -> float:
    """Return `value` if it is a finite number of at least 0."""
    if finite(name, value) < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return value


def fraction(name: str, value: float) -> float:
    """Return `value` if it is a number in 0..1."""
    if not 0 <= finite(name, value) <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value!r}")
    return value


def count(name: str, value: int | None, *, optional: bool = False) -> int | None:
    """Return `value` if it is an integer of at least 1, or None where `optional`."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return value


def holds(condition: Tensor, message: str, values: Tensor | None = None) -> None:
    """Raise a ValueError if a boolean tensor is not true throughout; it names the first of the values where it is not.

    On a GPU nothing waits for it: it is an assertion on the device, which cannot name the value.
    """
    if condition.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(condition.all(), message)
    elif not condition.all():
        raise ValueError(message if values is None else f"{message}, got {values[~condition][0].item()}")


def batch(embeddings: Any, labels: Any, ref_emb: Any, ref_labels: Any) -> None:
    """Check the tensors of one call of a loss or a miner, the four of PML's protocol."""
    _embeddings("embeddings", embeddings)
    _labels("labels", labels, embeddings)
    if ref_emb is None:
        if ref_labels is not None:
            raise ValueError("ref_labels was given without ref_emb")
        return
    _embeddings("ref_emb", ref_emb)
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb must have the dimension of the embeddings, got {ref_emb.shape[1]} and {embeddings.shape[1]}"
        )
    _labels("ref_labels", ref_labels, ref_emb)


def _embeddings(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.ndim != 2:
        raise ValueError(f"{name} must have shape (batch size, dimension), got {tuple(value.shape)}")


def _labels(name: str, value: Any, embeddings: Tensor) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{name} must be one label for each of {embeddings.shape[0]} embeddings, got shape {tuple(value.shape)}"
        )


def index_tuple(value: Any) -> None:
    """Check the form of PML's `indices_tuple`: (a, p, n) or (a1, p, a2, n), 1-D index tensors of matching length."""
    if not isinstance(value, (tuple, list)) or len(value) not in (3, 4):
        size = f" of length {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise ValueError(
            "indices_tuple must be PairMasks, (anchors, positives, negatives) or "
            f"(anchors, positives, anchors, negatives), got {type(value).__name__}{size}"
        )
    for index in value:
        if not isinstance(index, Tensor) or index.ndim != 1:
            raise TypeError(f"indices_tuple must hold 1-D tensors, got {index!r}")
        if (index.is_floating_point() and index.numel()) or index.dtype == torch.bool:
            raise TypeError(f"indices_tuple must hold integer tensors, got {index.dtype}")
    lengths = [len(index) for index in value]
    if len(set(lengths[:2])) > 1 or len(set(lengths[2 - len(lengths) % 2 :])) > 1:
        raise ValueError(f"the tensors of indices_tuple must have matching lengths, got {lengths}")
