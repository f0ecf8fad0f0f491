"""Which pairs of some rows are negatives, and how often each stands in the list that stock PML would form."""

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

    is_apart: bool = True  # whether no pair is known to be positive as well

    @property
    @abstractmethod
    def per_row(self) -> Tensor:
        """Length of each row's list, with repetitions, [n]."""

    @property
    def weights(self) -> Tensor | None:
        """How often a pair stands in the list, [n, m]; None: none stands there twice."""
        return None

    @abstractmethod
    def blank(self, scores: Tensor, value: float) -> Tensor:
        """Write `value` into `scores` [n, m] in place where a pair is no negative."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Negatives:
        """Those of the rows from `start` to `stop`."""

    def present(self, like: Tensor) -> Tensor:
        """Which pairs are negatives, of the shape of `like` [n, m]."""
        return self.blank(torch.ones_like(like, dtype=torch.bool), False)

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply `values` [n, m] in place by how often each pair stands in the list."""
        return values if self.weights is None else values.mul_(self.weights)

    def once(self) -> Negatives:
        """Each pair once."""
        return self


@dataclass(frozen=True)
class OfLabels(Negatives):
    """All columns but those of one's own class.

    Args:
        columns: [n, k] columns that are no negatives; None if `absent` says it. Rows repeat a column to fill up.
        absent: [n, m] True where a pair is no negative.
        lengths: of each row's list.
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
    """A number for each pair: how often it stands in the list.

    Args:
        counts: [n, m], of the type of the scores: arithmetic with them is several times as fast as with booleans.
        repeats: whether a pair may stand there more than once.
        lengths: of each row's list.
        is_apart: whether no pair is known to be positive as well.
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
    """Write `value` where `there` is 0, in place; by arithmetic, which takes a fraction of the time of a choice."""
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
    """Negatives that are made when they are looked at, and forgotten with the rows that they are of.

    Args:
        make: the negatives of the rows from one number to another.
        start: first row.
        stop: behind the last row.
        lengths: of each row's list, [stop - start]; None: as `make` says.
        is_apart: whether no pair is known to be positive as well.
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
        """Of all rows."""
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
