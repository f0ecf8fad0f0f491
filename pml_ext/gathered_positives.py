"""Where each anchor's positives are, as few columns: what makes closed forms fast where classes are small.

Only where to look at labels and masks waits for nothing, for the number of columns depends on them.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.closed_form import ABSENT, Sides
from pml_ext.masked import only


class Gathered(NamedTuple):
    """Where each anchor's positives are, as few columns.

    Args:
        columns: of each anchor's positives [n, k]; what fills up a row that has fewer is no negative of it either.
        absent: which of them fill up [n, k], or None if none does.
        excluded: columns that are no negatives of the anchor [n, q], or None if these are many.
        pos_count: number of positives of each anchor [n, 1].
        neg_count: number of negatives of each anchor [n, 1].
        complete: whether every anchor has a positive and a negative.
    """

    columns: Tensor
    absent: Tensor | None
    excluded: Tensor | None
    pos_count: Tensor
    neg_count: Tensor
    complete: bool

    def sides(self, sim: Tensor, start: int, neg: Tensor | None, spare: bool = False) -> Sides:
        """The sides of the block of scores [b, m] that begins at a row.

        Args:
            sim: the scores.
            start: the row.
            neg: the negatives, where they are many.
            spare: whether the scores may be overwritten.
        """
        b = sim.shape[0]
        part = self if b == self.columns.shape[0] else self.each(lambda x: x[start : start + b])
        near = sim.gather(1, part.columns)
        if part.absent is not None:
            near.masked_fill_(part.absent, ABSENT)
        if part.excluded is not None:
            far = (sim if spare else sim.clone()).scatter_(1, part.excluded, -ABSENT)
        else:
            assert neg is not None
            far = only(sim, neg, -ABSENT)
        return Sides(near, far, part.pos_count.to(sim.dtype), part.neg_count.to(sim.dtype), part.columns)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Gathered":
        """The same of other tensors: those of some anchors, or on a device."""
        changed: dict[str, Any] = {name: change(x) for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**changed)

    @staticmethod
    def by_labels(labels: Tensor, ref_labels: Tensor, same: bool, own: Tensor | None) -> "Gathered | None":
        """By numpy, whose calls take a fifth of the time; None where positives are too many, or an anchor has no class.

        Args:
            labels: those of the anchors [n].
            ref_labels: those of the references [m].
            same: whether the references are the batch.
            own: None, or which reference is the anchor itself [n], -1 if none is.
        """
        mine = as_array(labels)
        refs = mine if same else as_array(ref_labels)
        if refs.dtype.kind == "f" and (np.isnan(refs).any() or np.isnan(mine).any()):
            return None  # equal to nothing, not even to itself
        order = refs.argsort(kind="stable")
        ordered = refs[order]
        found = _of_equal_classes(order, ordered) if same else None
        if found is not None:
            return found
        first = ordered.searchsorted(mine)
        sizes = ordered.searchsorted(mine, side="right") - first
        selves = np.arange(len(mine)) if same else None if own is None else as_array(own)
        has_self = np.zeros(len(mine), bool) if selves is None else selves >= 0
        counts = sizes - has_self
        k = max(int(counts.max()), 1)
        if k > _most(len(refs)) or sizes.min() == 0:
            return None
        place, fill = np.arange(k)[None, :], order[first]
        if selves is not None:
            # Without the anchor itself, whose place is taken by what follows.
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            place = place + (has_self[:, None] & (place >= (rank[selves] - first)[:, None]))
            fill = np.where(has_self, selves, fill)
        columns = order[np.minimum(first[:, None] + place, len(order) - 1)]
        absent = None
        if counts.min() < k:
            absent = place >= sizes[:, None]
            columns = np.where(absent, fill[:, None], columns)
        excluded = columns if selves is None else np.concatenate((columns, fill[:, None]), 1)
        return Gathered(
            torch.from_numpy(columns),
            None if absent is None else torch.from_numpy(absent),
            torch.from_numpy(excluded),
            *_as_columns(counts, len(refs) - sizes),
            bool(counts.min() > 0 and sizes.max() < len(refs)),
        )

    @staticmethod
    def by_masks(pos: Tensor, neg: Tensor) -> "Gathered | None":
        """None where an anchor has too many positives, or there is none of both: masks [n, m]."""
        n, m = pos.shape
        near, far = pos.numpy(), neg.numpy()
        counts, others = near.sum(1), far.sum(1)
        k = max(int(counts.max()), 1) if n and m else 0
        if not 0 < k <= _most(m):
            return None
        rows, columns = near.nonzero()
        fewest = int(counts.min())
        if fewest < k:
            found, first = columns, counts.cumsum() - counts
            columns = np.zeros((n, k), np.int64)
            columns[rows, np.arange(len(rows)) - first[rows]] = found
        return Gathered(
            torch.from_numpy(columns.reshape(n, k)),
            torch.from_numpy(np.arange(k) >= counts[:, None]) if fewest < k else None,
            None,
            *_as_columns(counts, others),
            bool(fewest > 0 and others.min() > 0),
        )


def _most(m: int) -> float:
    """How many of m columns are few."""
    return max(thresholds.GATHERED_COLUMNS, thresholds.GATHERED_SHARE * m)


def _of_equal_classes(order: Any, ordered: Any) -> Gathered | None:
    """Of a batch with itself; None if its classes are not of one size, at a third of the time where they are.

    Args:
        order: the places of the labels in ascending order [n].
        ordered: the labels in that order [n].
    """
    n = len(order)
    size = int(ordered.searchsorted(ordered[0], side="right")) if n else 0
    if size < 2 or n % size or size == n or size - 1 > _most(n):
        return None
    # A few calls of lists take less time than as many of numpy.
    first = ordered[::size].tolist()
    if first != ordered[size - 1 :: size].tolist() or len(set(first)) < len(first):
        return None
    excluded = np.empty((n, size), np.int64)
    excluded[order] = order.reshape(-1, size).take(_each_last(size), axis=1).reshape(n, size)
    of_class = torch.from_numpy(excluded)
    return Gathered(of_class[:, :-1], None, of_class, *_equal_counts(n, size), True)


@lru_cache(8)
def _each_last(size: int) -> Any:
    """The numbers from 0 to size - 1, in a row for each of them with that one at the end: [size, size]."""
    place = np.arange(size)
    others = np.broadcast_to(place, (size, size))[~np.eye(size, dtype=bool)].reshape(size, size - 1)
    return np.concatenate((others, place[:, None]), 1)


def _as_columns(*counts: Any) -> tuple[Tensor, Tensor]:
    """Numbers of positives and of negatives [n] in the form in which they are needed: [n, 1], as numbers of scores."""
    pos_count, neg_count = (torch.from_numpy(each.astype(np.float32)).unsqueeze(1) for each in counts)
    return pos_count, neg_count


@lru_cache(8)
def _equal_counts(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Numbers of positives and negatives of n anchors [n, 1], which nobody can write to: each is one number."""
    pos_count, neg_count = (torch.from_numpy(np.full((1, 1), x, np.float32)).expand(n, 1) for x in (size - 1, n - size))
    return pos_count, neg_count


def as_array(labels: Tensor) -> Any:
    """Labels on the CPU for numpy, which has no half precision of torch's kind."""
    return (labels.detach().double() if labels.is_floating_point() else labels).numpy()


def numbered(labels: Tensor, ref_labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels numbered densely, so that floating point holds them: [n, 1] and [1, m]; None for those of the batch."""
    both = labels if ref_labels is None else torch.cat((labels, ref_labels))
    ordered, order = both.sort(stable=True)
    rank = torch.zeros_like(order)
    rank[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    numbers = torch.empty_like(rank).scatter_(0, order, rank)
    n = len(labels)
    return numbers[:n, None], (numbers if ref_labels is None else numbers[n:])[None, :]
