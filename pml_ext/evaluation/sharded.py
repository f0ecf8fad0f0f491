"""Evaluation by several processes: each embeds its share, and ranks its own queries among the references of all."""

import copy
from typing import Any

import torch
from torch import Tensor

from pml_ext.inputs import Array, class_ids
from pml_ext.ranks import Group, Ranks, group_of

from .accuracy import EQUALITY, RetrievalAccuracyCalculator


def sharded_accuracy(
    calculator: RetrievalAccuracyCalculator,
    embeddings: Array,
    labels: Array,
    reference: Array | None = None,
    reference_labels: Array | None = None,
    *,
    group: Any = None,
) -> dict[str, Any]:
    """Compute the metrics of the samples of all processes; each process passes its own samples, of any number.

    The values are those of one process with all samples, and the same on every process: sums and numbers of own queries
    are added up. The mean of the metrics that each process finds among its own samples is not the same; nor are metrics
    with a ``DistributedSampler``, which repeats samples to make the shares equal. For shares without repetition use
    ``Subset(data, range(rank, len(data), number_of_processes))``.

    Args:
        calculator: the metrics and their settings; NMI and AMI are computed by the first process, from all samples.
        embeddings: own queries [n_r, d].
        labels: of own queries, numbers [n_r] or [n_r, l].
        reference: own references [m_r, d] (default ``None``: the queries, each compared with the others).
        reference_labels: their labels.
        group: the processes, as in ``DistributedLoss`` (default ``None``: all; without any, those of this process).

    Returns:
        Name -> value, as ``calculator.get_accuracy``. References at equal distance may be ranked in another order.

    Raises:
        TypeError: labels are not numbers.
        ValueError: no process has a query; the calculator has a ``label_comparison_fn``; other dimensions or dtypes.

    Example:
        >>> from pml_ext.testing import run_as_ranks
        >>> embeddings = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 2.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> calculator = RetrievalAccuracyCalculator(recall_at=(1, 2, 3), include=("recall_at_2", "recall_at_3"))
        >>> def of_own_samples(group):  # two threads take the place of processes
        ...     own = slice(0, 3) if group.rank == 0 else slice(3, 4)
        ...     return sharded_accuracy(calculator, embeddings[own], labels[own], group=group)
        >>> run_as_ranks(2, of_own_samples)
        [{'recall_at_2': 0.75, 'recall_at_3': 1.0}, {'recall_at_2': 0.75, 'recall_at_3': 1.0}]
    """
    processes = group_of(group)
    if processes is None:
        return calculator.get_accuracy(embeddings, labels, reference, reference_labels)
    if (reference is None) != (reference_labels is None):
        raise ValueError("reference and reference_labels must be given together")
    if calculator.label_comparison_fn is not EQUALITY:
        raise ValueError("the calculator must compare labels by equality, it has a label_comparison_fn")
    queries, query_labels, ranks = _all(processes, embeddings, labels, calculator.device)
    refs, ref_labels = queries, query_labels
    if reference is not None and reference_labels is not None:
        refs, ref_labels, _ = _all(processes, reference, reference_labels, calculator.device)
    given = (None, None) if reference is None else (refs, ref_labels)
    whole = queries, query_labels, *given
    query_ids, ref_ids = class_ids(query_labels.cpu(), ref_labels.cpu())
    own_reference = int(reference is None)
    counts = torch.bincount(ref_ids, minlength=int(query_ids.max()) + 1 if len(query_ids) else 0)
    has_match = counts[query_ids] > own_reference
    if not has_match.any():
        return copy.deepcopy(calculator).get_accuracy(*whole)  # which says so
    metrics = list(calculator.get_function_dict())
    ranked = [name for name in metrics if name not in calculator.requires_clustering()]
    part = copy.deepcopy(calculator)
    part.avg_of_avgs, part.return_per_class = False, True
    part.k = calculator.determine_k(counts[query_ids], len(refs), bool(own_reference))
    classes, place = query_ids[has_match].unique(return_inverse=True)
    sums = torch.zeros(len(ranked) + 1, len(classes), dtype=torch.float64)
    own = ranks.own
    mine = has_match[own]
    if ranked and bool(mine.any()):
        among = _own_first(queries, query_labels, own) if reference is None else (refs, ref_labels)
        found = part.get_accuracy(queries[own], query_labels[own], *among, reference is None, ranked)
        # One number for each class of own queries, in the order of the classes.
        before = int(has_match[: own.start].sum())
        own_classes, number = place[before : before + int(mine.sum())].unique(return_counts=True)
        sums[-1, own_classes] = number.double()
        for row, name in enumerate(ranked):
            sums[row, own_classes] = torch.tensor(found[name], dtype=torch.float64) * number
    sums = processes.all_reduce(sums.to(queries.device)).cpu()
    results: dict[str, Any] = {}
    for row, name in enumerate(ranked):
        of_class = sums[row] / sums[-1]
        if calculator.return_per_class:
            results[name] = of_class.tolist()
        else:
            results[name] = float(of_class.mean() if calculator.avg_of_avgs else sums[row].sum() / sums[-1].sum())
    results |= _of_clusters(calculator, processes, whole, [name for name in metrics if name not in ranked])
    return {name: results[name] for name in metrics}


def _all(group: Group, vectors: Array, labels: Array, device: torch.device) -> tuple[Tensor, Tensor, Ranks]:
    """Vectors and labels of all processes in the order of the ranks."""
    x = torch.as_tensor(vectors, device=device).detach()
    try:
        y = torch.as_tensor(labels, device=device).detach()
    except (TypeError, ValueError) as error:
        raise TypeError(f"labels must be numbers to be exchanged, got {type(labels).__name__}: number them") from error
    if x.ndim != 2 or len(y) != len(x):
        raise ValueError(f"embeddings must be [n, d] with a label each, got {tuple(x.shape)} and {tuple(y.shape)}")
    shapes = group.all_gather(torch.tensor([len(x), x.shape[1], x.element_size(), y.element_size()], device=device))
    sizes, *kinds = shapes.T.tolist()
    if any(len(set(kind)) > 1 for kind in kinds):
        raise ValueError(f"dimensions and dtypes must be the same on all processes, got {kinds}")
    if sum(sizes) == 0:
        raise ValueError("no process has a sample: there is nothing to evaluate")
    ranks = Ranks(group, tuple(sizes))
    return ranks.all_rows(x), ranks.all_rows(y), ranks


def _own_first(x: Tensor, y: Tensor, own: slice) -> tuple[Tensor, Tensor]:
    """The references as the calculator takes those that hold the queries: these first."""
    order = torch.arange(len(x), device=x.device)
    order = torch.cat((order[own], order[: own.start], order[own.stop :]))
    return x[order], y[order]


def _of_clusters(
    calculator: RetrievalAccuracyCalculator,
    group: Group,
    whole: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    names: list[str],
) -> dict[str, Any]:
    """What the first process finds in clusters of all samples."""
    if not names:
        return {}
    values = torch.zeros(len(names), dtype=torch.float64, device=whole[0].device)
    if group.rank == 0:
        found = copy.deepcopy(calculator).get_accuracy(*whole, include=names)
        values = torch.tensor([found[name] for name in names], dtype=torch.float64, device=whole[0].device)
    return dict(zip(names, group.of_first(values).tolist(), strict=True))
