"""Between the shell and the engine: which blocks of scores a loss is asked for, and what it makes of them.

A loss with a closed form gets the two sides of a block, by labels without a boolean matrix; any other loss is
differentiated by autograd on the block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.closed_form import ABSENT, Sides, SideWeights
from pml_ext.engine import Weighed
from pml_ext.masked import Counted, Needs, all_known, count, defined_rows, looks_are_free, only
from pml_ext.pairs import Relation, RowMasks
from pml_ext.space import Sparse

ClosedForm = Callable[..., SideWeights | None]


class Members(NamedTuple):
    """Where each anchor's positives are, as few columns.

    Args:
        columns: of each anchor's positives [n, k]; what fills up a row that has fewer is no negative of it either.
        absent: which of them fill up [n, k], or None if none does.
        excluded: columns that are no negatives of the anchor [n, k or k + 1].
        sizes: number of references of each anchor's class, itself included, an array [n, 1].
        complete: whether every anchor has a positive and a negative.
    """

    columns: Tensor
    absent: Tensor | None
    excluded: Tensor
    sizes: Any
    complete: bool

    @staticmethod
    def of(labels: Tensor, ref_labels: Tensor, same: bool) -> "Members | None":
        """By numpy, whose calls take a fifth of the time; None where positives are too many, or an anchor has none."""
        own = as_array(labels)
        refs = own if same else as_array(ref_labels)
        if refs.dtype.kind == "f" and (np.isnan(refs).any() or np.isnan(own).any()):
            return None  # equal to nothing, not even to itself
        order = refs.argsort(kind="stable")
        ordered = refs[order]
        first = ordered.searchsorted(own)
        sizes = ordered.searchsorted(own, side="right") - first
        smallest, largest = int(sizes.min()), int(sizes.max())
        k = max(largest - int(same), 1)
        if k > thresholds.GATHERED_SHARE * len(refs) or smallest == 0:
            return None
        place = np.arange(k)[None, :]
        if same:
            # Without the anchor itself, whose place is taken by what follows.
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            place = place + (place >= (rank - first)[:, None])
        columns = order[np.minimum(first[:, None] + place, len(order) - 1)]
        fill = np.arange(len(own)) if same else order[first]
        absent = None
        if smallest < largest or largest == int(same):
            absent = place >= sizes[:, None]
            columns = np.where(absent, fill[:, None], columns)
        excluded = np.concatenate((columns, fill[:, None]), 1) if same else columns
        return Members(
            torch.from_numpy(columns),
            None if absent is None else torch.from_numpy(absent),
            torch.from_numpy(excluded),
            sizes[:, None],
            smallest > int(same) and largest < len(refs),
        )


def as_array(labels: Tensor) -> Any:
    """Labels on the CPU for numpy, which has no half precision of torch's kind."""
    labels = labels.detach()
    return (labels.double() if labels.is_floating_point() else labels).numpy()


class GatheredSides:
    """The two sides of any block, from labels, with the positives gathered: neither compares nor counts per block."""

    def __init__(self, members: Members, m: int, same: bool, dtype: torch.dtype) -> None:
        self.members = members
        self.pos_count, self.neg_count = (
            torch.from_numpy(number).to(dtype) for number in (members.sizes - int(same), m - members.sizes)
        )
        self.complete = members.complete

    def __call__(self, sim: Tensor, start: int) -> Sides:
        """The sides of the block of scores [b, m] that begins at a row."""
        rows = slice(start, start + sim.shape[0])
        pos = sim.gather(1, self.members.columns[rows])
        if self.members.absent is not None:
            pos.masked_fill_(self.members.absent[rows], ABSENT)
        neg = sim.clone().scatter_(1, self.members.excluded[rows], -ABSENT)
        return Sides(pos, neg, self.pos_count[rows], self.neg_count[rows], True)

    def columns(self, start: int, stop: int) -> Tensor | None:
        """The columns from which the positives of some rows have been gathered."""
        return self.members.columns[start:stop]


class LabelSides:
    """The two sides of any block, from labels, in place: no boolean matrix.

    Args:
        labels: those of the anchors [n].
        ref_labels: those of the references [m].
        same: whether the references are the batch.
        dtype: of the scores.
    """

    complete = False

    def __init__(self, labels: Tensor, ref_labels: Tensor, same: bool, dtype: torch.dtype) -> None:
        # Numbered densely, so that floating point holds them.
        both = labels if same else torch.cat((labels, ref_labels))
        ordered, order = both.sort(stable=True)
        rank = torch.zeros_like(order)
        rank[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
        numbers = torch.empty_like(rank).scatter_(0, order, rank).to(dtype)
        n = len(labels)
        self.ids, self.ref_ids, self.same = numbers[:n, None], (numbers if same else numbers[n:])[None, :], same

    def __call__(self, sim: Tensor, start: int) -> Sides:
        """The sides of the block of scores [b, m] that begins at a row."""
        b, m = sim.shape
        ids = self.ids[start : start + b]
        alike = torch.eq(ids, self.ref_ids, out=torch.empty_like(sim))
        neg = torch.add(sim, alike, alpha=-ABSENT)
        alike_count = alike.sum(1, keepdim=True)
        pos = torch.add(sim, torch.ne(ids, self.ref_ids, out=alike), alpha=ABSENT)
        if self.same:
            pos.diagonal(start).fill_(ABSENT)
        return Sides(pos, neg, alike_count - int(self.same), m - alike_count, False)

    def columns(self, start: int, stop: int) -> Tensor | None:
        """Positives stay where they are."""
        return None


def label_sides(labels: Tensor, ref_labels: Tensor, same: bool, dtype: torch.dtype) -> GatheredSides | LabelSides:
    """The sides of a batch by its labels; positives are gathered where it costs nothing to look for them."""
    if looks_are_free(labels) and looks_are_free(ref_labels):
        members = Members.of(labels, ref_labels, same)
        if members is not None:
            return GatheredSides(members, len(ref_labels), same, dtype)
    return LabelSides(labels, ref_labels, same, dtype)


class MaskSides:
    """The two sides of any block, from boolean masks."""

    complete = False

    def __init__(self, relation: Relation) -> None:
        self.relation = relation

    def __call__(self, sim: Tensor, start: int) -> Sides:
        """The sides of the block of scores [b, m] that begins at a row."""
        pos, neg = self.relation(sim, start)
        pos_count, neg_count = (count(mask).to(sim.dtype) for mask in (pos, neg))
        if all_known(sim):
            return Sides(only(sim, pos, ABSENT), only(sim, neg, -ABSENT), pos_count, neg_count, False)
        # What is no number, in a pair that is not selected, would still be none after an addition.
        near, far = torch.where(pos, sim, ABSENT), torch.where(neg, sim, -ABSENT)
        return Sides(near, far, pos_count, neg_count, False)

    def columns(self, start: int, stop: int) -> Tensor | None:
        """Positives stay where they are."""
        return None


Sided = GatheredSides | LabelSides | MaskSides


class LossRows:
    """A loss as the engine sees it.

    Args:
        relation: boolean masks of a block.
        sides: the two sides of a block, or None if the loss has no closed form.
        closed_form: losses and pair weights from the two sides.
        per_anchor: losses and counts of rows from scores and masks, by operations that autograd follows.
        plain: all losses from embeddings and references (None: the batch), by ordinary autograd.
        needs: which pairs define an anchor.
        private: whether the last n references belong to one anchor each, as in `PrivateMasks`.
    """

    together = False

    def __init__(
        self,
        relation: Relation,
        sides: Sided | None,
        closed_form: Callable[[Sides], SideWeights | None] | None,
        per_anchor: Callable[[Tensor, Tensor, Tensor], Counted],
        plain: Callable[[Tensor, Tensor | None], Tensor],
        needs: Needs,
        private: bool,
    ) -> None:
        self.relation, self.sides, self.closed_form = relation, sides, closed_form
        self.per_anchor, self.plain, self.needs, self.private = per_anchor, plain, needs, private

    def weigh(self, sim: Tensor, start: int) -> Weighed:
        """Losses and pair weights of the rows start, start + 1, ... with scores sim [b, m]."""
        if self.closed_form is None or self.sides is None:
            return self._differentiated(sim, start)
        if looks_are_free(sim) and not all_known(sim):
            return self._differentiated(sim, start)  # which sees what is no number
        sides = self.sides(sim, start)
        unknown = _unknown(sides)
        found = self.closed_form(sides)
        if found is None:
            return self._differentiated(sim, start)
        losses, pos, neg, counts, neg_column = found
        if unknown is not None:
            losses, neg = losses + unknown.squeeze(1), neg + unknown
        if not self.sides.complete:
            defined = _defined(sides, self.needs)
            losses = torch.where(defined.squeeze(1), losses, 0.0)
            counts = defined.squeeze(1).long() * (1 if counts is None else counts)
            pos = torch.where(defined, pos, 0.0)
            neg = torch.where(defined, neg, 0.0) if neg_column is not None else neg.mul_(defined.to(neg.dtype))
        columns = self.sides.columns(start, start + sim.shape[0])
        if neg_column is not None and columns is not None and _are_few(columns, neg_column, sim.shape[1]):
            few = Sparse(torch.cat((columns, neg_column), 1), torch.cat((pos, neg), 1))
            return Weighed(losses, few, 1 if counts is None else counts)
        if neg_column is not None:
            neg = torch.zeros_like(sides.neg).scatter_add_(1, neg_column, neg)
        weights = neg.add_(pos) if columns is None else neg.scatter_add_(1, columns, pos)
        return Weighed(losses, weights, 1 if counts is None else counts)

    def _differentiated(self, sim: Tensor, start: int) -> Weighed:
        counts: list[Tensor] = []

        def losses(leaf: Tensor) -> Tensor:
            found = self.per_anchor(leaf, *self.relation(sim, start))
            counts.append(found.counts)
            return found.losses

        return Weighed(*_differentiated(sim, losses), *counts)


class BatchRows:
    """A loss of all pairs at once as the engine sees it: n rows of which each has the n-th part of it.

    Args:
        masks: boolean masks of all rows.
        sides: the two sides by the labels of a batch with itself, or None if the loss has no closed form.
        closed_form: the loss and its pair weights from the two sides, and the columns of the positives.
        per_batch: the loss from scores and masks, by operations that autograd follows.
        plain: the loss from embeddings and references (None: the batch), by ordinary autograd.
    """

    together, private = True, False

    def __init__(
        self,
        masks: RowMasks,
        sides: GatheredSides | None,
        closed_form: Callable[[Sides, Tensor], SideWeights | None] | None,
        per_batch: Callable[[Tensor, Tensor, Tensor], Tensor],
        plain: Callable[[Tensor, Tensor | None], Tensor],
    ) -> None:
        self.masks, self.sides, self.closed_form = masks, sides, closed_form
        self.per_batch, self.of_batch = per_batch, plain

    def weigh(self, sim: Tensor, start: int) -> Weighed:
        """The loss in equal parts, and its derivative by the scores [n, m]."""
        if self.closed_form is not None and self.sides is not None and all_known(sim):
            columns = self.sides.members.columns
            found = self.closed_form(self.sides(sim, start), columns)
            if found is not None:
                return Weighed(_parts(found.losses, len(sim)), found.neg.scatter_add_(1, columns, found.pos), 1)
        loss, weights = _differentiated(sim, lambda leaf: self.per_batch(leaf, *self.masks(0, len(sim))))
        return Weighed(_parts(loss, len(sim)), weights, 1)

    def plain(self, embeddings: Tensor, references: Tensor | None) -> Tensor:
        """The same parts by ordinary autograd."""
        return _parts(self.of_batch(embeddings, references), len(embeddings))


def _parts(loss: Tensor, n: int) -> Tensor:
    return (loss / n).expand(n)


def _differentiated(sim: Tensor, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Value of a function of scores, and the derivative of its sum by them."""
    with torch.enable_grad():
        leaf = sim.detach().requires_grad_()
        values = function(leaf)
        total = values.sum()
    if not total.requires_grad:
        return values, torch.zeros_like(sim)
    (weights,) = torch.autograd.grad(total, leaf)
    return values.detach(), weights


def _unknown(sides: Sides) -> Tensor | None:
    """0 for rows of numbers and not a number for others [b, 1]; None where others have been looked for already."""
    if looks_are_free(sides.neg):
        return None
    return (sides.pos.sum(1, keepdim=True) + sides.neg.sum(1, keepdim=True)) * 0


def _are_few(columns: Tensor, neg_column: Tensor, m: int) -> bool:
    return columns.shape[1] + neg_column.shape[1] <= max(thresholds.FEW_COLUMNS, thresholds.FEW_SHARE * m)


def _defined(sides: Sides, needs: Needs) -> Tensor:
    """Which rows have the pairs that the loss needs, [b, 1] as booleans."""
    return defined_rows(sides.pos_count > 0, sides.neg_count > 0, needs)
