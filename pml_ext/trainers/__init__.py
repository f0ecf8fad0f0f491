"""Methods that train more than an embedding, and their parts: for any loop, and as trainers of PML 2.

`HardnessAwareTrainer` and `hardness_aware_trainer` build on PML 2's `BaseTrainer`, which PML 3 does not have.
Everything else works with both; `HardnessAwareLoss` is the same method for any training loop.
"""

from typing import TYPE_CHECKING, Any

from pml_ext import _pml
from pml_ext.trainers.cached import Cached
from pml_ext.trainers.generator import FeatureGenerator
from pml_ext.trainers.hardness_aware_loss import HardnessAwareLoss, HardnessAwareTerms
from pml_ext.trainers.n_pair_loss import NPairTupleLoss
from pml_ext.trainers.schedule import HardnessSchedule
from pml_ext.trainers.tuples import NPairTupleMiner, RandomTupleMiner

if TYPE_CHECKING:
    from pml_ext.trainers.hardness_aware import HardnessAwareTrainer, hardness_aware_trainer

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

_OF_PML_2 = ("HardnessAwareTrainer", "hardness_aware_trainer")
if _pml.HAS_TERMS:
    __all__ = [name for name in __all__ if name not in _OF_PML_2]


def __getattr__(name: str) -> Any:
    if name in _OF_PML_2:
        from pml_ext.trainers import hardness_aware

        return getattr(hardness_aware, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
