"""Retrieval metrics at chance level: those of a random ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pml_ext import arguments
from pml_ext.inputs import Array, checked_labels, class_ids

from .retrieval import positions


def chance_level(
    labels: Array,
    *,
    k: int | Sequence[int] = (1, 2, 4, 8),
    query: Array | None = None,
    gallery: Array | None = None,
    groups: Array | None = None,
) -> dict[str, float]:
    r"""The expected metrics of references in random order, which are higher for fewer classes.

    For a query with R matches, the references that have its label, among N references,

    .. math::

        \text{recall\_at\_k} &= 1 - \tbinom{N-R}{k} / \tbinom{N}{k} \\
        \text{r\_precision} &= R / N \\
        \text{mean\_average\_precision\_at\_r} &=
            \tfrac1N \left( H_R + (R - H_R) \tfrac{R - 1}{N - 1} \right),
            \quad H_R = \textstyle\sum_{i \le R} \tfrac1i

    averaged over the queries that have a match, R > 0.

    Args:
        labels: [n] or [n, l], numbers or strings.
        k: of recall, one integer from 1 on or several (default ``(1, 2, 4, 8)``).
        query: which samples are queries (default ``None``: all).
        gallery: which samples are references; a query is not a reference of its own (default ``None``: all).
        groups: [n]; a query ignores the references of its own group (default ``None``: no groups).

    Returns:
        Name -> expectation of what :func:`evaluate` measures; NaN if no query has a match.

    Raises:
        TypeError: ``k`` is not a sequence of integers; labels are neither numbers nor strings.
        ValueError: the shapes do not fit; ``k`` is empty, or has a repeated or invalid value; there is no query or no
            reference.

    Example:
        >>> round(chance_level(["a", "a", "b", "b", "b"], k=1)["recall_at_1"], 6)  # (2 * 1/4 + 3 * 2/4) / 5
        0.4
    """
    ks = arguments.counts("k", (k,) if isinstance(k, int) else k, distinct=True)
    n = len(labels)
    (classes,) = class_ids(checked_labels("labels", labels, n))
    queries, references = (
        positions(name, given, n, classes.device) for name, given in (("query", query), ("gallery", gallery))
    )
    if groups is None:
        # One that asks passes over itself, and itself alone.
        group = torch.arange(n, device=classes.device)
    else:
        (group,) = class_ids(checked_labels("groups", groups, n))
    both = torch.unique(classes * (int(group.max()) + 1) + group, return_inverse=True)[1]
    passed_over = _count(group, queries, references)
    total = len(references) - passed_over
    right = _count(classes, queries, references) - _count(both, queries, references)
    some = right > 0
    total, right = total[some].double(), right[some].double()
    found = {f"recall_at_{i}": 1 - _none_right(total, right, i) for i in ks}
    harmonic = torch.digamma(right + 1) - torch.digamma(torch.ones_like(right))
    pairs = (right - 1) / (total - 1).clamp(min=1)
    found["mean_average_precision_at_r"] = (harmonic + (right - harmonic) * pairs) / total
    found["r_precision"] = right / total
    return {name: float(values.mean()) for name, values in found.items()}


def _count(ids: Tensor, queries: Tensor, references: Tensor) -> Tensor:
    """How many references have the id of each query."""
    return torch.bincount(ids[references], minlength=int(ids.max()) + 1)[ids[queries]]


def _none_right(total: Tensor, right: Tensor, k: int) -> Tensor:
    """The probability that the first k of a random order are all wrong."""
    wrong = total - right
    log = torch.lgamma(wrong + 1) - torch.lgamma((wrong - k).clamp(min=0) + 1)
    log -= torch.lgamma(total + 1) - torch.lgamma((total - k).clamp(min=0) + 1)
    return torch.where(wrong >= k, log.exp(), torch.zeros_like(log))
