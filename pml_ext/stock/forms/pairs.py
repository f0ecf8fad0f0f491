"""Losses of pairs: each is a function of one distance."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import Incidence
from pml_ext.stock.reduction import Reduction


class Contrastive(Form):
    """`[D - p]+` of positives and `[q - D]+` of negatives, each reduced separately."""

    pays_from = 1 << 15
    names = ("pos_loss", "neg_loss")
    listed = "pairs"

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        losses = self._pushed(distances, incidence)
        return positives(distances, incidence), *sums_of(losses, incidence, self.reductions["neg_loss"])

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, *far = rows
        hinge = (near - self.sign * float(self.loss.pos_margin)).relu()
        values = {}
        self._by_near = torch.zeros_like(near)
        self._by_far = torch.zeros_like(far[0])
        if self.lengths[0]:
            values["pos_loss"], pull = self.reductions["pos_loss"].elements(hinge, self.incidence.counts)
            self._by_near = pull * (hinge > 0)
        if self.lengths[1]:
            values["neg_loss"], self._by_far = self.reductions["neg_loss"].rows(*far)
        return values

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        losses = self._pushed(distances, incidence)
        chosen = chosen_of(losses, self.reductions["neg_loss"])
        out = incidence.negatives.weighted(chosen).mul_(-self._by_far[start:stop, None])
        return scatter_positives(out, incidence, self._by_near[start:stop])

    def _pushed(self, distances: Tensor, incidence: Incidence) -> Tensor:
        pushed = (self.sign * float(self.loss.neg_margin) - distances).relu_()
        return incidence.negatives.blank(pushed, 0)


class SignalToNoiseRatioContrastive(Contrastive):
    """The same for SNRDistance, for which PML forms the differences of all pairs."""

    pays_from = 1 << 10


def sums_of(losses: Tensor, incidence: Incidence, reduction: Reduction) -> Rows:
    """From the losses of negatives, 0 elsewhere: the arguments of `Reduction.rows`."""
    counts = incidence.negatives.per_row
    weights = incidence.negatives.weights
    number = counts if weights is None else (weights > 0).sum(1).to(counts.dtype)
    if reduction.per_anchor:
        return losses.sum(1), number, counts, number
    kept = counts
    if reduction.limits == (0, None):
        chosen = losses.sign()
        kept = (chosen if weights is None else chosen.mul_(weights)).sum(1)
    elif reduction.limits != (None, None):
        keep = reduction.keep(losses)
        assert keep is not None
        losses = losses * keep
        chosen = incidence.negatives.blank(
            keep.to(losses.dtype), 0
        )  # a limit below 0 keeps pairs that are not negatives
        kept = (chosen if weights is None else chosen.mul_(weights)).sum(1)
    return (losses if weights is None else losses * weights).sum(1), kept, counts, number


def chosen_of(losses: Tensor, reduction: Reduction) -> Tensor:
    """1 where a hinge is above 0 and kept by the reducer, 0 elsewhere; `losses` may be overwritten."""
    if reduction.limits in ((None, None), (0, None)):
        return losses.sign_()
    keep = reduction.keep(losses)
    assert keep is not None
    return losses.sign_().mul_(keep)


class IntraPairVariance(Form):
    """Squares of how far positives exceed, and negatives fall short of, a multiple of the mean of all of their kind."""

    pays_from = 1 << 15
    names = ("pos_loss", "neg_loss")
    listed = "pairs"
    looks_first = True

    def first(self, distances: Tensor, start: int) -> Rows:
        incidence = self.of(start, distances)
        far = incidence.negatives.weighted(incidence.negatives.blank(distances.clone(), 0))
        return positives(distances, incidence), far.sum(1)

    def look(self, rows: Rows) -> None:
        near, far = rows
        counts = self.incidence.counts
        self._near_mean = (counts * near).sum() / counts.sum() if self.lengths[0] else near.new_zeros(())
        self._far_mean = far.sum() / self.incidence.negatives.per_row.sum() if self.lengths[1] else far.new_zeros(())

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        spread = self._far_spread(distances, incidence)
        totals = sums_of(spread**2, incidence, self.reductions["neg_loss"])
        weights = incidence.negatives.weights
        moved = spread * self._kept(spread)
        return (
            positives(distances, incidence),
            *totals,
            (moved if weights is None else moved * weights).sum(1),
        )

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        near, *far, moved = rows
        values = {}
        counts = self.incidence.counts
        self._by_near = torch.zeros_like(near)
        self._by_far, self._by_mean = torch.zeros_like(moved), moved.new_zeros(())
        if self.lengths[0]:
            eps = float(self.loss.pos_eps)
            spread = (near - self._shifted(self._near_mean, eps)).relu()
            values["pos_loss"], pull = self.reductions["pos_loss"].elements(spread**2, counts)
            pull = 2 * pull * spread
            self._by_near = pull - counts / counts.sum() * (pull.sum() * self._slope(eps))
        if self.lengths[1]:
            values["neg_loss"], pull = self.reductions["neg_loss"].rows(*far)
            self._by_far = 2 * pull
            total = (self._by_far * moved).sum()
            self._by_mean = total * self._slope(-float(self.loss.neg_eps)) / self.incidence.negatives.per_row.sum()
        return values

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        spread = self._far_spread(distances, incidence)
        out = spread.mul_(self._kept(spread)).mul_(-self._by_far[start:stop, None])
        out = incidence.negatives.weighted(incidence.negatives.blank(out.add_(self._by_mean), 0))
        return scatter_positives(out, incidence, self._by_near[start:stop])

    def _slope(self, eps: float) -> float:
        # The level of PML is (1 + eps) times a mean of distances, but (1 - eps) times one of similarities.
        return 1 + eps if self.sign > 0 else 1 - eps

    def _shifted(self, mean: Tensor, eps: float) -> Tensor:
        return mean * self._slope(eps)

    def _far_spread(self, distances: Tensor, incidence: Incidence) -> Tensor:
        spread = (self._shifted(self._far_mean, -float(self.loss.neg_eps)) - distances).relu_()
        return incidence.negatives.blank(spread, 0)

    def _kept(self, spread: Tensor) -> Tensor | float:
        keep = self.reductions["neg_loss"].keep(spread**2)
        return 1.0 if keep is None else keep.to(spread.dtype)
