"""What the runs of an experiment say about its losses: means, intervals, who can be told apart from whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pml_ext.benchmark.result import BASELINES, FROZEN_TRUNK, UNTRAINED, Result
from pml_ext.benchmark.table import by_loss
from pml_ext.evaluation.intervals import (
    Difference,
    Interval,
    Standing,
    bootstrap_interval,
    mean_interval,
    paired_difference,
    standings,
)

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Row:
    """One loss.

    Args:
        loss: its name.
        trained: whether a loss has trained it.
        intervals: metric -> mean over the runs that did not fail, with Student's interval; of one run the bootstrap
            interval over queries, where their values are known.
        standing: among all rows, by recall@1; None where the values of the queries are not known.
        gain: what it has more than the baseline; None without one, and for the baseline.
        failures: why runs failed, and what was wrong with embeddings, a line each.
    """

    loss: str
    trained: bool
    intervals: dict[str, Interval]
    standing: Standing | None
    gain: Difference | None
    failures: tuple[str, ...]


def baseline(results: Sequence[Result]) -> str | None:
    """What training is compared with: the frozen trunk, else the untrained network, if either was tested."""
    there = {result.loss for result in results if not result.error}
    return next((name for name in (FROZEN_TRUNK, UNTRAINED) if name in there), None)


def summarize(results: Sequence[Result], queries: Mapping[str, Floats]) -> list[Row]:
    """Summarize the runs of each loss: those with the best recall@1 first, what no loss has trained last.

    Args:
        results: of all runs, failed ones too.
        queries: loss -> recall@1 of each query [runs, n], in any order of the runs; {} where they are not known.
    """
    groups = by_loss(results)
    compared = {name: queries[name] for name in groups if name in queries}
    standing = standings(compared) if len(compared) > 1 else {}
    base = baseline(results)
    rows = []
    for loss, runs in groups.items():
        metrics = dict.fromkeys(name for run in runs for name in run.metrics)
        gain = None
        if base is not None and loss != base and base in queries and loss in queries:
            gain = paired_difference(queries[loss], queries[base])
        rows.append(
            Row(
                loss,
                loss not in BASELINES,
                {name: _interval(name, runs, queries.get(loss)) for name in metrics or ("recall_at_1",)},
                standing.get(loss),
                gain,
                tuple(
                    f"{'' if run.fold is None else f'fold {run.fold}, '}seed {run.seed}: {what}"
                    for run in runs
                    for what in (run.error, run.failure)
                    if what
                ),
            )
        )
    return sorted(rows, key=lambda row: (not row.trained, _descending(row.intervals["recall_at_1"].mean)))


def _interval(name: str, runs: Sequence[Result], queries: Floats | None) -> Interval:
    values = [run.metrics.get(name) for run in runs]
    interval = mean_interval(values)
    if len(runs) == 1 and name == "recall_at_1" and queries is not None and len(queries) == 1:
        drawn = bootstrap_interval(queries[0])
        return interval._replace(low=drawn.low, high=drawn.high)
    return interval


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value
