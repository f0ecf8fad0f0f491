"""Analysis: what a loss does to each pair, whether a run is healthy, and what is wrong with embeddings."""

from pml_ext.analysis.diagnosis import Diagnosis, diagnose
from pml_ext.analysis.health import EmbeddingHealth, Health
from pml_ext.analysis.pair_weights import NoPairWeightsError, PairWeights, pair_weights

__all__ = [
    "Diagnosis",
    "EmbeddingHealth",
    "Health",
    "NoPairWeightsError",
    "PairWeights",
    "diagnose",
    "pair_weights",
]
