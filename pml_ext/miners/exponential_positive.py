"""Sampling of positives by the exponential of their scores."""

from functools import partial
from typing import Any, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import SeededMinerArguments
from pml_ext.miners.base import PairMiner, in_row_blocks
from pml_ext.sampling import sample
from pml_ext.seeded import Seeded


def exponential_positive(
    sim: Tensor, pos: Tensor, neg: Tensor, *, num_positives: int, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Positives drawn without replacement, and all negatives: sim, pos, neg [.., n, m] -> narrowed pos, neg."""
    k = torch.full_like(sim[..., :1], num_positives, dtype=torch.long)
    return sample(scale * sim, pos, k, generator), neg


@final
class ExponentialPositiveMiner(Seeded, PairMiner):
    r"""Samples an anchor's positives by the exponential of their similarity, and keeps all negatives.

    Positives are drawn one after another, without replacement, with probability proportional to

        w_ip = exp(scale s_ip)

    so that near positives, the easy ones, are the most likely.

    Args:
        num_positives: how many to draw for each anchor, at least 1 (all if it has fewer).
        scale: factor of the scores, a finite number: 0 draws uniformly, and with a number below 0 hard positives are
            the most likely.
        kwargs: `seed` as in `Seeded`; those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        CosineSimilarity, torch's global generator.

    Source:
        The positives of DM18's DistWeightLoss; its negatives, those within a margin of the drawn positive,
        are chosen by `LargeMarginNearestNeighborLoss(k=1, margin=0.01)`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> anchors, positives, _, negatives = ExponentialPositiveMiner(seed=0)(embeddings, labels)
        >>> anchors, len(negatives)
        (tensor([0, 1, 2]), 6)
    """

    def __init__(self, *, num_positives: int = 1, scale: float = 5, **kwargs: Unpack[SeededMinerArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            num_positives=arguments.count("num_positives", num_positives),
            scale=arguments.finite("scale", scale),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """The drawn positives, and all negatives."""
        values = self.hyperparameters() | {"generator": self.generator(sim.device)}
        return in_row_blocks(partial(exponential_positive, **values), sim, pos, neg)
