"""Testing a network on classes that it was not trained on: embeddings, and retrieval among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pytorch_metric_learning.utils.inference import FaissKMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_ext.benchmark.learning import AMP
from pml_ext.benchmark.progress import Progress
from pml_ext.evaluation import RetrievalAccuracyCalculator

RETRIEVAL = ("mean_average_precision_at_r", "r_precision")
CHOSEN_BY = "mean_average_precision_at_r"
TEST_BATCH = 128  # larger ones are slower on a CPU: their activations are memory fresh from the kernel

Metrics = dict[str, float]


class NotFinite(Exception):  # noqa: N818 - an outcome of a run, not a mistake of the caller
    """A network gives embeddings that are infinite or not a number."""


def names(recall_at: Iterable[int]) -> tuple[str, ...]:
    """The names of the metrics on test classes, in the order of the table."""
    return (*(f"recall_at_{k}" for k in recall_at), *RETRIEVAL, "NMI")


def embed(
    network: nn.Module,
    dataset: Any,
    *,
    device: torch.device,
    workers: int = 0,
    amp: str = "none",
    progress: Progress | None = None,
) -> Tensor:
    """Normalized embeddings [n, d] of a dataset, on the CPU, in float32.

    Raises:
        NotFinite: an embedding is not.
    """
    loader = DataLoader(dataset, batch_size=TEST_BATCH, num_workers=workers)
    batches = iter(loader) if progress is None else progress.images(loader, len(loader))
    training = network.training
    network.eval()
    found = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, AMP.get(amp), enabled=amp != "none"):
            for batch in batches:
                embeddings = network(batch[0].to(device)).float()
                found.append(nn.functional.normalize(embeddings).cpu())
    finally:
        network.train(training)
    embeddings = torch.cat(found).clone()
    wrong = ~embeddings.isfinite().all(1)
    if wrong.any():
        raise NotFinite(f"the embeddings of {int(wrong.sum())} of {len(wrong)} images are not finite")
    return embeddings


def measure(
    embeddings: Tensor, labels: Tensor, *, recall_at: Sequence[int], device: torch.device, clusters: bool
) -> Metrics:
    """Retrieval metrics of normalized embeddings, each compared with all others; with NMI if `clusters`."""
    calculator = RetrievalAccuracyCalculator(
        recall_at=recall_at,
        include=names(recall_at) if clusters else names(recall_at)[:-1],
        device=device,
        # PML's default, but for a warning that faiss would print at every test of classes with few images.
        kmeans_func=FaissKMeans(niter=20, gpu=device.type == "cuda", min_points_per_centroid=1),
    )
    measured = calculator.get_accuracy(embeddings, labels)
    return {name: float(measured[name]) for name in names(recall_at) if name in measured}
