"""The table of an experiment, for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean, stdev

from pml_ext.benchmark.result import Result

COLUMNS: tuple[tuple[str, str], ...] = (
    ("recall@1", "recall_at_1"),
    ("@2", "recall_at_2"),
    ("@4", "recall_at_4"),
    ("@8", "recall_at_8"),
    ("MAP@R", "mean_average_precision_at_r"),
    ("R-precision", "r_precision"),
    ("NMI", "NMI"),
)


def by_loss(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each loss, in the order of their first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.loss, []).append(result)
    return groups


def text(results: Sequence[Result]) -> str:
    """Aligned columns. With several seeds: mean ± standard deviation."""
    rows = _rows(results)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in [*lines, _note(results)])


def markdown(results: Sequence[Result]) -> str:
    """The same as a Markdown table."""
    head, *body = _rows(results)
    rule = [":--", *["--:"] * (len(head) - 1)]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
    return f"{rows}\n\n{_note(results)}\n"


def _rows(results: Sequence[Result]) -> list[list[str]]:
    rows = [["loss", *(title for title, _ in COLUMNS), "s/epoch"]]
    for loss, runs in by_loss(results).items():
        shares = [_cell([run.metrics[name] for run in runs], lambda x: f"{100 * x:.1f}") for _, name in COLUMNS]
        seconds = [run.seconds_per_epoch for run in runs if run.seconds_per_epoch is not None]
        rows.append([loss, *shares, _cell(seconds, lambda x: f"{x:.2f}") if seconds else "-"])
    return rows


def _cell(values: Sequence[float], form: Callable[[float], str]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return "nan"
    return form(mean(values)) + (f" ± {form(stdev(values))}" if len(values) > 1 else "")


def _note(results: Sequence[Result]) -> str:
    seeds = sorted({result.seed for result in results})
    spread = f", mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"In per cent, on classes that were not trained on{spread}. s/epoch: seconds of training per epoch."
