"""Methods with soft maxima over the pairs of an anchor, and with anchor weights derived from them."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.miners import MultiSimilarityMiner

from pml_ext.catalog.registry import recipe
from pml_ext.losses import (
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    LogSumExpPairLoss,
    MultiSimilarityLoss,
    RAWLoss,
)
from pml_ext.renamed import renamed_arguments
from pml_ext.wrappers import AnchorWeightedLoss

recipe("RAW", source="OpenReview Skf5qiC5KQ, 2018")(RAWLoss)
recipe("MultiSimilarity", source="Wang et al. 2019, arXiv 1904.06627, without mining (see RAW)")(MultiSimilarityLoss)
recipe("LiftedStructure", source="Song et al. 2016, arXiv 1511.06452")(LiftedStructureLoss)
recipe("GeneralizedLiftedStructure", source="Hermans et al. 2017, arXiv 1703.07737")(GeneralizedLiftedStructureLoss)


@recipe("AHardPair", source="DM18")
@renamed_arguments(pos_base="pos_margin", neg_base="neg_margin")
def a_hard_pair(
    *,
    alpha: float = 40,
    loss_alpha: float = 20,
    beta: float = 20,
    pos_margin: float = 0.8,
    neg_margin: float = 1.1,
    scale: float = 20,
    bounded: bool = False,
    **kwargs: Any,
) -> AnchorWeightedLoss:
    """Soft maxima against absolute levels, the hard anchors weighted most."""
    loss = LogSumExpPairLoss(
        alpha=loss_alpha, beta=beta, pos_margin=pos_margin, neg_margin=neg_margin, scale=scale, bounded=bounded
    )
    return AnchorWeightedLoss(loss, alpha=alpha, **kwargs)


@recipe("Lifted2020", source="DM20, after Hermans et al. 2017, arXiv 1703.07737")
@renamed_arguments(pos_base="pos_margin", neg_base="neg_margin")
def lifted_2020(
    *,
    alpha: float = 2,
    beta: float = 40,
    pos_margin: float = 0,
    neg_margin: float = 0,
    scale: float = 2,
    distance: BaseDistance | None = None,
    **kwargs: Any,
) -> LogSumExpPairLoss:
    """The soft maximum of the negative similarities minus the soft minimum of the positive ones."""
    return LogSumExpPairLoss(
        alpha=alpha,
        beta=beta,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        scale=scale,
        distance=distance or CosineSimilarity(),
        **kwargs,
    )


@recipe("Lifted2020Mined", source="DM20, after Hermans et al. 2017; PML's miner")
@renamed_arguments(pos_base="pos_margin", neg_base="neg_margin")
def lifted_2020_mined(
    *,
    alpha: float = 2,
    beta: float = 40,
    pos_margin: float = 0,
    neg_margin: float = 0,
    scale: float = 2,
    distance: BaseDistance | None = None,
    miner_epsilon: float = 0.1,
    **kwargs: Any,
) -> tuple[LogSumExpPairLoss, MultiSimilarityMiner]:
    """Lifted2020 of the pairs that are hard relative to each other."""
    loss = lifted_2020(
        alpha=alpha, beta=beta, pos_margin=pos_margin, neg_margin=neg_margin, scale=scale, distance=distance, **kwargs
    )
    return loss, MultiSimilarityMiner(epsilon=miner_epsilon)
