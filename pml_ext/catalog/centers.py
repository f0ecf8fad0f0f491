"""Methods that compare samples with class centers."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.distances import BaseDistance, LpDistance
from pytorch_metric_learning.losses import SoftTripleLoss

from pml_ext.catalog.registry import recipe
from pml_ext.centers import BatchCenters, CenterSource, KMeansCenters, LearnedCenters
from pml_ext.losses import CenterLoss, ClampedNCALoss, ClassCenterMarginLoss, KNNSoftmaxLoss
from pml_ext.miners import KNearestNegativeMiner
from pml_ext.renamed import renamed_arguments
from pml_ext.wrappers import CentersAsReferences, MinedLoss

recipe("Center", source="Wen et al. 2016")(CenterLoss)
recipe(
    "ClassCenterMargin",
    source="DM18's CenterLoss, with its sign corrected (not that of Wen et al.)",
)(ClassCenterMarginLoss)
recipe("SoftTriple", source="Qian et al. 2019, arXiv 1909.05235; PML's loss")(SoftTripleLoss)


def _squared() -> LpDistance:
    """Of embeddings that are of unit length already, and of their means, which are not to be."""
    return LpDistance(power=2, normalize_embeddings=False)


@recipe("CenterNCA", source="DM18")
def center_nca(
    *,
    alpha: float = 16,
    k: int | None = None,
    negative_weight: float = 1,
    distance: BaseDistance | None = None,
    centers: CenterSource | None = None,
    detach: bool = True,
    normalize_embeddings: bool | None = True,
    **kwargs: Any,
) -> CentersAsReferences:
    """The softmax of a sample's own class center among all centers of the batch."""
    return CentersAsReferences(
        KNNSoftmaxLoss(alpha=alpha, k=k, negative_weight=negative_weight, distance=distance or _squared()),
        centers or BatchCenters(detach=detach),
        normalize_embeddings=normalize_embeddings,
        **kwargs,
    )


@recipe("CenterPair", source="DM18's CenterTripletLoss, with its sign corrected")
@renamed_arguments(pos_base="pos_margin", neg_base="neg_margin")
def center_pair(
    *,
    pos_margin: float = 0.15,
    neg_margin: float = 0.6,
    distance: BaseDistance | None = None,
    centers: CenterSource | None = None,
    detach: bool = False,
    normalize_embeddings: bool | None = True,
    **kwargs: Any,
) -> CentersAsReferences:
    """Absolute levels for the distances of samples to the centers of the batch."""
    return CentersAsReferences(
        ClampedNCALoss(
            pos_margin=pos_margin, neg_margin=neg_margin, distance=distance or LpDistance(normalize_embeddings=False)
        ),
        centers or BatchCenters(detach=detach),
        normalize_embeddings=normalize_embeddings,
        **kwargs,
    )


@recipe("ClusterNCA", source="DM18, after Rippel et al. 2016 (Magnet), arXiv 1511.05939")
def cluster_nca(
    *,
    alpha: float = 16,
    k: int | None = None,
    negative_weight: float = 1,
    distance: BaseDistance | None = None,
    centers: CenterSource | None = None,
    n_clusters: int = 16,
    label_weight: float = 0.5,
    leave_one_out: bool = True,
    normalize_embeddings: bool | None = True,
    **kwargs: Any,
) -> CentersAsReferences:
    """The softmax of a sample's own cluster among the clusters of the batch."""
    return CentersAsReferences(
        KNNSoftmaxLoss(alpha=alpha, k=k, negative_weight=negative_weight, distance=distance or _squared()),
        centers or KMeansCenters(n_clusters=n_clusters, label_weight=label_weight),
        leave_one_out=leave_one_out,
        normalize_embeddings=normalize_embeddings,
        **kwargs,
    )


@recipe("KmeanNCA", source="DM18's KmeanLoss as intended; its code raises an error")
def kmean_nca(
    *,
    alpha: float = 16,
    k: int | None = None,
    negative_weight: float = 1,
    distance: BaseDistance | None = None,
    centers: CenterSource | None = None,
    n_clusters: int = 3,
    leave_one_out: bool = True,
    normalize_embeddings: bool | None = True,
    **kwargs: Any,
) -> CentersAsReferences:
    """The softmax of the clusters of a sample's class among those of all classes, each class clustered separately."""
    return CentersAsReferences(
        KNNSoftmaxLoss(alpha=alpha, k=k, negative_weight=negative_weight, distance=distance or _squared()),
        centers or KMeansCenters(n_clusters=n_clusters, per_class=True),
        leave_one_out=leave_one_out,
        normalize_embeddings=normalize_embeddings,
        **kwargs,
    )


@recipe("MCA", source="DM18; as SoftTriple and ProxyNCA, with the nearest negatives only")
def mca(
    num_classes: int,
    embedding_size: int,
    *,
    centers_per_class: int = 3,
    alpha: float = 16,
    k: int | None = None,
    negative_weight: float = 1,
    miner_k: int = 32,
    centers: CenterSource | None = None,
    **kwargs: Any,
) -> CentersAsReferences:
    """The softmax of the learned centers of a sample's class among the nearest of the others."""
    return CentersAsReferences(
        MinedLoss(
            KNNSoftmaxLoss(alpha=alpha, k=k, negative_weight=negative_weight),
            # The same as by the distance, from the scores that the loss has.
            KNearestNegativeMiner(k=miner_k, distance=LpDistance(power=2)),
        ),
        centers or LearnedCenters(num_classes, embedding_size, centers_per_class=centers_per_class),
        **kwargs,
    )
