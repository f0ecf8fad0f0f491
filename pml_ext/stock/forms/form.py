"""What a form of a stock loss computes: sums of each row, the value from all rows, the derivative of a block."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pml_ext.stock.incidence import Incidence
from pml_ext.stock.reduction import Reduction

Rows = tuple[Tensor, ...]


class Form(ABC):
    """A stock loss as a function of distances (smaller is nearer), without a list of pairs or triplets.

    A form is used for one call: it may keep what `combine` computes for `gradient`.

    Args:
        loss: the stock loss with the hyperparameters.
        sign: -1 where its scores are similarities; a level on their scale changes its sign as the scores do.
        incidence: that of the whole batch.
        reductions: one for each of `names`.
    """

    names: ClassVar[tuple[str, ...]] = ("loss",)
    once: ClassVar[bool] = False  # a repeated pair counts once
    column: ClassVar[bool] = False  # PML's losses are a column [n, 1]
    reduced: ClassVar[bool] = False  # the value is one number that no reducer changes
    by_labels: ClassVar[bool] = False  # the labels define the pairs; lists of a miner only weight the samples
    pays_from: ClassVar[int] = 0  # number of scores from which PML's own code is slower, as measured
    # What PML computes if lists are given: the whole "matrix", the "pairs" of the lists, all "products" of a positive
    # with a negative pair, or the "triplets".
    listed: ClassVar[Literal["matrix", "pairs", "products", "triplets"]] = "matrix"
    takes_references: ClassVar[bool] = True
    takes_lists: ClassVar[bool] = True

    def __init__(self, loss: Any, sign: float, incidence: Incidence, reductions: Mapping[str, Reduction]) -> None:
        self.loss = loss
        self.sign = sign
        self.reductions = reductions
        self.lengths = incidence.lengths()
        self.weights: Tensor | None = None  # those of the samples; None: all 1
        self.incidence = incidence.once() if self.once else incidence

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        """Why PML's own code has to run, or None."""
        return None

    @property
    def needs_whole(self) -> bool:
        """Whether a row needs the distances of other rows."""
        return False

    def is_empty(self) -> bool:
        """Whether PML computes no loss from these pairs."""
        return max(self.lengths) <= 1

    looks_first: ClassVar[bool] = False  # whether `summarize` needs something of all rows

    def first(self, distances: Tensor, start: int) -> Rows:
        """What `look` needs of a block, if `looks_first`."""
        return ()

    def look(self, rows: Rows) -> None:
        """Receive what `first` returned for all rows."""
        raise NotImplementedError

    @abstractmethod
    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        """For each row what `combine` needs.

        The block may be overwritten; with `keep` by what `gradient` needs, which will receive the same memory.
        """

    @abstractmethod
    def combine(self, rows: Rows) -> dict[str, Tensor]:
        """The value of each of `names` from all rows."""

    @abstractmethod
    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        """Derivative of the sum of the values by a block of distances, in place or newly allocated.

        With `kept` the block is as `summarize` left it; else it holds distances.
        """

    def of(self, start: int, distances: Tensor) -> Incidence:
        """The incidence of a block."""
        if len(distances) == len(self.incidence.positives):
            return self.incidence
        return self.incidence.rows(start, start + len(distances))

    def parameters(self) -> dict[str, Tensor]:
        """Gradients of the loss's own parameters by name."""
        return {}


def positives(distances: Tensor, incidence: Incidence) -> Tensor:
    """Distances of the positives, [r, k], and of the columns that only fill a row."""
    return distances.gather(1, incidence.positives)


def scatter_positives(into: Tensor, incidence: Incidence, values: Tensor) -> Tensor:
    """Add values [r, k] at the positives of a block, in place; values of columns that fill a row must be 0."""
    return into.scatter_add_(1, incidence.positives, values)


def exponentials(logits: Tensor, peaks: Tensor, incidence: Incidence) -> Tensor:
    """`exp(logits - peak)` of the negatives, 0 elsewhere, in place: logits [r, m], peaks [r].

    None is below the smallest normal number: subnormal numbers would take a hundred times as long.
    """
    least = math.ceil(math.log(torch.finfo(logits.dtype).tiny))
    return incidence.negatives.blank(logits.sub_(peaks[:, None]).clamp_min_(least).exp_(), 0)


def peak(logits: Tensor, *, one: bool) -> Tensor:
    """The maximum of each row, [r], to be subtracted; at least 0 if the sum has the term `e^0`, 0 for an empty row."""
    if logits.shape[1] == 0:
        return logits.new_zeros(len(logits))
    top = logits.amax(1)
    return top.clamp_min(0) if one else top.masked_fill(top == -torch.inf, 0)
