"""Testing a network on classes that it was not trained on: embeddings, and retrieval among them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from pml_ext.benchmark.learning import AMP
from pml_ext.benchmark.processes import ALONE, Team
from pml_ext.benchmark.progress import Progress
from pml_ext.evaluation import Evaluation, chance_level, evaluate

RETRIEVAL = ("mean_average_precision_at_r", "r_precision")
CHOSEN_BY = "mean_average_precision_at_r"
CLUSTERS = 2000  # test classes, above which NMI would take longer than all the rest
TEST_BATCH = 128  # larger ones are slower on a CPU: their activations are memory fresh from the kernel

Metrics = dict[str, float]


class NotFinite(Exception):  # noqa: N818 - an outcome of a run, not a mistake of the caller
    """A network gives embeddings that are infinite or not a number."""


def names(recall_at: Iterable[int]) -> tuple[str, ...]:
    """The names of the metrics on test classes, in the order of the table."""
    return (*(f"recall_at_{k}" for k in sorted(recall_at)), *RETRIEVAL, "NMI")


def embed(
    network: nn.Module,
    dataset: Any,
    *,
    device: torch.device,
    workers: int = 0,
    amp: str = "none",
    progress: Progress | None = None,
    team: Team = ALONE,
) -> Tensor:
    """Normalized embeddings [n, d] of a dataset, on the CPU, in float32; each process of a team embeds its share.

    Raises:
        NotFinite: an embedding is not.
    """
    number = len(dataset)
    is_shared = team.size > 1 and number >= team.size
    part = Subset(dataset, range(number)[team.share(number)]) if is_shared else dataset
    loader = DataLoader(part, batch_size=TEST_BATCH, num_workers=workers)
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
    embeddings = team.all_rows(torch.cat(found), number) if is_shared else torch.cat(found).clone()
    wrong = ~embeddings.isfinite().all(1)
    if wrong.any():
        raise NotFinite(f"the embeddings of {int(wrong.sum())} of {len(wrong)} images are not finite")
    return embeddings


def measure(
    embeddings: Tensor,
    dataset: Any,
    *,
    recall_at: Sequence[int],
    device: torch.device,
    clusters: bool,
    team: Team = ALONE,
) -> Evaluation:
    """Retrieval metrics of the normalized embeddings of a dataset, with NMI if `clusters`.

    Each is compared with all others; where the dataset has a query and a gallery, these with those, and not with what
    is of the query's own sequence. Each process of a team ranks its share of the queries.
    """
    some_clusters = clusters and len(torch.unique(dataset.labels)) <= CLUSTERS
    of_all = partial(
        evaluate,
        embeddings.to(device),
        dataset.labels,
        k=recall_at,
        gallery=getattr(dataset, "gallery", None),
        groups=getattr(dataset, "sequences", None),
    )
    names = ("recall", *RETRIEVAL, *(("NMI",) if some_clusters else ()))
    query = getattr(dataset, "query", None)
    if team.size == 1:
        return of_all(metrics=names, query=query)
    return _together(team, of_all, names, dataset, query)


def _together(
    team: Team, of_all: Callable[..., Evaluation], names: tuple[str, ...], dataset: Any, query: Any
) -> Evaluation:
    """What one process would measure, of the own queries of each."""
    queries = torch.arange(len(dataset.labels)) if query is None else _indices(query)
    if len(queries) < team.size:
        return of_all(metrics=names, query=query)
    ranked = tuple(name for name in names if name != "NMI")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no query has a reference")  # of own ones
        found = of_all(metrics=ranked, query=queries[team.share(len(queries))])
    per_query = {name: team.all_rows(values, len(queries)) for name, values in found.per_query.items()}
    means = {name: float(values.nanmean()) for name, values in per_query.items()}
    if "NMI" in names:
        means |= team.first(lambda: dict(of_all(metrics=("NMI",), query=query)))
    classes = torch.as_tensor(dataset.labels)[queries].unique(return_inverse=True)[1]
    return Evaluation(means, per_query, classes, found.gallery_size)


def _indices(query: Any) -> Tensor:
    given = torch.as_tensor(query)
    return given.nonzero()[:, 0] if given.dtype == torch.bool else given


def by_chance(dataset: Any) -> str:
    """The recall@1 and MAP@R of embeddings of a dataset that know nothing, for people."""
    found = chance_level(
        dataset.labels,
        k=1,
        query=getattr(dataset, "query", None),
        gallery=getattr(dataset, "gallery", None),
        groups=getattr(dataset, "sequences", None),
    )
    return f"recall@1 {_percent(found['recall_at_1'])}, MAP@R {_percent(found[CHOSEN_BY])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


def per_query(evaluation: Evaluation) -> bytes:
    """What each query of a test has, as an .npz file: recall@1, average precision at R and the query's class."""
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        recall_at_1=evaluation.per_query["recall_at_1"].numpy().astype(np.float32),
        mean_average_precision_at_r=evaluation.per_query[CHOSEN_BY].numpy().astype(np.float32),
        query_classes=evaluation.query_classes.numpy(),
    )
    return stream.getvalue()
