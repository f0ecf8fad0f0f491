"""The page: its sections in their order, and its looks, wide and narrow, light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from pml_ext.benchmark import curves
from pml_ext.benchmark.result import Result
from pml_ext.benchmark.table import columns
from pml_ext.evaluation.intervals import Difference, Interval
from pml_ext.shown import text

from .maps import DOTS, maps
from .markup import figure, name, shortened, table
from .retrievals import gallery
from .summary import Floats, Row, baseline, summarize

CURVES = 7  # losses in the curves: as many as there are colors
SMALL = (5.6, 3.9)  # inches of a curve: its letters are readable at the width of a telephone
BEST = "≈ best"


@dataclass(frozen=True)
class Contents:
    """What a report is made of.

    Args:
        title: of the page.
        results: of all runs, failed ones too.
        lines: what was said about data and runs before the start. Default ().
        queries: loss -> recall@1 of each query [runs, n]. Default {}: no comparison of losses.
        test: the dataset of the test classes, for the gallery and the map. Default None.
        embeddings: of some losses, those of the test images [n, d], normalized. Default {}.
        images: whether the samples can be shown. Default True.
        healths: loss -> the recorded columns of its runs. Default {}.
    """

    title: str
    results: Sequence[Result]
    lines: Sequence[str] = ()
    queries: Mapping[str, Floats] = field(default_factory=dict)
    test: Any = None
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    images: bool = True
    healths: Mapping[str, Sequence[Mapping[str, Sequence[float | None]]]] = field(default_factory=dict)


def page(contents: Contents) -> str:
    """The whole document: it loads nothing, runs nothing, and everything from users in it is escaped."""
    rows = summarize(contents.results, contents.queries)
    sections = [
        ("Results", results_table(contents, rows)),
        ("Curves", _curves(contents, rows)),
        ("Retrievals", _retrievals(contents)),
        ("Map", _map(contents)),
        ("Health", _health(contents, rows)),
        ("Arguments", _arguments(contents.results)),
    ]
    shown = [(title, body) for title, body in sections if body]
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title, _ in shown)
    body = "".join(f'<section id="{title.lower()}"><h2>{title}</h2>{body}</section>' for title, body in shown)
    lines = "".join(f"<li>{text(line)}</li>" for line in contents.lines)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(contents.title)}</title><style>{STYLE}{DOTS}</style></head>"
        f"<body><header><h1>{text(contents.title)}</h1><nav>{links}</nav></header>"
        f"<main>{f'<ul>{lines}</ul>' if lines else ''}{body}</main></body></html>\n"
    )


def results_table(contents: Contents, rows: Sequence[Row]) -> str:
    """The table of the losses with intervals, ranks and gains, and its notes, in HTML."""
    shown = columns(contents.results)
    base = baseline(contents.results)
    ranked = any(row.standing for row in rows)
    gained = any(row.gain for row in rows)
    head = ["loss", "runs"]
    for title, metric in shown:
        head.append(title)
        if metric == "recall_at_1":
            head += (["", "rank"] if ranked else []) + ([f"gain over<br>{text(base)}"] if gained else [])
    body = []
    for row in rows:
        recall = row.intervals["recall_at_1"]
        cells = [
            name(row.loss),
            f"{recall.valid}" if recall.valid == recall.total else f"{recall.valid} of {recall.total}",
        ]
        for _, metric in shown:
            cells.append(_interval(row.intervals.get(metric)))
            if metric == "recall_at_1":
                cells += ([_mark(row), _rank(row)] if ranked else []) + ([_difference(row.gain)] if gained else [])
        body.append(cells)
    return table(head, body) + "".join(f"<p>{note}</p>" for note in _notes(contents, rows))


def _notes(contents: Contents, rows: Sequence[Row]) -> list[str]:
    runs = {row.intervals["recall_at_1"].total for row in rows}
    over = "of recall@1 over queries (bootstrap): one run says nothing about seeds"
    if max(runs, default=0) > 1:
        single = "; of a single run, of recall@1 over queries (bootstrap)"
        over = f"over runs (Student){single if 1 in runs else ''}"
    notes = [f"In per cent, on classes that were not trained on; intervals are of 95 %, {over}."]
    if any(row.standing for row in rows):
        notes.append(
            "rank: by recall@1, the places that the differences of every two rows over the same queries and all runs "
            f"leave open (Holm's correction for all pairs, 95 %); {BEST}: 1 is among them, not distinguishable from "
            "the best."
        )
    failures = "".join(f"<li>{name(row.loss)}, {text(line)}</li>" for row in rows for line in row.failures)
    return [*notes, *([f"What went wrong:</p><ul>{failures}</ul><p>"] if failures else [])]


def _interval(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.mean):
        return "-"
    mean = f"{100 * interval.mean:.1f}"
    if math.isnan(interval.low):
        return mean
    # Student's interval knows nothing of the ends of a share.
    low, high = max(0.0, 100 * interval.low), min(100.0, 100 * interval.high)
    return f'{mean} <span class="muted">{low:.1f}&ndash;{high:.1f}</span>'


def _difference(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.mean):
        return ""
    low, mean, high = (f"{100 * x:+.1f}" for x in (difference.low, difference.mean, difference.high))
    return f'{mean} <span class="muted">{low} to {high}</span>'


def _mark(row: Row) -> str:
    return f'<span class="best">{BEST}</span>' if row.standing is not None and row.standing.is_best else ""


def _rank(row: Row) -> str:
    if row.standing is None:
        return ""
    first, last = row.standing.first, row.standing.last
    return f"{first}" if first == last else f"{first}&ndash;{last}"


def _curves(contents: Contents, rows: Sequence[Row]) -> str:
    best = [row.loss for row in rows if row.trained][:CURVES]
    kept = {*best, *(row.loss for row in rows if not row.trained)}
    results = [result for result in contents.results if result.loss in kept and not result.error]
    if not any(result.trained for result in results):
        return ""
    watched = "validation" if any(result.validation for result in results) else "test"
    names = shortened(kept)
    results = [replace(result, loss=names[result.loss]) for result in results]
    left_out = sum(row.trained for row in rows) - len(best)
    drawn = [
        figure(partial(curves.learning_curves, results), f"Recall@1 after each epoch, {watched} classes", SMALL),
        figure(partial(curves.recall_curves, results), "Recall@k: one of the k nearest is right, test classes", SMALL),
    ]
    note = f"<p>Those with the best recall@1; {left_out} more are in the table.</p>" if left_out else ""
    return f'<div class="curves">{"".join(drawn)}</div>{note}'


def _retrievals(contents: Contents) -> str:
    if contents.test is None or not contents.embeddings or not contents.images:
        return ""
    note = (
        '<p>Queries drawn at random among the test images, and what lies nearest: <span class="right">✓</span> of the '
        'same class, <span class="wrong">✗</span> of another.</p>'
    )
    return note + gallery(contents.test, contents.embeddings)


def _map(contents: Contents) -> str:
    if contents.test is None or not contents.embeddings:
        return ""
    drawn = maps(contents.test, contents.embeddings, images=contents.images)
    note = (
        "<p>Some test classes, drawn at random, in two dimensions by t-SNE: near is meaningful, far is not. "
        "Point at a sample, or go there with the Tab key; a click or Enter lists its neighbors.</p>"
    )
    return note + drawn if drawn else ""


def _health(contents: Contents, rows: Sequence[Row]) -> str:
    best = [row.loss for row in rows if row.loss in contents.healths][:CURVES]
    if not best:
        return ""
    names = shortened(best)
    healths = {names[loss]: contents.healths[loss] for loss in best}
    drawn = figure(
        partial(curves.health_curves, healths),
        "What the losses do to pairs, and how the embeddings look, by step",
        (9, 6.4),
    )
    return f'<div class="scrolls" tabindex="0">{drawn}</div>'  # four panels are too small for a telephone


def _arguments(results: Sequence[Result]) -> str:
    if not results:
        return ""
    one = results[-1]
    told = {
        **one.arguments,
        **{f"hardware: {key}": value for key, value in one.hardware.items()},
        **{f"version of {key}": value for key, value in one.versions.items()},
        "commit": one.commit,
        "date": one.date,
    }
    return table(("argument", "value"), ([text(key), _value(value)] for key, value in told.items()))


def _value(value: Any) -> str:
    if value is None or value == []:
        return '<span class="muted">none</span>'
    return text(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d21; --muted: #5c6470; --line: #d9dde3; --soft: #f4f6f8;
  --right: #00795a; --wrong: #b84a00; --link: #0060a0; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171b; --ink: #e6e8eb; --muted: #9aa3af; --line: #343a43;
  --soft: #1e2127; --right: #2fcf9f; --wrong: #ff8f4a; --link: #7cc0ff; }
  figure svg { filter: brightness(1.25); }
  figure svg path[style*="#b0b0b0; stroke-opacity: 0.25"] { stroke-opacity: .1 !important; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 0 16px 48px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 24px 0 8px; } h2 { font-size: 1.2rem; margin: 40px 0 12px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; border-bottom: 1px solid var(--line); padding-bottom: 8px; }
a { color: var(--link); } ul { padding-left: 20px; } p { margin: 8px 0; }
.muted, caption { color: var(--muted); font-size: .85em; }
.name { display: inline-block; max-width: 24ch; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; vertical-align: bottom; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th { background: var(--soft) !important; font-weight: 600; } tbody th { font-weight: 500; }
td .muted { display: block; line-height: 1.2; }
#arguments td, #arguments th { text-align: left; white-space: normal; }
#arguments th { overflow-wrap: normal; }
.scrolls { overflow-x: auto; } .scrolls svg { min-width: 760px; }
.best { color: var(--right); font-weight: 600; }
figure { margin: 0; } figure svg { display: block; width: 100%; height: auto; max-height: 80vh; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; padding: 0; }
.legend .dot { position: static; display: inline-block; margin: 0 6px 0 0; }
.map { position: relative; aspect-ratio: 1; border: 1px solid var(--line); border-radius: 8px; }
.dot { position: absolute; width: 10px; height: 10px; margin: -5px 0 0 -5px; background: var(--dot);
  border-radius: 50%; }
.dot.up { border-radius: 0; clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.dot:hover, .dot:focus { z-index: 2; clip-path: none; outline: 2px solid var(--ink); outline-offset: 2px; }
.maps:has(.by-verdict:checked) .map .dot { --dot: var(--right); }
.maps:has(.by-verdict:checked) .map .dot.wrong { --dot: var(--wrong); border-radius: 0; }
.card { display: none; position: absolute; left: 14px; top: 14px; width: max-content; max-width: 20ch; padding: 6px;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 6px; font-size: .8rem; }
.dot:hover > .card, .dot:focus > .card { display: block; }
.card small { display: block; } .dot[style*="left:6"] > .card, .dot[style*="left:7"] > .card,
.dot[style*="left:8"] > .card, .dot[style*="left:9"] > .card { left: auto; right: 14px; }
.tile { display: inline-block; width: 48px; height: 48px; vertical-align: middle; margin-right: 6px; border-radius: 4px;
  background-position: calc(var(--x) * -48px) calc(var(--y) * -48px); }
.tile.right { outline: 3px solid var(--right); } .tile.wrong { outline: 3px dashed var(--wrong); }
.near { display: none; scroll-margin-top: 60vh; } .near:target { display: block; }
.near ol { display: flex; flex-wrap: wrap; gap: 10px 30px; padding-left: 24px; font-size: .8rem; }
.ways label { margin-right: 12px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 24px; }
.query { display: grid; grid-template-columns: 128px 1fr; gap: 8px 20px; padding: 16px 0;
  border-bottom: 1px solid var(--line); }
.query .row p { margin: 0 0 2px; } .query .row p .name { max-width: 85%; } .query .row + .row { margin-top: 10px; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft); border-radius: 4px; }
img.png { image-rendering: pixelated; }
.found { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 8px; list-style: none; margin: 0;
  padding: 0; max-width: 900px; }
.found li { position: relative; border: 3px solid; border-radius: 7px; padding: 2px; font-size: .75rem; min-width: 0; }
.found .name, .asks .name { max-width: 100%; color: var(--ink); }
.mark { position: absolute; top: 4px; right: 4px; width: 1.5em; height: 1.5em; line-height: 1.5; text-align: center;
  border-radius: 50%; background: var(--paper); font-weight: 700; }
.right { color: var(--right); } .wrong { color: var(--wrong); } li.right { border-color: var(--right); }
li.wrong { border-color: var(--wrong); border-style: dashed; }
figcaption { text-align: center; font-size: .85rem; }
.drawn figcaption { text-align: left; font-size: 1rem; font-weight: 600; }
@media (max-width: 640px) { body { padding: 0 12px 32px; } .query { grid-template-columns: 1fr; }
  .asks { width: 112px; } .found { grid-template-columns: repeat(4, minmax(0, 1fr)); } th, td { padding: 6px; }
  .name { max-width: 15ch; } }
@media print { nav { display: none; } }
"""
