"""Methods with a softmax over the neighbors of an anchor."""

from __future__ import annotations

from typing import Annotated, Any

from pytorch_metric_learning.distances import BaseDistance, DotProductSimilarity, LpDistance
from pytorch_metric_learning.losses import NPairsLoss
from pytorch_metric_learning.regularizers import LpRegularizer

from pml_ext.catalog.registry import recipe
from pml_ext.losses import DecoupledNCALoss, KNNSoftmaxLoss
from pml_ext.spaces import Range

recipe("NCA", source="Goldberger et al. 2004; DM18's k-NN form")(KNNSoftmaxLoss)
recipe("GradNCA", source="DM18")(DecoupledNCALoss)


@recipe("GaussianLDA", source="DM18 (neither Gaussian nor LDA: k-NN softmax on the distance itself)")
def gaussian_lda(
    *, alpha: float = 30, k: int | None = 16, distance: BaseDistance | None = None, **kwargs: Any
) -> KNNSoftmaxLoss:
    """The softmax of the positives among the 16 nearest samples, by Euclidean distances."""
    return KNNSoftmaxLoss(alpha=alpha, k=k, distance=distance or LpDistance(), **kwargs)


@recipe("SoftmaxNeig", source="DM18")
def softmax_neig(
    *,
    alpha: float = 50,
    k: int | None = None,
    negative_weight: float = 0.5,
    distance: BaseDistance | None = None,
    **kwargs: Any,
) -> KNNSoftmaxLoss:
    """The softmax of the positives among all samples, with negatives at half weight."""
    return KNNSoftmaxLoss(
        alpha=alpha, k=k, negative_weight=negative_weight, distance=distance or LpDistance(), **kwargs
    )


@recipe("NPair", source="Sohn 2016, with its inner products and its L2 term (weight 3e-3 / 4 each); PML's loss")
def n_pair(
    *,
    embedding_reg_weight: Annotated[float, Range(5e-5, 0.05, 0.0015, log=True)] = 0.0015,
    distance: BaseDistance | None = None,
    **kwargs: Any,
) -> NPairsLoss:
    """The softmax of one positive of each anchor among one sample of every class, by inner products."""
    return NPairsLoss(
        distance=distance or DotProductSimilarity(normalize_embeddings=False),
        **({"embedding_regularizer": LpRegularizer(p=2, power=2)} | kwargs),
        embedding_reg_weight=embedding_reg_weight,
    )
