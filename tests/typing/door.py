"""What an editor knows of the door: checked by `mypy tests/typing` and `pyright tests/typing`, never run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import assert_type

import pml_ext
from pml_ext.analysis import Diagnosis, PairWeights
from pml_ext.benchmark import Result, Results
from pml_ext.benchmark.advice import Choice
from pml_ext.benchmark.explained import Explanation
from pml_ext.benchmark.index import Index, Match, Matches
from pml_ext.benchmark.mistakes import Mistake, Mistakes
from pml_ext.benchmark.saved import EmbeddingModel
from pml_ext.catalog import Recipe
from pml_ext.datasets import Samples
from pml_ext.evaluation import Comparison, Difference, Evaluation
from pml_ext.losses import RAWLoss
from pml_ext.miners import GuidedMiner
from pml_ext.testing import LawTable
from pml_ext.wrappers import BranchLoss

embeddings, labels = torch.randn(4, 3), torch.arange(4)

experiment = pml_ext.Experiment(data="digits", losses=["RAW", RAWLoss()], seeds=3)
results = experiment.run(callbacks=[print])
assert_type(results, Results)
assert_type(results[0], Result)
assert_type(results["RAW"], Results)
assert_type(results.curves(), Figure)
assert_type(results.recall(), Figure)
assert_type(results.gallery(), Figure)
assert_type(results.projection(), Figure)
assert_type(results.health(), Figure)
assert_type(results.mistakes(10), Mistakes)
assert_type(results.mistakes(10)[0], Mistake)
assert_type(results.out, Path)
assert_type(results[0].metrics, dict[str, float])

model = results.best()
assert_type(model, EmbeddingModel)
assert_type(pml_ext.load("runs/x/best"), EmbeddingModel)
assert_type(model.embed(["new.jpg"]), Tensor)
assert_type(model.index("photos/"), Index)
assert_type(model.query("new.jpg", k=8), Matches)
assert_type(model.query("new.jpg")[0], Match)
assert_type(pml_ext.export(model, "model.onnx"), float)

assert_type(pml_ext.evaluate(embeddings, labels, k=(1, 5)), Evaluation)
assert_type(pml_ext.evaluate([[0.0]], [0], k=1)["recall_at_1"], float)
assert_type(pml_ext.compare(np.zeros((4, 3)), embeddings, labels), Comparison)
assert_type(pml_ext.compare(embeddings, embeddings, labels)["recall_at_1"], Difference)
assert_type(pml_ext.diagnose(embeddings, labels), Diagnosis)
assert_type(pml_ext.explain("RAW"), Explanation)
assert_type(pml_ext.choose(classes=100, images_per_class=5), Choice)
assert_type(pml_ext.laws(RAWLoss), LawTable)
assert_type(pml_ext.pair_weights(RAWLoss(), embeddings, labels), PairWeights)
assert_type(pml_ext.pair_weights(RAWLoss(), [[0.0]], [0]).weights, Tensor)
assert_type(pml_ext.datasets.open("photos/"), Samples)

assert_type(BranchLoss(RAWLoss(), sizes=2)(embeddings, labels), Tensor)
assert_type(GuidedMiner()(embeddings, labels), tuple[Tensor, ...])

recipe = pml_ext.catalog.build("RAW")
assert_type(recipe, Recipe)
assert_type(recipe(embeddings, labels), Tensor)


def not_known(anything: Any) -> None:
    """Typos that an editor must mark: each line is an error, and one that is none would be one."""
    pml_ext.Experiment(loses=["RAW"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    results.curve()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    pml_ext.evaluate(embeddings, labels, norm=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    _ = pml_ext.explian  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
