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
from pml_ext.extend import RowLoss
from pml_ext.losses import CenterLoss, HistogramLoss, RAWLoss
from pml_ext.miners import GuidedMiner, InverseDensityMiner, KNearestNegativeMiner
from pml_ext.testing import LawTable
from pml_ext.wrappers import BranchLoss, CrossBatchMemory, MinedLoss, RandomSliceLoss

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

assert_type(RAWLoss(gamma=0.4, chunk_size=32, embedding_reg_weight=0.1)(embeddings, labels), Tensor)
assert_type(CenterLoss(num_classes=4, embedding_size=3)(embeddings, labels), Tensor)
assert_type(HistogramLoss()(embeddings, labels), Tensor)
assert_type(BranchLoss(RAWLoss(), sizes=2)(embeddings, labels), Tensor)
assert_type(MinedLoss(RAWLoss(), KNearestNegativeMiner(k=4))(embeddings, labels), Tensor)
assert_type(CrossBatchMemory(RAWLoss(), 3)(embeddings, labels), Tensor)
assert_type(GuidedMiner()(embeddings, labels), tuple[Tensor, ...])
assert_type(KNearestNegativeMiner(as_masks=True)(embeddings, labels), tuple[Tensor, ...])
assert_type(InverseDensityMiner(seed=1)(embeddings, labels), tuple[Tensor, ...])

recipe = pml_ext.catalog.build("RAW")
assert_type(recipe, Recipe)
assert_type(recipe(embeddings, labels), Tensor)


class PushLoss(RowLoss):
    """A loss of one's own."""

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """The mean of each row's negatives."""
        return (sim * neg).mean(-1)


assert_type(PushLoss(chunk_size=8)(embeddings, labels), Tensor)


def not_known(anything: Any) -> None:
    """Typos that an editor must mark: each line is an error, and one that is none would be one."""
    pml_ext.Experiment(loses=["RAW"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    results.curve()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    pml_ext.evaluate(embeddings, labels, norm=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RAWLoss(gama=0.4)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RAWLoss(alpha="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RAWLoss(reducer="mean")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HistogramLoss(chunk_size=8)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    KNearestNegativeMiner(seed=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    MinedLoss(3, KNearestNegativeMiner())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RandomSliceLoss(RAWLoss(), sizes=2, sed=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    _ = pml_ext.explian  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
