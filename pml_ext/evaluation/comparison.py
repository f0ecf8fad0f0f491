"""Two sets of embeddings of the same samples: is one of them better?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pml_ext.inputs import Array, loaded
from pml_ext.shown import preformatted

from .intervals import Difference, paired_difference
from .retrieval import Evaluation, evaluate

Runs = Array | str | Path | Sequence[Array | str | Path]


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Mapping[str, Difference]):
    """The result of :func:`compare`: a mapping from metrics to differences, first minus second.

    Args:
        differences: name -> difference with its interval.
        first: the evaluation of each run of the first.
        second: those of the second.
        level: confidence level.
    """

    differences: dict[str, Difference]
    first: tuple[Evaluation, ...]
    second: tuple[Evaluation, ...]
    level: float

    def __getitem__(self, name: str) -> Difference:
        return self.differences[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def verdict(self, name: str) -> str:
        """Say which of the two has the larger value of a metric: "first", "second" or "not distinguishable"."""
        difference = self[name]
        if not difference.p_value < 1 - self.level:
            return "not distinguishable"
        return "first" if difference.mean > 0 else "second"

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    def __repr__(self) -> str:
        width = max(map(len, self))
        percent = f"{100 * self.level:g} % interval"
        lines = [f"{'':{width}}   first  second    diff.  {percent:18}  more"]
        for name, x in self.items():
            first, second = (float(np.mean([run[name] for run in runs])) for runs in (self.first, self.second))
            interval = f"[{x.low:+.4f}, {x.high:+.4f}]"
            lines.append(
                f"{name:{width}}  {first:.4f}  {second:.4f}  {x.mean:+.4f}  {interval:19}  {self.verdict(name)}"
            )
        queries, n, m = len(self.first[0].query_classes), len(self.first), len(self.second)
        if n == m == 1:
            note = "one run each: about these embeddings, not about the methods they came from"
        else:
            note = f"{n} and {m} runs"
        return "\n".join([*lines, f"{queries:,} queries, the same for both; {note}"])


def compare(
    first: Runs,
    second: Runs,
    labels: Array | str | Path,
    *,
    level: float = 0.95,
    over: str = "queries",
    metrics: Sequence[str] = ("recall", "mean_average_precision_at_r"),
    k: Sequence[int] = (1,),
    **evaluation: Any,
) -> Comparison:
    """Compare two sets of embeddings of the same samples by their retrieval metrics.

    Both are evaluated, and the values of each query are compared pairwise by :func:`paired_difference`.

    Args:
        first: embeddings [n, d], or a file ``.npy`` of them; or a list of such, one for each seed.
        second: the same for the other method, of any dimension and number of seeds.
        labels: [n] or [n, l], numbers or strings, or a file ``.npy`` of them.
        level: confidence level (default 0.95).
        over: ``"queries"`` for intervals that hold for other queries of the same classes (default); ``"classes"`` for
            intervals that hold for other classes, by resampling the queries of a class together.
        metrics: see :func:`evaluate`; those of queries only (default: recall and MAP@R).
        k: of recall@k and the like (default ``(1,)``).
        evaluation: other arguments of :func:`evaluate`.

    Raises:
        TypeError: see :func:`evaluate`.
        ValueError: ``over`` is neither of the two; a metric has no value for each query; ``level`` is not between 0 and
            1; see :func:`evaluate`.

    Source:
        See :func:`paired_difference`. There is no correction for several metrics: of twenty metrics of equal methods,
        one is expected to differ significantly.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(200) % 20
        >>> good = torch.nn.functional.one_hot(labels) + 0.3 * torch.randn(200, 20, generator=generator)
        >>> bad = good + 0.3 * torch.randn(200, 20, generator=generator)
        >>> compare(good, bad, labels).verdict("recall_at_1")
        'first'
    """
    if over not in ("queries", "classes"):
        raise ValueError(f"over must be 'queries' or 'classes', got {over!r}")
    labels = loaded("labels", labels)
    runs = {
        name: tuple(evaluate(x, labels, k=k, metrics=metrics, **evaluation) for x in _runs(name, given))
        for name, given in (("first", first), ("second", second))
    }
    one = runs["first"][0]
    if missing := [name for name in one if name not in one.per_query]:
        raise ValueError(f"metrics must have a value for each query, got {missing}")
    groups = one.query_classes if over == "classes" else None
    differences = {}
    for name in one:
        values = (torch.stack([run.per_query[name] for run in runs[which]]).numpy() for which in ("first", "second"))
        differences[name] = paired_difference(*values, groups=groups, level=level)
    return Comparison(differences, runs["first"], runs["second"], level)


def _runs(name: str, given: Runs) -> list[Array]:
    """Return the embeddings of each run."""
    if isinstance(given, (list, tuple)) and given and all(map(_is_run, given)):
        return [loaded(f"{name}[{i}]", x) for i, x in enumerate(given)]
    return [loaded(name, given)]


def _is_run(x: Any) -> bool:
    return isinstance(x, (str, Path)) or (isinstance(x, (Tensor, np.ndarray)) and x.ndim == 2)
