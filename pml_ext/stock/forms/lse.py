"""Losses of positives against a log-sum-exp over the negatives of the row."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows, exponentials, peak, positives, scatter_positives
from pml_ext.stock.incidence import Incidence

_INF = torch.inf


class AgainstNegatives(Form):
    """`l = f(distances of the positives, log sum over negatives of exp(logits))`.

    The derivative of a row is a coefficient times the softmax over its negatives, plus a number at each positive.
    """

    one = False  # whether the sum has the additional term e^0

    @abstractmethod
    def logits(self, distances: Tensor) -> Tensor:
        """The logits of all columns, newly allocated."""

    def slope(self, distances: Tensor) -> Tensor | float:
        """Derivative of `logits`."""
        return 1.0

    @abstractmethod
    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value, and its derivatives by the logarithm of each row [n] and by the distances of its positives [n, k].

        Args:
            near: distances of the positives, [n, k].
            peaks: the maxima that were subtracted from the logits, [n].
            sums: sums of `exp(logits - peak)` over the negatives, [n].
        """

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        peaks, sums, found = self._exponentials(distances, incidence)
        if keep:
            self._sloped(distances, found)
        return peaks, sums, near

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        peaks, sums, near = rows
        value, by_log, by_near = self.elements(near, peaks, sums)
        total = sums + (-peaks).exp() if self.one else sums
        self._by_sum = torch.where(sums > 0, by_log / torch.where(sums > 0, total, 1), 0)
        self._by_near = torch.where(self.incidence.counts > 0, by_near, 0)
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        if not kept:
            self._sloped(distances, self._exponentials(distances, incidence)[2])
        out = distances.mul_(self._by_sum[start:stop, None])
        return scatter_positives(out, incidence, self._by_near[start:stop])

    def _sloped(self, distances: Tensor, found: Tensor) -> None:
        """Overwrite distances by exponentials times the logits' slope."""
        torch.mul(found, self.slope(distances), out=distances)

    def _exponentials(self, distances: Tensor, incidence: Incidence) -> tuple[Tensor, Tensor, Tensor]:
        logits = incidence.negatives.blank(self.logits(distances), -_INF)
        peaks = peak(logits, one=self.one)
        found = incidence.negatives.weighted(exponentials(logits, peaks, incidence))
        return peaks, found.sum(1), found

    @property
    def present(self) -> Tensor:
        """Which of the k columns hold a positive, [n, k]."""
        return self.incidence.counts > 0

    def shifted(self, logits: Tensor, *, one: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Over the positives: peaks [n], sums [n] and exponentials [n, k], each positive once."""
        logits = logits.masked_fill(~self.present, -_INF)
        peaks = peak(logits, one=one)
        exponentials = (logits - peaks[:, None]).exp()
        return peaks, exponentials.sum(1), exponentials


class NeedsBoth(AgainstNegatives):
    """A loss only if the batch has both a positive and a negative pair."""

    def is_empty(self) -> bool:
        return max(self.lengths) <= 1 or min(self.lengths) == 0


class MultiSimilarity(AgainstNegatives):
    """`log(1 + sum_P e^(alpha (D - b))) / alpha + log(1 + sum_N e^(beta (b - D))) / beta`."""

    pays_from = 1 << 12
    one = once = column = True

    def logits(self, distances: Tensor) -> Tensor:
        return (self.sign * float(self.loss.base) - distances).mul_(self.loss.beta)

    def slope(self, distances: Tensor) -> float:
        return -float(self.loss.beta)

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, beta = float(self.loss.alpha), float(self.loss.beta)
        tops, own, exponentials = self.shifted(alpha * (near - self.sign * float(self.loss.base)), one=True)
        own = own + (-tops).exp()
        losses = (1 / alpha) * (tops + own.log()) + (1 / beta) * (peaks + (sums + (-peaks).exp()).log())
        value, pull = self.reductions["loss"].elements(losses, torch.ones_like(losses), column=True)
        return value, pull / beta, (pull / own)[:, None] * exponentials


class GeneralizedLiftedStructure(AgainstNegatives):
    """`[log sum_P e^(D - p) + log sum_N e^(q - D)]+`; the logarithm of an empty sum counts as 0."""

    pays_from = 1 << 13
    once = column = True

    def logits(self, distances: Tensor) -> Tensor:
        return self.sign * float(self.loss.neg_margin) - distances

    def slope(self, distances: Tensor) -> float:
        return -1.0

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tops, own, exponentials = self.shifted(near - self.sign * float(self.loss.pos_margin), one=False)
        losses = (logarithm(tops, own) + logarithm(peaks, sums)).relu()
        value, pull = self.reductions["loss"].elements(losses, torch.ones_like(losses), column=True)
        pull = pull * (losses > 0)
        return value, pull, (pull / torch.where(own > 0, own, 1))[:, None] * exponentials


class SupCon(NeedsBoth):
    """Mean over positives of `-log` of their share among all pairs of the row, by `e^(-D / temperature)`."""

    pays_from = 1 << 15
    once = True

    def logits(self, distances: Tensor) -> Tensor:
        return distances / -float(self.loss.temperature)

    def slope(self, distances: Tensor) -> float:
        return -1 / float(self.loss.temperature)

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = near / -float(self.loss.temperature)
        tops, _, _ = self.shifted(logits, one=False)
        has_near, has_far = self.present.any(1), sums > 0
        top = torch.maximum(torch.where(has_near, tops, -_INF), torch.where(has_far, peaks, -_INF))
        top = top.masked_fill(top == -_INF, 0)
        exponentials = torch.where(self.present, (logits - top[:, None]).exp(), 0)
        far = torch.where(has_far, sums * (peaks - top).exp(), 0)
        total = exponentials.sum(1) + far
        whole = torch.where(total > 0, total, 1)
        number = self.incidence.counts.sum(1)
        divisor = number + torch.finfo(near.dtype).tiny
        terms = torch.where(self.present, logits - top[:, None] - whole.log()[:, None], 0)
        losses = -(terms.sum(1) / divisor)
        value, pull = self.reductions["loss"].elements(losses, torch.ones_like(losses))
        share = torch.where(has_near, number / divisor, 0)
        by_log = pull * share * far / whole
        by_near = (pull / divisor)[:, None] - (pull * share / whole)[:, None] * exponentials
        return value, by_log, by_near / float(self.loss.temperature)


class NTXent(NeedsBoth):
    """For each positive `-log` of its share among itself and the negatives, by `e^(-D / temperature)`."""

    listed = "products"

    def logits(self, distances: Tensor) -> Tensor:
        return distances / -float(self.loss.temperature)

    def slope(self, distances: Tensor) -> float:
        return -1 / float(self.loss.temperature)

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = near / -float(self.loss.temperature)
        has = (sums > 0)[:, None]
        top = torch.where(has, torch.maximum(logits, peaks[:, None]), logits)
        own = (logits - top).exp()
        others = torch.where(has, sums[:, None] * (peaks[:, None] - top).exp(), 0)
        ratio = own / (own + others)
        tiny = torch.finfo(near.dtype).tiny
        value, pull = self.reductions["loss"].elements(-(ratio + tiny).log(), self.incidence.counts)
        # ratio / (ratio + tiny) is the saturation of PML: where the ratio underflows, the gradient is 0.
        push = torch.where(self.present, pull * (others / (own + others)) * (ratio / (ratio + tiny)), 0)
        return value, push.sum(1), push / float(self.loss.temperature)


class TupletMargin(NeedsBoth):
    """For each positive `log(1 + sum_N e^(scale (cos of negative - cos(angle - margin))))`."""

    column = True
    listed = "products"

    def logits(self, distances: Tensor) -> Tensor:
        return distances * -float(self.loss.scale)

    def slope(self, distances: Tensor) -> float:
        return -float(self.loss.scale)

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, margin = float(self.loss.scale), float(self.loss.margin)
        angles = (-near).clamp(-1, 1).acos()
        has = (sums > 0)[:, None]
        inside = torch.where(has, logarithm(peaks, sums)[:, None] - scale * (angles - margin).cos(), 0)
        top = inside.clamp_min(0)
        # As a logarithm of two terms it is exactly 0 where that of PML is; AvgNonZeroReducer counts those that are not.
        losses = torch.where(has, top + ((inside - top).exp() + (-top).exp()).log(), 0)
        value, pull = self.reductions["loss"].elements(losses, self.incidence.counts, column=True)
        push = torch.where(has & self.present, pull * inside.sigmoid(), 0)
        sines = angles.sin()
        turn = torch.where(sines > 0, (angles - margin).sin() / torch.where(sines > 0, sines, 1), 0)
        return value, push.sum(1), scale * push * turn


class Circle(AgainstNegatives):
    """`softplus(log sum_P + log sum_N)` of logits that are weighted by their distance from their optimum."""

    pays_from = 1 << 12
    once = column = True

    def logits(self, distances: Tensor) -> Tensor:
        # Similarities are -distances; PML detaches the factor in front.
        return (-distances - float(self.loss.delta_n)).mul_(self.slope(distances).neg_())

    def slope(self, distances: Tensor) -> Tensor:
        return (-distances - float(self.loss.on)).clamp_min_(0).mul_(-float(self.loss.gamma))

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor = float(self.loss.gamma) * (float(self.loss.op) + near).clamp_min(0)
        tops, own, exponentials = self.shifted(-factor * (-near - float(self.loss.delta_p)), one=False)
        both = (self.present.any(1) & (sums > 0)).to(near.dtype)
        inside = logarithm(tops, own) + logarithm(peaks, sums)
        losses = torch.nn.functional.softplus(inside) * both
        value, pull = self.reductions["loss"].elements(losses, torch.ones_like(losses), column=True)
        pull = pull * both * torch.where(inside > 20, 1, inside.sigmoid())  # where softplus is the identity
        return value, pull, (pull / torch.where(own > 0, own, 1))[:, None] * exponentials * factor


class LiftedStructure(NeedsBoth):
    """For each positive pair `[log sum over the negatives of both samples of e^(q - D) + D - p]+^2 / 2`."""

    column = True
    listed = "products"

    def logits(self, distances: Tensor) -> Tensor:
        return self.sign * float(self.loss.neg_margin) - distances

    def slope(self, distances: Tensor) -> float:
        return -1.0

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        return "PML looks up positives among the anchors, not among the references" if with_references else None

    def elements(self, near: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = self.incidence.positives
        logs = torch.where(sums > 0, peaks + torch.where(sums > 0, sums, 1).log(), -_INF)
        itself = at == torch.arange(len(at), device=at.device)[:, None]
        mine, other = logs[:, None].expand(at.shape), logs[at].masked_fill(itself, -_INF)
        joint = torch.logaddexp(mine, other)
        there = (joint > -_INF) & self.present
        known = joint.masked_fill(~there, 0)
        hinge = (known + (near - self.sign * float(self.loss.pos_margin))).relu()
        value, pull = self.reductions["loss"].elements(hinge**2 / 2, self.incidence.counts, column=True)
        push = torch.where(self.present, pull * hinge, 0)
        by_mine = torch.where(there, push * (mine - known).exp(), 0)
        by_other = torch.where(there, push * (other - known).exp(), 0)
        by_log = by_mine.sum(1).index_add(0, at.flatten(), by_other.flatten())
        return value, by_log, push


def logarithm(peaks: Tensor, sums: Tensor) -> Tensor:
    """The logarithm of a shifted sum; 0 for an empty one."""
    return torch.where(sums > 0, peaks + torch.where(sums > 0, sums, 1).log(), 0)


__all__ = [
    "Circle",
    "GeneralizedLiftedStructure",
    "LiftedStructure",
    "MultiSimilarity",
    "NTXent",
    "SupCon",
    "TupletMargin",
]
