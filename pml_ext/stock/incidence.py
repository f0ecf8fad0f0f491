"""How often each pair occurs in the lists that PML would form, without forming them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.stock.negatives import Counted, Made, Negatives, OfLabels

LABELS, TRIPLETS, PAIRS = 0, 3, 4


@dataclass(frozen=True)
class Incidence:
    """The positive and negative pairs of every anchor, with multiplicity.

    Args:
        kind: LABELS, PAIRS (four lists) or TRIPLETS (three: a pair counts once for each triplet that contains it).
        positives: [n, k] columns of the positives.
        counts: [n, k] how often each occurs in the list; 0 where a row has fewer than k.
        negatives: the rows' negatives.
        columns: number of references, m.
    """

    kind: int
    positives: Tensor
    counts: Tensor
    negatives: Negatives
    columns: int

    def rows(self, start: int, stop: int) -> Incidence:
        """The rows from `start` to `stop`."""
        return replace(
            self,
            positives=self.positives[start:stop],
            counts=self.counts[start:stop],
            negatives=self.negatives.rows(start, stop),
        )

    def once(self) -> Incidence:
        """Each pair once."""
        if self.kind == LABELS:
            return self
        return replace(self, counts=(self.counts > 0).to(self.counts.dtype), negatives=self.negatives.once())

    def lengths(self) -> tuple[float, float]:
        """The lengths of the lists of positives and of negatives."""
        return float(self.counts.sum(dtype=torch.float64)), float(self.negatives.per_row.sum(dtype=torch.float64))

    def contradicts(self) -> bool:
        """Whether a pair is positive and negative at once."""
        if self.kind == LABELS or self.negatives.is_apart or not self.positives.numel():
            return False
        return any(self.rows(*part)._meet() for part in blocks(len(self.positives), self.columns))

    def _meet(self) -> bool:
        times = self.negatives.weights
        return times is not None and bool((times.gather(1, self.positives) * self.counts > 0).any())


def blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Ranges of rows whose scores fit into the cache."""
    step = max(1, thresholds.STOCK_BLOCK // max(columns, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def by_labels(labels: Tensor, ref_labels: Tensor, *, without_self: bool, dtype: torch.dtype) -> Incidence:
    """All pairs that the labels define.

    Args:
        labels: those of the anchors, [n].
        ref_labels: those of the references, [m].
        without_self: leave out the pair of a sample with itself; requires that the references are the batch.
        dtype: that of the counts.
    """
    m = len(ref_labels)
    own, present = own_columns(labels, ref_labels)
    found = present.sum(1)
    if own.shape[1] and own.shape[1] <= thresholds.STOCK_OWN_SHARE * m and bool((found > 0).all()):
        negatives: Negatives = OfLabels(own, None, (m - found).to(dtype))
    else:
        absent = labels[:, None] == ref_labels[None]
        negatives = OfLabels(None, absent, (m - found).to(dtype))
    if without_self:
        own, present = _others(own, present)
    return Incidence(LABELS, own, present.to(dtype), negatives, m)


def _others(own: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Without the sample itself: one column less, so that with classes of one size every column holds a positive."""
    itself = own == torch.arange(len(own), device=own.device)[:, None]
    slots = torch.arange(max(own.shape[1] - 1, 0), device=own.device).expand(len(own), -1)
    if not slots.numel():
        return own[:, :0], present[:, :0]
    places = slots + (slots >= itself.byte().argmax(1, keepdim=True))
    return own.gather(1, places), present.gather(1, places)


def own_columns(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The references of each anchor's class.

    Returns:
        Columns [n, k], where k is the size of the largest class: a row with fewer than k repeats its first one, and a
        row without any is 0. And which of them are references of the class, [n, k].
    """
    if labels.dtype != ref_labels.dtype or labels.dtype == torch.bool:
        common = torch.promote_types(torch.promote_types(labels.dtype, ref_labels.dtype), torch.uint8)
        labels, ref_labels = labels.to(common), ref_labels.to(common)
    if labels.is_floating_point():  # NaN equals nothing, itself included
        values, codes = torch.unique(torch.cat([labels, ref_labels]), return_inverse=True)
        codes = torch.where(
            torch.isnan(values)[codes], len(values) + torch.arange(len(codes), device=codes.device), codes
        )
        labels, ref_labels = codes[: len(labels)], codes[len(labels) :]
    ordered, order = torch.sort(ref_labels, stable=True)
    start = torch.searchsorted(ordered, labels)
    found = torch.searchsorted(ordered, labels, right=True) - start
    widest = int(found.max()) if len(labels) else 0
    slots = torch.arange(widest, device=labels.device)
    present = slots < found[:, None]
    at = torch.where(present, start[:, None] + slots, start[:, None]).clamp_max(max(len(order) - 1, 0))
    return order[at] if len(order) else at, present


def by_lists(
    indices: Sequence[Tensor], n: int, m: int, like: Tensor, *, by_rows: bool = False, is_apart: bool = False
) -> Incidence:
    """The pairs of a list of pairs or triplets; a pair counts as often as it occurs.

    Args:
        indices: three or four lists.
        n: number of anchors.
        m: number of references.
        like: a tensor of the dtype that the counts get.
        by_rows: compute the counts of the negatives row by row whenever they are needed, and hold no n x m of them.
        is_apart: whether it is known that no pair is positive and negative at once.
    """
    kind = PAIRS if len(indices) == 4 else TRIPLETS
    indices = [each.to(device=like.device, dtype=torch.long) for each in indices]
    anchors, positives = indices[0], indices[1]
    neg_anchors, negatives = (indices[2], indices[3]) if kind == PAIRS else (indices[0], indices[2])
    slots, counts = _slots(anchors, positives, n, m, like.dtype)
    lengths = torch.bincount(neg_anchors, minlength=n).to(like.dtype)
    if by_rows:
        order = torch.argsort(neg_anchors)
        neg_anchors, negatives = neg_anchors[order], negatives[order]
        first = torch.searchsorted(neg_anchors, torch.arange(n + 1, device=like.device)).tolist()

    def make(start: int, stop: int) -> Negatives:
        at = slice(first[start], first[stop]) if by_rows else slice(None)
        places = (neg_anchors[at] - start) * m + negatives[at]
        times = torch.zeros((stop - start) * m, dtype=like.dtype, device=like.device)
        times.index_add_(0, places, torch.ones((), dtype=like.dtype, device=like.device).expand(len(places)))
        return Counted(times.view(stop - start, m), True, lengths[start:stop], is_apart)

    found = Made(make, 0, n, lengths, is_apart=is_apart) if by_rows else make(0, n)
    return Incidence(kind, slots, counts, found, m)


def are_places(indices: Sequence[Tensor], n: int, m: int) -> bool:
    """Whether the lists are valid indices of an [n, m] matrix: as many anchors as partners, all within 0 to n and m."""
    anchors, partners = (indices[::2], indices[1::2]) if len(indices) == 4 else ([indices[0]] * 2, indices[1:])
    for rows, columns in zip(anchors, partners, strict=True):
        if len(rows) != len(columns) or any(each.dtype not in (torch.int32, torch.int64) for each in (rows, columns)):
            return False
        for each, size in ((rows, n), (columns, m)):
            if len(each) and not 0 <= int(each.min()) <= int(each.max()) < size:
                return False
    return True


def _slots(anchors: Tensor, positives: Tensor, n: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pairs, times = torch.unique(anchors * m + positives, return_counts=True)
    rows = torch.div(pairs, m, rounding_mode="floor")
    per_row = torch.bincount(rows, minlength=n)
    widest = int(per_row.max()) if n and len(pairs) else 0
    place = torch.arange(len(pairs), device=pairs.device) - (per_row.cumsum(0) - per_row)[rows]
    slots = torch.zeros(n, widest, dtype=torch.long, device=pairs.device)
    counts = torch.zeros(n, widest, dtype=dtype, device=pairs.device)
    if len(pairs):
        slots[rows, place] = pairs - rows * m
        counts[rows, place] = times.to(dtype)
    return slots, counts
