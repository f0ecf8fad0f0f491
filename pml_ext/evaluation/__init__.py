"""Evaluation of embeddings: retrieval metrics with their intervals, and comparisons, with or without PML and faiss."""

from typing import TYPE_CHECKING, Any

from .chance import chance_level
from .comparison import Comparison, compare
from .consistency import ThresholdConsistency, threshold_consistency
from .intervals import (
    Difference,
    Interval,
    Standing,
    bootstrap_interval,
    bootstrap_intervals,
    mean_interval,
    paired_difference,
    standings,
)
from .knn import TorchKNN
from .retrieval import Evaluation, evaluate
from .sphere import alignment, uniformity

if TYPE_CHECKING:
    from .accuracy import RECALL_AT, RetrievalAccuracyCalculator
    from .sharded import sharded_accuracy

__all__ = [
    "RECALL_AT",
    "Comparison",
    "Difference",
    "Evaluation",
    "Interval",
    "RetrievalAccuracyCalculator",
    "Standing",
    "ThresholdConsistency",
    "TorchKNN",
    "alignment",
    "bootstrap_interval",
    "bootstrap_intervals",
    "chance_level",
    "compare",
    "evaluate",
    "mean_interval",
    "paired_difference",
    "sharded_accuracy",
    "standings",
    "threshold_consistency",
    "uniformity",
]


if not TYPE_CHECKING:  # to an editor a name that is not there is a mistake

    def __getattr__(name: str) -> Any:
        # They need pytorch-metric-learning 2, which takes seconds to import; the rest does not.
        if name in ("RECALL_AT", "RetrievalAccuracyCalculator"):
            from . import accuracy

            return getattr(accuracy, name)
        if name == "sharded_accuracy":
            from .sharded import sharded_accuracy

            return sharded_accuracy
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
