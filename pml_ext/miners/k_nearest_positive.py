"""The nearest positives of each anchor."""

from functools import partial
from typing import Any, final

from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import MinerArguments
from pml_ext.masked import nearest
from pml_ext.miners.base import PairMiner, in_row_blocks


def k_nearest_positive(sim: Tensor, pos: Tensor, neg: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest positives, and all negatives: sim, pos, neg [.., n, m] -> narrowed pos, neg."""
    return nearest(sim, pos, k), neg


@final
class KNearestPositiveMiner(PairMiner):
    r"""Keeps the k nearest positives of each anchor, and all negatives.

        P'_i = the k positives of anchor i with the smallest distances, or all if it has fewer

    Args:
        k: how many positives to keep, at least 1.
        kwargs: those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings).

    Source:
        The positives of DM18's DistWeightNeighbour and DistanceMatch, whose negatives come from other stages
        of a `ChainedMiner`.

    Raises:
        TypeError, ValueError: a k that is not an integer or below 1.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> anchors, positives, _, negatives = KNearestPositiveMiner(k=1)(embeddings, labels)
        >>> positives, len(negatives)
        (tensor([1, 2, 1]), 6)
    """

    is_row_function = True

    def __init__(self, *, k: int = 3, **kwargs: Unpack[MinerArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(k=arguments.count("k", k))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """The k nearest positives, and all negatives."""
        return in_row_blocks(partial(k_nearest_positive, **self.hyperparameters()), sim, pos, neg)
