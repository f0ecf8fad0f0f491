"""Wrappers: losses made of losses, ours or PML's."""

from pml_ext.wrappers.anchor_weighted import AnchorWeightedLoss

__all__ = [
    "AnchorWeightedLoss",
]
