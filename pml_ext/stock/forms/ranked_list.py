"""RankedListLoss: positives beyond one distance and negatives within another, weighted by the violation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import Incidence

# PML adds this to the weight of every pair of a row.
_EPSILON = 1e-5


class RankedList(Form):
    """`(1 - b) sum_P w a / (sum_P w + e) + b sum_N w a / (sum_N w + e)` with `w = e^(T a)`.

    `a` is how far a positive is beyond `alpha - margin`, or a negative within `alpha`. Equal samples do not count.
    """

    pays_from = 1 << 13
    takes_references = takes_lists = False

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        return "it has no meaning for similarities" if loss.distance.is_inverted else None

    def is_empty(self) -> bool:
        return False

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        reach = self._reach(distances, incidence)
        weights = self._weights(reach)
        found = near, weights.sum(1), torch.linalg.vecdot(weights, reach)
        if keep:
            distances.copy_(reach)
        return found

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, far_weight, far_sum = rows
        balance, far_heat, near_heat = float(self.loss.imbalance), float(self.loss.Tn), float(self.loss.Tp)
        epsilon = _EPSILON * self.incidence.columns
        reach = near - float(self.loss.alpha - self.loss.margin)
        there = (self.incidence.counts > 0) & (reach > 0) & (near > 0)
        weights = torch.where(there, (near_heat * reach).exp(), 0)
        reach = torch.where(there, reach, 0)
        near_sum, near_total, far_total = (weights * reach).sum(1), weights.sum(1) + epsilon, far_weight + epsilon
        losses = (1 - balance) * near_sum / near_total + balance * far_sum / far_total
        value, pull = self.reductions["loss"].elements(losses, torch.ones_like(losses))
        nearer, farther = pull * (1 - balance) / near_total, -pull * balance / far_total
        shift = near_heat * near_sum / near_total
        self._by_near = nearer[:, None] * weights * (1 + near_heat * reach - shift[:, None])
        self._by_far = farther, 1 - far_heat * far_sum / far_total
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        reach = distances if kept else self._reach(distances, incidence)
        weights = self._weights(reach)
        factor, constant = (each[start:stop, None] for each in self._by_far)
        out = reach.mul_(float(self.loss.Tn)).add_(constant).mul_(weights).mul_(factor)
        return scatter_positives(out, incidence, self._by_near[start:stop])

    def _reach(self, distances: Tensor, incidence: Incidence) -> Tensor:
        """How far negatives are within `alpha`; 0 for pairs that do not count."""
        reach = (float(self.loss.alpha) - distances).relu_()
        # Compared into floats: into booleans it would take ten times as long.
        apart = torch.gt(distances, 0, out=torch.empty_like(distances))
        return incidence.negatives.blank(reach.mul_(apart), 0)

    def _weights(self, reach: Tensor) -> Tensor:
        return (reach * float(self.loss.Tn)).exp_().mul_(reach.sign())
