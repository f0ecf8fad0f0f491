"""Losses of triplets, summed over the positives of a row, slot by slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import looks_are_free
from pml_ext.stock.comparisons import Test, joined, within
from pml_ext.stock.forms.active_counts import active_counts
from pml_ext.stock.forms.form import Form, Rows, positives, scatter_positives
from pml_ext.stock.incidence import LABELS, TRIPLETS, Incidence


class Choice(Protocol):
    """A miner's choice among the triplets that the labels define."""

    @property
    def tests(self) -> list[Test]:
        """The comparisons of `D_ip - D_in`, in the miner's distances, that define the choice."""

    def sides(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The miner's distances of the positives [r, k] and of all columns [r, m] of some rows."""

    def masks(self, start: int, stop: int) -> Iterator[Tensor]:
        """For each slot of positives the chosen negatives of some rows, 1 or 0 [r, m], always in the same memory."""


class TripletMargin(Form):
    """Sum over positives and negatives of `act(D_ip - D_in + margin)`.

    The triplets are all those of the incidence, or those of `choice`, if it is set.
    """

    pays_from = 1 << 12
    listed = "triplets"
    choice: Choice | None = None
    by_own_distances = False  # whether the choice was made by the distances of the loss

    @classmethod
    def falls_back(cls, loss: Any, kind: int, with_references: bool) -> str | None:
        if kind == TRIPLETS and loss.swap:
            return "a list of triplets with `swap` needs the distances of all positives"
        if kind == LABELS and loss.triplets_per_anchor != "all":
            return "triplets_per_anchor is a number: the triplets are drawn at random"
        if loss.swap and with_references:
            return "PML looks up the positives of `swap` among the anchors"
        return None

    def is_empty(self) -> bool:
        return not bool((self.incidence.counts.sum(1) * self.incidence.negatives.per_row).any())

    @property
    def needs_whole(self) -> bool:
        """Whether a row needs the distances of other rows: with `swap`."""
        return bool(self.loss.swap)

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        incidence = self.of(start, distances)
        near = positives(distances, incidence)
        sums, kept, counts, by_near, by_far = self._walk(distances, incidence, near, start, derivative=keep)
        if keep and not self.loss.swap:
            distances.copy_(by_far)
        return sums, kept, counts, by_near

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        sums, kept, counts, self._by_near = rows
        if self._keeps_all:
            kept = counts
        value, self._pull = self.reductions["loss"].rows(sums, kept, counts, counts)
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        incidence = self.of(start, distances)
        stop = start + len(distances)
        if self.loss.swap:
            near = positives(distances, incidence)
            return self._walk(distances, incidence, near, start, derivative=True, pull=self._pull)[4]
        by_near = self._by_near[start:stop]
        if not kept:
            near = positives(distances, incidence)
            by_near, distances = self._walk(distances, incidence, near, start, derivative=True)[3:]
        pull = self._pull[start:stop, None]
        return scatter_positives(distances.mul_(pull), incidence, by_near * pull)

    @property
    def _keeps_all(self) -> bool:
        return self.reductions["loss"].limits == (None, None)

    def _walk(
        self,
        distances: Tensor,
        incidence: Incidence,
        near: Tensor,
        start: int,
        *,
        derivative: bool,
        pull: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """For each row the sum of losses and the numbers of kept and of all triplets; the derivatives by the distances.

        With `swap` those by the distances of negatives are complete only if `pull`, the factor of each row, is given.
        """
        if self._is_counted and not self.loss.swap:
            return self._counted(distances, incidence, near, start)
        counts = incidence.counts.sum(1) * incidence.negatives.per_row
        masks = None if self.choice is None else self.choice.masks(start, start + len(distances))
        counts = counts if masks is None else torch.zeros_like(counts)
        sums, kept = near.new_zeros(len(near)), near.new_zeros(len(near))
        by_near = torch.zeros_like(near)
        by_far = torch.zeros_like(distances) if derivative else distances
        # Pairs that are not negatives get a distance that no margin reaches.
        others = distances if self.loss.swap else incidence.negatives.blank(distances.clone(), torch.inf)
        buffer = torch.empty_like(distances)
        for slot in range(near.shape[1]):
            times = incidence.counts[:, slot]
            partner = incidence.positives[:, slot]
            if self.loss.swap:
                pair = distances[partner]
                far = incidence.negatives.blank(torch.minimum(distances, pair), torch.inf)
            else:
                far = others
            mask = None if masks is None else next(masks)
            if mask is not None:
                counts += mask.sum(1)
            total, number, active = self._slot(near[:, slot, None], far, incidence, buffer, mask)
            sums += total * times
            kept += number * times
            if not derivative:
                continue
            active.mul_(times[:, None])
            by_near[:, slot] = active.sum(1)
            if not self.loss.swap:
                by_far.sub_(active)
            elif pull is not None:
                _swapped(by_far, active.mul_(pull[:, None]), distances, pair, partner)
        return sums, kept, counts, by_near, by_far

    @property
    def _is_counted(self) -> bool:
        """Whether the losses are hinges, and the reducer keeps all of them or those above 0."""
        return not self.loss.smooth_loss and self.reductions["loss"].limits in ((None, None), (0, None))

    def _counted(
        self, distances: Tensor, incidence: Incidence, near: Tensor, start: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `_walk`: the derivatives of hinges are numbers of triplets with a hinge above 0.

        Overwrites the distances.
        """
        # Pairs that are not negatives get a distance that no margin reaches, but a finite one: times 0 it is 0.
        far = incidence.negatives.blank(distances, torch.finfo(distances.dtype).max)
        complete = bool((incidence.counts == 1).all())
        by_near, by_far, active = torch.empty_like(near), torch.zeros_like(far), torch.empty_like(far)
        tests, spare = self._tests(), torch.empty_like(far) if self.choice is not None else active
        elsewhere = self.choice is not None and (self._keeps_all or not self.by_own_distances)
        masks = self.choice.masks(start, start + len(far)) if self.choice is not None and elsewhere else None
        counts = incidence.counts.sum(1) * incidence.negatives.per_row
        counts = counts if masks is None else torch.zeros_like(counts)
        active_pairs = None if masks is not None else self._looked_up(near, far, incidence, tests)
        if active_pairs is not None:
            return self._of_active(near, far, counts, *active_pairs)
        for slot, pair in enumerate(near.t().contiguous().unsqueeze(2)):
            # PML rounds the difference in the same way; with the margin it is above 0 if and only if this test holds.
            within(torch.sub(pair, far, out=active), tests, spare)
            if masks is not None:
                mask = next(masks)
                active.mul_(mask)
                counts += mask.sum(1)
            incidence.negatives.weighted(active)
            if not complete:
                active.mul_(incidence.counts[:, slot, None])
            by_near[:, slot] = active.sum(1)
            by_far.sub_(active)
        return self._of_active(near, far, counts, by_near, by_far)

    def _of_active(
        self, near: Tensor, far: Tensor, counts: Tensor, by_near: Tensor, by_far: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        sums = ((near + self.loss.margin) * by_near).sum(1) + torch.linalg.vecdot(far, by_far)
        return sums.clamp_min_(0), by_near.sum(1), counts, by_near, by_far

    def _looked_up(
        self, near: Tensor, far: Tensor, incidence: Incidence, tests: list[Test]
    ) -> tuple[Tensor, Tensor] | None:
        """The derivatives by the distances of positives and negatives, if positives are many and no pair repeats."""
        there = incidence.counts
        few = near.shape[1] < thresholds.STOCK_POSITIVES
        if few or not looks_are_free(far) or incidence.negatives.weights is not None or bool((there > 1).any()):
            return None
        lower = next(test for test in tests if test[0] is not torch.lt)
        within_it = active_counts(near, far, there, lower)
        if within_it is None or len(tests) == 1:
            return None if within_it is None else (within_it.of_near, within_it.of_far.neg_())
        # Triplets between two bounds: those above the lower one, less those above the upper one.
        above = active_counts(near, far, there, (torch.ge, next(bound for each, bound in tests if each is torch.lt)))
        if above is None:
            return None
        by_near, by_far = (one.sub_(other).clamp_min_(0) for one, other in zip(within_it, above, strict=True))
        return by_near, by_far.neg_()

    def _tests(self) -> list[Test]:
        """The hinge above 0, and the tests of the choice if they use the same distances and need not be counted."""
        if self.choice is None or self._keeps_all or not self.by_own_distances:
            return joined([], self.loss.margin)
        return joined(self.choice.tests, self.loss.margin)

    def _slot(
        self, near: Tensor, far: Tensor, incidence: Incidence, buffer: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For one positive of each row: sum of losses, number of kept ones, and the derivative by `near - far`."""
        inside = torch.sub(near, far, out=buffer).add_(self.loss.margin)
        if self.loss.smooth_loss:
            losses = torch.nn.functional.softplus(inside)
            active = torch.where(inside > 20, 1, inside.sigmoid())  # where softplus is the identity
        else:
            losses = inside.clamp_min_(0)
            active = losses.sign()
        keep = self.reductions["loss"].keep(losses)
        keep = torch.ones_like(losses) if keep is None else keep.to(losses.dtype)
        chosen = incidence.negatives.weighted(incidence.negatives.blank(keep, 0))
        if mask is not None:
            chosen.mul_(mask)
        return (losses * chosen).sum(1), chosen.sum(1), active.mul_(chosen)


def _swapped(by_far: Tensor, active: Tensor, mine: Tensor, others: Tensor, partner: Tensor) -> None:
    """Add the derivative of `near - min(mine, others)`; `others` are the rows `partner`. A tie is split in half."""
    by_far.scatter_add_(1, partner[:, None], active.sum(1, keepdim=True))
    to_mine = (mine < others).to(active.dtype) + (mine == others).to(active.dtype) / 2
    by_far -= active * to_mine
    by_far.index_add_(0, partner, active * (to_mine - 1))
