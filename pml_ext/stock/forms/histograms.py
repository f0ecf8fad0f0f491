"""Losses on soft histograms of the scores: FastAPLoss and HistogramLoss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_ext.bins import looked_up, sums_of_rows
from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import LABELS, Incidence


class FastAP(Form):
    """`1 - AP_i`, with the average precision of a histogram of the distances; a miner's lists only weight the samples.

    A distance is shared between the two nodes around it. With `h` and `H` the numbers of positives at and up to a node,
    and `T` the number of all samples up to it, `AP = sum h H / T / number of positives`.

    The intervals are the one before the first node, those between nodes, the one after the last node, and the rest
    beyond it; column 0 is for a distance that equals a node, where the slope is 0.
    """

    pays_from = 1 << 13
    by_labels = True
    takes_references = False

    @property
    def _width(self) -> float:
        return float(2**self.loss.distance.power) / self._number

    @property
    def _number(self) -> int:
        return int(self.loss.num_bins)

    def is_empty(self) -> bool:
        return not self.lengths[0]

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        intervals, shares = self._intervals(distances)
        incidence.negatives.blank(intervals, self._number + 3)
        numbers, uppers = sums_of_rows(intervals, shares, self._number + 4)
        if keep:
            torch.mul(intervals, shares.sign_(), out=distances)
        return near, (numbers - uppers)[:, 2:-1] + uppers[:, 1:-2]

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, far = rows
        intervals, shares = self._intervals(near)
        near = self._near_nodes(near, intervals.long(), self.incidence.counts > 0)
        self._of_near = intervals.mul_(shares.sign_())
        number = (self.incidence.counts > 0).sum(1).to(near.dtype)
        below, total = near.cumsum(1), (near + far).cumsum(1)
        product = near * below
        safe = (product > 0) & (total > 0)
        whole = torch.where(safe, total, 1)
        precision = torch.where(safe, product / whole, 0).sum(1) / number.clamp_min(1)
        there = number > 0
        weights = torch.ones_like(number) if self.weights is None else self.weights
        losses = torch.where(there, (1 - precision) * weights, 0)
        if bool(safe.any()):
            value, pull = self.reductions["loss"].elements(losses, there.to(near.dtype))
        else:
            value, pull = self.reductions["loss"].nothing(), torch.zeros_like(losses)
        pull = -(pull * weights / number.clamp_min(1))[:, None]
        squared = torch.where(safe, near / whole**2, 0)
        self._by_near = self._slopes(pull * (torch.where(safe, below / whole, 0) + _suffix(squared * (total - below))))
        self._by_far = self._slopes(-pull * _suffix(squared * below))
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        if not kept:
            intervals, shares = self._intervals(distances)
            distances = incidence.negatives.blank(intervals, self._number + 3).mul_(shares.sign_())
        by_near = looked_up(self._by_near[start:stop], self._of_near[start:stop])
        by_near = torch.where(incidence.counts > 0, by_near, 0)
        return scatter_positives(looked_up(self._by_far[start:stop], distances), incidence, by_near)

    def _intervals(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of each distance, counted from 1, and the share of the node at its upper end."""
        places = torch.div(distances, self._width).clamp_(-1, self._number + 1)
        intervals = places.floor()
        shares = places.sub_(intervals)
        return intervals.add_(2), shares

    def _near_nodes(self, near: Tensor, intervals: Tensor, there: Tensor) -> Tensor:
        """The histogram of the positives of each row: [n, k] -> [n, nodes].

        Each share is computed from the distance to its own node: a perfect ranking costs exactly 0, as in PML.
        """
        nodes = torch.linspace(0.0, 2**self.loss.distance.power, self._number + 1, device=near.device, dtype=near.dtype)
        nodes = torch.nn.functional.pad(nodes, (2, 2), value=torch.inf)
        out = near.new_zeros(len(near), len(nodes))
        for at in (intervals, intervals + 1):
            share = (near - nodes[at]).abs_().div_(self._width)
            out.scatter_add_(1, at, (1 - share).relu_().mul_(there))
        return out[:, 2:-2]

    def _slopes(self, at_nodes: Tensor) -> Tensor:
        """The slope in each interval; 0 at a node, and farther than one interval from all nodes."""
        between = torch.nn.functional.pad(at_nodes, (1, 1)).diff(dim=1)
        return torch.nn.functional.pad(between.div_(self._width), (1, 1))


class Histogram(Form):
    """`sum over nodes of h-_r * (sum of h+ up to r)`: the probability that a negative is nearer than a positive.

    A pair of samples counts once, with the score above the diagonal. Bins are counted from 1; bin 0 is for scores that
    do not count.
    """

    takes_references = False
    reduced = True

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        return None if kind == LABELS else "pairs of a list are counted once for both orders"

    def is_empty(self) -> bool:
        return not bool((self.incidence.counts.sum(1) * self.incidence.negatives.per_row).any())

    @property
    def _number(self) -> int:
        return round(1 + 2 / float(self.loss.delta)) - 1

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        shares = self._binned(distances, incidence, start)
        return near, *sums_of_rows(distances[:, start:], shares, self._number + 1)

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, *far_sums = rows
        self._of_near, shares = self._bins(near)
        above = self.incidence.positives > torch.arange(len(near), device=near.device)[:, None]
        self._of_near.mul_(above & (self.incidence.counts > 0))
        sums = (*sums_of_rows(self._of_near, shares, self._number + 1), *far_sums)
        near_numbers, near_uppers, far_numbers, far_uppers = (each.sum(0)[1:] for each in sums)
        near_number, far_number = near_numbers.sum(), far_numbers.sum()
        near = self._at_nodes(near_numbers, near_uppers) / near_number
        far = self._at_nodes(far_numbers, far_uppers) / far_number
        scale = self.sign / float(self.loss.delta)
        self._by_near = torch.nn.functional.pad(far[:-1] * (-scale / near_number), (1, 0))
        self._by_far = torch.nn.functional.pad(near[1:] * (scale / far_number), (1, 0))
        return {"loss": (far * near.cumsum(0)).sum()}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        if not kept:
            self._binned(distances, incidence, start)
        right = distances[:, start:]
        right.copy_(looked_up(self._by_far, right))
        by_near = looked_up(self._by_near, self._of_near[start : start + len(distances)])
        return scatter_positives(distances, incidence, by_near)

    def _binned(self, distances: Tensor, incidence: Incidence, start: int) -> Tensor:
        """Overwrite distances by the bins of the negatives above the diagonal one of whose samples has a positive.

        Returns the shares of the columns from `start` on: the others are below the diagonal.
        """
        right = distances[:, start:]
        bins, shares = self._bins(right)
        right.copy_(bins)
        distances[:, :start] = 0
        incidence.negatives.blank(distances, 0)
        right[:, : len(right)].triu_(1)
        alone = self.incidence.counts.sum(1) == 0
        if bool(alone.any()):
            right.masked_fill_(alone[start : start + len(right), None] & alone[start:], 0)
        return shares

    def _bins(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each score, and the share of its upper node.

        PML computes the bin in single precision, whatever the dtype of the scores; scores of 1 are in the last bin.
        """
        delta = float(self.loss.delta)
        beyond = (distances * self.sign).add_(1)
        single = beyond if beyond.dtype == torch.float32 else (distances * self.sign).float().add_(1)
        bins = (single / delta).floor_().clamp_(0, self._number - 1)
        shares = beyond.sub_(bins * delta).div_(delta)
        return bins.add_(1), shares

    def _at_nodes(self, numbers: Tensor, uppers: Tensor) -> Tensor:
        """From the sums of the bins to those of the nodes, which PML computes in single precision, too."""
        nodes = torch.arange(self._number + 1, dtype=torch.float32, device=numbers.device) * float(self.loss.delta)
        widths = ((nodes[1:] - 1).to(numbers.dtype) + 1 - nodes[:-1]) / float(self.loss.delta)
        pad = torch.nn.functional.pad
        return pad(uppers, (1, 0)) + pad(widths * numbers - uppers, (0, 1))


def _suffix(values: Tensor) -> Tensor:
    return values.flip(1).cumsum(1).flip(1)
