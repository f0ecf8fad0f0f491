"""Analysis: what a loss does to each pair, and whether a run is healthy."""

from pml_ext.analysis.health import EmbeddingHealth, Health
from pml_ext.analysis.pair_weights import PairWeights, pair_weights

__all__ = ["EmbeddingHealth", "Health", "PairWeights", "pair_weights"]
