"""How pairs are given: labels, index tuples, masks or a selection, as the masks of any range of rows."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext import arguments, thresholds
from pml_ext.masked import is_eager, looks_are_free, not_self


class PairMasks(NamedTuple):
    """A relation between anchors and references, given as two disjoint boolean matrices [n, m].

    Losses and miners of this package take it as their `indices_tuple`: for multi-label data, for hand-made pairs, and
    to hand pairs from a miner to a loss without index tensors.

    Args:
        pos: true where reference j is a positive of anchor i.
        neg: true where reference j is a negative of anchor i.
    """

    pos: Tensor
    neg: Tensor

    def indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pairs as PML names them: (anchors, positives, anchors, negatives), row by row."""
        a, p = self.pos.nonzero(as_tuple=True)
        b, n = self.neg.nonzero(as_tuple=True)
        return a, p, b, n


class DisjointMasks(PairMasks):
    """`PairMasks` that are disjoint by construction, those of a miner: no check that waits for the device."""


class PrivateMasks(DisjointMasks):
    """Masks of anchors that have a reference each for themselves, after the m that they share: [b, m + 1].

    There are m + n references, of which the last n are private: no anchor is compared with that of another one.
    """

    def wide(self, start: int, n: int) -> PairMasks:
        """The same relation with a column for every reference, of the b anchors from a start on: [b, m + n]."""
        own = ~not_self(start, start + len(self.pos), n, self.pos.device)
        return PairMasks(*(torch.cat((mask[:, :-1], mask[:, -1:] & own), 1) for mask in self))

    def indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pairs of all n anchors as PML names them."""
        return self.wide(0, len(self.pos)).indices()


IndicesTuple = PairMasks | tuple[Tensor, ...]
# The masks of a range of rows: from a start to before a stop.
RowMasks = Callable[[int, int], PairMasks]
# The masks of a block of scores [b, m] that begins at a row.
Relation = Callable[[Tensor, int], PairMasks]


class Selected(NamedTuple):
    """All pairs but for those that a selection drops, for a row loss that makes it among its own scores.

    Args:
        select: scores, positives and negatives of some rows -> the pairs of them to keep, the same in every call.
    """

    select: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def pair_relation(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: IndicesTuple | Selected | None,
    ref_emb: Tensor,
    ref_labels: Tensor | None,
) -> RowMasks:
    """The masks, as a function of a range of rows. Self-pairs are dropped if the references are the batch itself."""
    same, n, m = ref_emb is embeddings, embeddings.shape[0], ref_emb.shape[0]
    device = embeddings.device  # not the embeddings, which would live as long as the function
    if indices_tuple is None or isinstance(indices_tuple, Selected):
        rows = _rows_of_labels(labels, ref_labels)
    elif isinstance(indices_tuple, PairMasks):
        rows = _rows_of_masks(indices_tuple, n, m)
    else:
        rows = _rows_of_indices(indices_tuple, n, m, device)

    given = [labels, ref_labels, *(indices_tuple if isinstance(indices_tuple, tuple) else ())]
    # Masks are made again in the backward pass of chunks, and for a second derivative.
    versions = [(x, x._version) for x in given if isinstance(x, Tensor) and has_version(x)]

    def masks(start: int, stop: int) -> PairMasks:
        if any(x._version != version for x, version in versions):
            raise RuntimeError("labels or an indices_tuple were modified by an inplace operation before backward")
        pos, neg = pairs = rows(start, stop)
        if not same:
            return pairs
        other = not_self(start, stop, m, device)
        return PairMasks(pos & other, neg & other)

    return masks


def has_version(x: Tensor) -> bool:
    """Whether a tensor counts how often it was written to, as autograd's saved tensors do."""
    return is_eager() and not x.is_inference()


def own_set(
    embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> Tensor | None:
    """The references, not the same tensor as the embeddings unless they are the batch: with the labels of the batch.

    So a sample is compared with itself where it is given again with another label, as in PML.
    """
    return ref_emb.view_as(ref_emb) if ref_emb is embeddings and ref_labels is not labels else ref_emb


def relation_of(masks: RowMasks, indices_tuple: IndicesTuple | Selected | None) -> Relation:
    """The masks as a function of a block of scores and its first row, narrowed by a selection among them."""

    def relation(sim: Tensor, start: int) -> PairMasks:
        pairs = masks(start, start + sim.shape[0])
        if not isinstance(indices_tuple, Selected):
            return pairs
        with torch.no_grad():
            return PairMasks(*indices_tuple.select(sim.detach(), *pairs))

    return relation


def wide(masks: RowMasks, n: int) -> RowMasks:
    """The masks with a column for every reference, if some are private to one of the n anchors."""

    def widened(start: int, stop: int) -> PairMasks:
        pairs = masks(start, stop)
        return pairs.wide(start, n) if isinstance(pairs, PrivateMasks) else pairs

    return widened


def _rows_of_labels(labels: Tensor | None, ref_labels: Tensor | None) -> RowMasks:
    if labels is None:
        raise ValueError("the pairs are unknown: give labels or an indices_tuple, both are None")
    if ref_labels is None:
        raise ValueError("the pairs are unknown: ref_emb was given without ref_labels or an indices_tuple")
    return lambda start, stop: label_masks(labels[start:stop], ref_labels)


def _rows_of_masks(masks: PairMasks, n: int, m: int) -> RowMasks:
    kind = PrivateMasks if isinstance(masks, PrivateMasks) else PairMasks
    shape = (n, m - n + 1 if kind is PrivateMasks else m)
    for name, mask in zip(masks._fields, masks, strict=True):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"PairMasks.{name} must be a boolean tensor, got {getattr(mask, 'dtype', mask)}")
        if mask.shape != shape:
            raise ValueError(f"PairMasks.{name} must have shape {shape}, got {tuple(mask.shape)}")
    if not isinstance(masks, DisjointMasks):
        disjoint = ~(masks.pos & masks.neg).any()
        arguments.holds(disjoint, "PairMasks must be disjoint: a pair is both positive and negative")
    return lambda start, stop: kind(masks.pos[start:stop], masks.neg[start:stop])


def _rows_of_indices(indices_tuple: tuple[Tensor, ...], n: int, m: int, device: torch.device) -> RowMasks:
    arguments.index_tuple(indices_tuple)
    # An empty index tensor may be of any dtype and on any device, as PML's own are.
    a, p, *rest = (index.to(device=device, dtype=torch.long) for index in indices_tuple)
    a2, b = rest if len(rest) == 2 else (a, rest[0])
    if not torch.compiler.is_compiling():
        for name, index, size in (("anchor", a, n), ("positive", p, m), ("anchor", a2, n), ("negative", b, m)):
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise ValueError(
                    f"indices_tuple has {name} indices {int(index.min())}..{int(index.max())}, allowed is 0..{size - 1}"
                )

    def rows(start: int, stop: int) -> PairMasks:
        pos, neg = index_masks(a, p, start, stop, m), index_masks(a2, b, start, stop, m)
        if not torch.compiler.is_compiling() and bool((pos & neg).any()):
            i, j = (pos & neg).nonzero()[0].tolist()
            cause = (
                ", as PML's MultiSimilarityMiner does with a sample and its copy if ref_labels is the same tensor as "
                "labels: give it ref_labels.clone()"
            )
            raise ValueError(
                f"indices_tuple names the pair ({start + i}, {j}) both as positive and as negative"
                + cause * (start + i == j)
            )
        return PairMasks(pos, neg)

    return rows


def label_masks(labels: Tensor, ref_labels: Tensor) -> PairMasks:
    """Positives share the label, negatives do not. labels [n], ref_labels [m] -> masks [n, m]."""
    rows, columns = labels.unsqueeze(-1), ref_labels.unsqueeze(-2)
    many = len(labels) * len(ref_labels) > thresholds.FLOAT_LABELS
    if many and _fit_float32(labels) and _fit_float32(ref_labels):
        alike = torch.empty(len(labels), len(ref_labels), device=labels.device)
        pos = torch.eq(rows.float(), columns.float(), out=alike).bool()
    else:
        pos = rows == columns
    return PairMasks(pos, ~pos)


def _fit_float32(labels: Tensor) -> bool:
    """Whether labels are known to be integers that float32 tells apart."""
    if not looks_are_free(labels) or labels.dtype != torch.int64:
        return False
    least, greatest = labels.aminmax()
    return max(-int(least), int(greatest)) < 1 << 24


def index_masks(anchors: Tensor, others: Tensor, start: int, stop: int, m: int) -> Tensor:
    """The pairs (anchors[t], others[t]) as a mask of the rows start..stop of the matrix: [stop - start, m].

    Pairs of other rows go to a spare slot at the end, so that the shape never depends on the data.
    """
    size = (stop - start) * m
    flat = (anchors - start) * m + others
    flat = torch.where((anchors >= start) & (anchors < stop), flat, size)
    mask = torch.zeros(size + 1, dtype=torch.bool, device=anchors.device)
    # index_fill_ with a number: filling from a tensor of values would copy it from the host.
    return mask.index_fill_(0, flat, True)[:size].view(stop - start, m)
