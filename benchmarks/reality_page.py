"""The page and the picture of `benchmarks/reality.py`: what is distinguishable, and how methods compare.

Beside the page stand the runs (`.jsonl`) and what the tests over their queries said (`.json`), which is all that it is
made of: data sets can be run on different days and machines, and a page of one more needs only its runs.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import run_lines
from numpy.typing import NDArray
from scipy.stats import rankdata

from pml_ext.benchmark.evaluate import CHOSEN_BY
from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.result import BASELINES
from pml_ext.evaluation import Difference, mean_interval, paired_difference, standings
from pml_ext.palette import BLUE, GRAY

RESULTS = Path(__file__).parent / "results" / "reality.md"

# The runs of each method, by data set.
Runs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
# What the tests of each data set said, see `compared`.
Tests = Mapping[str, Mapping[str, Any]]
# Methods, first against second, and what differs. In these the same loss is inside both, each with values of its own.
ONE_CHANGE = (
    ("Binomial2020", "BinDeviance2018", "binomial deviance of all negatives against that of hard ones"),
    ("DistWeightBinDeviance", "Binomial2020", "inverse-density sampling against all negatives"),
    ("DistWeightContrastive", "Contrastive2018", "the same"),
    ("DistanceWeighted", "Margin", "distance-weighted sampling against all triplets"),
    ("DistWeight", "Neighbour", "positives that are drawn against the nearest"),
    ("BinBranch", "BinDeviance2018", "slices with a loss each against one head of the same size"),
    ("DevBranch", "DistWeightBinDeviance", "the same"),
    ("BDWNeighbour", "DistWeightNeighbour", "the same"),
    ("CenterNCA", "NCA", "class centers against pairs"),
    ("KmeanNCA", "NCA", "several centers of a class against pairs"),
    ("ClusterNCA", "NCA", "clusters of the batch against pairs"),
    ("ABatchAll", "BatchAll", "adaptive weights of anchors against none"),
    ("ATriplet", "SoftTriplet", "the same"),
    ("XBM", "pml:ContrastiveLoss", "a queue against none"),
)
CLAIMS = (
    *ONE_CHANGE,
    ("RAW", "MultiSimilarity", "multi-similarity with its miner (RAW is both) against all pairs"),
    ("MarginDeviance", "BinDeviance2018", "a level of each anchor's own in binomial deviance against a fixed one"),
    ("NCA", "pml:NCALoss", "softmax over the nearest against softmax over all"),
    ("BatchHard", "BatchAll", "hardest triplets against all"),
    ("HCL", "Debiased", "hard negatives against the debiased mean"),
    ("RAW", "pml:TripletMarginLoss", "weights of mined pairs against plain triplets"),
    ("RAW", "pml:ContrastiveLoss", "weights of mined pairs against plain pairs"),
    ("MultiSimilarity", "BinDeviance2018", "the weights that Deep_metric's script asks for, against its deviance"),
    ("MultiSimilarity", "NCA", "the same against its softmax over the nearest"),
    ("MultiSimilarity", "SemiHard", "weights of all pairs against semi-hard triplets"),
    ("MultiSimilarity", "BatchHard", "weights of all pairs against the hardest triplets"),
    ("MultiSimilarity", "XBM", "weights of all pairs against a queue of pairs"),
    ("SmoothAP", "RAW", "a smooth average precision against weights of pairs"),
    ("pml:ProxyAnchorLoss", "RAW", "proxies against pairs"),
    ("pml:ArcFaceLoss", "RAW", "classification against pairs"),
)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Runs that have ended well."""
    path = folder / "results.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in found if not line["error"]]


def method(name: str) -> str:
    """A name without its arguments.

    >>> method("RAW(gamma=0.3)")
    'RAW'
    """
    return name.split("(", 1)[0]


def of_queries(
    folder: Path, metric: str = CHOSEN_BY, named: Callable[[str], str] = method
) -> dict[str, NDArray[np.float64]]:
    """A metric, MAP@R by default, of each query in each run [seeds, n], by method, or as the losses are called."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for line in lines(folder):
        with np.load(run_folder(folder, line["loss"], line["seed"]) / "queries.npz", allow_pickle=False) as values:
            found.setdefault(named(line["loss"]), []).append(values[metric].astype(np.float64))
    return {name: np.stack(each) for name, each in found.items()}


def holm(p_values: list[float]) -> list[float]:
    """P-values corrected for their number.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    corrected, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = round(least, 12)
    return corrected


def compared(queries: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """What the tests over the queries of a data set say: the ranks of each method, and of the claims the differences.

    Both are corrected by Holm's method: the ranks over all pairs, the claims over those that the data set has.
    """
    ranks = {
        name: {"first": found.first, "last": found.last, "is_best": found.is_best}
        for name, found in standings(queries).items()
    }
    pairs = [(a, b) for a, b, _ in CLAIMS if a in queries and b in queries]
    differences = [paired_difference(queries[a], queries[b]) for a, b in pairs]
    corrected = holm([each.p_value for each in differences])
    claims = [
        {"of": pair, **{key: round(value, 6) for key, value in each._asdict().items()}, "is_significant": p < 0.05}
        for pair, each, p in zip(pairs, differences, corrected, strict=True)
    ]
    return {"ranks": ranks, "claims": claims}


def mean(runs: Sequence[Mapping[str, Any]]) -> float:
    """MAP@R over the runs of a method."""
    return float(np.mean([line["metrics"][CHOSEN_BY] for line in runs]))


def table(methods: Mapping[str, Sequence[Mapping[str, Any]]], ranks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each method, the best mean first."""
    out = ["| method | MAP@R | recall@1 | @8 | NMI | rank | seeds | s / epoch | arguments |", "|" + "---|" * 9]
    for name in sorted(methods, key=lambda each: -mean(methods[each])):
        runs, place = methods[name], ranks[name]
        cells = [cell(runs, key) for key in (CHOSEN_BY, "recall_at_1", "recall_at_8", "NMI")]
        cells.append(f"{place['first']}-{place['last']}{'*' if place['is_best'] else ''}")
        seconds = [line["seconds_per_epoch"] for line in runs if line.get("seconds_per_epoch")]
        arguments = runs[0]["loss"].removeprefix(name)[1:-1].replace("|", "\\|")
        cells += [f"{len(runs)}", f"{np.median(seconds):.2f}", arguments] if seconds else ["", "", ""]
        out.append(row(name, *cells))
    return out


def row(*cells: str) -> str:
    """A row of a table."""
    return " ".join(f"| {each}" if each else "|" for each in (*cells, ""))


def cell(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """The mean of a metric over runs with half its interval; empty if none has it."""
    values = [line["metrics"][key] for line in runs if key in line["metrics"]]
    return percent(values) if values else ""


def percent(values: Sequence[float]) -> str:
    """The mean over seeds with half its interval, in per cent.

    >>> percent([0.5, 0.5])
    '50.0 ± 0.0'
    """
    interval = mean_interval([100 * each for each in values])
    return f"{interval.mean:.1f}" + ("" if np.isnan(interval.low) else f" ± {interval.high - interval.mean:.1f}")


def points(found: Difference, *, is_significant: bool = False) -> str:
    """A difference with its interval, in points; bold if it is significant."""
    said = f"{100 * found.mean:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"**{said}**" if is_significant else said


def claims(tests: Tests) -> list[str]:
    """A row for each claim, a column for each data set: the paired difference, bold where it is significant."""
    found = {(*claim["of"], data): claim for data, said in tests.items() for claim in said["claims"]}
    out = [f"| first | second | | {' | '.join(tests)} |", "|" + "---|" * (3 + len(tests))]
    for a, b, what in CLAIMS:
        cells = [_claim(found[a, b, data]) if (a, b, data) in found else "" for data in tests]
        out.append(row(a, b, what, *cells))
    return out


def _claim(found: Mapping[str, Any]) -> str:
    difference = Difference(found["mean"], found["low"], found["high"], found["p_value"])
    return points(difference, is_significant=found["is_significant"])


def repeated(folder: Path) -> list[str]:
    """What a second run of some of the runs gave: a sentence, and a row for each that differs."""
    pairs = []
    first = {(line["loss"], line["seed"]): line["metrics"] for line in lines(folder / "tested")}
    for one in sorted((folder / "again").glob("*/")):
        for line in lines(one):
            key = (line["loss"], line["seed"])
            if key in first and line["loss"] not in BASELINES:
                pairs.append((key, first[key], line["metrics"]))
    if not pairs:
        return []
    other = [(key, a, b) for key, a, b in pairs if abs(a[CHOSEN_BY] - b[CHOSEN_BY]) > 1e-9]
    out = [f"{len(pairs)} runs were made again; {len(pairs) - len(other)} have the same MAP@R to nine digits."]
    if other:
        out.append("")
    for (loss, seed), a, b in other:
        out.append(f"- {method(loss)}, seed {seed}: MAP@R {100 * a[CHOSEN_BY]:.2f}, then {100 * b[CHOSEN_BY]:.2f}")
    return out


def picture(sets: Runs, tests: Tests, path: Path, most: int = 30) -> None:
    """MAP@R of the best methods of each data set: the mean over seeds with its interval, and the interval of ranks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = math.isqrt(len(sets) - 1) + 1
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(5 * columns, rows * (0.2 * most + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (data, methods) in enumerate(sets.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        names = sorted(methods, key=lambda name: -mean(methods[name]))[:most][::-1]
        ranks = []
        for row, name in enumerate(names):
            rank = tests[data]["ranks"][name]
            ranks.append(f"{rank['first']}-{rank['last']}")
            color = BLUE if rank["is_best"] else GRAY
            found = mean_interval([100 * line["metrics"][CHOSEN_BY] for line in methods[name]])
            axes.plot([found.low, found.high], [row, row], color=color, lw=1)
            axes.plot(found.mean, row, "o", color=color, ms=4)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        beside = axes.secondary_yaxis("right")
        beside.set_yticks(range(len(names)), ranks, fontsize=6)
        beside.tick_params(length=0)
        axes.set_title(data, fontsize=10)
        axes.set_xlabel("MAP@R, % (95 % over seeds), ranks; blue: not told from the best", fontsize=7)
        for one in (axes, beside):
            one.spines[["top", "right"] if one is axes else ["right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def put(path: Path, measured: str, title: str) -> None:
    """Write what was measured into a page, below what was written by hand."""
    mark = "<!-- measured -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n{mark}\n"
    path.write_text(text.split(mark)[0] + mark + "\n\n" + measured, encoding="utf-8")


def overview(sets: Runs, tests: Tests) -> list[str]:
    """A row for each method that every data set has, a column for each data set; the best mean place first."""
    shared = sorted(set.intersection(*(set(methods) for methods in sets.values())))
    places = [rankdata([-mean(methods[name]) for name in shared]) for methods in sets.values()]
    mean_place = dict(zip(shared, np.mean(places, axis=0), strict=True))
    out = [f"| method | mean place | {' | '.join(sets)} |", "|" + "---|" * (2 + len(sets))]
    for name in sorted(shared, key=lambda each: (mean_place[each], each)):
        cells = [
            f"{100 * mean(methods[name]):.1f}{'*' if tests[data]['ranks'][name]['is_best'] else ''}"
            for data, methods in sets.items()
        ]
        out.append(f"| {name} | {mean_place[name]:.1f} | {' | '.join(cells)} |")
    return out


def page(sets: Runs, tests: Tests) -> str:
    """What was measured: the claims, the data sets of each track beside each other, and each alone."""
    out = ["## Comparisons", "", "Paired differences of MAP@R in points, first minus second, 95 % intervals over"]
    out += ["queries and seeds; bold: significant at 5 % after Holm's correction over those of a data set.", ""]
    out += [*claims(tests), ""]
    tracks: dict[str, list[str]] = {}
    for name in sets:
        tracks.setdefault(name.partition(":")[0], []).append(name)
    for track, names in tracks.items():
        if len(names) > 1:
            out += [f"## {track}: all data sets", "", "MAP@R; * is not distinguishable from the best."]
            out += ["", *overview({name: sets[name] for name in names}, tests), ""]
    for name, methods in sets.items():
        out += [f"## {name}", "", *table(methods, tests[name]["ranks"]), "", *tests[name]["again"], ""]
    return "\n".join(out).rstrip() + "\n"


def write(out: Path) -> None:
    """Write `results/reality.md` and what stands beside it anew, with the data sets whose runs are in a folder."""
    folders = {f"{each.parent.name}: {each.name}": each for each in sorted(out.glob("*/*/")) if lines(each / "tested")}
    beside = RESULTS.with_suffix(".json")
    tests = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    runs = [line for line in run_lines.read(RESULTS) if line["data"] not in folders]
    for name, folder in folders.items():
        tests[name] = {**compared(of_queries(folder / "tested")), "again": repeated(folder)}
        runs += [run_lines.kept(line, name) for line in lines(folder / "tested")]
    if not runs:
        raise SystemExit(f"no run of {out} has ended")
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in runs:
        sets.setdefault(line["data"], {}).setdefault(method(line["loss"]), []).append(line)
    tracks = [name.partition(":")[0] for name in sets]
    sets = dict(sorted(sets.items(), key=lambda item: tracks.index(item[0].partition(":")[0])))
    tests = {name: tests[name] for name in sets}
    run_lines.write(RESULTS, runs)
    beside.write_text(json.dumps(tests, indent=1) + "\n", encoding="utf-8")
    put(RESULTS, page(sets, tests), "Losses, equally tuned")
    picture(sets, tests, RESULTS.with_suffix(".png"))
    print(f"of {', '.join(folders) or 'no new run'}: {RESULTS}, .json, .jsonl, .png")
