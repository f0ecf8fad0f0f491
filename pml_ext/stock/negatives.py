"""Which pairs of some rows are negatives, and how often each occurs in the list that PML would form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


class Negatives(ABC):
    """The negatives of some rows among m columns."""

    is_apart: bool = True  # whether it is known that no pair is positive as well

    @property
    @abstractmethod
    def per_row(self) -> Tensor:
        """The length of each row's list, repetitions included, [n]."""

    @property
    def weights(self) -> Tensor | None:
        """How often a pair occurs in the list, [n, m]; None: no pair occurs twice."""
        return None

    @abstractmethod
    def blank(self, scores: Tensor, value: float) -> Tensor:
        """Write `value` into `scores` [n, m] in place where a pair is not a negative."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Negatives:
        """The negatives of the rows from `start` to `stop`."""

    def present(self, like: Tensor) -> Tensor:
        """Which pairs are negatives, of the shape of `like` [n, m]."""
        return self.blank(torch.ones_like(like, dtype=torch.bool), False)

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply `values` [n, m] in place by how often each pair occurs in the list."""
        return values if self.weights is None else values.mul_(self.weights)

    def once(self) -> Negatives:
        """The same negatives, each pair counted once."""
        return self


@dataclass(frozen=True)
class OfLabels(Negatives):
    """All columns except those of the anchor's class.

    Args:
        columns: [n, k] columns that are not negatives, repeated to fill a row; None if `absent` is given.
        absent: [n, m], True where a pair is not a negative; None if `columns` is given.
        lengths: lengths of the rows' lists.
    """

    columns: Tensor | None
    absent: Tensor | None
    lengths: Tensor

    @property
    def per_row(self) -> Tensor:
        return self.lengths

    def blank(self, scores: Tensor, value: float) -> Tensor:
        if self.columns is not None:
            return scores.scatter_(1, self.columns, value)
        assert self.absent is not None
        return _blanked(scores, ~self.absent, value)

    def rows(self, start: int, stop: int) -> OfLabels:
        cut = lambda each: None if each is None else each[start:stop]  # noqa: E731
        return OfLabels(cut(self.columns), cut(self.absent), self.lengths[start:stop])


@dataclass(frozen=True)
class Counted(Negatives):
    """A number for each pair: how often it occurs in the list.

    Args:
        counts: [n, m], of the dtype of the scores: arithmetic with them is several times as fast as with booleans.
        repeats: whether a pair may occur more than once.
        lengths: lengths of the rows' lists.
        is_apart: whether it is known that no pair is positive as well.
    """

    counts: Tensor
    repeats: bool
    lengths: Tensor
    is_apart: bool = True

    @property
    def per_row(self) -> Tensor:
        return self.lengths

    @property
    def weights(self) -> Tensor | None:
        return self.counts if self.repeats else None

    def blank(self, scores: Tensor, value: float) -> Tensor:
        return _blanked(scores, self.counts.sign() if self.repeats else self.counts, value)

    def rows(self, start: int, stop: int) -> Counted:
        return replace(self, counts=self.counts[start:stop], lengths=self.lengths[start:stop])

    def once(self) -> Negatives:
        if not self.repeats:
            return self
        there = self.counts.sign()
        return Counted(there, False, there.sum(1), self.is_apart)


def _blanked(scores: Tensor, there: Tensor, value: float) -> Tensor:
    """Write `value` where `there` is 0, in place; by arithmetic, which takes a fraction of the time of `where`."""
    if scores.dtype == torch.bool:
        return scores.masked_fill_(there == 0, bool(value))
    there = there.to(scores.dtype)
    if value == 0:
        return scores.mul_(there)
    if math.isinf(value):
        beyond = there.reciprocal().sub_(1)  # 0 for a negative, else infinite
        return scores.add_(beyond) if value > 0 else scores.sub_(beyond)
    return scores.mul_(there).add_(1 - there, alpha=value)


class Made(Negatives):
    """Negatives that are computed when they are read, and freed with the rows to which they belong.

    Args:
        make: computes the negatives of the rows from a start to a stop.
        start: the first row.
        stop: the row after the last one.
        lengths: lengths of the rows' lists, [stop - start]; None: those that `make` returns.
        is_apart: whether it is known that no pair is positive as well.
    """

    def __init__(
        self,
        make: Callable[[int, int], Negatives],
        start: int,
        stop: int,
        lengths: Tensor | None,
        *,
        is_apart: bool = True,
    ) -> None:
        self.make, self.start, self.stop, self.lengths, self.is_apart = make, start, stop, lengths, is_apart

    @cached_property
    def whole(self) -> Negatives:
        """The negatives of all rows."""
        return self.make(self.start, self.stop)

    @property
    def per_row(self) -> Tensor:
        return self.whole.per_row if self.lengths is None else self.lengths

    @property
    def weights(self) -> Tensor | None:
        return self.whole.weights

    def blank(self, scores: Tensor, value: float) -> Tensor:
        return self.whole.blank(scores, value)

    def rows(self, start: int, stop: int) -> Negatives:
        if "whole" in self.__dict__:
            return self.whole.rows(start, stop)
        lengths = None if self.lengths is None else self.lengths[start:stop]
        return Made(self.make, self.start + start, self.start + stop, lengths, is_apart=self.is_apart)

    def once(self) -> Negatives:
        make = self.make
        return Made(lambda a, b: make(a, b).once(), self.start, self.stop, None, is_apart=self.is_apart)
