"""What was measured, as Markdown: the files in `benchmarks/results`, read anew for every build."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pml_ext.benchmark.result import BASELINES
from pml_ext.evaluation import Interval, mean_interval

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
# Files with one line for each run of the main job, what they are called in a sentence, and the data if no line says it.
_RETRIEVAL = {
    "frozen_cub": ("every method at its defaults", "CUB"),
    "since_2018": ("some methods at their defaults", ""),
    "reality": ("every method tuned alike", ""),
}
# What the benchmark of equally tuned losses calls a track, before the name of its data.
_TRACKS = {
    "frozen": "on frozen features of {}",
    "scratch": "on {} from scratch",
    "fine-tuned": "on {} with a fine-tuned trunk",
}
# What is said of a track that does not do what its file does.
_OF_TRACK = {"fine-tuned": _RETRIEVAL["frozen_cub"][0]}
# Of lines that say what was done to the labels, and how batches were made, those of ordinary ones.
_ORDINARY = {"condition": "clean", "sampler": "classes"}
_METRICS = {"recall_at_1": "recall@1", "mean_average_precision_at_r": "MAP@R"}
# The batch of the speed table: samples, dimension, samples of a class.
_BATCH = (1024, 512, 4)

# By data set, method and metric, in per cent.
Table = Mapping[str, Mapping[str, Mapping[str, Interval]]]


@cache
def retrieval(name: str) -> Table:
    """Means and 95 % intervals over the seeds of a file; no data sets if there is no such file yet."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for line in _lines(name):
        if any(line.get(key, value) != value for key, value in _ORDINARY.items()):
            continue
        data = line.get("data") or _RETRIEVAL[name][1]
        of_method = values.setdefault(data, {}).setdefault(line["loss"].partition("(")[0], {})
        for metric in _METRICS:
            if values_of := _values(line, metric):
                of_method.setdefault(metric, []).extend(100 * value for value in values_of)
    return {
        data: {
            method: {metric: mean_interval(found) for metric, found in metrics.items()}
            for method, metrics in methods.items()
        }
        for data, methods in values.items()
    }


def _values(line: Mapping[str, Any], metric: str) -> list[float]:
    """What a line has of a metric: that of its run, or a column of its runs."""
    found = line["runs"]["metrics"].get(metric, []) if "runs" in line else [line["metrics"].get(metric)]
    return [value for value in found if value is not None]


@cache
def speed() -> Mapping[str, Mapping[str, Any]]:
    """The last measurement of each job at the batch of the table."""
    lines = (line for line in _lines("speed") if line["mode"] == "full")
    return {line["job"]: line for line in lines if (line["n"], line["d"], line["per_class"]) == _BATCH}


def of_method(name: str) -> Iterator[str]:
    """What is known of a method: its results beside those of the untrained network, its time, its memory."""
    for file, (how, _) in _RETRIEVAL.items():
        for data, methods in retrieval(file).items():
            if name in methods:
                found = _retrieval(methods, name)
                yield f"- {found} {_where(data)}, {_how(data, how)}: [results](results/{file}.md)."
    if name in speed():
        yield f"- {_speed(name)}: [speed](results/speed.md)."


def _how(data: str, of_file: str) -> str:
    return _OF_TRACK.get(data.rpartition(": ")[0], of_file)


def _where(data: str) -> str:
    track, _, name = data.rpartition(": ")
    return _TRACKS[track or "frozen"].format(name)


def _retrieval(methods: Mapping[str, Mapping[str, Interval]], name: str) -> str:
    found = methods[name]
    shown = []
    for metric, title in _METRICS.items():
        beside = [f"{other} {methods[other][metric].mean:.1f}" for other in BASELINES if other in methods]
        shown.append(f"{title} **{_interval(found[metric])}** ({', '.join(beside)})")
    seeds = next(iter(found.values())).total
    return f"{' and '.join(shown)}, {seeds} seeds"


def _interval(value: Interval) -> str:
    return f"{value.mean:.1f} ± {value.high - value.mean:.1f}" if value.valid > 1 else f"{value.mean:.1f}"


def _speed(name: str) -> str:
    line = speed()[name]
    n, d, per_class = _BATCH
    text = f"**{1000 * line['seconds']:.1f} ms** and {line['peak_mb']:.0f} MB forward and backward"
    text += f" (n = {n}, d = {d}, {per_class} per class, one thread), {line['ratio']:.2f} of the matrix products alone"
    stock = speed().get(f"{name}, stock", {})  # without a ratio where PML took too long
    return f"{text}; PML takes {stock['ratio'] / line['ratio']:.1f} times as long" if "ratio" in stock else text


def highest(metric: str, count: int) -> str:
    """The methods with the highest means, a row each for every file and data set, beside the untrained network."""
    rows = ["| data | highest means | before training |", "|---|---|---|"]
    for file, (how, _) in _RETRIEVAL.items():
        for data, methods in retrieval(file).items():
            trained = [name for name in methods if name not in BASELINES]
            best = sorted(trained, key=lambda name: -methods[name][metric].mean)[:count]
            means = ", ".join(f"{name} {_interval(methods[name][metric])}" for name in best)
            before = ", ".join(f"{name} {_interval(methods[name][metric])}" for name in BASELINES if name in methods)
            rows.append(
                f"| [{data}](results/{file}.md), {len(trained)} methods, {_how(data, how)} | {means} | {before} |"
            )
    return "\n".join(rows)


def results() -> str:
    """A table of the pages of results: what each is about, and the command that makes it again."""
    rows = [f"| [{title(path)}]({path.name}) | {command(path)} |" for path in pages()]
    return "\n".join(["| what | made by |", "|---|---|", *rows])


def pages() -> list[Path]:
    """The files of results that are pages."""
    return sorted(RESULTS.glob("*.md"))


def title(path: Path) -> str:
    """The first heading of a page."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def command(path: Path) -> str:
    """What repeats a page, as the page itself says: a command, or the code of its first block.

    Raises:
        ValueError: the page does not say it.
    """
    text = path.read_text(encoding="utf-8")
    if found := re.search(r"^ {4}(python .+)|`(python [^`]+)`", text, re.MULTILINE):
        return f"`{' '.join((found[1] or found[2]).split())}`"
    if "```python" in text:
        return "the code that it begins with"
    raise ValueError(f"{path.name} has no command that repeats it")


def _lines(name: str) -> Iterator[dict[str, Any]]:
    path = RESULTS / f"{name}.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
