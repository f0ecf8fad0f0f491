"""NCALoss: the probability that a softmax over all other samples assigns to the anchor's class."""

from __future__ import annotations

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, exponentials, positives, scatter_positives

_INF = torch.inf


class NCA(Form):
    """`-w_i log sum over own class of softmax(-scale D_i)`; rows whose sum is 0 in floating point are left out.

    The incidence is that of the labels, without the sample itself where the references are the batch. Lists of a miner
    only weigh the samples.
    """

    pays_from = 1 << 16
    by_labels = True

    def is_empty(self) -> bool:
        return len(self.incidence.positives) <= 1

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        sums, far, own = self._exponentials(distances, start)
        if keep:
            distances.copy_(far)
        return sums, own.sum(1), own

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        far, near, self._own = rows
        reduction = self.reductions["loss"]
        total = far + near
        probability = near / total
        there = (probability != 0) & (total > 0)
        weights = torch.ones_like(near) if self.weights is None else self.weights
        losses = torch.where(there, -torch.where(there, probability, 1).log() * weights, 0)
        inner = reduction.inner.reducer
        if not bool(there.any()) and not isinstance(inner, (reducers.SumReducer, reducers.ThresholdReducer)):
            value, pull = losses.new_full((), torch.nan), torch.zeros_like(losses)  # PML's mean of nothing
        else:
            value, pull = reduction.elements(losses, there.to(near.dtype))
        scale = torch.where(there, pull * weights * self.loss.softmax_scale, 0)
        self._by_all = -scale / torch.where(there, total, 1)
        self._by_own = scale / torch.where(there, near, 1)
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        far = distances if kept else self._exponentials(distances, start)[1]
        stop = start + len(distances)
        by_all, by_own = self._by_all[start:stop, None], self._by_own[start:stop, None]
        own = self._own[start:stop] * (by_all + by_own)
        return scatter_positives(far.mul_(by_all), self.of(start, distances), own)

    def _exponentials(self, distances: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        incidence = self.of(start, distances)
        scale = -self.loss.softmax_scale
        near = (positives(distances, incidence) * scale).masked_fill(incidence.counts == 0, -_INF)
        logits = incidence.negatives.blank(distances * scale, -_INF)
        peaks = torch.maximum(_top(logits), _top(near))
        peaks = peaks.masked_fill(peaks == -_INF, 0)
        far = exponentials(logits, peaks, incidence)
        return far.sum(1), far, (near - peaks[:, None]).exp()


def _top(logits: Tensor) -> Tensor:
    return logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -_INF)
