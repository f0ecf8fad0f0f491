"""A relation between anchors and references as two masks, and the masks of labels and of index tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import looks_are_free


class PairMasks(NamedTuple):
    """A relation between anchors and references, given as two disjoint boolean matrices [n, m].

    Losses and miners of this package take it as their `indices_tuple`: for multi-label data, for user-defined pairs,
    and to pass pairs from a miner to a loss without index tensors.

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

    @staticmethod
    def of_label_sets(sets: Tensor, ref_sets: Tensor | None = None) -> "PairMasks":
        """The relation of samples that have several labels each, or none.

        Positives have a label in common, negatives have none.

        Args:
            sets: booleans [n, c], which of c labels each anchor has.
            ref_sets: booleans [m, c], those of the references. By default those of the anchors.

        Example:
            >>> import torch
            >>> sets = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
            >>> PairMasks.of_label_sets(sets).pos.int()
            tensor([[1, 1, 0],
                    [1, 1, 0],
                    [0, 0, 0]], dtype=torch.int32)
        """
        ref_sets = sets if ref_sets is None else ref_sets
        for name, given in (("sets", sets), ("ref_sets", ref_sets)):
            if not isinstance(given, Tensor) or given.dtype != torch.bool or given.ndim != 2:
                raise TypeError(f"{name} must be a boolean tensor, one row of labels for each sample")
        if sets.shape[1] != ref_sets.shape[1]:
            raise ValueError(f"ref_sets must have the labels of sets, got {ref_sets.shape[1]} and {sets.shape[1]}")
        shared = sets.float() @ ref_sets.float().T > 0
        return PairMasks(shared, ~shared)


def without_self(pos: Tensor, neg: Tensor, start: int) -> PairMasks:
    """The pairs of the rows from a start on, without those of a sample with itself; overwrites the masks [b, m]."""
    for mask in (pos, neg):
        mask.diagonal(start).fill_(False)
    return PairMasks(pos, neg)


def both(pos: Tensor, neg: Tensor) -> Tensor:
    """Where both masks are true, as bytes: as booleans they would be combined one by one."""
    return pos.view(torch.uint8) & neg.view(torch.uint8)


def check_masks(masks: PairMasks, shape: tuple[int, int]) -> None:
    """Raise an error unless both are boolean tensors of a shape."""
    for name, mask in zip(masks._fields, masks, strict=True):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"PairMasks.{name} must be a boolean tensor, got {getattr(mask, 'dtype', mask)}")
        if mask.shape != shape:
            raise ValueError(f"PairMasks.{name} must have shape {shape}, got {tuple(mask.shape)}")


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


def index_masks(
    anchors: Tensor, others: Tensor, start: int, stop: int, m: int, is_whole: bool = False, looks: bool = False
) -> Tensor:
    """The pairs (anchors[t], others[t]) as a mask of the rows start..stop of the matrix: [stop - start, m].

    Pairs of other rows go to a spare slot at the end, so that the shape never depends on the data; if the mask
    `is_whole` there are none. Where it `looks`, too, numpy sets them, in fewer calls.
    """
    size = (stop - start) * m
    flat = torch.add(others, anchors - start if start else anchors, alpha=m)
    if is_whole and looks:
        named = np.zeros(size, np.bool_)
        named[flat.numpy()] = True
        return torch.from_numpy(named).view(stop - start, m)
    if not is_whole:
        flat = torch.where((anchors >= start) & (anchors < stop), flat, size)
    mask = torch.zeros(size + 1, dtype=torch.bool, device=anchors.device)
    # index_fill_ with a number: filling from a tensor of values would copy it from the host.
    return mask.index_fill_(0, flat, True)[:size].view(stop - start, m)
