"""Sampling of negatives by the inverse of the density of their distances."""

from functools import partial
from typing import Any, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import SeededMinerArguments
from pml_ext.masked import as_numbers, count
from pml_ext.miners.base import PairMiner, in_row_blocks
from pml_ext.sampling import sample
from pml_ext.seeded import Seeded


def inverse_density_log_weights(sim: Tensor, neg: Tensor, *, max_z: float | None = None) -> Tensor:
    """Logarithm of the unnormalized probability of each negative: sim, neg [.., n, m] -> [.., n, m], 0 elsewhere.

    z^2 / 2 with z the score standardized over the negatives of the anchor; the reciprocal of a Gaussian density fitted
    to them. All equal if the scores do not differ.
    """
    there = as_numbers(neg, sim.dtype)
    size = there.sum(-1, keepdim=True).clamp_(min=1)
    mean = torch.linalg.vecdot(sim, there).unsqueeze(-1) / size
    deviation = (sim - mean).mul_(there)
    variance = torch.linalg.vecdot(deviation, deviation).unsqueeze(-1) / size
    # Where the scores do not differ every deviation is 0, and so is what it is divided into.
    half_z2: Tensor = deviation.square_().div_(variance.mul_(2).clamp_min_(torch.finfo(sim.dtype).tiny))
    return half_z2 if max_z is None else half_z2.clamp_(max=max_z**2 / 2)


def inverse_density(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    num_negatives: int | None,
    per_positive: int | None,
    max_z: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """All positives, and negatives drawn without replacement: sim, pos, neg [.., n, m] -> narrowed pos, neg."""
    if num_negatives is None and per_positive is None:
        per_positive = 1
    k = (num_negatives or 0) + (per_positive or 0) * count(pos)
    return pos, sample(inverse_density_log_weights(sim, neg, max_z=max_z), neg, k, generator)


@final
class InverseDensityMiner(Seeded, PairMiner):
    r"""Samples an anchor's negatives by the inverse of a Gaussian density fitted to their distances.

    With mu_i and sigma_i the mean and the population standard deviation of the distances of anchor i to its negatives,
    negatives are drawn one after another, without replacement, with probability proportional to

        w_in = exp( (D_in - mu_i)^2 / (2 sigma_i^2) )

    Average negatives are least likely; both tails, the hardest and the easiest, most likely. All positives are kept.

    Args:
        num_negatives: how many to draw for each anchor, at least 1 (all if it has fewer).
        per_positive: how many to draw in addition for each positive of the anchor, at least 1. If both are None, one
            negative per anchor is drawn.
        max_z: upper limit of |D_in - mu_i| / sigma_i, above 0, so that a single outlier is not always drawn; None for
            no limit.
        kwargs: `seed` as in `Seeded`; those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), torch's global generator.

    Source:
        DM18's DistWeight losses, after the idea of Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017,
        whose density is that of points on a sphere (`DistanceWeightedMiner`). The weight is computed from its
        logarithm; equal distances, for which the reference code divides by zero, are equally likely; an anchor with too
        few negatives gets all of them.

    Raises:
        TypeError, ValueError: an argument of the wrong type, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, _, negatives = InverseDensityMiner(seed=0)(embeddings, labels)
        >>> positives, len(negatives)
        (tensor([1, 0, 3, 2]), 4)
    """

    def __init__(
        self,
        *,
        num_negatives: int | None = None,
        per_positive: int | None = None,
        max_z: float | None = None,
        **kwargs: Unpack[SeededMinerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            num_negatives=arguments.count("num_negatives", num_negatives, optional=True),
            per_positive=arguments.count("per_positive", per_positive, optional=True),
            max_z=None if max_z is None else arguments.positive("max_z", max_z),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """All positives and the drawn negatives."""
        values = self.hyperparameters() | {"generator": self.generator(sim.device)}
        return in_row_blocks(partial(inverse_density, **values), sim, pos, neg)
