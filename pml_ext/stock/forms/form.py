"""What every form of a stock loss is: sums of each row, one value from all rows, and the derivative of a block."""

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
    """A stock loss on distances (small is near), from which no list of pairs or triplets is made.

    A form lives for one call: it may keep what `combine` finds for `gradient`.

    Args:
        loss: the stock loss whose hyperparameters are read.
        sign: -1 where its scores are similarities; a position on their scale changes its sign with them.
        incidence: of the whole batch.
        reductions: one for each name of `names`.
    """

    names: ClassVar[tuple[str, ...]] = ("loss",)
    once: ClassVar[bool] = False  # a repeated pair counts once
    column: ClassVar[bool] = False  # PML's losses are a column [n, 1]
    reduced: ClassVar[bool] = False  # the value is one number that no reducer changes
    by_labels: ClassVar[bool] = False  # the labels say what is compared; lists of a miner only weigh the samples
    pays_from: ClassVar[int] = 0  # numbers of scores from which PML's own is slower, as measured
    # What PML works on where lists are given: "matrix", "pairs" of the lists, "products" of both, their "triplets".
    listed: ClassVar[Literal["matrix", "pairs", "products", "triplets"]] = "matrix"
    takes_references: ClassVar[bool] = True
    takes_lists: ClassVar[bool] = True

    def __init__(self, loss: Any, sign: float, incidence: Incidence, reductions: Mapping[str, Reduction]) -> None:
        self.loss = loss
        self.sign = sign
        self.reductions = reductions
        self.lengths = incidence.lengths()
        self.weights: Tensor | None = None  # of the samples, None: all 1
        self.incidence = incidence.once() if self.once else incidence

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        """Why the stock loss has to run, or None."""
        return None

    @property
    def needs_whole(self) -> bool:
        """Whether a row needs the distances of other rows."""
        return False

    def is_empty(self) -> bool:
        """Whether PML forms no loss at all from such lists."""
        return max(self.lengths) <= 1

    looks_first: ClassVar[bool] = False  # whether something must be known of all rows before `summarize`

    def first(self, distances: Tensor, start: int) -> Rows:
        """What that is, of a block."""
        return ()

    def look(self, rows: Rows) -> None:
        """Take what `first` found of all rows."""
        raise NotImplementedError

    @abstractmethod
    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        """Of each row what the value needs.

        The block may be overwritten, with `keep` by what `gradient` needs of it: it will be given the same memory.
        """

    @abstractmethod
    def combine(self, rows: Rows) -> dict[str, Tensor]:
        """The value of each of `names` from all rows."""

    @abstractmethod
    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        """Derivative of the sum of the values by a block of distances, in its memory or in new one.

        With `kept` it is the block as `summarize` left it; without, it is distances.
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
    """Distances of the positives, [r, k]; those that are none are there too."""
    return distances.gather(1, incidence.positives)


def scatter_positives(into: Tensor, incidence: Incidence, values: Tensor) -> Tensor:
    """Add [r, k] values at the positives of a block in place; values of absent ones are 0."""
    return into.scatter_add_(1, incidence.positives, values)


def exponentials(logits: Tensor, peaks: Tensor, incidence: Incidence) -> Tensor:
    """Of the negatives `exp(logits - peak)`, 0 elsewhere, in place: logits [r, m], peaks [r].

    None is smaller than the smallest normal number: what underflows would take a hundred times as long.
    """
    least = math.ceil(math.log(torch.finfo(logits.dtype).tiny))
    return incidence.negatives.blank(logits.sub_(peaks[:, None]).clamp_min_(least).exp_(), 0)


def peak(logits: Tensor, *, one: bool) -> Tensor:
    """Largest of each row, [r], to shift it by: at least 0 with one more term `e^0`, 0 where there is none."""
    if logits.shape[1] == 0:
        return logits.new_zeros(len(logits))
    top = logits.amax(1)
    return top.clamp_min(0) if one else top.masked_fill(top == -torch.inf, 0)
