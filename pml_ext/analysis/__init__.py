"""Analysis: what a loss does to each pair, and whether a run is healthy."""

from pml_ext.analysis.health import EmbeddingHealth, Health
from pml_ext.analysis.pair_weights import NoPairWeightsError, PairWeights, pair_weights

__all__ = ["EmbeddingHealth", "Health", "NoPairWeightsError", "PairWeights", "pair_weights"]
