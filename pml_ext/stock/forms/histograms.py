"""Losses of soft histograms of the scores: FastAPLoss and HistogramLoss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import LABELS, Incidence


class FastAP(Form):
    """`1 - AP_i`, with the average precision of a histogram of the distances; lists of a miner only weigh the samples.

    A distance is shared between the two nodes around it. With `h` and `H` the numbers of positives at and up to a node,
    and `T` the number of all up to it, `AP = sum h H / T / number of positives`.
    """

    pays_from = 1 << 14
    by_labels = True
    takes_references = False

    @property
    def _width(self) -> float:
        return float(2**self.loss.distance.power) / int(self.loss.num_bins)

    def _nodes(self, like: Tensor) -> Tensor:
        bins = int(self.loss.num_bins)
        return torch.linspace(0.0, 2**self.loss.distance.power, bins + 1, device=like.device, dtype=like.dtype)

    def is_empty(self) -> bool:
        return not self.lengths[0]

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        ones = torch.ones_like(distances)
        return (
            self._histogram(near, (incidence.counts > 0).to(near.dtype)),
            self._histogram(distances, incidence.negatives.blank(ones, 0)),
        )

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, far = rows
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
        self._at_near = pull * (torch.where(safe, below / whole, 0) + _suffix(squared * (total - below)))
        self._at_far = -pull * _suffix(squared * below)
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        near = positives(distances, incidence)
        by_near = torch.where(incidence.counts > 0, self._slopes(near, self._at_near[start:stop]), 0)
        by_far = self._slopes(distances, self._at_far[start:stop])
        return scatter_positives(incidence.negatives.blank(by_far, 0), incidence, by_near)

    def _bins(self, distances: Tensor) -> Tensor:
        return (distances / self._width).floor_().clamp_(0, int(self.loss.num_bins) - 1).long()

    def _histogram(self, distances: Tensor, weights: Tensor) -> Tensor:
        nodes, bins = self._nodes(distances), self._bins(distances)
        out = distances.new_zeros(len(distances), len(nodes))
        for place in (bins, bins + 1):
            share = (1 - (distances - nodes[place]).abs_() / self._width).relu_()
            out.scatter_add_(1, place, share.mul_(weights))
        return out

    def _slopes(self, distances: Tensor, at_nodes: Tensor) -> Tensor:
        nodes, bins = self._nodes(distances), self._bins(distances)
        out = torch.zeros_like(distances)
        for place in (bins, bins + 1):
            offset = distances - nodes[place]
            reached = (offset.abs() / self._width < 1).to(offset.dtype)
            out -= at_nodes.gather(1, place) * reached.mul_(offset.sign_())
        return out.div_(self._width)


class Histogram(Form):
    """`sum over nodes of h-_r * (sum of h+ up to r)`: how probably a negative is more similar than a positive.

    Each pair of samples is one pair, with the score above the diagonal.
    """

    takes_references = False
    reduced = True

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        return None if kind == LABELS else "pairs of a list are counted once for both orders"

    def is_empty(self) -> bool:
        return not bool((self.incidence.counts.sum(1) * self.incidence.negatives.per_row).any())

    @property
    def _bins_of_all(self) -> int:
        return round(1 + 2 / float(self.loss.delta)) - 1

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        ones = torch.ones_like(distances)
        return (
            self._histogram(near, self._above(incidence, start)),
            self._histogram(distances, self._far(ones, incidence, start)),
            self._above(incidence, start).sum(1),
            self._far(ones, incidence, start).sum(1),
        )

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, far, near_number, far_number = (each.sum(0) for each in rows)
        near, far = near / near_number, far / far_number
        self._by_near = -far[:-1] / (self.loss.delta * near_number)
        self._by_far = near[1:] / (self.loss.delta * far_number)
        return {"loss": (far * near.cumsum(0)).sum()}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        by_near = self._by_near[self._bins(near)] * self._above(incidence, start) * self.sign
        by_far = self._far(self._by_far[self._bins(distances)].mul_(self.sign), incidence, start)
        return scatter_positives(by_far, incidence, by_near)

    def _above(self, incidence: Incidence, start: int) -> Tensor:
        rows = torch.arange(start, start + len(incidence.positives), device=incidence.positives.device)
        return incidence.counts * (incidence.positives > rows[:, None])

    def _far(self, values: Tensor, incidence: Incidence, start: int) -> Tensor:
        """Keep what stands above the diagonal for a negative pair of which one end has a positive."""
        values = incidence.negatives.blank(values.triu_(start + 1), 0)
        alone = self.incidence.counts.sum(1) == 0
        if bool(alone.any()):
            values.masked_fill_(alone[start : start + len(values), None] & alone, 0)
        return values

    def _bins(self, distances: Tensor) -> Tensor:
        # PML finds the bin in single precision whatever the precision of the scores; equal ones are in the last.
        scores = (distances * self.sign).float()
        return ((scores + 1) / float(self.loss.delta)).floor_().clamp_(0, self._bins_of_all - 1).long()

    def _histogram(self, distances: Tensor, weights: Tensor) -> Tensor:
        bins, delta = self._bins(distances), float(self.loss.delta)
        scores = distances * self.sign
        out = distances.new_zeros(len(distances), self._bins_of_all + 1)
        out.scatter_add_(1, bins + 1, ((scores + 1 - bins * delta) / delta).mul_(weights))
        return out.scatter_add_(1, bins, (((bins + 1) * delta - 1 - scores) / delta).mul_(weights))


def _suffix(values: Tensor) -> Tensor:
    return values.flip(1).cumsum(1).flip(1)
