"""Mining beyond the batch: tuples of a whole data set, and batches made of what is hard in it."""

from pml_ext.mining.search import mine
from pml_ext.mining.tuples import MinedTuples

__all__ = ["MinedTuples", "mine"]
