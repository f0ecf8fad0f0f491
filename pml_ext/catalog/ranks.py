"""Methods on the ranks of the positives."""

from __future__ import annotations

from typing import Annotated, Any

from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MultipleLosses

from pml_ext.catalog.registry import recipe
from pml_ext.losses import AnchorContrastiveLoss, PNPLoss, RecallAtKLoss, SmoothAPLoss, SupAPLoss
from pml_ext.spaces import Range

recipe("SmoothAP", source="Brown et al. 2020, arXiv 2007.12163, for classes of any size")(SmoothAPLoss)
recipe("RS@k", source="Patel et al. 2022, arXiv 2108.11179, without similarity mixup")(RecallAtKLoss)


@recipe("SupRecall", source="Ramzi et al. 2023, arXiv 2309.08250")
def sup_recall(*, temperature: float = 0.01, k_temperature: float = 1, **kwargs: Any) -> RecallAtKLoss:
    """The surrogate of recall at k on the ranks of SupAP, in which positives do not push each other."""
    return RecallAtKLoss(temperature=temperature, k_temperature=k_temperature, ranks="upper", **kwargs)


@recipe("PNP", source="Li et al. 2022, arXiv 2102.04640: the best published setting of its authors")
def pnp(*, alpha: float = 4, temperature: float = 0.01, **kwargs: Any) -> PNPLoss:
    """A penalty on the negatives ranked before each positive that gives hard positives little weight."""
    return PNPLoss(variant="Dq", alpha=alpha, temperature=temperature, **kwargs)


@recipe("ROADMAP", source="Ramzi et al. 2021, arXiv 2110.01445, with calibration averaged per anchor; PML's sum")
def roadmap(
    *,
    temperature: float = 0.01,
    rho: float = 100,
    delta: float = 0.05,
    pos_margin: Annotated[float, Range(0.6, 1, 0.9)] = 0.9,
    neg_margin: Annotated[float, Range(0.3, 0.8, 0.6)] = 0.6,
    rank_weight: float = 1,
    calibration_weight: float = 1,
) -> MultipleLosses:
    """An upper bound on one minus the average precision, and hinges that make scores of batches comparable."""
    ranks = SupAPLoss(temperature=temperature, rho=rho, delta=delta)
    hinges = AnchorContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin, distance=CosineSimilarity())
    # By names: a record of a part that is called 0 cannot be kept.
    weights = {"ranks": rank_weight, "calibration": calibration_weight}
    return MultipleLosses({"ranks": ranks, "calibration": hinges}, weights=weights)


@recipe("TCM", source="Zhang et al. 2024, arXiv 2307.04047, with weights of one: PML's ContrastiveLoss on cosines")
def tcm(
    *,
    pos_margin: Annotated[float, Range(0.6, 1, 0.9)] = 0.9,
    neg_margin: Annotated[float, Range(0.2, 0.8, 0.5)] = 0.5,
    distance: BaseDistance | None = None,
    **kwargs: Any,
) -> ContrastiveLoss:
    """Hinges on cosine similarities, averaged over the active pairs of the batch; to be used beside another loss."""
    return ContrastiveLoss(
        pos_margin=pos_margin, neg_margin=neg_margin, distance=distance or CosineSimilarity(), **kwargs
    )
