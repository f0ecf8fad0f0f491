"""Miners: subclasses of PML's `BaseMiner`, usable wherever a PML miner is."""

from pml_ext.miners.hard_negative_pair import HardNegativePairMiner
from pml_ext.miners.inverse_density import InverseDensityMiner

__all__ = ["HardNegativePairMiner", "InverseDensityMiner"]
