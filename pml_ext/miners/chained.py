"""Miners one after another."""

from collections.abc import Iterable, Sequence
from typing import Any, final

from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext.hyperparameters import MinerArguments
from pml_ext.miners.base import PairMiner


@final
class ChainedMiner(PairMiner):
    r"""Miners one after another, each narrowing what the one before has left.

        (pos, neg) = miner_k( ... miner_2(miner_1(all positives, all negatives)))

    All miners use the same scores, those of the distance of the chain. Without miners all pairs are kept.

    Args:
        miners: miners of this package that have the distance of the chain.
        kwargs: those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings).

    Source:
        Ours. It is what DM18's DistWeightNeighbour and DistanceMatch do: draw negatives, keep the three nearest
        positives, and then the drawn negatives that are not farther than these plus a small margin.

    Raises:
        TypeError: a miner that is not a `PairMiner`.
        ValueError: a miner with another distance than the chain.

    Example:
        >>> import torch
        >>> from pml_ext.miners import HardNegativePairMiner, KNearestPositiveMiner
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> miner = ChainedMiner(miners=[KNearestPositiveMiner(k=1), HardNegativePairMiner(distance=LpDistance())])
        >>> anchors, positives, _, negatives = miner(embeddings, labels)
        >>> anchors, negatives
        (tensor([1, 2]), tensor([2, 1]))
    """

    def __init__(self, *, miners: Sequence[PairMiner] = (), **kwargs: Unpack[MinerArguments]) -> None:
        super().__init__(**kwargs)
        if not isinstance(miners, Iterable):
            raise TypeError(f"miners must be a sequence of miners, got {type(miners).__name__}")
        miners = tuple(miners)
        for miner in miners:
            if not isinstance(miner, PairMiner):
                raise TypeError(f"miners must be miners of this package (PairMiner), got {type(miner).__name__}")
            if _settings(miner) != _settings(self):
                raise ValueError(
                    f"the miners of a chain must have its distance {self.distance}: {type(miner).__name__} has "
                    f"{miner.distance}; give distance= to the miner or to the chain"
                )
        # By name: of a ModuleList record-keeper would make tables called "0_...", which SQLite refuses.
        for place, miner in enumerate(miners):
            self.add_module(f"miner{place}", miner)
        self.is_random: bool = any(miner.is_random for miner in miners)
        self.is_row_function: bool = all(miner.is_row_function for miner in miners)

    @property
    def miners(self) -> tuple[PairMiner, ...]:
        """The miners in their order."""
        return tuple(part for part in self._modules.values() if isinstance(part, PairMiner))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """What the last miner leaves."""
        for miner in self.miners:
            miner.embedding_size = self.embedding_size
            pos, neg = miner.select(sim, pos, neg)
        return pos, neg


def _settings(miner: PairMiner) -> tuple[Any, ...]:
    names = ("p", "power", "normalize_embeddings", "is_inverted")
    return type(miner.distance), *(getattr(miner.distance, name, None) for name in names)
