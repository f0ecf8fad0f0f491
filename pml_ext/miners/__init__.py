"""Miners: subclasses of PML's `BaseMiner`, usable wherever a PML miner is.

A miner selects, for each anchor i, the positives P'_i among P_i and the negatives N'_i among N_i. Symbols, scores and
levels of the distance are those of `pml_ext.losses`.

Miners that draw at random use torch's global generator, or one of their own if they get a `seed`.

Short names of sources, such as DM18, are in `pml_ext.catalog.KEYS`.
"""

from pml_ext.miners.ambiguous_negative import AmbiguousNegativeMiner
from pml_ext.miners.capped import CappedMiner
from pml_ext.miners.chained import ChainedMiner
from pml_ext.miners.distance_weighted import DistanceWeightedMiner
from pml_ext.miners.exponential_positive import ExponentialPositiveMiner
from pml_ext.miners.guided import GuidedMiner
from pml_ext.miners.hard_negative_pair import HardNegativePairMiner
from pml_ext.miners.inverse_density import InverseDensityMiner
from pml_ext.miners.k_nearest_negative import KNearestNegativeMiner
from pml_ext.miners.k_nearest_positive import KNearestPositiveMiner
from pml_ext.miners.positive_aware import PositiveAwareMiner

__all__ = [
    "AmbiguousNegativeMiner",
    "CappedMiner",
    "ChainedMiner",
    "DistanceWeightedMiner",
    "ExponentialPositiveMiner",
    "GuidedMiner",
    "HardNegativePairMiner",
    "InverseDensityMiner",
    "KNearestNegativeMiner",
    "KNearestPositiveMiner",
    "PositiveAwareMiner",
]
