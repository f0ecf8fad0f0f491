"""Wrappers: losses made of losses, ours or PML's.

In the formulas, L' is the inner loss, x and y are the embeddings and the labels of the batch; other symbols are those
of `pml_ext.losses`.

Short names of sources, such as DM18, are in `pml_ext.catalog.KEYS`.
"""

from pml_ext.wrappers.anchor_weighted import AnchorWeightedLoss
from pml_ext.wrappers.branch import BranchLoss
from pml_ext.wrappers.branch_diversity import BranchDiversityRegularizer
from pml_ext.wrappers.centers_as_references import CentersAsReferences
from pml_ext.wrappers.coding_rate import CodingRateRegularizer
from pml_ext.wrappers.cross_batch_memory import CrossBatchMemory
from pml_ext.wrappers.distributed import DistributedLoss, DistributedMiner
from pml_ext.wrappers.expanded_references import ExpandedReferences
from pml_ext.wrappers.guided import GuidedLoss
from pml_ext.wrappers.mined import MinedLoss
from pml_ext.wrappers.random_slice import RandomSliceLoss
from pml_ext.wrappers.self_supervised import SelfSupervisedLoss

__all__ = [
    "AnchorWeightedLoss",
    "BranchDiversityRegularizer",
    "BranchLoss",
    "CentersAsReferences",
    "CodingRateRegularizer",
    "CrossBatchMemory",
    "DistributedLoss",
    "DistributedMiner",
    "ExpandedReferences",
    "GuidedLoss",
    "MinedLoss",
    "RandomSliceLoss",
    "SelfSupervisedLoss",
]
