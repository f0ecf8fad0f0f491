"""Testing a network on the classes that it was not trained on, with PML's tester and calculator."""

from __future__ import annotations

from pathlib import Path

from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils.inference import FaissKMeans
from torch import Tensor

from pml_ext.benchmark import checkpoint, randomness, records
from pml_ext.benchmark.checkpoint import UNTRAINED
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.experiment import Experiment
from pml_ext.benchmark.network import EmbeddingNetwork
from pml_ext.benchmark.progress import Progress
from pml_ext.evaluation import RetrievalAccuracyCalculator

RECALL_AT = (1, 2, 4, 8)
METRICS = (*(f"recall_at_{k}" for k in RECALL_AT), "mean_average_precision_at_r", "r_precision", "NMI")
TEST_BATCH = 128  # larger ones are slower on a CPU: their activations are memory fresh from the kernel

Metrics = dict[str, float]


def new_network(experiment: Experiment, data: Data, seed: int) -> EmbeddingNetwork:
    """The untrained network of a seed, the same for every loss."""
    randomness.seed_everything(seed)
    network = EmbeddingNetwork(data.train.image_shape, experiment.embedding_size)
    return network.to(experiment.torch_device())


def new_tester(experiment: Experiment) -> GlobalEmbeddingSpaceTester:
    """PML's tester for retrieval among the images of the unseen classes, on normalised embeddings."""
    device = experiment.torch_device()
    return GlobalEmbeddingSpaceTester(
        batch_size=TEST_BATCH,
        dataloader_num_workers=0,
        data_device=device,
        accuracy_calculator=RetrievalAccuracyCalculator(
            recall_at=RECALL_AT,
            include=METRICS,
            device=device,
            # PML's default, but for a warning that faiss would print at every test of classes with few images.
            kmeans_func=FaissKMeans(niter=20, gpu=device.type == "cuda", min_points_per_centroid=1),
        ),
    )


def metrics_of(tester: GlobalEmbeddingSpaceTester) -> Metrics:
    """What the last test of a tester has measured."""
    measured = tester.all_accuracies["test"]
    return {name: float(measured[tester.accuracies_keyname(name)]) for name in METRICS}


def test_untrained(experiment: Experiment, data: Data, seed: int, folder: Path, progress: Progress) -> Metrics:
    """Test the network of a seed before training, and record the result as epoch 0."""
    tester = new_tester(experiment)
    with records.keeping(folder) as keeper:
        tester.end_of_testing_hook = records.hooks(keeper).end_of_testing_hook
        progress.who = f"{UNTRAINED} seed {seed}"
        with progress.bars_of_pml():
            tester.test({"test": data.test}, 0, *new_network(experiment, data, seed).parts().values())
        keeper.save_records()
    return metrics_of(tester)


def embeddings_of(experiment: Experiment, data: Data, out: Path, name: str, seed: int) -> Tensor:
    """Normalised embeddings of the test images, [n, d], by the network of a finished run."""
    network = new_network(experiment, data, seed)
    if name != UNTRAINED:
        saved = checkpoint.load(checkpoint.run_folder(out, name, seed), experiment.torch_device())
        if saved is None:
            raise BenchmarkError(f"the checkpoint of {name}, seed {seed}, is gone from {out}: no plots")
        for part, module in network.parts().items():
            module.load_state_dict(saved["models"][part])
    with Progress(0, shown=False).bars_of_pml():
        embeddings, _ = new_tester(experiment).get_all_embeddings(data.test, *network.parts().values())
    on_cpu: Tensor = embeddings.cpu()
    return on_cpu
