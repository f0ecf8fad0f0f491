"""Methods with triplets, and with the nearest pairs of an anchor."""

from __future__ import annotations

from typing import Any, Literal

from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.miners import MultiSimilarityMiner

from pml_ext.catalog.registry import recipe
from pml_ext.losses import (
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    EasyPositiveTripletLoss,
    LargeMarginNearestNeighborLoss,
    SemiHardTripletLoss,
    SoftTripletLoss,
)
from pml_ext.miners import ExponentialPositiveMiner
from pml_ext.wrappers import AnchorWeightedLoss

recipe("BatchAll", source="Hermans et al. 2017, arXiv 1703.07737; margin of DM18")(BatchAllTripletLoss)
recipe("BatchHard", source="Hermans et al. 2017, arXiv 1703.07737")(BatchHardTripletLoss)
recipe("SemiHard", source="Schroff et al. 2015 (FaceNet), arXiv 1503.03832")(SemiHardTripletLoss)


@recipe("Triplet", source="Weinberger, Saul 2009; Schroff et al. 2015; as PML 2's TripletMarginLoss")
def triplet(*, margin: float = 0.05, **kwargs: Any) -> BatchAllTripletLoss:
    """The mean of all triplets that violate a margin."""
    return BatchAllTripletLoss(margin=margin, **kwargs)


@recipe("SoftTriplet", source="DM18's Triplet, after Hermans et al. 2017")
def soft_triplet(*, threshold: float = 0.7, **kwargs: Any) -> SoftTripletLoss:
    """Soft-margin triplets whose loss is above a threshold."""
    return SoftTripletLoss(threshold=threshold, **kwargs)


@recipe("ABatchAll", source="DM18")
def a_batch_all(*, alpha: float = 40, margin: float = 0.02, **kwargs: Any) -> AnchorWeightedLoss:
    """All triplets that violate a margin, the hard anchors weighted most."""
    return AnchorWeightedLoss(BatchAllTripletLoss(margin=margin), alpha=alpha, **kwargs)


@recipe("ATriplet", source="DM18")
def a_triplet(
    *,
    alpha: float = 40,
    beta: float = 4,
    threshold: float = 0.65,
    normalization: Literal["anchor", "triplet", "legacy"] = "anchor",
    **kwargs: Any,
) -> AnchorWeightedLoss:
    """Soft-margin triplets, the hard anchors weighted most."""
    loss = SoftTripletLoss(beta=beta, threshold=threshold, normalization=normalization)
    return AnchorWeightedLoss(loss, alpha=alpha, **kwargs)


recipe("Neighbour", source="DM18's online form of Weinberger, Saul 2009 (LMNN)")(LargeMarginNearestNeighborLoss)
recipe("NeighbourHard", source="DM18 (only the negative is hard)")(EasyPositiveTripletLoss)


@recipe("DistWeight", source="DM18")
def dist_weight(
    *,
    k: int | None = 1,
    margin: float = 0.01,
    distance: BaseDistance | None = None,
    miner_num_positives: int = 1,
    miner_scale: float = 5,
    **kwargs: Any,
) -> tuple[LargeMarginNearestNeighborLoss, ExponentialPositiveMiner]:
    """A drawn positive of each anchor, and the negatives that come closer than it plus a margin."""
    loss = LargeMarginNearestNeighborLoss(k=k, margin=margin, distance=distance or CosineSimilarity(), **kwargs)
    return loss, ExponentialPositiveMiner(num_positives=miner_num_positives, scale=miner_scale)


@recipe("HardMining2020", source="DM20: mean (1 - s_ip) + mean s_in; PML's miner")
def hard_mining_2020(
    *,
    k: int | None = None,
    margin: float = 1,
    distance: BaseDistance | None = None,
    miner_epsilon: float = 0.1,
    **kwargs: Any,
) -> tuple[LargeMarginNearestNeighborLoss, MultiSimilarityMiner]:
    """The mean similarities of the pairs that are hard relative to each other."""
    loss = LargeMarginNearestNeighborLoss(k=k, margin=margin, distance=distance or CosineSimilarity(), **kwargs)
    return loss, MultiSimilarityMiner(epsilon=miner_epsilon)
