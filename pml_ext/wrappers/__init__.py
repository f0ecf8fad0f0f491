"""Wrappers: losses made of losses, ours or PML's."""

from pml_ext.wrappers.anchor_weighted import AnchorWeightedLoss
from pml_ext.wrappers.centers_as_references import CentersAsReferences
from pml_ext.wrappers.mined import MinedLoss

__all__ = [
    "AnchorWeightedLoss",
    "CentersAsReferences",
    "MinedLoss",
]
