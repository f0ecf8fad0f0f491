"""The nearest negatives of each anchor."""

from functools import partial
from typing import Any, final

from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import MinerArguments
from pml_ext.masked import nearest
from pml_ext.miners.base import PairMiner, in_row_blocks


def k_nearest_negative(sim: Tensor, pos: Tensor, neg: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """All positives, and the k nearest negatives: sim, pos, neg [.., n, m] -> narrowed pos, neg."""
    return pos, nearest(sim, neg, k)


@final
class KNearestNegativeMiner(PairMiner):
    r"""Keeps the k nearest negatives of each anchor, and all positives.

        N'_i = the k negatives of anchor i with the smallest distances, or all if it has fewer

    Args:
        k: how many negatives to keep, at least 1.
        kwargs: those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings).

    Source:
        The negatives of DM18's MCA, there the 32 nearest centers of other classes. Where several negatives are equally
        near, the reference code keeps only as many as k allows, and so does this miner.

    Raises:
        TypeError, ValueError: a k that is not an integer or below 1.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, _, negatives = KNearestNegativeMiner(k=1)(embeddings, labels)
        >>> positives, negatives
        (tensor([1, 0, 3, 2]), tensor([2, 2, 1, 1]))
    """

    is_row_function = True

    def __init__(self, *, k: int = 32, **kwargs: Unpack[MinerArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(k=arguments.count("k", k))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """All positives, and the k nearest negatives."""
        return in_row_blocks(partial(k_nearest_negative, **self.hyperparameters()), sim, pos, neg)
