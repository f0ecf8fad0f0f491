"""Checks of arguments. Every error names the argument and the value that was given."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pml_ext.spelling import hint


def finite(name: str, value: Any) -> float:
    """Return `value` if it is a finite real number: of Python or numpy, or a tensor without dimensions."""
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def positive(name: str, value: Any) -> float:
    """Return `value` if it is a finite number above 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return number


def non_negative(name: str, value: Any) -> float:
    """Return `value` if it is a finite number of at least 0."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def fraction(name: str, value: Any) -> float:
    """Return `value` if it is a number in 0..1."""
    number = finite(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value!r}")
    return number


def count(name: str, value: Any, *, optional: bool = False) -> Any:
    """Return `value` if it is an integer of at least 1, or None where `optional`."""
    if value is None and optional:
        return None
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number


def counts(name: str, values: Any, *, distinct: bool = False) -> tuple[int, ...]:
    """Return integers of at least 1, one or more, in order; equal ones once, or refused where `distinct`."""
    try:
        found = [_integer(name, value) for value in values]
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}") from None
    if not found or min(found) < 1 or (distinct and len(set(found)) < len(found)):
        different = "different " if distinct else ""
        raise ValueError(f"{name} must have one or more {different}integers, each at least 1, got {values!r}")
    return tuple(sorted(set(found)))


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False: a string would count as true, whatever it says."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def seed(name: str, value: Any) -> int:
    """Return `value` if it is an integer that every generator takes as a seed."""
    number = _integer(name, value)
    if not 0 <= number < 2**31:
        raise ValueError(f"{name} must be in 0..2**31-1, got {value!r}")
    return number


def known(what: str, given: Iterable[str], names: Iterable[str]) -> None:
    """Raise a TypeError if a name is given that is none of the arguments there are; it says which comes nearest."""
    names = sorted(set(names))
    for name in given:
        if name not in names:
            raise TypeError(f"{what} has no argument {name!r}: {hint(name, names, most=1)}")


def _integer(name: str, value: Any) -> int:
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    return int(number)


def _number(value: Any) -> Any:
    """The number in a tensor without dimensions; anything else as it is. One that learns is no hyperparameter."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad else value


def holds(condition: Tensor, message: str, values: Tensor | None = None) -> None:
    """Raise a ValueError if a boolean tensor is not true throughout; it names the first of the values where it is not.

    On a GPU nothing waits for it: it is an assertion on the device, which cannot name the value.
    """
    if condition.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(condition.all(), message)
    elif not condition.all():
        raise ValueError(message if values is None else f"{message}, got {values[~condition][0].item()}")


def batch(embeddings: Any, labels: Any, ref_emb: Any, ref_labels: Any, *, any_shape: bool = False) -> None:
    """Check the tensors of one call of a loss or a miner, the four of PML's protocol.

    With `any_shape` embeddings may be [n, ..]: their distance checks that itself.
    """
    _samples("embeddings", embeddings, "labels", labels, any_shape)
    if ref_emb is None:
        if ref_labels is not None:
            raise ValueError("ref_labels needs ref_emb, got None")
        return
    _samples("ref_emb", ref_emb, "ref_labels", ref_labels, any_shape)
    if not any_shape and ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb must have the dimension of the embeddings, got {ref_emb.shape[1]} and {embeddings.shape[1]}"
        )


def batch_to_mine(embeddings: Any, labels: Any, ref_emb: Any, ref_labels: Any, *, any_shape: bool = False) -> None:
    """Check the tensors of one call of a miner, which needs labels."""
    batch(embeddings, labels, ref_emb, ref_labels, any_shape=any_shape)
    if labels is None:
        raise ValueError("a miner needs labels, got None")
    if ref_emb is not None and ref_labels is None:
        raise ValueError("ref_emb needs ref_labels, got None")


def without_indices(what: str, indices_tuple: Any) -> None:
    """Raise a ValueError for pairs given to what finds them itself, or has none."""
    if indices_tuple is not None:
        raise ValueError(f"{what} takes no indices_tuple, got {_described(indices_tuple)}")


def without_references(what: str, embeddings: Any, labels: Any, ref_emb: Any, ref_labels: Any) -> None:
    """Raise a ValueError for references, other than the batch itself, given to what takes none."""
    if ref_emb is not embeddings or ref_labels is not labels:
        raise ValueError(f"{what} takes no ref_emb, got {_described(ref_emb)}")


def _samples(name: str, value: Any, name_of_labels: str, labels: Any, any_shape: bool) -> None:
    """Check one set of embeddings, and their labels if there are any."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (batch size, dimension), got {_described(value)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.ndim < 2 or (value.ndim > 2 and not any_shape):
        raise ValueError(f"{name} must have shape (batch size, dimension), got {tuple(value.shape)}")
    if labels is None:
        return
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name_of_labels} must be a tensor, one label for each embedding, got {_described(labels)}")
    if labels.shape != value.shape[:1]:
        raise ValueError(
            f"{name_of_labels} must be one label for each of {value.shape[0]} embeddings, "
            f"got shape {tuple(labels.shape)}"
        )


def _described(value: Any) -> str:
    """What was given instead of a tensor, and the way from there where there is one."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {value.shape}: torch.from_numpy makes one"
    if isinstance(value, (list, tuple)):
        tensors = value and all(isinstance(item, Tensor) for item in value)
        return f"a {kind} of {len(value)}: " + (
            "torch.cat or torch.stack makes one" if tensors else "torch.tensor makes one"
        )
    return kind


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
        is_empty = not torch.compiler.is_compiling() and index.numel() == 0
        if (index.is_floating_point() and not is_empty) or index.dtype == torch.bool:
            raise TypeError(f"indices_tuple must hold integer tensors, got {index.dtype}")
    if torch.compiler.is_compiling():
        return  # lengths are not known
    lengths = [len(index) for index in value]
    if len(set(lengths[:2])) > 1 or len(set(lengths[2 - len(lengths) % 2 :])) > 1:
        raise ValueError(f"the tensors of indices_tuple must have matching lengths, got {lengths}")
