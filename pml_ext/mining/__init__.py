"""Mining beyond the batch: tuples of a whole data set, and batches of its hard samples or near classes."""

from pml_ext.mining.balanced_batches import BalancedBatchSampler
from pml_ext.mining.class_batches import ClassBatchSampler
from pml_ext.mining.graph import class_graph
from pml_ext.mining.mined_batches import MinedBatchSampler
from pml_ext.mining.rules import ClassRule, Doubles, Greedy, Groups, Mixed, Neighbors, Uniform
from pml_ext.mining.search import mine
from pml_ext.mining.tuples import MinedTuples

__all__ = [
    "BalancedBatchSampler",
    "ClassBatchSampler",
    "ClassRule",
    "Doubles",
    "Greedy",
    "Groups",
    "MinedBatchSampler",
    "MinedTuples",
    "Mixed",
    "Neighbors",
    "Uniform",
    "class_graph",
    "mine",
]
