"""Trainers: methods that train more than an embedding, on PML's `BaseTrainer`, and their parts."""

from pml_ext.trainers.cached import Cached
from pml_ext.trainers.generator import FeatureGenerator
from pml_ext.trainers.hardness_aware import HardnessAwareTrainer, hardness_aware_trainer
from pml_ext.trainers.hardness_aware_loss import HardnessAwareLoss, HardnessAwareTerms
from pml_ext.trainers.n_pair_loss import NPairTupleLoss
from pml_ext.trainers.schedule import HardnessSchedule
from pml_ext.trainers.tuples import NPairTupleMiner, RandomTupleMiner

__all__ = [
    "Cached",
    "FeatureGenerator",
    "HardnessAwareLoss",
    "HardnessAwareTerms",
    "HardnessAwareTrainer",
    "HardnessSchedule",
    "NPairTupleLoss",
    "NPairTupleMiner",
    "RandomTupleMiner",
    "hardness_aware_trainer",
]
