"""What the double itself needs of pairs; the names in `utils.indexing` are unknown [?]."""

import torch
from torch import Tensor

from .types import PairIndices, TripletIndices


def checked(indices_tuple: object) -> PairIndices | TripletIndices | None:
    """Three or four 1-D tensors of int64 or int32 of matching lengths [p]."""
    if indices_tuple is None:
        return None
    if not isinstance(indices_tuple, (tuple, list)) or len(indices_tuple) not in (3, 4):
        raise ValueError("an index tuple has three or four tensors")
    for index in indices_tuple:
        if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
            raise TypeError("an index tuple holds tensors of int64 or int32")
        if index.ndim != 1:
            raise ValueError("an index tuple holds 1-D tensors")
    lengths = [len(index) for index in indices_tuple]
    if len(lengths) == 3:
        if len(set(lengths)) > 1:
            raise ValueError("triplets of unequal lengths")
        return TripletIndices(*(index.long() for index in indices_tuple))
    if lengths[0] != lengths[1] or lengths[2] != lengths[3]:
        raise ValueError("pairs of unequal lengths")
    return PairIndices(*(index.long() for index in indices_tuple))


def all_pairs(labels: Tensor, ref_labels: Tensor | None) -> PairIndices:
    """Without references the own row is left out; with them nothing is [p]."""
    same = labels.unsqueeze(1) == (labels if ref_labels is None else ref_labels)
    pos = same if ref_labels is not None else same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return PairIndices(*pos.nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))


def as_pairs(indices: PairIndices | TripletIndices) -> PairIndices:
    if isinstance(indices, PairIndices):
        return indices
    return PairIndices(indices.anchors, indices.positives, indices.anchors, indices.negatives)


def as_triplets(indices: PairIndices | TripletIndices) -> TripletIndices:
    if isinstance(indices, TripletIndices):
        return indices
    first, second = torch.where(indices.pos_anchors.unsqueeze(1) == indices.neg_anchors)
    return TripletIndices(indices.pos_anchors[first], indices.positives[first], indices.negatives[second])
