"""The table of an experiment, for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pml_ext.benchmark.result import BASELINES, FROZEN_TRUNK, Result, name_of
from pml_ext.evaluation import Standing, mean_interval

NONE: Mapping[str, Standing] = MappingProxyType({})

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


def text(results: Sequence[Result], standing: Mapping[str, Standing] = NONE, notes: Sequence[str] = ()) -> str:
    """Aligned columns, with notes below. With several runs of a loss: the mean and its 95 % t-interval."""
    rows = _rows(results, standing)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in [*lines, *_notes(results, standing), *notes])


def markdown(results: Sequence[Result], standing: Mapping[str, Standing] = NONE, notes: Sequence[str] = ()) -> str:
    """The same as a Markdown table."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in _rows(results, standing)]
    rule = [":--", *["--:"] * (len(head) - 1)]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
    below = "\n\n".join([*_notes(results, standing), *notes])
    return f"{rows}\n\n{below}\n"


def _rows(results: Sequence[Result], standing: Mapping[str, Standing]) -> list[list[str]]:
    shown = columns(results)
    chosen = any(result.validation for result in results)
    rows = [
        [
            "loss",
            *(title for title, _ in shown),
            *(["rank"] if standing else []),
            *(["epoch", "last@1"] if chosen else []),
            "s/epoch",
        ]
    ]
    for loss, runs in by_loss(results).items():
        done = [run for run in runs if not run.error]
        name = loss if len(done) == len(runs) else f"{loss} ({len(done)} of {len(runs)})"
        cells = [_cell([run.metrics.get(metric, math.nan) for run in done], _share) for _, metric in shown]
        if standing:
            cells.append(_rank(standing[loss]) if loss in standing else "-")
        if chosen:
            epochs = [float(run.best_epoch) for run in done if run.best_epoch is not None]
            cells += [
                _cell(epochs, lambda x: f"{x:.0f}", spread=False),
                _cell([run.last.get("recall_at_1", math.nan) for run in done if run.last], _share),
            ]
        seconds = [run.seconds_per_epoch for run in done if run.seconds_per_epoch is not None]
        rows.append([name, *cells, _cell(seconds, lambda x: f"{x:.2f}", spread=False)])
    return rows


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _rank(standing: Standing) -> str:
    """The ranks that a loss can have, with a star if it is not distinguishable from the best."""
    if not standing.valid:
        return "-"
    ranks = f"{standing.first}" if standing.first == standing.last else f"{standing.first}-{standing.last}"
    return ranks + ("*" if standing.is_best else "")


def _cell(values: Sequence[float], form: Callable[[float], str], *, spread: bool = True) -> str:
    if not values:
        return "-"
    if not all(map(math.isfinite, values)):
        return "nan"
    found = mean_interval(values)
    return form(found.mean) + (f" ± {form(found.high - found.mean)}" if spread and len(values) > 1 else "")


def _notes(results: Sequence[Result], standing: Mapping[str, Standing]) -> list[str]:
    """What the reader of the table must know, a line each."""
    several = max((len(runs) for runs in by_loss(results).values()), default=0) > 1
    spread = f", mean and its 95 % interval over {_over(results)}" if several else ""
    lines = [f"In per cent, on classes that were not trained on{spread}. s/epoch: seconds of training per epoch."]
    if any(result.validation for result in results):
        lines.append("Of the epoch with the best MAP@R on validation classes; last@1: recall@1 of the last epoch.")
    if standing:
        over = f"queries and {_over(results)}" if several else "queries"
        whose = "" if several else ", of these networks"
        lines.append(
            f"rank: by recall@1, the places that paired differences over {over} leave open (95 %, of all pairs "
            f"together{whose}); *: not distinguishable from the best, so that 1 is among them."
        )
    if _trunk_leads(results):
        better = "train for longer (--epochs), or the trunk too"
        lines.append(f"No loss has a higher recall@1 or MAP@R than the {FROZEN_TRUNK}: {better}.")
    return lines + [f"{name_of(result.key)}, failed: {result.error}" for result in results if result.error]


def _trunk_leads(results: Sequence[Result]) -> bool:
    """Whether no loss has a higher mean than the frozen trunk, by either metric."""

    def mean(runs: Sequence[Result], metric: str) -> float:
        return mean_interval([run.metrics.get(metric) for run in runs]).mean

    groups = by_loss([result for result in results if result.metrics])
    trained = [runs for loss, runs in groups.items() if loss not in BASELINES]
    return bool(FROZEN_TRUNK in groups and trained) and all(
        mean(runs, metric) <= mean(groups[FROZEN_TRUNK], metric)
        for runs in trained
        for metric in ("recall_at_1", "mean_average_precision_at_r")
    )


def _over(results: Sequence[Result]) -> str:
    seeds = len({result.seed for result in results})
    folds = len({result.fold for result in results if result.fold is not None})
    parts = [f"{seeds} seeds"] if seeds > 1 else []
    return " and ".join([*parts, *([f"{folds} folds"] if folds > 1 else [])])
