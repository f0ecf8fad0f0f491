"""Base classes of losses and miners, reductions under a mask, and the two sides of a closed form.

A name in this module is kept for one version after it was replaced, with a `DeprecationWarning` that names the
replacement. Other names of the package that are not in `pml_ext.__all__` may change without notice.

Example:
    >>> import torch
    >>> from pml_ext.extend import RowLoss, masked_mean
    >>> class PushLoss(RowLoss):
    ...     def per_anchor(self, sim, pos, neg):
    ...         return masked_mean(sim, neg)
    >>> PushLoss()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(-1.4142)
"""

from pml_ext.base import BatchLoss, RowLoss, SampleLoss
from pml_ext.closed_form import Sides, SideWeights
from pml_ext.masked import (
    Counted,
    first_max,
    has_any,
    kth_largest,
    largest,
    masked_logsumexp,
    masked_max,
    masked_mean,
    masked_min,
    masked_sum,
    nearest,
    neighbors,
    softplus,
)
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import PairMasks
from pml_ext.seeded import Seeded

__all__ = [
    "BatchLoss",
    "Counted",
    "PairMasks",
    "PairMiner",
    "RowLoss",
    "SampleLoss",
    "Seeded",
    "SideWeights",
    "Sides",
    "first_max",
    "has_any",
    "kth_largest",
    "largest",
    "masked_logsumexp",
    "masked_max",
    "masked_mean",
    "masked_min",
    "masked_sum",
    "nearest",
    "neighbors",
    "softplus",
]
