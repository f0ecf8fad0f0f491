"""The reducers of PML as sums and counts: they reduce losses that are never listed.

Each function returns the value and its derivative by each of the elements that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

KNOWN = (
    reducers.MeanReducer,
    reducers.SumReducer,
    reducers.AvgNonZeroReducer,
    reducers.ThresholdReducer,
    reducers.ClassWeightedReducer,
    reducers.PerAnchorReducer,
)


@dataclass(frozen=True)
class Reduction:
    """A reducer, for one batch.

    Args:
        reducer: one of PML's in `KNOWN`, or DivisorReducer for a loss that has a divisor.
        labels: those of the anchors, or None.
        nothing: computes the value where nothing is reduced: 0, or NaN if an embedding is not finite.
    """

    reducer: reducers.BaseReducer
    labels: Tensor | None
    nothing: Callable[[], Tensor]

    @property
    def inner(self) -> Reduction:
        """The reduction of the rows of a PerAnchorReducer."""
        return Reduction(self.reducer.reducer, self.labels, self.nothing) if self.per_anchor else self

    @property
    def per_anchor(self) -> bool:
        """Whether the pairs of each anchor are averaged first."""
        return type(self.reducer) is reducers.PerAnchorReducer

    @property
    def by_divisor(self) -> bool:
        """Whether the loss provides the divisor."""
        return type(self.reducer) is reducers.DivisorReducer

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Only losses strictly between these are reduced."""
        if isinstance(self.reducer, reducers.ThresholdReducer):
            return self.reducer.low, self.reducer.high
        return None, None

    def keep(self, losses: Tensor) -> Tensor | None:
        """Which losses are reduced; None: all."""
        low, high = self.limits
        if low is None:
            return None if high is None else losses < high
        return losses > low if high is None else (losses > low) & (losses < high)

    def weights(self, like: Tensor) -> Tensor | None:
        """A weight for each anchor, or None."""
        if type(self.reducer) is not reducers.ClassWeightedReducer:
            return None
        self.reducer.weights = self.reducer.weights.to(device=like.device, dtype=like.dtype)
        weights: Tensor = self.reducer.weights[self.labels]
        return weights

    def elements(self, losses: Tensor, counts: Tensor, *, column: bool = False) -> tuple[Tensor, Tensor]:
        """Reduce losses [n] or [n, k], each counted as often as `counts` says.

        Args:
            losses: one for each row, or one for each positive pair of a row; the row is the anchor.
            counts: of the same shape; 0 where there is no element.
            column: whether PML keeps these losses as a column [n, 1]. Its ClassWeightedReducer then multiplies a column
                by a row, so that the result is the mean loss times the mean weight.
        """
        if self.per_anchor and losses.ndim == 2:
            return self._anchors(losses, counts)
        if self.per_anchor:
            return self.inner.elements(losses, counts, column=column)
        losses = torch.where(counts > 0, losses, 0)
        kept = counts
        keep = self.keep(losses)
        if keep is not None:
            kept = torch.where(keep, counts, 0)
        weights = self.weights(losses)
        if weights is None:
            return self.of_sums((kept * losses).sum(), kept.sum(), kept)
        weights = weights[:, None] if losses.ndim == 2 else weights
        total = kept.sum()
        if column:
            mean_weight = (kept * weights).sum() / total
            value, pull = self.of_sums((kept * losses).sum(), total, kept)
            return value * mean_weight, pull * mean_weight
        return self.of_sums((kept * weights * losses).sum(), total, kept * weights)

    def _anchors(self, losses: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        # PML assigns the losses to a matrix: a repeated pair counts once in the value, but each time in the gradient.
        present = counts > 0
        number = present.sum(1).to(losses.dtype)
        rows = torch.where(present, losses, 0).sum(1) / number.clamp_min(1)
        value, pull = self.inner.elements(rows, torch.ones_like(rows))
        return value, (pull / number.clamp_min(1))[:, None] * counts

    def rows(self, sums: Tensor, kept: Tensor, counts: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce losses of which only the sums of each row are known.

        Args:
            sums: [n], sums of losses times counts over those that `keep` keeps; for PerAnchorReducer without counts.
            kept: [n], sums of the counts of these losses.
            counts: [n], sums of all counts.
            number: [n], numbers of distinct elements; for PerAnchorReducer.

        Returns:
            The value, and [n] its derivative by a loss of the row that counts once.
        """
        if self.per_anchor:
            rows = sums / number.clamp_min(1)
            value, pull = self.inner.elements(rows, torch.ones_like(rows))
            return value, pull / number.clamp_min(1)
        weights = self.weights(sums)
        if weights is None:
            weights = torch.ones_like(sums)
        return self.of_sums((weights * sums).sum(), kept.sum(), weights)

    def of_sums(self, total: Tensor, count: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """The value from a sum and a count, and its derivative: `pull` divided by the count if the reducer does."""
        if isinstance(self.reducer, reducers.SumReducer):
            return total, pull
        if not bool(count):
            return self.nothing(), torch.zeros_like(pull)
        return total / count, pull / count
