"""Curves of an experiment, figures made of results: learning, recall at k, health, hardness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pml_ext import palette
from pml_ext.analysis.health import COLLAPSED_SPREAD
from pml_ext.benchmark.result import BASELINES, FROZEN_TRUNK, UNTRAINED, UNTRAINED_HEAD, Result
from pml_ext.benchmark.table import by_loss
from pml_ext.figures import Picture

# Okabe and Ito's palette, which color-blind readers can tell apart, without its yellow; from the ninth loss on the
# dashes differ too.
COLORS = (*palette.HUES[:4], palette.SKY, palette.ORANGE, palette.BLACK)
DASHES = ("-", "--", ":", "-.")
HEALTH = ("pull", "push", "effective_pairs", "effective_rank", "spread")
HARDNESS = ("lam", "mixing_weight", "hardness_real", "hardness_synthetic", "hardness_regenerated")


def learning_curves(results: Sequence[Result], *, ax: Any = None) -> Figure:
    """Recall@1 after each epoch, every loss a line; thin lines are single seeds if there are several."""
    groups = by_loss(results)
    untrained = groups.pop(UNTRAINED, [])
    for name in (FROZEN_TRUNK, UNTRAINED_HEAD):
        groups.pop(name, None)
    chosen = any(result.validation for result in results)
    if chosen:  # other classes than those that the untrained network was tested on
        untrained = []
    of = "validation" if chosen else "unseen"
    figure, axes = _axes(f"Retrieval of {of} classes while training", "epoch", "recall@1 (%)", ax)
    start = 100 * mean(run.metrics["recall_at_1"] for run in untrained) if untrained else None
    ends = []
    for (loss, runs), style in zip(groups.items(), _styles(len(groups)), strict=True):
        curves = [[100 * epoch["recall_at_1"] for epoch in run.history] for run in runs]
        curves = curves if start is None else [[start, *curve] for curve in curves]
        middle = [mean(values) for values in zip(*curves, strict=False)]
        first = 0 if start is not None else 1
        axes.plot(
            range(first, first + len(middle)), middle, label=loss, marker="o", markersize=3.5, linewidth=2, **style
        )
        if len(curves) > 1:
            for curve in curves:
                axes.plot(range(first, first + len(curve)), curve, linewidth=0.7, alpha=0.5, **style)
        ends.append((loss, middle[-1], style["color"]))
    if start is not None:
        axes.axhline(start, color=palette.GRAY, linestyle="--", linewidth=1.5, label=UNTRAINED)
        ends.append((UNTRAINED, start, palette.GRAY))
    axes.set_ylim(bottom=_bottom(axes))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name_lines(axes, ends)
    return figure


def _bottom(axes: Any) -> float:
    """Where the axis of percentages begins: at 0, unless all lines lie so high that they would be one."""
    values = [float(value) for line in axes.lines for value in line.get_ydata()]
    low, high = min(values), max(values)
    step = 5 if high - low >= 5 else 1
    bottom = step * math.floor((low - 0.5 * (high - low)) / step)
    return 0.0 if low < 0.6 * high else max(0.0, min(95.0, bottom))


def recall_curves(results: Sequence[Result], *, ax: Any = None) -> Figure:
    """Recall@k after the last epoch, every loss a line."""
    figure, axes = _axes("Is one of the k nearest images of the same class?", "k (nearest images)", "recall@k (%)", ax)
    groups = by_loss(results)
    names = [name for name in results[0].metrics if name.startswith("recall_at_")]
    recall_at = [int(name.removeprefix("recall_at_")) for name in names]
    trained = [name for name in groups if name not in BASELINES]
    styles = dict(zip(trained, _styles(len(trained)), strict=True))
    ends = []
    for loss, runs in groups.items():
        style = styles.get(loss, {"color": palette.GRAY, "linestyle": "--"})
        values = [[100 * run.metrics[f"recall_at_{k}"] for run in runs] for k in recall_at]
        middle = [mean(v) for v in values]
        axes.plot(recall_at, middle, label=loss, marker="o", markersize=5, linewidth=2, **style)
        if len(runs) > 1:
            axes.fill_between(
                recall_at, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.15
            )
        ends.append((loss, middle[-1], style["color"]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(recall_at, [str(k) for k in recall_at])
    axes.set_ylim(_bottom(axes), 100)
    _name_lines(axes, ends)
    return figure


def hardness_curves(schedules: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> Figure:
    """Lambda, the weight of the real tuples and the hardness of the negatives by step, of hardness-aware training.

    Args:
        schedules: of each method, the recorded columns of its runs: "step" and the names in `HARDNESS`.
    """
    figure = Picture(figsize=(11, 4), layout="constrained")
    titles = ("lambda: distance kept by synthetic negatives", "weight of the real tuples", "hardness: d(a,p) / d(a,n)")
    lines = (("lam",), ("mixing_weight",), ("hardness_real", "hardness_synthetic", "hardness_regenerated"))
    panels = figure.subplots(1, 3)
    for axes, title, columns in zip(panels, titles, lines, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for (name, runs), style in zip(schedules.items(), _styles(len(schedules)), strict=True):
            for column, dashes in zip(columns, ("-", ":", "--"), strict=False):
                # Runs of the same steps, so that a mean over seeds makes sense.
                middle = [mean(values) for values in zip(*(run[column] for run in runs), strict=True)]
                axes.plot(
                    runs[0]["step"],
                    middle,
                    label=name,
                    color=style["color"],
                    linestyle=dashes,
                    linewidth=1.6,
                )
        axes.set_ylim(bottom=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    # The colors are those of the methods, whichever negatives a line shows.
    kinds = [Line2D([], [], color=palette.GRAY, linestyle=dashes) for dashes in ("-", ":", "--")]
    panels[2].legend(kinds, ["real", "synthetic", "regenerated"], loc="lower left", frameon=False, fontsize=8)
    return figure


def health_curves(healths: Mapping[str, Sequence[Mapping[str, Sequence[float | None]]]]) -> Figure:
    """What the losses do to pairs and how the embeddings look, by step: every loss a line, the mean of its seeds.

    Args:
        healths: of each loss, the recorded columns of its runs: "step" and the names in `HEALTH`.
    """
    figure = Picture(figsize=(11, 7), layout="constrained")
    titles = (
        "budget:\nthe negatives' share of all pair weights",
        "effective pairs:\non how many an anchor's gradient rests",
        "effective rank:\ndimensions of the embedding in use",
        "spread:\nof the directions, 0 is collapsed",
    )
    panels = figure.subplots(2, 2, sharex=True).flatten()
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for (name, runs), style in zip(healths.items(), _styles(len(healths)), strict=True):
        columns = [_health_lines(run) for run in runs]
        for axes, seeds in zip(panels, zip(*columns, strict=True), strict=True):
            middle = [mean(values) for values in zip(*seeds, strict=False)]
            axes.plot(
                runs[0]["step"][: len(middle)], middle, label=name, linewidth=1.8, marker="o", markersize=3, **style
            )
    for axes in panels[2:]:
        axes.set_xlabel("step")
    for axes in panels[:3]:
        axes.set_ylim(bottom=0)
    panels[0].set_ylim(top=1)
    panels[3].set_yscale("log")
    panels[3].axhline(COLLAPSED_SPREAD, color=palette.GRAY, linestyle=":")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, ncols=1 + len(labels) // 24)
    return figure


def _health_lines(run: Mapping[str, Sequence[float | None]]) -> list[list[float]]:
    # A number that a loss does not have was recorded as nothing.
    column = {name: [math.nan if value is None else value for value in run[name]] for name in HEALTH}
    budget = zip(column["pull"], column["push"], strict=True)
    share = [push / (pull + push) if pull + push else math.nan for pull, push in budget]
    spread = [max(value, 1e-7) for value in column["spread"]]
    return [share, column["effective_pairs"], column["effective_rank"], spread]


def _axes(title: str, x: str, y: str, ax: Any) -> tuple[Figure, Any]:
    figure = Picture(figsize=(8, 4.8), layout="constrained") if ax is None else ax.figure
    axes = figure.add_subplot() if ax is None else ax
    axes.set_title(title, loc="left", fontsize=13)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles(count: int) -> list[dict[str, str]]:
    return [{"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % 4]} for i in range(count)]


def _name_lines(axes: Any, ends: Iterable[tuple[str, float, str]]) -> None:
    """Write the names at the ends of few lines, where no eye has to travel; a legend beside many."""
    ends = sorted(ends, key=lambda end: end[1])
    if len(ends) > 8:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, ncols=1 + len(ends) // 24)
        return
    low, high = axes.get_ylim()
    step = 0.055 * (high - low)
    # Names of lines that end close together are moved apart: up from the lowest, then down again from the top.
    heights: list[float] = []
    for _, value, _ in ends:
        heights.append(max(value, heights[-1] + step) if heights else value)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], heights[i + 1] - step if i + 1 < len(heights) else high)
    for (name, value, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{name} {value:.1f}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )
