"""The page of `benchmarks/since_2018.py`: what each loss, miner and sampler gains over the known ones, and loses.

python benchmarks/since_2018_page.py runs/since_2018      of the folder that the runs were written to
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reality_page import CHOSEN_BY, holm, lines, of_queries, percent, points, put

from pml_ext.benchmark import Experiment
from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.result import BASELINES
from pml_ext.evaluation import Difference, paired_difference

RESULTS = Path(__file__).parent / "results" / "since_2018.md"
CONDITIONS = {"clean": "Clean labels", "split": "A quarter of the training classes split in two"}
METRICS = {CHOSEN_BY: "MAP@R", "recall_at_1": "recall@1"}
RANDOM = "classes"
BASES = ("MultiSimilarity", "RAW")
OF_RUNS = ("recall_at_1", "recall_at_8", CHOSEN_BY, "NMI")
WITH = {"hardware": ("cpu", "threads"), "versions": ("python", "torch", "pytorch-metric-learning")}
NOT_KEPT = ("losses", "cache", "out", "data", "protocol")

# By data set, then by method: [seeds, queries].
Queries = Mapping[str, Mapping[str, NDArray[np.float64]]]
# By method and data set.
Differences = Mapping[tuple[str, str], Difference]


def named(loss: str, sampler: str) -> str:
    """What a loss with a sampler is called.

    >>> named("RAW", "classes"), named("RAW", "mined")
    ('RAW', 'RAW, mined')
    """
    return loss if sampler == RANDOM else f"{loss}, {sampler}"


def folders(out: Path, condition: str) -> dict[str, dict[str, Path]]:
    """The folders of a condition in which all runs have ended, by data set and sampler, random classes first."""
    found: dict[str, dict[str, Path]] = {}
    for where in sorted(out.glob(f"*/{condition}/*/"), key=lambda each: (each.name != RANDOM, each.name)):
        if has_ended(where):
            found.setdefault(where.parent.parent.name, {})[where.name] = where
    return dict(sorted(found.items()))


def has_ended(folder: Path) -> bool:
    """Whether each loss of an experiment has been trained with each seed, well or badly."""
    path = folder / "results.jsonl"
    found = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    trained = [line for line in found if line["loss"] not in BASELINES]
    return bool(trained) and len(trained) >= math.prod(
        len(trained[0]["arguments"][name]) for name in ("losses", "seeds")
    )


def of_samplers(parts: Mapping[str, Path], metric: str) -> dict[str, NDArray[np.float64]]:
    """A metric of each query in each run, by method; what was not trained is in the first part only."""
    return {
        named(loss, sampler): values
        for sampler, where in parts.items()
        for loss, values in of_queries(where, metric).items()
        if sampler == RANDOM or loss not in BASELINES
    }


def classes(parts: Mapping[str, Path]) -> NDArray[np.int64]:
    """The class of each query; all runs of a data set have the same."""
    where = parts[RANDOM]
    first = lines(where)[0]
    with np.load(run_folder(where, first["loss"], first["seed"]) / "queries.npz", allow_pickle=False) as values:
        found: NDArray[np.int64] = values["query_classes"]
    return found


def differences(
    queries: Queries, of_class: Mapping[str, NDArray[np.int64]], base: str
) -> tuple[Differences, set[tuple[str, str]]]:
    """What each trained method has more than the base, over classes and seeds, and which are significant together."""
    keys = [
        (name, data)
        for data, methods in queries.items()
        for name in methods
        if base in methods and name not in (*BASELINES, base)
    ]
    found = {
        (name, data): paired_difference(queries[data][name], queries[data][base], groups=of_class[data])
        for name, data in keys
    }
    corrected = holm([found[key].p_value for key in keys])
    return found, {key for key, p in zip(keys, corrected, strict=True) if p < 0.05}


def order(queries: Queries) -> list[str]:
    """All methods in the order in which they were run."""
    return list(dict.fromkeys(name for methods in queries.values() for name in methods))


def means(queries: Queries) -> list[str]:
    """A row for each method: the mean over seeds and its interval on each data set, in per cent."""
    out = [f"| | {' | '.join(queries)} |", "|:--|" + "--:|" * len(queries)]
    for name in order(queries):
        cells = [percent(methods[name].mean(1).tolist()) if name in methods else "" for methods in queries.values()]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return out


def against(queries: Queries, found: Differences, significant: Iterable[tuple[str, str]]) -> list[str]:
    """A row for each method: the difference in points and its interval on each data set, bold if significant."""
    out, bold = [f"| | {' | '.join(queries)} |", "|:--|" + "--:|" * len(queries)], set(significant)
    for name in order(queries):
        one = [found.get((name, data)) for data in queries]
        cells = [
            "" if each is None else points(each, is_significant=(name, data) in bold)
            for data, each in zip(queries, one, strict=True)
        ]
        if any(cells):
            out.append(f"| {name} | {' | '.join(cells)} |")
    return out


def counted(queries: Queries, found: Differences, significant: Iterable[tuple[str, str]]) -> list[str]:
    """On how many data sets each method is significantly ahead or behind, those that never are left out."""
    signs = [(name, found[name, data].mean > 0) for name, data in significant]
    ahead, behind = (Counter(name for name, sign in signs if sign is wanted) for wanted in (True, False))
    sets = len(queries)
    rows = [
        f"| {name} | {ahead[name]} | {behind[name]} | {sets} |"
        for name in order(queries)
        if ahead[name] or behind[name]
    ]
    return ["| | ahead | behind | of |", "|:--|--:|--:|--:|", *rows] if rows else ["None is, anywhere."]


def chosen(parts: Mapping[str, Mapping[str, Path]], found: Mapping[str, Differences]) -> list[str]:
    """A row for each data set: the method that its validation classes would choose, and what it is worth on the others.

    Args:
        parts: folders by data set and sampler.
        found: differences to each base.
    """
    out = [
        f"| | by validation | {' | '.join(f'more than {base}' for base in found)} |",
        "|:--|:--|" + "--:|" * len(found),
    ]
    for data, of_data in parts.items():
        values: dict[str, list[float]] = {}
        for sampler, where in of_data.items():
            for line in lines(where):
                if line["validation"] and line["loss"] not in BASELINES:
                    values.setdefault(named(line["loss"], sampler), []).append(line["validation"][CHOSEN_BY])
        if values:
            best = max(values, key=lambda name: float(np.mean(values[name])))
            cells = [points(each[best, data]) if (best, data) in each else "it is" for each in found.values()]
            out.append(f"| {data} | {best} | {' | '.join(cells)} |")
    return out


def section(out: Path, condition: str) -> list[str]:
    """The tables of a condition."""
    parts = folders(out, condition)
    of_class = {data: classes(each) for data, each in parts.items()}
    page: list[str] = []
    for metric, title in METRICS.items():
        queries = {data: of_samplers(each, metric) for data, each in parts.items()}
        page += [f"### {title}, in per cent", "", *means(queries), ""]
        found = {base: differences(queries, of_class, base) for base in BASES}
        for base, (each, significant) in found.items():
            if metric == CHOSEN_BY:
                page += [f"### {title}: how much more than {base} with random classes", ""]
                page += [*against(queries, each, significant), ""]
            page += [f"{title}, significantly ahead of {base} or behind it, on how many data sets:", ""]
            page += [*counted(queries, each, significant), ""]
        if metric == CHOSEN_BY:
            page += ["### What the validation classes would choose", ""]
            page += [*chosen(parts, {base: each for base, (each, _) in found.items()}), ""]
    return page


def kept(out: Path) -> list[dict[str, Any]]:
    """A line for each run that ended well: of its arguments those that are not the defaults."""
    defaults = {each.name: each.default for each in fields(Experiment) if each.default is not MISSING}
    found = []
    for condition in CONDITIONS:
        for data, parts in folders(out, condition).items():
            for sampler, where in parts.items():
                for line in lines(where):
                    if sampler != RANDOM and line["loss"] in BASELINES:
                        continue
                    names = (
                        "loss",
                        "seed",
                        "best_epoch",
                        "seconds_per_epoch",
                        "hardware",
                        "date",
                        "commit",
                        "versions",
                    )
                    arguments = {
                        name: value
                        for name, value in line["arguments"].items()
                        if name not in NOT_KEPT and value != defaults.get(name)
                    }
                    rounded = {
                        part: {name: round(line[part][name], 5) for name in OF_RUNS if name in line[part]}
                        for part in ("metrics", "validation")
                    }
                    where_run = {part: {name: line[part].get(name) for name in kinds} for part, kinds in WITH.items()}
                    about = {"data": data, "condition": condition, "sampler": sampler}
                    found.append(
                        about | {name: line[name] for name in names} | rounded | {"arguments": arguments} | where_run
                    )
    return found


def write(out: Path) -> None:
    """Write `results/since_2018.md` below its mark, and the lines that it is made of."""
    there = [condition for condition in CONDITIONS if folders(out, condition)]
    if not there:
        raise SystemExit(f"no experiment of {out} has ended")
    page = [line for each in there for line in (f"## {CONDITIONS[each]}", "", *section(out, each))]
    put(RESULTS, "\n".join(page).rstrip() + "\n", "Since 2018")
    found = kept(out)
    RESULTS.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    print(f"written: {RESULTS} and .jsonl, {len(found)} runs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/since_2018"), help="default: runs/since_2018")
    write(parser.parse_args().out)
