"""Retrieval metrics of embeddings, in plain torch: their means, and the value of every query."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pml_ext import arguments
from pml_ext.inputs import Array, checked_embeddings, checked_labels, class_ids, loaded
from pml_ext.shown import table

from .clustering import scikit_kmeans
from .intervals import Interval, bootstrap_intervals
from .scores import Ignored, reciprocal_rank, retrieval_scores, shares_below, vote_is_right

AT_K: Final = ("recall", "precision", "ir_recall", "knn_accuracy")
OF_THE_RANKING: Final = (
    "mean_average_precision_at_r",
    "r_precision",
    "mean_average_precision",
    "mean_reciprocal_rank",
)
WIDE = 118  # letters of a line
CLUSTERING: Final = ("NMI", "AMI")
METRICS: Final = (*AT_K, *OF_THE_RANKING, *CLUSTERING)


@dataclass(frozen=True, repr=False, eq=False)
class PerQuery(Mapping[str, Tensor]):
    """The metrics of every query, by name: [q] each in float64. Recall is computed from the ranks on access.

    Args:
        names: of the metrics, in order.
        values_of: the metrics other than recall.
        first: the rank of each query's first match, from 0; -1 where it has none.
        recall_at: name -> k.
    """

    names: tuple[str, ...]
    values_of: dict[str, Tensor]
    first: Tensor
    recall_at: dict[str, int]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.recall_at:
            return self.values_of[name]
        return torch.where(self.first < 0, torch.nan, (self.first < self.recall_at[name]).double())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def means(self) -> dict[str, float]:
        """The mean of each over the queries that have a match; NaN if there is none. Recall is one histogram."""
        found = {name: float(values.nanmean()) for name, values in self.values_of.items()}
        first = self.first[self.first >= 0]
        ks = torch.tensor([*self.recall_at.values()], dtype=first.dtype, device=first.device)
        if len(first):
            recalls = shares_below(first, ks, torch.zeros_like(first), torch.full_like(first[:1], len(first)))[0]
        else:
            recalls = torch.full(ks.shape, torch.nan)
        return found | dict(zip(self.recall_at, recalls.tolist(), strict=True))


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Mapping[str, float]):
    """The result of :func:`evaluate`: a mapping from names to means that also has the value of every query.

    Args:
        means: name -> mean over the queries that have a match; NaN if there is none.
        per_query: name -> [q] in float64, NaN for a query without a match; none for NMI and AMI.
        query_classes: the class of each query, an integer from 0 in the order of the labels [q].
        gallery_size: how many references there are.
    """

    means: dict[str, float]
    per_query: Mapping[str, Tensor]
    query_classes: Tensor
    gallery_size: int

    def __getitem__(self, name: str) -> float:
        return self.means[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.means)

    def __len__(self) -> int:
        return len(self.means)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The 95 % bootstrap intervals over the queries of all metrics but NMI and AMI."""
        return bootstrap_intervals(self.per_query)

    def intervals_over_classes(self) -> dict[str, Interval]:
        """The same over classes: the queries of a class are drawn together, so the intervals hold for other classes."""
        return bootstrap_intervals(self.per_query, groups=self.query_classes)

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(len(name), len(cell)) for name, cell in cells]
        if sum(widths) + 2 * len(widths) > WIDE:
            width = max(map(len, self), default=0)
            return "\n".join([*(f"{name:{width}}  {cell}" for name, cell in cells), self._note()])
        row = ("  ".join(map(str.ljust, column, widths)).rstrip() for column in zip(*cells, strict=True))
        return "\n".join([*row, self._note()])

    def _repr_html_(self) -> str:
        cells = self._cells()
        return table(["", *(name for name, _ in cells)], [("mean", *(cell for _, cell in cells))], notes=[self._note()])

    def _cells(self) -> list[tuple[str, str]]:
        """The name of each metric, and its mean with the interval."""
        found = []
        for name, mean in self.items():
            interval = self.intervals.get(name)
            bounds = "" if interval is None else f" [{interval.low:.4f}, {interval.high:.4f}]"
            found.append((name, f"{mean:.4f}{bounds}"))
        return found

    def _note(self) -> str:
        queries = len(self.query_classes)
        note = f"{queries:,} queries of {len(self.query_classes.unique()):,} classes, {self.gallery_size:,} references"
        if self.per_query:
            without = int(next(iter(self.per_query.values())).isnan().sum())
            note += f"; {without:,} queries without a match are left out" if without else ""
            note += "; 95 % by bootstrap over queries"
        return note


def evaluate(
    embeddings: Array | str | Path,
    labels: Array | str | Path,
    *,
    k: int | Sequence[int] = (1, 2, 4, 8),
    metrics: Sequence[str] = ("recall", "mean_average_precision_at_r", "r_precision"),
    query: Array | None = None,
    gallery: Array | None = None,
    groups: Array | None = None,
    ignore: Array | None = None,
    normalize: bool = False,
    device: torch.device | str | None = None,
) -> Evaluation:
    r"""Measure how well the nearest neighbors of each embedding share its label.

    With :math:`h_j = 1` if the j-th nearest reference of a query has its label and otherwise 0, and R the number of
    references that have it:

    .. math::

        \text{recall\_at\_k} &= \max_{j \le k} h_j &&\text{(one of k)} \\
        \text{precision\_at\_k} &= \tfrac1k \textstyle\sum_{j \le k} h_j \\
        \text{ir\_recall\_at\_k} &= \tfrac1R \textstyle\sum_{j \le k} h_j &&\text{(recall of information retrieval)} \\
        \text{knn\_accuracy\_at\_k} &= [\text{most of the k nearest have the label}]
            &&\text{(ties: label of the nearest)} \\
        \text{r\_precision} &= \tfrac1R \textstyle\sum_{j \le R} h_j \\
        \text{mean\_average\_precision\_at\_r} &=
            \tfrac1R \textstyle\sum_{j \le R} \tfrac{h_j}{j} \sum_{i \le j} h_i \\
        \text{mean\_average\_precision} &= \tfrac1R \textstyle\sum_j \tfrac{h_j}{j} \sum_{i \le j} h_i \\
        \text{mean\_reciprocal\_rank} &= 1 / \min \{ j : h_j = 1 \}

    each averaged over the queries that have a match, R > 0. NMI and AMI compare the labels of the queries with the
    clusters of their embeddings.

    Args:
        embeddings: [n, d], or a file ``.npy`` of them.
        labels: [n] or [n, l], numbers or strings, or a file ``.npy`` of them; a row of l labels is one label.
        k: depths of the metrics at k, one integer of at least 1 or several (default ``(1, 2, 4, 8)``).
        metrics: names from ``recall``, ``precision``, ``ir_recall``, ``knn_accuracy`` (each at all k) and
            ``mean_average_precision_at_r``, ``r_precision``, ``mean_average_precision``, ``mean_reciprocal_rank``,
            ``NMI``, ``AMI`` (default: recall, MAP@R and R-precision).
        query: which of the embeddings are queries, booleans [n] or indices (default ``None``: all).
        gallery: which of them are references; a query is not a reference of its own (default ``None``: all).
        groups: [n] or [n, l]; a query ignores the references of its own group, for example other frames of its
            sequence; with rows (label, camera), images of the same object by the same camera, as in person
            re-identification (default ``None``: no groups).
        ignore: which references each query ignores, booleans [queries, references] (default ``None``: none).
        normalize: divide each embedding by its norm, so that the nearest reference is the one with the largest cosine
            (default ``False``).
        device: device to compute on (default ``None``: that of the embeddings).

    Returns:
        Name -> mean, in the order of ``metrics`` and ``k``, with the value of each query.

    Raises:
        TypeError: ``k`` is not a sequence of integers; ``metrics`` is not a sequence of names; labels are neither
            numbers nor strings.
        ValueError: the shapes do not fit; an embedding is NaN or infinite; ``k`` or ``metrics`` is empty, or has a
            repeated or invalid value; there is no query or no reference; a file does not hold an array.

    Warns:
        UserWarning: no query has a match.

    Source:
        Equal to :class:`RetrievalAccuracyCalculator`, which has the sources of its metrics, and with ``k=None`` there
        for ``mean_average_precision`` and ``mean_reciprocal_rank``; it needs pytorch-metric-learning 2, this function
        does not.

    Example:
        >>> embeddings = [[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 2.0], [0.0, 5.0]]
        >>> evaluation = evaluate(embeddings, ["a", "a", "b", "b", "a"], k=(1, 2, 3), metrics=("recall", "r_precision"))
        >>> dict(evaluation)
        {'recall_at_1': 0.0, 'recall_at_2': 0.6, 'recall_at_3': 1.0, 'r_precision': 0.2}
        >>> evaluation.per_query["r_precision"].tolist()
        [0.5, 0.5, 0.0, 0.0, 0.0]
    """
    ks, names = arguments.counts("k", (k,) if isinstance(k, int) else k, distinct=True), _checked_metrics(metrics)
    embeddings, labels = loaded("embeddings", embeddings), loaded("labels", labels)
    device = torch.device(device or (embeddings.device if isinstance(embeddings, Tensor) else "cpu"))
    x = checked_embeddings("embeddings", embeddings, device)
    (classes,) = class_ids(checked_labels("labels", labels, len(x)))
    classes = classes.to(device)
    if normalize:
        x = torch.nn.functional.normalize(x, dim=1)
    queries, references = positions("query", query, len(x), device), positions("gallery", gallery, len(x), device)
    passed_over = _passed_over(groups, ignore, queries, references, len(x))

    place = torch.full((len(x),), -1, device=device)
    place[references] = torch.arange(len(references), device=device)
    own = place[queries]
    first, values_of = torch.full_like(queries, -1), dict[str, Tensor]()
    # All of them are themselves, without a copy, and its own references.
    among = x if gallery is None else x[references]
    for some in ((own >= 0).nonzero()[:, 0], (own < 0).nonzero()[:, 0]):
        if len(some) and not set(names) <= set(CLUSTERING):
            ranks, found = _scores(
                names,
                ks,
                x if query is None and len(some) == len(x) else x[queries[some]],
                classes[queries[some]],
                among,
                classes[references],
                own[some] if own[some[0]] >= 0 else None,
                None if passed_over is None else partial(_of_some, passed_over, some),
            )
            first[some] = ranks
            for name, values in found.items():
                values_of.setdefault(name, values.new_full((len(queries),), torch.nan))[some] = values
    ordered = [full for name in names for full in ([f"{name}_at_{i}" for i in ks] if name in AT_K else [name])]
    per_query = PerQuery(
        tuple(name for name in ordered if name not in CLUSTERING),
        {name: values.cpu() for name, values in values_of.items()},
        first.cpu(),
        {f"recall_at_{k}": k for k in ks} if "recall" in names else {},
    )
    means = per_query.means()
    if per_query and all(map(np.isnan, means.values())):
        warnings.warn("no query has a reference with its label", stacklevel=2)
    clusters = [name for name in names if name in CLUSTERING]
    if clusters:
        means |= _clustering(clusters, x[queries], classes[queries])
    query_classes = classes[queries].unique(return_inverse=True)[1]
    return Evaluation(
        {name: means[name] for name in ordered},
        per_query,
        query_classes.cpu(),
        len(references),
    )


def _scores(
    names: Sequence[str],
    ks: Sequence[int],
    query: Tensor,
    query_classes: Tensor,
    reference: Tensor,
    reference_classes: Tensor,
    own: Tensor | None,
    ignored: Ignored | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The rank of the first match of each query [n], -1 where it has none, and all metrics but recall, NaN there."""
    data = (query, query_classes, reference, reference_classes, own)
    m = len(reference)
    counted = not {"precision", "ir_recall"}.isdisjoint(names)
    scores = retrieval_scores(
        *data,
        m,
        at_r=not {"mean_average_precision_at_r", "r_precision"}.isdisjoint(names),
        at_k="mean_average_precision" in names,
        hits_at=ks if counted else (),
        ignored=ignored,
    )
    first, matches = scores.first_match_rank, scores.matches
    values: dict[str, Tensor | None] = {
        "mean_average_precision_at_r": scores.average_precision_at_r,
        "r_precision": scores.r_precision,
        "mean_average_precision": scores.average_precision,
        "mean_reciprocal_rank": reciprocal_rank(first, m),
    }
    votes = vote_is_right(*data, ks, ignored=ignored) if "knn_accuracy" in names else None
    for column, k in enumerate(ks):
        if counted:
            values[f"precision_at_{k}"] = scores.hits[:, column].double() / k
            values[f"ir_recall_at_{k}"] = scores.hits[:, column].double() / matches
        if votes is not None:
            values[f"knn_accuracy_at_{k}"] = votes[:, column]
    chosen = {name for name in values if name in names or name.rpartition("_at_")[0] in set(names) & set(AT_K)}
    return torch.where(matches > 0, first, -1), {
        name: torch.where(matches > 0, x.double(), torch.nan)
        for name, x in values.items()
        if name in chosen and x is not None
    }


def _clustering(names: Sequence[str], x: Tensor, classes: Tensor) -> dict[str, float]:
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    functions = {"NMI": normalized_mutual_info_score, "AMI": adjusted_mutual_info_score}
    clusters = scikit_kmeans(x, len(classes.unique())).cpu().numpy()
    return {name: float(functions[name](classes.cpu().numpy(), clusters)) for name in names}


def _passed_over(
    groups: Array | None, ignore: Array | None, queries: Tensor, references: Tensor, n: int
) -> Ignored | None:
    """Return the function from places among the queries to what they pass over [r, m]."""
    of_group = mask = None
    if groups is not None:
        (of_group,) = class_ids(checked_labels("groups", groups, n))
        of_group = of_group.to(queries.device)
    if ignore is not None:
        mask = torch.as_tensor(ignore)
        if mask.dtype != torch.bool or mask.shape != (len(queries), len(references)):
            raise ValueError(
                f"ignore must be booleans of shape {(len(queries), len(references))}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )

    def passed_over(rows: Tensor) -> Tensor:
        result = torch.zeros(len(rows), len(references), dtype=torch.bool, device=rows.device)
        if of_group is not None:
            result |= of_group[queries[rows], None] == of_group[references]
        if mask is not None:
            result |= mask[rows.to(mask.device)].to(rows.device)
        return result

    return None if of_group is None and mask is None else passed_over


def _of_some(passed_over: Ignored, some: Tensor, rows: Tensor) -> Tensor:
    return passed_over(some[rows])


def positions(name: str, chosen: Array | None, n: int, device: torch.device) -> Tensor:
    """Return the indices [q] that booleans [n] or indices choose."""
    if chosen is None:
        places = torch.arange(n, device=device)
    else:
        given = torch.as_tensor(chosen)
        if given.dtype == torch.bool:
            if given.shape != (n,):
                raise ValueError(f"{name} must be booleans of shape {(n,)}, got shape {tuple(given.shape)}")
            places = given.nonzero()[:, 0]
        elif given.ndim == 1 and not given.is_floating_point():
            places = given.long()
            if len(places) and (places.min() < 0 or places.max() >= n or len(places.unique()) < len(places)):
                raise ValueError(f"{name} must be different indices from 0 to {n - 1}, got {places.tolist()!r:.80}")
        else:
            raise ValueError(
                f"{name} must be booleans [{n}] or indices, got {given.dtype} of shape {tuple(given.shape)}"
            )
    if len(places) == 0:
        raise ValueError(f"{name} is empty: there is nothing to evaluate")
    return places.to(device)


def _checked_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"metrics must be a sequence of names, got {metrics!r}")
    unknown: list[Any] = [name for name in metrics if name not in METRICS]
    if unknown or not metrics or len(set(metrics)) < len(metrics):
        raise ValueError(f"metrics must be different names from {', '.join(METRICS)}, got {metrics!r}")
    return tuple(metrics)
