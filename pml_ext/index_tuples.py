"""Pairs into triplets and back, for queues and trainers; what a call is given is parsed in `pml_ext.pairs`."""

import torch
from torch import Tensor

from pml_ext.pairs import label_masks

Triplets = tuple[Tensor, Tensor, Tensor]
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
# How many triplets are looked at at a time: nonzero takes 2^31 at most.
_BLOCK = 1 << 26


def to_triplets(indices_tuple: tuple[Tensor, ...]) -> Triplets:
    """Triplets of triplets or of pairs: every positive of an anchor with every negative of it."""
    if len(indices_tuple) == 3:
        a, p, n = indices_tuple
        return a, p, n
    a, p, b, n = indices_tuple
    first, second = torch.where(a.unsqueeze(1) == b)
    return a[first], p[first], n[second]


def to_pairs(indices_tuple: tuple[Tensor, ...]) -> Pairs:
    """Pairs of pairs or of triplets, as often as they are named."""
    if len(indices_tuple) == 4:
        a, p, b, n = indices_tuple
        return a, p, b, n
    a, p, n = indices_tuple
    return a, p, a, n


def all_triplets(labels: Tensor, ref_labels: Tensor | None = None) -> Triplets:
    """All triplets of labels [n], in the order of anchors, positives, negatives; of references [m] if they are given.

    Their number grows with the cube of the batch.
    """
    pos, neg = label_masks(labels, labels if ref_labels is None else ref_labels)
    if ref_labels is None or ref_labels is labels:
        pos = pos & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    rows = max(1, _BLOCK // max(1, pos.shape[1] ** 2))
    blocks = zip(range(0, len(pos), rows), pos.split(rows), neg.split(rows), strict=False)
    found = [
        (p.unsqueeze(2) & n.unsqueeze(1)).nonzero() + torch.tensor([start, 0, 0], device=p.device)
        for start, p, n in blocks
    ]
    a, p, n = torch.cat(found).unbind(1) if found else pos.new_zeros(3, 0, dtype=torch.long)
    return a, p, n
