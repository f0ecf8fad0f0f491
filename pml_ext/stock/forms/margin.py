"""MarginLoss: positives and negatives against a level, each counted once for each triplet that contains it."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import LABELS, TRIPLETS, Incidence


class Margin(Form):
    """`[D_ip - beta + margin]+ + [beta - D_in + margin]+`, each term once for each triplet that contains it."""

    pays_from = 1 << 12
    listed = "triplets"
    names = ("margin_loss", "beta_reg_loss")

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        if kind == LABELS and loss.triplets_per_anchor != "all":
            return "triplets_per_anchor is a number: the triplets are drawn"
        reducer = loss.reducer
        if isinstance(reducer, reducers.MultipleReducers):
            own = reducer.reducers["margin_loss"] if "margin_loss" in reducer.reducers else reducer.default_reducer  # noqa: SIM401
            limited = isinstance(own, reducers.ThresholdReducer)
            if limited and not (own.low == 0 and own.high is None):
                return "a threshold of the sum of both sides needs every triplet"
            if limited and kind == TRIPLETS:
                return "a list of triplets is no product of pairs"
        return None

    def _times(self) -> tuple[Tensor, Tensor, Tensor]:
        """How often positives [n, k] and negatives [n] count, and the number of triplets of each row."""
        own, others = self.incidence.counts.sum(1), self.incidence.negatives.per_row
        if self.incidence.kind == TRIPLETS:
            return self.incidence.counts, torch.ones_like(own), own
        return self.incidence.counts * others[:, None], own, own * others

    def is_empty(self) -> bool:
        incidence = self.incidence
        if incidence.kind == TRIPLETS:
            return not self.lengths[0]
        return not bool((incidence.counts.sum(1) * incidence.negatives.per_row).any())

    @property
    def levels(self) -> Tensor:
        """beta of each anchor, on the scale of the distances."""
        beta = self.loss.beta.detach().to(self.incidence.counts)
        labels = self.reductions["margin_loss"].labels
        own = beta.expand(len(self.incidence.positives)) if len(beta) == 1 else beta[labels]
        out: Tensor = own * self.sign
        return out

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        pushed = self._pushed(distances, start, incidence)
        weights = incidence.negatives.weights
        number = incidence.negatives.weighted(pushed.sign()).sum(1)
        return (
            positives(distances, incidence),
            (pushed if weights is None else pushed * weights).sum(1),
            number,
        )

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, far_sums, far_numbers = rows
        reduction = self.reductions["margin_loss"]
        times, far_times, triplets = self._times()
        hinge = (near - self.levels[:, None] + self.loss.margin).relu()
        hinge = torch.where(self.incidence.counts > 0, hinge, 0)
        above = hinge.sign()
        sums = (times * hinge).sum(1) + far_times * far_sums
        divisor = (times * above).sum() + (far_times * far_numbers).sum()
        if reduction.by_divisor:
            value, pull = reduction.of_sums(sums.sum(), divisor, torch.ones_like(sums))
        else:
            kept = triplets
            if reduction.keep(sums) is not None:  # above 0: all but triplets both of whose terms are 0
                zero = (self.incidence.counts * (1 - above)).sum(1) * (self.incidence.negatives.per_row - far_numbers)
                kept = triplets - zero
            value, pull = reduction.rows(sums, kept, triplets, triplets)
        self._by_near = pull[:, None] * times * above
        self._by_far = -pull * far_times
        self._by_level = -(self._by_near.sum(1) + self._by_far * far_numbers)
        regularizer = self._regularizer(triplets, divisor)
        return {"margin_loss": value} if regularizer is None else {"margin_loss": value, "beta_reg_loss": regularizer}

    def _regularizer(self, triplets: Tensor, divisor: Tensor) -> Tensor | None:
        self._by_regularizer = None
        if not self.loss.learn_beta:
            return None
        reduction = self.reductions["beta_reg_loss"]
        if len(self.loss.beta) == 1:
            self._by_regularizer = self.levels.new_full((1,), float(self.loss.nu))
            regularizer: Tensor = self.loss.beta.detach().to(triplets).squeeze() * self.loss.nu
            return regularizer
        losses = self.levels * self.sign * self.loss.nu
        if reduction.by_divisor:
            value, pull = reduction.of_sums((triplets * losses).sum(), divisor, triplets)
        else:
            value, pull = reduction.elements(losses, triplets)
        self._by_regularizer = pull * self.loss.nu
        return value

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        above = self._pushed(distances, start, incidence).sign_()
        out = incidence.negatives.weighted(above).mul_(self._by_far[start:stop, None])
        return scatter_positives(out, incidence, self._by_near[start:stop])

    def parameters(self) -> dict[str, Tensor]:
        if not self.loss.learn_beta:
            return {}
        beta = self.loss.beta
        own = self._by_level * self.sign
        if len(beta) == 1:
            total = own.sum(0, keepdim=True)
            return {"beta": total if self._by_regularizer is None else total + self._by_regularizer}
        if self._by_regularizer is not None:
            own = own + self._by_regularizer
        labels = self.reductions["margin_loss"].labels
        assert labels is not None
        return {"beta": own.new_zeros(len(beta)).index_add_(0, labels, own)}

    def _pushed(self, distances: Tensor, start: int, incidence: Incidence) -> Tensor:
        levels = self.levels[start : start + len(distances), None]
        pushed = (levels - distances).add_(self.loss.margin).relu_()
        return incidence.negatives.blank(pushed, 0)
