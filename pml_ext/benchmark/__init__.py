"""Experiments: train one network with several losses and compare them on classes that were not trained on.

`python -m pml_ext.benchmark` is the command; from Python:

    from pml_ext.benchmark import Experiment

    results = Experiment(losses=("RAW", "ContrastiveLoss"), data="digits", epochs=3, out="runs/digits").run()
"""

from typing import TYPE_CHECKING, Any

from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.errors import BenchmarkError

if TYPE_CHECKING:
    from pml_ext.benchmark.result import Result
    from pml_ext.benchmark.results import Results
    from pml_ext.benchmark.runs import run

__all__ = ["BenchmarkError", "Experiment", "Result", "Results", "run"]


if not TYPE_CHECKING:  # to an editor a name that is not there is a mistake

    def __getattr__(name: str) -> Any:
        # The command must be able to say what is wrong with its arguments before it has imported torch.
        if name == "Result":
            from pml_ext.benchmark.result import Result

            return Result
        if name == "Results":
            from pml_ext.benchmark.results import Results

            return Results
        if name == "run":
            from pml_ext.benchmark.runs import run

            return run
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
