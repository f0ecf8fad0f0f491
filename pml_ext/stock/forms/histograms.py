"""Losses of soft histograms of the scores: FastAPLoss and HistogramLoss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import LABELS, Incidence

Kept = Callable[[Tensor], Tensor]


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
        there, of_all = (incidence.counts > 0).to(near.dtype), self._nearest(distances)
        found = (
            self._histogram(*self._nearest(near), near, lambda share: share.mul_(there)),
            self._histogram(*of_all, distances, lambda share: incidence.negatives.blank(share, 0)),
        )
        if keep:
            distances.copy_(self._intervals(*of_all))
        return found

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
        of_all = distances.long() if kept else self._intervals(*self._nearest(distances))
        near = of_all.gather(1, incidence.positives)
        by_near = torch.where(incidence.counts > 0, self._slopes(self._at_near[start:stop]).gather(1, near), 0)
        by_far = self._slopes(self._at_far[start:stop]).gather(1, of_all)
        return scatter_positives(incidence.negatives.blank(by_far, 0), incidence, by_near)

    def _nearest(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest node of each distance, and how far beyond it that is."""
        nodes = self._nodes(distances)
        nearest = (distances / self._width).round_().clamp_(0, len(nodes) - 1).long()
        return nearest, distances - nodes[nearest]

    def _histogram(self, nearest: Tensor, beyond: Tensor, distances: Tensor, kept: Kept) -> Tensor:
        """What the distances of each row give to the nodes: to the nearest and to the next on their side."""
        nodes = torch.nn.functional.pad(self._nodes(distances), (1, 1), value=torch.inf)
        out = distances.new_zeros(len(distances), len(nodes))
        out.scatter_add_(1, nearest + 1, kept(self._share(beyond.abs())))
        # From the next node's own distance: a perfect list costs exactly 0, as PML's does.
        following = (beyond < 0).long().mul_(-2).add_(nearest).add_(2)
        out.scatter_add_(1, following, kept(self._share((distances - nodes[following]).abs_())))
        return out[:, 1:-1]

    def _share(self, offsets: Tensor) -> Tensor:
        return (1 - offsets.div_(self._width)).relu_()

    def _intervals(self, nearest: Tensor, beyond: Tensor) -> Tensor:
        """Columns of `_slopes`: between which nodes each distance is."""
        out = nearest + (beyond > 0)
        flat = beyond == 0
        if float(beyond.abs().max()) >= self._width:
            flat |= beyond.abs() >= self._width
        return out.masked_fill_(flat, int(self.loss.num_bins) + 2)

    def _slopes(self, at_nodes: Tensor) -> Tensor:
        """Of each interval, those before and after all nodes included; then of a node itself and what is far away."""
        between = torch.nn.functional.pad(at_nodes, (1, 1)).diff(dim=1)
        return torch.nn.functional.pad(between.div_(self._width), (0, 1))


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
        near, above = positives(distances, incidence), self._above(incidence, start)
        right = distances[:, start:]  # nothing before it is above the diagonal
        bins, far = self._bins(right), self._far(incidence, start, distances)
        found = (
            self._histogram(near, self._bins(near), above),
            self._histogram(right, bins, far),
            above.sum(1),
            far.sum(1),
        )
        if keep:
            distances[:, :start] = 0
            right.copy_(bins)
        return found

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, far, near_number, far_number = (each.sum(0) for each in rows)
        near, far = near / near_number, far / far_number
        self._by_near = -far[:-1] / (self.loss.delta * near_number)
        self._by_far = near[1:] / (self.loss.delta * far_number)
        return {"loss": (far * near.cumsum(0)).sum()}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        near, right = positives(distances, incidence), distances[:, start:]
        of_near, of_right = (near, right) if kept else (self._bins(near), self._bins(right))
        by_near = self._by_near[of_near.long()] * self._above(incidence, start) * self.sign
        by_far = self._by_far[of_right.long()].mul_(self._far(incidence, start, distances)).mul_(self.sign)
        out = torch.zeros_like(distances)
        out[:, start:] = by_far
        return scatter_positives(out, incidence, by_near)

    def _above(self, incidence: Incidence, start: int) -> Tensor:
        rows = torch.arange(start, start + len(incidence.positives), device=incidence.positives.device)
        return incidence.counts * (incidence.positives > rows[:, None])

    def _far(self, incidence: Incidence, start: int, like: Tensor) -> Tensor:
        """1 above the diagonal for a negative pair of which one end has a positive, of the columns from `start` on."""
        far = incidence.negatives.blank(torch.ones_like(like), 0)[:, start:].triu_(1)
        alone = self.incidence.counts.sum(1) == 0
        if bool(alone.any()):
            far.masked_fill_(alone[start : start + len(like), None] & alone[start:], 0)
        return far

    def _bins(self, distances: Tensor) -> Tensor:
        # PML finds the bin in single precision whatever the precision of the scores; equal ones are in the last.
        scores = (distances * self.sign).float()
        return ((scores + 1) / float(self.loss.delta)).floor_().clamp_(0, self._bins_of_all - 1)

    def _histogram(self, distances: Tensor, bins: Tensor, weights: Tensor) -> Tensor:
        scores, delta = distances * self.sign, float(self.loss.delta)
        out = distances.new_zeros(len(distances), self._bins_of_all + 1)
        places = bins.long()  # PML's nodes, too, are in single precision
        out[:, 1:].scatter_add_(1, places, (scores + 1).sub_(bins * delta).div_(delta).mul_(weights))
        out[:, :-1].scatter_add_(1, places, torch.sub((bins + 1) * delta - 1, scores).div_(delta).mul_(weights))
        return out


def _suffix(values: Tensor) -> Tensor:
    return values.flip(1).cumsum(1).flip(1)
