"""Methods with softplus terms around absolute levels."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, LpDistance
from pytorch_metric_learning.miners import MultiSimilarityMiner

from pml_ext.catalog.registry import recipe
from pml_ext.losses import (
    AdaptiveBinomialDevianceLoss,
    BinomialDevianceLoss,
    LinearPullDevianceLoss,
    RankedPullDevianceLoss,
)
from pml_ext.miners import ChainedMiner, HardNegativePairMiner, InverseDensityMiner, KNearestPositiveMiner

recipe("MarginDeviance", source="DM18")(AdaptiveBinomialDevianceLoss)
recipe("MarginPositive", source="DM18")(LinearPullDevianceLoss)


@recipe("BinDeviance2018", source="Yi et al. 2014, arXiv 1407.4979; DM18")
def bin_deviance_2018(
    *, miner_epsilon: float = 0.05, **kwargs: Any
) -> tuple[BinomialDevianceLoss, HardNegativePairMiner]:
    """Binomial deviance of the negatives that are harder than the hardest positive."""
    return BinomialDevianceLoss(**kwargs), HardNegativePairMiner(epsilon=miner_epsilon)


@recipe("DistWeightBinDeviance", source="DM18, after Wu et al. 2017")
def dist_weight_bin_deviance(
    *,
    miner_num_negatives: int | None = None,
    miner_per_positive: int | None = None,
    miner_max_z: float | None = None,
    **kwargs: Any,
) -> tuple[BinomialDevianceLoss, InverseDensityMiner]:
    """Binomial deviance of negatives that are drawn evenly over their similarities."""
    miner = InverseDensityMiner(
        num_negatives=miner_num_negatives,
        per_positive=miner_per_positive,
        max_z=miner_max_z,
        distance=CosineSimilarity(),
    )
    return BinomialDevianceLoss(**kwargs), miner


@recipe("DistWeightNeighbour", source="DM18, after Wu et al. 2017")
def dist_weight_neighbour(
    *,
    beta: float = 20,
    base: float = 1,
    scale: float = 1,
    distance: BaseDistance | None = None,
    miner_num_negatives: int | None = None,
    miner_per_positive: int | None = None,
    miner_max_z: float | None = None,
    miner_k: int = 3,
    miner_epsilon: float = 0.05,
    **kwargs: Any,
) -> tuple[BinomialDevianceLoss, ChainedMiner]:
    """Binomial deviance of the nearest positives and of hard negatives among drawn ones."""
    loss = BinomialDevianceLoss(beta=beta, base=base, scale=scale, distance=distance or LpDistance(), **kwargs)
    drawn = InverseDensityMiner(num_negatives=miner_num_negatives, per_positive=miner_per_positive, max_z=miner_max_z)
    return loss, _near_and_drawn(drawn, miner_k, miner_epsilon)


@recipe("DistanceMatch", source="DM18, after Wu et al. 2017")
def distance_match(
    *,
    miner_num_negatives: int | None = 3,
    miner_per_positive: int | None = 3,
    miner_max_z: float | None = None,
    miner_k: int = 3,
    miner_epsilon: float = 0.05,
    **kwargs: Any,
) -> tuple[RankedPullDevianceLoss, ChainedMiner]:
    """Levels for the three nearest positives, and one for hard negatives among drawn ones."""
    drawn = InverseDensityMiner(num_negatives=miner_num_negatives, per_positive=miner_per_positive, max_z=miner_max_z)
    return RankedPullDevianceLoss(**kwargs), _near_and_drawn(drawn, miner_k, miner_epsilon)


def _near_and_drawn(drawn: InverseDensityMiner, k: int, epsilon: float) -> ChainedMiner:
    hard = HardNegativePairMiner(epsilon=epsilon, distance=LpDistance())
    return ChainedMiner(miners=(drawn, KNearestPositiveMiner(k=k), hard))


@recipe("Binomial2020", source="DM20, with equal slopes (balance=20 as coded)")
def binomial_2020(*, beta: float = 40, **kwargs: Any) -> BinomialDevianceLoss:
    """Binomial deviance of all pairs."""
    return BinomialDevianceLoss(beta=beta, **kwargs)


@recipe("Binomial2020Mined", source="DM20; PML's miner")
def binomial_2020_mined(
    *, beta: float = 40, miner_epsilon: float = 0.1, **kwargs: Any
) -> tuple[BinomialDevianceLoss, MultiSimilarityMiner]:
    """Binomial deviance of the pairs that are hard relative to each other."""
    return BinomialDevianceLoss(beta=beta, **kwargs), MultiSimilarityMiner(epsilon=miner_epsilon)
