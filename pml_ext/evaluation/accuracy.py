"""Recall at any k and PML's metrics, in a calculator that PML 2's testers take in place of their own."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor

from pml_ext import arguments, thresholds
from pml_ext.inputs import Array, Strings, checked_embeddings, checked_labels, class_ids, warn_of_own

from .clustering import scikit_kmeans
from .knn import TorchKNN
from .scores import reciprocal_rank, retrieval_scores, shares_below

EQUALITY = torch.eq
LOGGER = logging.getLogger("pml_ext")
KNN = Callable[[Tensor, int, Tensor, bool], tuple[Tensor, Tensor]]

RECALL_AT: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "cub": (1, 2, 4, 8, 16, 32),
        "cars": (1, 2, 4, 8, 16, 32),
        "sop": (1, 10, 100, 1000),
        "in_shop": (1, 10, 20, 30, 40, 50),
    }
)
"""The k at which the literature reports recall on CUB-200-2011, Cars-196, Stanford Online Products (Oh Song et al.,
"Deep metric learning via lifted structured feature embedding", 2016) and In-Shop (Liu et al., "DeepFashion", 2016)."""


class RetrievalAccuracyCalculator:
    r"""The metrics of PML 2's ``AccuracyCalculator`` and recall at any list of k, exact in the corner cases.

    .. math::

        \text{recall@}k = \frac{1}{|Q|} \sum_{q \in Q}
            \big[ \text{one of the } k \text{ nearest references of } q \text{ has its label} \big]

    where Q are the queries whose label occurs among the references at all, the query itself not counted; with no such
    query the value is NaN. Every k gives one metric, ``recall_at_1``, ``recall_at_2``, ..., a float (a list with
    ``return_per_class``), beside those of PML 2. Its testers take this for their ``accuracy_calculator``.

    Args:
        recall_at: the k of recall@k, integers from 1 (default ``(1, 2, 4, 8)``); :data:`RECALL_AT` has those of the
            literature.
        include: names of the metrics to compute (default ``()``: all).
        exclude: names of metrics not to compute (default ``()``).
        avg_of_avgs: average over the queries of each class first, then over classes (default ``False``).
        return_per_class: return each metric as a list, one number per class that has a query in Q, in the order of the
            labels (default ``False``).
        k: how many neighbors PML's own metrics use: an integer, ``None`` for all references, or (default)
            ``"max_bin_count"`` for the size of the largest class, at which ``mean_average_precision_at_r``,
            ``r_precision`` and ``precision_at_1`` are exact. ``mean_average_precision`` and ``mean_reciprocal_rank``
            depend on it by definition: ``None`` gives those of the whole ranking, and is expensive only for
            ``mean_average_precision`` of large classes. Recall does not depend on ``k``, and PML's metrics not on
            ``recall_at``.
        label_comparison_fn: says which labels match, see PML (default ``None``: equal ones). It receives the labels in
            float32. NMI and AMI must then be excluded.
        device: where to compute, a ``torch.device`` or its name (default ``None``: CUDA if there is one).
        knn_func: ``(query, k, reference, ref_includes_query) -> (distances, indices)``, Euclidean neighbors (default
            ``None``: ranks are counted instead of searched, as exactly and in little memory, at any depth; metrics of
            subclasses and a ``label_comparison_fn`` use :class:`TorchKNN`).
        kmeans_func: ``(embeddings, num_clusters) -> clusters`` (default ``None``: scikit-learn's k-means with k-means++
            initialization and a fixed seed).

    Shape:
        ``query`` [n, d], ``query_labels`` [n] or [n, l], ``reference`` [m, d], ``reference_labels`` [m] or [m, l];
        tensors, arrays or lists; labels may be strings. Without a ``label_comparison_fn`` a row of l labels is one
        label. In ``calculate_...`` methods of subclasses the labels are then class ids: the ranks among all distinct
        labels.

    Source:
        Recall@k as in Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011, and Oh Song et
        al., 2016. The other metrics are those of pytorch-metric-learning 2.9. Different from there: the default of
        ``k`` (PML: ``None``, all references); labels are compared as they are, not rounded to float32; never more
        neighbors are searched than there are references (PML scores the index -1 with which faiss fills up, and gives
        mean average precisions above 1); a query without any match gives NaN, whatever ``k``; ``mean_reciprocal_rank``
        can be computed alone, and is computed in float64; NMI and AMI use k-means with k-means++ initialization, the
        same with and without faiss, whose k-means starts from randomly drawn samples (NMI of perfectly separated
        classes: 0.81 to 1.00, depending on the order of the samples); NaN and infinite embeddings are refused; a
        warning is given if ``ref_includes_query`` seems to have been forgotten; faiss is optional. References at equal
        distance are ranked by index, as by faiss. Squared distances are correct to at least three digits, usually to
        six, in float32, even for embeddings far from the origin. References whose distances differ by less may be
        ranked in one order by counting and in another by a ``knn_func``.

    Raises:
        TypeError: ``recall_at`` is not a sequence of integers; ``include`` or ``exclude`` not a tuple or list.
        ValueError: ``recall_at`` is empty or has a number less than 1; ``include`` or ``exclude`` has an unknown
            name; ``k`` is none of the above; ``avg_of_avgs`` and ``return_per_class`` are both given.

    Example:
        >>> embeddings = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 2.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> calculator = RetrievalAccuracyCalculator(recall_at=(1, 2, 3), include=("recall_at_2", "recall_at_3"))
        >>> calculator.get_accuracy(embeddings, labels)
        {'recall_at_2': 0.75, 'recall_at_3': 1.0}
    """

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 2, 4, 8),
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | Literal["max_bin_count"] | None = "max_bin_count",
        label_comparison_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        device: torch.device | str | int | None = None,
        knn_func: KNN | None = None,
        kmeans_func: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.recall_at: tuple[int, ...] = arguments.counts("recall_at", recall_at)
        k = k if k == "max_bin_count" else arguments.count("k", k, optional=True)
        # PML finds its metrics as the attributes called calculate_<name>.
        for recall_k in self.recall_at:
            setattr(self, f"calculate_{_metric_name(recall_k)}", partial(self._recall, recall_k))
        names = [name.removeprefix("calculate_") for name in dir(self) if name.startswith("calculate_")]
        ordered = sorted(names, key=lambda name: (_recall_k(name), name))
        self.original_function_dict: dict[str, Callable[..., Any]] = {
            name: getattr(self, f"calculate_{name}") for name in ordered
        }
        self.check_primary_metrics(include, exclude)
        self.original_function_dict = self.get_function_dict(include, exclude)
        self.curr_function_dict: dict[str, Callable[..., Any]] = self.get_function_dict()
        if avg_of_avgs and return_per_class:
            raise ValueError("avg_of_avgs and return_per_class are mutually exclusive")
        self.avg_of_avgs: bool = avg_of_avgs
        self.return_per_class: bool = return_per_class
        self.k = k
        self.device: torch.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        )
        self.knn_func: KNN = TorchKNN() if knn_func is None else knn_func
        self.kmeans_func: Callable[..., Tensor] = scikit_kmeans if kmeans_func is None else kmeans_func
        self.label_comparison_fn: Callable[..., Tensor] = (
            EQUALITY if label_comparison_fn is None else label_comparison_fn
        )
        if label_comparison_fn is not None and any(
            name in self.requires_clustering() for name in self.get_curr_metrics()
        ):
            raise NotImplementedError("clustering of labels that a label_comparison_fn compares: exclude NMI and AMI")
        # The attribute knn_func may be set to another function later.
        self._unused_knn_func = self.knn_func if knn_func is None and label_comparison_fn is None else None

    def get_function_dict(
        self, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> dict[str, Callable[..., Any]]:
        """The functions of the metrics, of those chosen at construction."""
        chosen = set(include or self.original_function_dict)
        return {
            name: function
            for name, function in self.original_function_dict.items()
            if name in chosen and name not in exclude
        }

    def get_curr_metrics(self) -> list[str]:
        """The names of the metrics that were computed last, or will be."""
        return list(self.curr_function_dict)

    def requires_clustering(self) -> list[str]:
        """Name the metrics that need clusters."""
        return ["NMI", "AMI"]

    def requires_knn(self) -> list[str]:
        """Name the metrics that need nearest neighbors."""
        return [*RANK_METRICS, *map(_metric_name, self.recall_at)]

    def description(self) -> str:
        """What PML 2's testers put into the name of a result."""
        return "avg_of_avgs" if self.avg_of_avgs else ""

    def get_cluster_labels(self, query: Tensor, query_labels: Tensor, **_: Any) -> Tensor:
        """The cluster of each query, with as many clusters as there are labels."""
        return self.kmeans_func(query, len(query_labels.flatten().unique()))

    def determine_k(self, bin_counts: Tensor, num_reference_embeddings: int, ref_includes_query: bool) -> int:
        """How many neighbors the metrics other than recall use."""
        largest, own = int(bin_counts.max()), int(ref_includes_query)
        if self.k == "max_bin_count":
            return largest - own
        if self.k is None:
            return num_reference_embeddings - own
        cut = {"r_precision", "mean_average_precision_at_r"}.intersection(self.get_curr_metrics())
        if self.k < largest and cut:
            LOGGER.warning(
                f"k={self.k} is less than the {largest} samples of the largest class, at which {sorted(cut)} are "
                "exact: k='max_bin_count' makes them so"
            )
        return int(self.k)

    def check_primary_metrics(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Raise ``TypeError`` or ``ValueError`` if an argument is not a tuple or list of names of metrics."""
        for argument, names in (("include", include), ("exclude", exclude)):
            if not isinstance(names, (tuple, list)):
                raise TypeError(f"{argument} must be a tuple or list of names of metrics, got {names!r}")
            unknown = [name for name in names if name not in self.original_function_dict]
            if unknown:
                raise ValueError(f"{argument} has {unknown}, not among the metrics {list(self.original_function_dict)}")

    def get_accuracy(
        self,
        query: Array,
        query_labels: Array,
        reference: Array | None = None,
        reference_labels: Array | None = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Compute the metrics of the queries against the references.

        Args:
            query: [n, d].
            query_labels: [n] or [n, l].
            reference: [m, d] (default ``None``: the queries, each compared with the others).
            reference_labels: [m] or [m, l].
            ref_includes_query: the first n references are the queries, and a query is not a neighbor of itself (default
                ``False``).
            include: names of the metrics to compute, of those chosen at construction (default ``()``: all of them).
            exclude: names of metrics not to compute (default ``()``).

        Returns:
            Name -> value.

        Raises:
            TypeError: ``include`` or ``exclude`` is not a tuple or list; labels are neither numbers nor strings.
            ValueError: there is no query; the shapes do not fit; an embedding is NaN or infinite in float32; a label
                is NaN; only some labels are strings; with a ``label_comparison_fn``, an integer label is not exact in
                float32; ``ref_includes_query`` is true but the references do not begin with the queries; ``include``
                or ``exclude`` has an unknown name; ``knn_func`` does not return k neighbors, returns one twice, or
                the query itself.

        Warns:
            UserWarning: the references begin with the queries although ``ref_includes_query`` is false.
        """
        self.check_primary_metrics(include, exclude)
        if reference is None:
            if reference_labels is not None:
                raise ValueError("reference_labels is given without reference")
            reference, reference_labels, ref_includes_query = query, query_labels, True
        elif reference_labels is None:
            raise ValueError("reference is given without reference_labels")

        is_query = reference is query
        query = checked_embeddings("query", query, self.device)
        reference = query if is_query else checked_embeddings("reference", reference, self.device)
        all_labels = (
            checked_labels("query_labels", query_labels, len(query)),
            checked_labels("reference_labels", reference_labels, len(reference)),
        )
        if len(query) == 0:
            raise ValueError("query is empty: there is nothing to evaluate")
        if query.shape[1] != reference.shape[1] or all_labels[0].shape[1:] != all_labels[1].shape[1:]:
            raise ValueError(
                f"query {tuple(query.shape)} with labels {tuple(all_labels[0].shape)} and "
                f"reference {tuple(reference.shape)} with labels {tuple(all_labels[1].shape)} do not fit"
            )
        encode = class_ids if self.label_comparison_fn is EQUALITY else _float32_labels
        query_labels, reference_labels = (x.to(self.device) for x in encode(*all_labels))
        if ref_includes_query:
            if not is_query:
                _check_begins_with("reference", reference, query, torch.allclose)
            _check_begins_with("reference_labels", reference_labels, query_labels, torch.equal)
        else:
            warn_of_own(query, query_labels, reference, reference_labels)

        self.curr_function_dict = self.get_function_dict(include, exclude)
        metrics = set(self.curr_function_dict)
        kwargs: dict[str, Any] = {
            "query": query,
            "reference": reference,
            "query_labels": query_labels,
            "reference_labels": reference_labels,
            "ref_includes_query": ref_includes_query,
        }
        accuracies: dict[str, Any] = {}
        if needing_knn := metrics.intersection(self.requires_knn()):
            kwargs |= self._matches(query_labels, reference_labels, ref_includes_query)
            if self._can_count(needing_knn):
                accuracies = self._rank_metrics(needing_knn, **kwargs)
            else:
                kwargs |= self._neighbors(**kwargs)
        if metrics.intersection(self.requires_clustering()):
            _check_scikit_learn()
            kwargs["cluster_labels"] = self.get_cluster_labels(**kwargs)
        others = {name: function for name, function in self.curr_function_dict.items() if name not in accuracies}
        accuracies |= {name: function(**kwargs) for name, function in others.items()}
        return {name: accuracies[name] for name in self.curr_function_dict}

    def _can_count(self, names: set[str]) -> bool:
        """Tell whether all these metrics are functions of the ranks of the matches."""
        recall = set(map(_metric_name, self.recall_at))
        return self.knn_func is self._unused_knn_func and all(
            name in recall or (name in RANK_METRICS and getattr(type(self), f"calculate_{name}") is RANK_METRICS[name])
            for name in names
        )

    def _matches(self, query_labels: Tensor, reference_labels: Tensor, ref_includes_query: bool) -> dict[str, Any]:
        """Count the matching references of each label of a query, and find the queries without any."""
        if self.label_comparison_fn is EQUALITY:
            has_query = torch.bincount(query_labels) > 0
            labels, which = has_query.nonzero()[:, 0], (has_query.cumsum(0) - 1)[query_labels]
            counts = torch.bincount(reference_labels, minlength=len(has_query))[labels]
            own = torch.full_like(labels, int(ref_includes_query))
        else:
            labels, which = query_labels.unique(dim=0, return_inverse=True)
            own = torch.zeros_like(which[: len(labels)])
            matches = [self.label_comparison_fn(label, reference_labels).sum() for label in labels.split(1)]
            counts = torch.stack(matches).long()
            if ref_includes_query:  # a label need not match itself
                own = self.label_comparison_fn(labels, labels).long()
        relevant = counts - own
        return {
            "label_counts": (labels, counts),
            "relevant_counts": relevant[which],
            "lone_query_labels": labels[relevant <= 0],
            "not_lone_query_mask": relevant[which] > 0,
        }

    def _rank_metrics(
        self,
        names: set[str],
        *,
        query: Tensor,
        reference: Tensor,
        query_labels: Tensor,
        reference_labels: Tensor,
        ref_includes_query: bool,
        label_counts: tuple[Tensor, Tensor],
        not_lone_query_mask: Tensor,
        **_: Any,
    ) -> dict[str, float | list[float]]:
        """Compute metrics from the ranks of the matches of each query."""
        if not not_lone_query_mask.any():
            _warn_of_no_match()
            return dict.fromkeys(names, self._nan(label_counts))
        k = self.determine_k(label_counts[1], len(reference), ref_includes_query)
        scores = retrieval_scores(
            query,
            query_labels,
            reference,
            reference_labels,
            torch.arange(len(query), device=query.device) if ref_includes_query else None,
            k,
            at_r=not names.isdisjoint(("mean_average_precision_at_r", "r_precision")),
            at_k="mean_average_precision" in names,
        )
        first = scores.first_match_rank
        averages = self._recalls(names, first, query_labels, not_lone_query_mask)
        per_query: dict[str, Tensor | None] = {
            "precision_at_1": first < 1,
            "mean_reciprocal_rank": reciprocal_rank(first, k),
            "r_precision": scores.r_precision,
            "mean_average_precision_at_r": scores.average_precision_at_r,
            "mean_average_precision": scores.average_precision,
        }
        for name in names - averages.keys():
            values = per_query[name]
            assert values is not None
            averages[name] = self._average(values, query_labels, not_lone_query_mask, label_counts)
        return averages

    def _recalls(
        self, names: set[str], first: Tensor, query_labels: Tensor, not_lone_query_mask: Tensor
    ) -> dict[str, float | list[float]]:
        """Recall at every requested k, from one histogram of the ranks of the first matches."""
        wanted = sorted(k for k in self.recall_at if _metric_name(k) in names)
        first = first[not_lone_query_mask]
        if self.avg_of_avgs or self.return_per_class:
            groups = query_labels[not_lone_query_mask].unique(return_inverse=True)[1]
        else:
            groups = torch.zeros_like(first)
        sizes = torch.bincount(groups)
        averages: dict[str, float | list[float]] = {}
        # [g, k] numbers at a time.
        for ks in torch.tensor(wanted, dtype=first.dtype).split(max(1, thresholds.DISTANCES // 64 // len(sizes))):
            shares = shares_below(first, ks.to(first.device), groups, sizes)
            values = shares.T if self.return_per_class else shares.mean(dim=0)
            averages |= zip(map(_metric_name, ks.tolist()), values.tolist(), strict=True)
        return averages

    def _neighbors(
        self,
        query: Tensor,
        reference: Tensor,
        query_labels: Tensor,
        reference_labels: Tensor,
        ref_includes_query: bool,
        label_counts: tuple[Tensor, Tensor],
        not_lone_query_mask: Tensor,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Find the nearest references as deep as the metrics need: for PML's own metrics, and for recall."""
        if not not_lone_query_mask.any():
            _warn_of_no_match()
            nothing = query.new_empty(len(query), 0)
            found = dict.fromkeys(("knn_labels", "knn_distances", "first_match_rank"), nothing)
            return found | {"same_label": nothing.bool()}
        # The largest class has only the query itself where, by a label_comparison_fn, no label matches itself.
        k = max(1, self.determine_k(label_counts[1], len(reference), ref_includes_query))
        depth = self._determine_depth(k, len(reference) - int(ref_includes_query))
        distances, indices = self.knn_func(query, depth, reference, ref_includes_query)
        if indices.shape != (len(query), depth) or indices.min() < 0 or indices.max() >= len(reference):
            raise ValueError(
                f"knn_func {self.knn_func!r} did not return {depth} of {len(reference)} references "
                f"for each of {len(query)} queries, but indices of shape {tuple(indices.shape)} "
                f"from {indices.min()} to {indices.max()}"
            )
        ordered = indices.sort(dim=1).values
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError(f"knn_func {self.knn_func!r} returned a reference twice for one query")
        if ref_includes_query and (indices == torch.arange(len(query), device=indices.device)[:, None]).any():
            raise ValueError(f"knn_func {self.knn_func!r} returned a query as its own neighbor")
        knn_labels = reference_labels[indices]  # [n, depth] or [n, depth, l]
        same_label = self.label_comparison_fn(query_labels[:, None], knn_labels) != 0  # [n, depth]
        return {
            "knn_labels": knn_labels[:, :k],
            "knn_distances": distances[:, :k],
            "same_label": same_label[:, :k],
            "first_match_rank": _first_match_rank(same_label),
        }

    def _determine_depth(self, k: int, available: int) -> int:
        recall_at = {_metric_name(recall_k): recall_k for recall_k in self.recall_at}
        needs = {name: recall_at.get(name, k) for name in self.requires_knn()}
        return min(available, max(needs[name] for name in self.curr_function_dict if name in needs))

    def calculate_NMI(self, query_labels: Tensor, cluster_labels: Tensor, **_: Any) -> float:  # noqa: N802
        """Normalized mutual information of classes and clusters."""
        from sklearn.metrics import normalized_mutual_info_score

        return float(normalized_mutual_info_score(query_labels.cpu().numpy(), cluster_labels.cpu().numpy()))

    def calculate_AMI(self, query_labels: Tensor, cluster_labels: Tensor, **_: Any) -> float:  # noqa: N802
        """Mutual information of classes and clusters, adjusted for chance."""
        from sklearn.metrics import adjusted_mutual_info_score

        return float(adjusted_mutual_info_score(query_labels.cpu().numpy(), cluster_labels.cpu().numpy()))

    def calculate_precision_at_1(self, first_match_rank: Tensor, **groups: Any) -> float | list[float]:
        """The share of queries whose nearest reference matches."""
        return self._average(first_match_rank < 1, **_groups(groups))

    def calculate_r_precision(self, same_label: Tensor, relevant_counts: Tensor, **groups: Any) -> float | list[float]:
        """The share of matches among the R nearest references, if there are R matches; R at most k."""
        inside = torch.arange(same_label.shape[1], device=same_label.device) < relevant_counts[:, None]
        hits = (same_label & inside).sum(1).double()
        return self._average(hits / inside.sum(1).clamp(min=1), **_groups(groups))

    def calculate_mean_average_precision_at_r(
        self, same_label: Tensor, relevant_counts: Tensor, **groups: Any
    ) -> float | list[float]:
        """The mean over R of the precision at each match among the R nearest references."""
        inside = torch.arange(same_label.shape[1], device=same_label.device) < relevant_counts[:, None]
        return self._average(_precisions(same_label & inside, relevant_counts), **_groups(groups))

    def calculate_mean_average_precision(
        self, same_label: Tensor, relevant_counts: Tensor, **groups: Any
    ) -> float | list[float]:
        """The mean over R of the precision at each match among the k nearest references."""
        return self._average(_precisions(same_label, relevant_counts), **_groups(groups))

    def calculate_mean_reciprocal_rank(
        self,
        knn_labels: Tensor,
        first_match_rank: Tensor,
        query_labels: Tensor,
        not_lone_query_mask: Tensor,
        label_counts: tuple[Tensor, Tensor],
        **_: Any,
    ) -> float | list[float]:
        """Average 1 / rank of the first match among the k nearest, 0 where there is none; PML does it in float32."""
        inverse = reciprocal_rank(first_match_rank, knn_labels.shape[1])
        return self._average(inverse, query_labels, not_lone_query_mask, label_counts)

    def _recall(
        self,
        k: int,
        *,
        first_match_rank: Tensor,
        query_labels: Tensor,
        not_lone_query_mask: Tensor,
        label_counts: tuple[Tensor, Tensor],
        **_: Any,
    ) -> float | list[float]:
        """Return the fraction of queries whose first match has rank (from 0) less than k."""
        return self._average(first_match_rank < k, query_labels, not_lone_query_mask, label_counts)

    def _nan(self, label_counts: tuple[Tensor, Tensor]) -> float | list[float]:
        """What a metric is without any query that has a match."""
        return [math.nan] * len(label_counts[0]) if self.return_per_class else math.nan

    def _average(
        self, per_query: Tensor, query_labels: Tensor, not_lone_query_mask: Tensor, label_counts: tuple[Tensor, Tensor]
    ) -> float | list[float]:
        """Average over the queries that have a match, or over those of each class; NaN if there is none."""
        if not not_lone_query_mask.any():
            return self._nan(label_counts)
        values, labels = per_query[not_lone_query_mask].double(), query_labels[not_lone_query_mask]
        if not (self.avg_of_avgs or self.return_per_class):
            return float(values.mean())
        classes = labels.unique(dim=0 if labels.ndim == 2 else None, return_inverse=True)[1]
        counts = torch.bincount(classes)
        averages = values.new_zeros(len(counts)).index_add_(0, classes, values) / counts
        if self.return_per_class:
            per_class: list[float] = averages.tolist()
            return per_class
        return float(averages.mean())


def _groups(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("query_labels", "not_lone_query_mask", "label_counts")}


def _precisions(hits: Tensor, relevant: Tensor) -> Tensor:
    """The sum of the precision at each hit, over the number of relevant references: [n, k], [n] -> [n]."""
    places = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = hits.cumsum(1).double() / places * hits
    return precision.sum(1) / relevant.clamp(min=1)


def _check_scikit_learn() -> None:
    if find_spec("sklearn") is None:
        raise ImportError("NMI and AMI need scikit-learn: pip install scikit-learn, or exclude=('NMI', 'AMI')")


RANK_METRICS: Final = MappingProxyType(
    {
        name: getattr(RetrievalAccuracyCalculator, f"calculate_{name}")
        for name in (
            "precision_at_1",
            "r_precision",
            "mean_average_precision_at_r",
            "mean_average_precision",
            "mean_reciprocal_rank",
        )
    }
)
"""The other metrics that follow from the ranks of the matches."""


def _warn_of_no_match() -> None:
    LOGGER.warning("No query has a reference with its label.")


def _metric_name(k: int) -> str:
    # record-keeper puts this into SQL unquoted, so it cannot be "recall@k".
    return f"recall_at_{k}"


def _recall_k(name: str) -> int:
    k = name.removeprefix("recall_at_")
    return int(k) if k != name and k.isdecimal() else 0


def _check_begins_with(name: str, whole: Tensor, start: Tensor, equal: Callable[[Tensor, Tensor], bool]) -> None:
    if len(whole) < len(start) or not equal(whole[: len(start)], start):
        raise ValueError(f"ref_includes_query is True, but {name} does not begin with that of the {len(start)} queries")


def _float32_labels(*all_labels: Tensor | Strings) -> tuple[Tensor, ...]:
    numbers = [labels for labels in all_labels if isinstance(labels, Tensor)]
    if len(numbers) < len(all_labels):
        raise ValueError("label_comparison_fn receives the labels in float32, and these are strings")
    for labels in numbers:
        if not labels.is_floating_point() and not torch.equal(labels.float().long(), labels):
            raise ValueError(
                "label_comparison_fn receives the labels in float32, "
                f"and the integer labels from {labels.min()} to {labels.max()} are not exact in it"
            )
    return tuple(labels.float() for labels in numbers)


def _first_match_rank(same_label: Tensor) -> Tensor:
    """Count the entries of each row [n, depth] before its first true one; depth if it has none."""
    sentinel = same_label.new_ones(len(same_label), 1)
    return torch.cat([same_label, sentinel], dim=1).byte().argmax(dim=1)
