"""From timings beside other packages to their page and picture, peers.md and peers.png.

`python benchmarks/speed.py --peers --report` makes both again from peers.jsonl.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pml_ext.benchmark import environment
from pml_ext.palette import BLACK, GRAY, HUES, SKY

if TYPE_CHECKING:
    from pml_ext.figures import Picture

OURS = "pml_ext"
# What else is timed where it is installed: the package, and the module that it brings.
OTHERS = {"sentence-transformers": "sentence_transformers", "open-metric-learning": "oml"}
MARKERS = {"PML": "o", "sentence-transformers": "s", "OML": "^"}
# What is drawn: the kind of run that every package has.
DRAWN = "float32"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Found(NamedTuple):
    """One line of the file."""

    task: str
    whose: str
    kind: str
    n: int
    d: int
    per_class: int
    ratio: float | None
    seconds: float | None
    note: str = ""


class Place(NamedTuple):
    """One row of the page: what was computed, how, and of which batch."""

    task: str
    kind: str
    n: int
    d: int
    per_class: int


def by_place(found: Sequence[Found]) -> dict[Place, dict[str, float]]:
    """The ratios of all that ran, by package."""
    places: dict[Place, dict[str, float]] = {}
    for one in found:
        ratios = places.setdefault(Place(one.task, one.kind, one.n, one.d, one.per_class), {})
        if one.ratio is not None:
            ratios[one.whose] = one.ratio
    return places


def head(device: str) -> str:
    """How and where it was measured, now and here."""
    versions = environment.versions()
    machine = environment.hardware()
    where = machine["gpus"][0] if device == "cuda" else f"{machine['cpu']} ({torch.backends.cpu.get_cpu_capability()})"
    versions |= {name: metadata.version(name) for name in OTHERS if find_spec(OTHERS[name])}
    names = ("torch", "pytorch-metric-learning", *OTHERS)
    about = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return (
        f"`python benchmarks/speed.py --peers` made this page, commit {(environment.commit() or 'unknown')[:7]}. "
        f"On {where}{', one thread' if device == 'cpu' else ''}; {about}. Medians of a forward and backward pass as "
        "multiples of the floor, three products of the batch with itself (of a queue: two, of batch and queue), "
        "taken before each sample; the fastest in bold."
    )


def page(found: Sequence[Found], head: str) -> str:
    """The picture, tables of ratios with the fastest in bold, and a list of where we are not first."""
    parts = ["# Beside other packages", head]
    if others_over_ours(found):
        parts += [
            "![Time of the fastest other package over ours, against the batch, for each loss](peers.png)",
            f"In {DRAWN}: the time of the fastest other package as a multiple of ours; in the gray it is ahead of us. "
            "Dashes: both are given the tuples of PML's miner, whose time does not count. RAW, which the others lack, "
            "stands beside PML's `MultiSimilarityLoss` with its miner. "
            "Batches that were too large for one of the packages are left out.",
        ]
    behind = []
    for kind in dict.fromkeys(one.kind for one in found):
        places = {place: ratios for place, ratios in by_place(found).items() if place.kind == kind}
        rivals = [OURS, *dict.fromkeys(one.whose for one in found if one.kind == kind and one.whose != OURS)]
        rows = [f"| n x d / per class | | {' | '.join(rivals)} |", "|---|---|" + "---:|" * len(rivals)]
        for place, ratios in places.items():
            best = min(ratios, key=ratios.__getitem__, default="")
            cells = [
                "" if whose not in ratios else f"**{ratios[whose]:.2f}**" if whose == best else f"{ratios[whose]:.2f}"
                for whose in rivals
            ]
            rows.append(f"| {place.n} x {place.d} / {place.per_class} | {place.task} | {' | '.join(cells)} |")
            if best != OURS and OURS in ratios:
                where = f"{place.n} x {place.d}, {place.per_class} per class"
                behind.append(f"- {place.task}, {kind}, {where}: {best} by {ratios[OURS] / ratios[best]:.2f} x")
        parts += [f"## {kind}", "\n".join(rows)]
    parts += ["## Where we are not first", "\n".join(behind) or "Nowhere."]
    failed = [f"- {one.task}, {one.whose}, {one.kind}, n = {one.n}: {one.note}" for one in found if not one.ratio]
    if failed:
        parts += ["## What could not run", "\n".join(dict.fromkeys(failed))]
    notes = [f"- {one.task}, n = {one.n}, d = {one.d}: {one.note}" for one in found if one.ratio and one.note]
    if notes:
        parts += ["## Compilation", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


class Point(NamedTuple):
    """How long the fastest other package takes, as a multiple of ours."""

    n: int
    times: float
    whose: str


def others_over_ours(found: Sequence[Found]) -> dict[tuple[int, int], dict[str, list[Point]]]:
    """By dimension and class size and by task, a point for each batch that all packages of the task were measured on.

    Of a queue there are too few for a line.
    """
    places = {
        place: ratios
        for place, ratios in by_place(found).items()
        if place.kind == DRAWN and not place.task.endswith(", queue")
    }
    rivals: dict[str, set[str]] = {}
    for place, ratios in places.items():
        rivals.setdefault(place.task, set()).update(whose for whose in ratios if whose in MARKERS)
    panels: dict[tuple[int, int], dict[str, list[Point]]] = {}
    for place, ratios in places.items():
        others = rivals[place.task]
        if others and {OURS, *others} <= set(ratios):
            whose = min(others, key=lambda whose: ratios[whose])
            points = panels.setdefault((place.d, place.per_class), {}).setdefault(place.task, [])
            points.append(Point(place.n, ratios[whose] / ratios[OURS], whose))
    return panels


def picture(found: Sequence[Found]) -> "Picture":
    """A panel for each dimension and class size, a line for each task, a marker for the package that is the fastest."""
    from pml_ext.figures import Picture

    panels = others_over_ours(found)
    styles = _styles([task for lines in panels.values() for task in lines])
    dimensions, sizes = (sorted({key[i] for key in panels}) for i in (0, 1))
    batches = sorted({point.n for lines in panels.values() for points in lines.values() for point in points})
    figure = Picture(figsize=(8, 1.7 + 3.3 * len(sizes)), layout="constrained")
    grid = figure.subplots(len(sizes), len(dimensions), sharex=True, sharey=True, squeeze=False)
    for row, per_class in enumerate(sizes):
        for column, d in enumerate(dimensions):
            axes = grid[row][column]
            _draw(axes, panels.get((d, per_class), {}), styles)
            axes.set_title(f"d = {d}, {per_class} per class", fontsize=12)
            if row + 1 == len(sizes):
                axes.set_xlabel("n, the batch", fontsize=12)
    first = grid[0][0]
    first.set_xscale("log", base=2)
    first.set_yscale("log")
    first.set_xticks(batches, [str(n) for n in batches])
    first.set_xlim(batches[0] / 1.2, batches[-1] * 1.2)
    low, high = first.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    first.set_yticks(ticks, [f"{tick:g} x" for tick in ticks])
    first.minorticks_off()
    for axes in grid.flat:
        axes.axhspan(low, 1, color=GRAY, alpha=0.13, linewidth=0)
    first.set_ylim(low, high)
    first.text(
        batches[-1] * 1.1, low * 1.05, "another package is faster", ha="right", va="bottom", fontsize=11, color=GRAY
    )
    figure.supylabel("time of the fastest other package / ours", fontsize=12)
    figure.legend(handles=_legend(found, styles), loc="outside lower center", fontsize=11, ncols=3, frameon=False)
    return figure


def _styles(tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A color for each loss; dashes where both are given tuples."""
    names = list(dict.fromkeys(task.partition(",")[0] for task in tasks))
    colors = dict(zip(names, cycle((*HUES, SKY, BLACK)), strict=False))
    return {
        task: {"color": colors[task.partition(",")[0]], "linestyle": "--" if "," in task else "-"}
        for task in sorted(dict.fromkeys(tasks), key=lambda task: "," in task)
    }


def _draw(axes: Any, lines: Mapping[str, Sequence[Point]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    axes.axhline(1, color=GRAY, linewidth=1)
    axes.grid(axis="y", alpha=0.25)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    for task, points in lines.items():
        n, times = [point.n for point in points], [point.times for point in points]
        axes.plot(n, times, **styles[task], linewidth=1.8)
        for point in points:
            axes.plot(point.n, point.times, MARKERS[point.whose], color=styles[task]["color"], markersize=6)


def _legend(found: Sequence[Found], styles: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], label=task, linewidth=1.6, **style)
        for task, style in styles.items()
        if style["linestyle"] == "-"
    ]
    if len(lines) < len(styles):
        lines.append(Line2D([], [], label="given PML's tuples", color=GRAY, linestyle="--"))
    whose = {one.whose for one in found}
    return lines + [
        Line2D([], [], marker=marker, linestyle="", color=GRAY, label=f"fastest: {name}")
        for name, marker in MARKERS.items()
        if name in whose
    ]


def write(found: Sequence[Found], head: str, out: Path) -> None:
    """The page, and its picture if there is something to compare."""
    from pml_ext.figures import png

    (out / "peers.md").write_text(page(found, head), encoding="utf-8")
    if others_over_ours(found):
        (out / "peers.png").write_bytes(png(picture(found), dpi=84))
    print(f"wrote {out / 'peers.jsonl'}, peers.md and peers.png")


def again(out: Path) -> None:
    """Both from the lines that are there; how and where they were measured is what the page said.

    Raises:
        SystemExit: there are no lines, or no page.
    """
    lines, old = out / "peers.jsonl", out / "peers.md"
    for path in (lines, old):
        if not path.exists():
            raise SystemExit(f"{path} is missing")
    found = [Found(**json.loads(line)) for line in lines.read_text(encoding="utf-8").splitlines()]
    write(found, old.read_text(encoding="utf-8").split("\n\n")[1], out)
