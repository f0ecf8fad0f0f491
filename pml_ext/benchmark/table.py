"""The table of an experiment, for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean, stdev

from pml_ext.benchmark.result import Result

TITLES = {"mean_average_precision_at_r": "MAP@R", "r_precision": "R-precision", "NMI": "NMI"}


def by_loss(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each loss, in the order of their first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.loss, []).append(result)
    return groups


def columns(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Title and metric of each column, as the results have them."""
    metrics = next((result.metrics for result in results if result.metrics), {})
    found: list[tuple[str, str]] = []
    for name in metrics:
        if name.startswith("recall_at_"):
            found.append((f"{'@' if found else 'recall@'}{name.removeprefix('recall_at_')}", name))
        elif name in TITLES:
            found.append((TITLES[name], name))
    return found


def text(results: Sequence[Result]) -> str:
    """Aligned columns. With several runs of a loss: mean ± standard deviation."""
    rows = _rows(results)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in [*lines, *_notes(results)])


def markdown(results: Sequence[Result]) -> str:
    """The same as a Markdown table."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in _rows(results)]
    rule = [":--", *["--:"] * (len(head) - 1)]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
    notes = "\n\n".join(_notes(results))
    return f"{rows}\n\n{notes}\n"


def _rows(results: Sequence[Result]) -> list[list[str]]:
    shown = columns(results)
    chosen = any(result.validation for result in results)
    rows = [["loss", *(title for title, _ in shown), *(["epoch", "last@1"] if chosen else []), "s/epoch"]]
    for loss, runs in by_loss(results).items():
        done = [run for run in runs if not run.error]
        name = loss if len(done) == len(runs) else f"{loss} ({len(done)} of {len(runs)})"
        cells = [_cell([run.metrics.get(metric, math.nan) for run in done], _share) for _, metric in shown]
        if chosen:
            epochs = [float(run.best_epoch) for run in done if run.best_epoch is not None]
            cells += [
                _cell(epochs, lambda x: f"{x:.0f}", spread=False),
                _cell([run.last.get("recall_at_1", math.nan) for run in done if run.last], _share),
            ]
        seconds = [run.seconds_per_epoch for run in done if run.seconds_per_epoch is not None]
        rows.append([name, *cells, _cell(seconds, lambda x: f"{x:.2f}")])
    return rows


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(values: Sequence[float], form: Callable[[float], str], *, spread: bool = True) -> str:
    if not values:
        return "-"
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return "nan"
    return form(mean(values)) + (f" ± {form(stdev(values))}" if spread and len(values) > 1 else "")


def _notes(results: Sequence[Result]) -> list[str]:
    most = max((len(runs) for runs in by_loss(results).values()), default=0)
    spread = f", mean ± standard deviation over {_over(results)}" if most > 1 else ""
    chosen = any(result.validation for result in results)
    epochs = (
        " Of the epoch with the best MAP@R on validation classes; last@1: recall@1 of the last epoch." if chosen else ""
    )
    failed = [result for result in results if result.error]
    return [
        f"In per cent, on classes that were not trained on{spread}.{epochs} s/epoch: seconds of training per epoch.",
        *(f"{result.loss}, seed {result.seed}, failed: {result.error}" for result in failed),
    ]


def _over(results: Sequence[Result]) -> str:
    seeds = len({result.seed for result in results})
    folds = len({result.fold for result in results if result.fold is not None})
    parts = [f"{seeds} seeds"] if seeds > 1 else []
    return " and ".join([*parts, *([f"{folds} folds"] if folds > 1 else [])])
