"""Methods with hinges on single pairs, and on the levels between them."""

from __future__ import annotations

from typing import Annotated, Any

from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MarginLoss
from torch import nn

from pml_ext.catalog.registry import recipe
from pml_ext.losses import AnchorContrastiveLoss
from pml_ext.miners import DistanceWeightedMiner, InverseDensityMiner
from pml_ext.spaces import Range
from pml_ext.wrappers import CrossBatchMemory

recipe("Contrastive2018", source="Hadsell et al. 2006; DM18")(AnchorContrastiveLoss)


@recipe("Contrastive2020", source="DM20, without jumps of its value (step=0.5 as coded)")
def contrastive_2020(
    *,
    pos_margin: Annotated[float, Range(0.7, 1, 1)] = 1,
    neg_margin: Annotated[float, Range(0.1, 0.9, 0.5)] = 0.5,
    average: bool = False,
    distance: BaseDistance | None = None,
    **kwargs: Any,
) -> AnchorContrastiveLoss:
    """Hinges on cosine similarities, summed over the pairs of each anchor."""
    return AnchorContrastiveLoss(
        pos_margin=pos_margin, neg_margin=neg_margin, average=average, distance=distance or CosineSimilarity(), **kwargs
    )


@recipe("DistWeightContrastive", source="DM18, after Wu et al. 2017")
def dist_weight_contrastive(
    *,
    pos_margin: float = 0.7,
    neg_margin: float = 1.2,
    miner_num_negatives: int | None = None,
    miner_per_positive: int | None = None,
    miner_max_z: float | None = None,
    **kwargs: Any,
) -> tuple[AnchorContrastiveLoss, InverseDensityMiner]:
    """The contrastive loss of negatives that are drawn evenly over their distances."""
    return (
        AnchorContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin, **kwargs),
        InverseDensityMiner(num_negatives=miner_num_negatives, per_positive=miner_per_positive, max_z=miner_max_z),
    )


@recipe("DistanceWeighted", source="Wu et al. 2017, arXiv 1706.07567; PML's loss")
def distance_weighted(
    *,
    miner_cutoff: float = 0.5,
    miner_nonzero_loss_cutoff: float | None = 1.4,
    miner_dimension: int | None = None,
    **kwargs: Any,
) -> tuple[MarginLoss, DistanceWeightedMiner]:
    """The margin loss of negatives that are drawn evenly over their distances on the sphere."""
    return (
        MarginLoss(**kwargs),
        DistanceWeightedMiner(
            cutoff=miner_cutoff, nonzero_loss_cutoff=miner_nonzero_loss_cutoff, dimension=miner_dimension
        ),
    )


recipe("Margin", source="Wu et al. 2017, arXiv 1706.07567, over all triplets; PML's loss")(MarginLoss)


@recipe("XBM", source="Wang et al. 2020, arXiv 1912.06798; PML's loss")
def xbm(
    embedding_size: int,
    *,
    memory_size: int = 1024,
    pos_margin: float = 0,
    neg_margin: float = 1,
    miner: nn.Module | None = None,
    start: int = 0,
) -> CrossBatchMemory:
    """The contrastive loss of a batch with the embeddings of the batches before it."""
    loss = ContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin)
    return CrossBatchMemory(loss, embedding_size, memory_size, miner, start=start)
