"""Plain types, without a wrapper at run time [p]."""

from typing import NamedTuple, TypedDict

from torch import Tensor


class PairIndices(NamedTuple):
    pos_anchors: Tensor
    positives: Tensor
    neg_anchors: Tensor
    negatives: Tensor


class TripletIndices(NamedTuple):
    anchors: Tensor
    positives: Tensor
    negatives: Tensor


class LossTerm(TypedDict, total=False):
    losses: Tensor
    indices: Tensor | tuple[Tensor, ...]
    divisor: Tensor


LossDict = dict[str, LossTerm]
