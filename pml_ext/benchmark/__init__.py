"""The main job: train one network with several losses and compare them on classes that were not trained on.

`python -m pml_ext.benchmark` is the command; from Python:

    from pml_ext.benchmark import Experiment

    results = Experiment(losses=("RAW", "ContrastiveLoss"), dataset="digits", epochs=3, out="runs/digits").run()
"""

from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.experiment import Experiment
from pml_ext.benchmark.result import Result
from pml_ext.benchmark.run import run

__all__ = ["BenchmarkError", "Experiment", "Result", "run"]
