"""Hard-mining and pair-weighting losses, miners and trainers for pytorch-metric-learning.

Names are imported on first use, so that `import pml_ext` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pml_ext import (
        analysis,
        benchmark,
        catalog,
        centers,
        datasets,
        evaluation,
        extend,
        losses,
        miners,
        mining,
        spaces,
        stock,
        testing,
        trainers,
        weightings,
        wrappers,
    )
    from pml_ext.analysis import diagnose
    from pml_ext.analysis.pair_weights import pair_weights
    from pml_ext.benchmark import Experiment
    from pml_ext.benchmark.advice import choose
    from pml_ext.benchmark.explained import explain
    from pml_ext.benchmark.export import export
    from pml_ext.benchmark.lawful import laws
    from pml_ext.benchmark.saved import load
    from pml_ext.benchmark.search import tune
    from pml_ext.evaluation import compare, evaluate
    from pml_ext.mining import mine
    from pml_ext.pairs import PairMasks
    from pml_ext.stock import accelerate

__version__ = "0.1.0"

__all__ = [
    "Experiment",
    "PairMasks",
    "accelerate",
    "analysis",
    "benchmark",
    "catalog",
    "centers",
    "choose",
    "compare",
    "datasets",
    "diagnose",
    "evaluate",
    "evaluation",
    "explain",
    "export",
    "extend",
    "laws",
    "load",
    "losses",
    "mine",
    "miners",
    "mining",
    "pair_weights",
    "spaces",
    "stock",
    "testing",
    "trainers",
    "tune",
    "weightings",
    "wrappers",
]

# Where the words stand that are no modules. None of them may be the name of one: importing it would take their place.
_WORDS = {
    "Experiment": "benchmark",
    "PairMasks": "pairs",
    "accelerate": "stock",
    "choose": "benchmark.advice",
    "compare": "evaluation",
    "diagnose": "analysis",
    "evaluate": "evaluation",
    "explain": "benchmark.explained",
    "export": "benchmark.export",
    "laws": "benchmark.lawful",
    "load": "benchmark.saved",
    "mine": "mining",
    "pair_weights": "analysis.pair_weights",
    "tune": "benchmark.search",
}


if not TYPE_CHECKING:  # to an editor a name that is not there is a mistake

    def __getattr__(name: str) -> Any:
        if name in _WORDS:
            return getattr(import_module(f"{__name__}.{_WORDS[name]}"), name)
        if name in __all__:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
