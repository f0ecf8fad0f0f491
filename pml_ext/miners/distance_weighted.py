"""Distance weighted sampling: negatives drawn so that their distances become uniform."""

from typing import Any, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import SeededMinerArguments
from pml_ext.masked import as_numbers, compared, count, has_any, of_rows
from pml_ext.miners.base import PairMiner, in_row_blocks
from pml_ext.sampling import sample
from pml_ext.seeded import Seeded


def distance_weighted_log_weights(
    dist: Tensor, neg: Tensor, *, dimension: int, cutoff: float, nonzero_loss_cutoff: float | None
) -> tuple[Tensor, Tensor]:
    """Log of the unnormalized probability of each negative, and which may be drawn: dist, neg [.., n, m] -> both."""
    clamped = dist.clamp(cutoff, _LARGEST)
    # 1 - d^2/4 as a product: its first factor is small and exact where the distance is near 2.
    half = clamped / 2
    log_area = (1 - half).mul_(half.add_(1)).log_()
    log_weights = clamped.log_().mul_(2 - dimension).sub_(log_area, alpha=(dimension - 3) / 2)
    if nonzero_loss_cutoff is not None:
        near = neg & compared(torch.lt, dist, nonzero_loss_cutoff)
        has_near = has_any(near)
        neg = near | of_rows(neg, ~has_near)
        # The uniform distribution over all negatives, where none is near.
        log_weights.mul_(as_numbers(has_near, dist.dtype))
    return log_weights, neg


# Two points of the unit sphere are never farther apart; at 2 itself the density is 0 and its inverse infinite.
_LARGEST = 2 - 1e-6
_USUAL = 128


def distance_weighted(
    dist: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    dimension: int,
    cutoff: float,
    nonzero_loss_cutoff: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """All positives, and as many negatives: Euclidean distances dist, pos, neg [.., n, m] -> narrowed pos, neg."""
    log_weights, neg = distance_weighted_log_weights(
        dist, neg, dimension=dimension, cutoff=cutoff, nonzero_loss_cutoff=nonzero_loss_cutoff
    )
    return pos, sample(log_weights, neg, count(pos), generator)


_SIMILARITIES = (CosineSimilarity, DotProductSimilarity)


@final
class DistanceWeightedMiner(Seeded, PairMiner):
    r"""Samples negatives by the inverse of the density of distances on the sphere, one for each positive.

    Distances D of random points of the unit sphere in d dimensions have a density proportional to
    D^(d-2) (1 - D^2/4)^((d-3)/2), which for large d has its mass near sqrt(2). Negatives are drawn one after another,
    without replacement, as many as the anchor has positives, with probability proportional to

        w_in = 1 / ( C^(d-2) (1 - C^2/4)^((d-3)/2) ),   C = max(D_in, cutoff)

    among the negatives closer than `nonzero_loss_cutoff`; where there is none, uniformly among all of the anchor.

    Args:
        cutoff: smaller distances are replaced by this one, so that near negatives are not always drawn; above 0, below
            2.
        nonzero_loss_cutoff: the distance above which negatives are not drawn as long as there are nearer ones, because
            their loss would be 0; above 0. None for no limit.
        dimension: d, at least 1; None for that of the embeddings (128 where `select` gets scores alone). Only for d
            above 3 are negatives farther than sqrt(2) rare, and so more likely to be drawn than average ones; up to 3
            they are frequent, and less likely with growing distance.
        kwargs: `seed` as in `Seeded`; those of `PairMiner`. The embeddings are taken to be on the unit sphere,
            as PML's distances make them by default: cosine similarities s are turned into distances sqrt(2 - 2 s),
            powers of a distance into the distance.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings), torch's global generator.

    Source:
        Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017, arXiv 1706.07567; the cut-offs are those of
        PML's miner of this name. PML's miner draws one negative for each positive pair, with replacement, and returns
        triplets, class by class; here an anchor's negatives are all different, are drawn in one step for the whole
        batch, and are returned as pairs. PML drops the anchors without a negative closer than the cut-off and, because
        it divides the weights by the largest of the whole batch, also those whose weights then underflow.

    Raises:
        TypeError, ValueError: an argument of the wrong type, not finite or out of range; an inner product of embeddings
            that are not normalized.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, _, negatives = DistanceWeightedMiner(seed=0)(embeddings, labels)
        >>> positives, len(negatives)
        (tensor([1, 0, 3, 2]), 4)
    """

    def __init__(
        self,
        *,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float | None = 1.4,
        dimension: int | None = None,
        **kwargs: Unpack[SeededMinerArguments],
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(self.distance, _SIMILARITIES) and not self.distance.normalize_embeddings:
            raise ValueError(
                f"distance must bring embeddings to the unit sphere, or be one: {type(self.distance).__name__} of "
                "embeddings as they are says nothing about distances; give it normalize_embeddings=True"
            )
        least = arguments.positive("cutoff", cutoff)
        if least >= 2:
            raise ValueError(f"cutoff must be below 2, the largest distance on the unit sphere, got {cutoff!r}")
        if nonzero_loss_cutoff is not None:
            nonzero_loss_cutoff = arguments.positive("nonzero_loss_cutoff", nonzero_loss_cutoff)
        self.record_hyperparameters(
            cutoff=least,
            nonzero_loss_cutoff=nonzero_loss_cutoff,
            dimension=arguments.count("dimension", dimension, optional=True),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """All positives, and as many drawn negatives."""
        dimension = self.dimension or self.embedding_size or _USUAL
        values = self.hyperparameters() | {"dimension": dimension, "generator": self.generator(sim.device)}

        def of_rows(sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
            return distance_weighted(self._distances(sim), pos, neg, **values)

        return in_row_blocks(of_rows, sim, pos, neg)

    def _distances(self, sim: Tensor) -> Tensor:
        """Euclidean distances from the scores."""
        if isinstance(self.distance, _SIMILARITIES):
            return (2 - 2 * sim).clamp_(min=0).sqrt_()
        return -sim if self.distance.power == 1 else (-sim) ** (1 / self.distance.power)
