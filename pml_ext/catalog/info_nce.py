"""Contrastive methods with a softmax over the negatives."""

from __future__ import annotations

from typing import Any

from pml_ext.catalog.registry import recipe
from pml_ext.losses import (
    DecoupledContrastiveLoss,
    HardNegativeContrastiveLoss,
    HardnessWeightedContrastiveLoss,
    SelectivelyContrastiveTripletLoss,
    SigmoidPairLoss,
)

recipe("DecoupledContrastive", source="Yeh et al. 2022, arXiv 2110.06848, without the weighted form")(
    DecoupledContrastiveLoss
)
recipe("HardnessWeightedContrastive", source="Lan et al. 2025 (LLaVE), arXiv 2503.04812")(
    HardnessWeightedContrastiveLoss
)
recipe("SCT", source="Xuan et al. 2020, arXiv 2007.12749, with the level of its code")(
    SelectivelyContrastiveTripletLoss
)


@recipe("Debiased", source="Chuang et al. 2020, arXiv 2007.00224; for labels that hide positives, not for clean ones")
def debiased(
    *, temperature: float = 0.5, beta: float = 0, tau_plus: float = 0.1, **kwargs: Any
) -> HardNegativeContrastiveLoss:
    """InfoNCE on a mean over the negatives that is corrected for hidden positives."""
    return HardNegativeContrastiveLoss(temperature=temperature, beta=beta, tau_plus=tau_plus, **kwargs)


@recipe("HCL", source="Robinson et al. 2021, arXiv 2010.04592, as coded: easy negatives are pulled")
def hcl(
    *, temperature: float = 0.5, beta: float = 1, tau_plus: float = 0.1, detach: bool = False, **kwargs: Any
) -> HardNegativeContrastiveLoss:
    """InfoNCE on a mean over the negatives that is tilted to the hard ones and corrected for hidden positives."""
    return HardNegativeContrastiveLoss(temperature=temperature, beta=beta, tau_plus=tau_plus, detach=detach, **kwargs)


@recipe("H-SCL", source="Jiang et al. 2022, arXiv 2209.00078, as coded: easy negatives are pulled")
def h_scl(
    *, temperature: float = 0.5, beta: float = 0.5, detach: bool = False, **kwargs: Any
) -> HardNegativeContrastiveLoss:
    """InfoNCE on a mean over the negatives that is tilted to the hard ones."""
    return HardNegativeContrastiveLoss(temperature=temperature, beta=beta, detach=detach, **kwargs)


@recipe("SigLIP", source="Zhai et al. 2023, arXiv 2303.15343, with its bias; for class labels take bias='prior'")
def siglip(*, temperature: float = 10, bias: float = -10, **kwargs: Any) -> SigmoidPairLoss:
    """Each pair classified on its own, with a learned slope and bias."""
    return SigmoidPairLoss(temperature=temperature, bias=bias, **kwargs)
