"""The page and the picture of `benchmarks/reality.py`: what is distinguishable, and what of old claims is borne out."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.result import FROZEN_TRUNK, UNTRAINED_HEAD
from pml_ext.evaluation import Difference, Standing, mean_interval, paired_difference, standings
from pml_ext.palette import BLUE, GRAY

RESULTS = Path(__file__).parent / "results" / "reality.md"
UNTRAINED = (FROZEN_TRUNK, UNTRAINED_HEAD)
CHOSEN_BY = "mean_average_precision_at_r"
# What one run of a loss has and another has not.
_OF_A_RUN = ("seed", "metrics", "seconds_per_epoch", "failure", "error", "fold", "best_epoch", "validation", "date")
# What is said of these methods, first against second.
CLAIMS = (
    ("RAW", "MultiSimilarity", "RAW is multi-similarity with its miner, in one pass"),
    ("RAW", "pml:TripletMarginLoss", "weighting of pairs against plain triplets"),
    ("RAW", "pml:ContrastiveLoss", "weighting of pairs against plain pairs"),
    ("MultiSimilarity", "BinDeviance2018", "the weights that Deep_metric's script asks for, against its deviance"),
    ("MultiSimilarity", "NCA", "the same against its softmax over the nearest"),
    ("MultiSimilarity", "SemiHard", "weights of all pairs against semi-hard triplets"),
    ("MultiSimilarity", "BatchHard", "weights of all pairs against the hardest triplets"),
    ("MultiSimilarity", "XBM", "weights of all pairs against a queue of pairs"),
    ("MarginDeviance", "BinDeviance2018", "Deep_metric's margins against binomial deviance"),
    ("Binomial2020", "BinDeviance2018", "the successor's binomial deviance against the first"),
    ("NCA", "pml:NCALoss", "softmax over the nearest against softmax over all"),
    ("DistWeight", "Triplet", "distance-weighted sampling against all triplets"),
    ("DistWeightBinDeviance", "BinDeviance2018", "inverse-density sampling against all negatives"),
    ("DistWeightContrastive", "Contrastive2018", "inverse-density sampling against all negatives"),
    ("DistWeightNeighbour", "Neighbour", "inverse-density sampling against all negatives"),
    ("BinBranch", "BinDeviance2018", "slices with a loss each against one head of the same size"),
    ("JSDivBranch", "BinBranch", "slices that are to differ against slices"),
    ("CenterNCA", "NCA", "class centers against pairs"),
    ("CenterPair", "BinDeviance2018", "class centers against pairs"),
    ("BatchHard", "BatchAll", "hardest triplets against all"),
    ("ABatchAll", "BatchAll", "adaptive weights of anchors against none"),
    ("ATriplet", "Triplet", "adaptive weights of anchors against none"),
    ("XBM", "pml:ContrastiveLoss", "a queue against none"),
    ("HCL", "Debiased", "hard negatives against the debiased mean"),
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


def table(folder: Path, standing: Mapping[str, Standing]) -> list[str]:
    """A row for each method, the best mean first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines(folder):
        rows.setdefault(method(line["loss"]), []).append(line)
    out = ["| method | MAP@R | recall@1 | @8 | NMI | rank | seeds | s / epoch | arguments |", "|" + "---|" * 9]
    for name in sorted(rows, key=lambda each: -standing[each].mean):
        runs = rows[name]
        cells = [_mean(runs, key) for key in (CHOSEN_BY, "recall_at_1", "recall_at_8", "NMI")]
        place = standing[name]
        seconds = [line["seconds_per_epoch"] for line in runs if line["seconds_per_epoch"]]
        arguments = runs[0]["loss"].removeprefix(name)[1:-1].replace("|", "\\|")
        out.append(
            f"| {name} | {' | '.join(cells)} | {place.first}-{place.last}{'*' if place.is_best else ''} | {len(runs)} "
            f"| {np.median(seconds):.2f} | {arguments} |"
            if seconds
            else f"| {name} | {' | '.join(cells)} | {place.first}-{place.last}{'*' if place.is_best else ''} | | | |"
        )
    return out


def _mean(runs: list[dict[str, Any]], key: str) -> str:
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


def claims(sets: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> list[str]:
    """A row for each claim, a column for each data set: the paired difference, bold where it is significant."""
    keys = [(a, b, data) for a, b, _ in CLAIMS for data in sets if a in sets[data] and b in sets[data]]
    found: dict[tuple[str, str, str], Difference] = {
        (a, b, data): paired_difference(sets[data][a], sets[data][b]) for a, b, data in keys
    }
    corrected = dict(zip(keys, holm([found[key].p_value for key in keys]), strict=True))
    out = [f"| first | second | | {' | '.join(sets)} |", "|" + "---|" * (3 + len(sets))]
    for a, b, what in CLAIMS:
        cells = []
        for data in sets:
            if (a, b, data) not in found:
                cells.append("")
                continue
            cells.append(points(found[a, b, data], is_significant=corrected[a, b, data] < 0.05))
        out.append(f"| {a} | {b} | {what} | {' | '.join(cells)} |")
    return out


def repeated(folder: Path) -> list[str]:
    """What a second run of some of the runs gave: a sentence, and a row for each that differs."""
    pairs = []
    first = {(line["loss"], line["seed"]): line["metrics"] for line in lines(folder / "tested")}
    for one in sorted((folder / "again").glob("*/")):
        for line in lines(one):
            key = (line["loss"], line["seed"])
            if key in first:
                pairs.append((key, first[key], line["metrics"]))
    if not pairs:
        return []
    other = [(key, a, b) for key, a, b in pairs if abs(a[CHOSEN_BY] - b[CHOSEN_BY]) > 1e-9]
    out = [f"{len(pairs)} runs were made again; {len(pairs) - len(other)} have the same MAP@R to nine digits.", ""]
    for (loss, seed), a, b in other:
        out.append(f"- {method(loss)}, seed {seed}: MAP@R {100 * a[CHOSEN_BY]:.2f}, then {100 * b[CHOSEN_BY]:.2f}")
    return out


def picture(sets: Mapping[str, Mapping[str, Standing]], path: Path, most: int = 30) -> None:
    """MAP@R of the best methods of each data set, each with its interval to the best."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sets), 0.2 * most + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (data, found) in enumerate(sets.items()):
        axes = figure.add_subplot(1, len(sets), place + 1)
        names = sorted(found, key=lambda name: -found[name].mean)[:most][::-1]
        for row, name in enumerate(names):
            one = found[name]
            color = BLUE if one.is_best else GRAY
            if one.to_best is not None:
                half = (one.to_best.high - one.to_best.low) / 2
                axes.plot([100 * (one.mean - half), 100 * (one.mean + half)], [row, row], color=color, lw=1)
            axes.plot(100 * one.mean, row, "o", color=color, ms=4)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(data, fontsize=10)
        axes.set_xlabel("MAP@R, %; line: 95 % interval of the difference to the best", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def put(path: Path, measured: str, title: str) -> None:
    """Write what was measured into a page, below what was written by hand."""
    mark = "<!-- measured -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n{mark}\n"
    path.write_text(text.split(mark)[0] + mark + "\n\n" + measured, encoding="utf-8")


def kept(line: Mapping[str, Any], data: str) -> dict[str, Any]:
    """What a page keeps of a run: no history, no last epoch, and nothing of the machine on which it ran.

    Metrics have six digits after the point, of those of validation only the one that chooses the epoch is kept; an
    argument that is not there is None.
    """
    found = {key: value for key, value in line.items() if key not in ("history", "last", "arguments", "hardware")}
    found["metrics"] = {name: round(value, 6) for name, value in line["metrics"].items()}
    validation = line.get("validation") or {}
    found["validation"] = {CHOSEN_BY: round(validation[CHOSEN_BY], 6)} if CHOSEN_BY in validation else {}
    unsaid = ("losses", "cache", "out", "data")
    arguments = {k: v for k, v in line["arguments"].items() if k not in unsaid and v is not None}
    return found | {"data": data, "arguments": arguments}


def put_lines(page: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write runs beside their page: a line for each loss with its arguments, and its runs in it."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for line in runs:
        common = {key: value for key, value in line.items() if key not in _OF_A_RUN}
        one = {key: value for key, value in line.items() if key in _OF_A_RUN and value not in (None, "", {})}
        found.setdefault(json.dumps(common, sort_keys=True), (common, []))[1].append(one)
    text = "".join(json.dumps({**common, "runs": each}) + "\n" for common, each in found.values())
    page.with_suffix(".jsonl").write_text(text, encoding="utf-8")


def overview(sets: Mapping[str, Mapping[str, Standing]]) -> list[str]:
    """A row for each method that every data set has, a column for each data set; the best mean place first."""
    shared = set.intersection(*(set(found) for found in sets.values()))
    places = {data: sorted(shared, key=lambda name: -found[name].mean) for data, found in sets.items()}
    mean = {name: sum(each.index(name) + 1 for each in places.values()) / len(sets) for name in shared}
    out = [f"| method | mean place | {' | '.join(sets)} |", "|" + "---|" * (2 + len(sets))]
    for name in sorted(shared, key=lambda each: (mean[each], each)):
        cells = [f"{100 * found[name].mean:.1f}{'*' if found[name].is_best else ''}" for found in sets.values()]
        out.append(f"| {name} | {mean[name]:.1f} | {' | '.join(cells)} |")
    return out


def write(out: Path) -> None:
    """Write `results/reality.md`, its picture, and the lines that they are made of."""
    folders = {f"{each.parent.name}: {each.name}": each for each in sorted(out.glob("*/*/")) if lines(each / "tested")}
    if not folders:
        raise SystemExit(f"no run of {out} has ended")
    queries = {name: of_queries(each / "tested") for name, each in folders.items()}
    standing = {name: standings(each) for name, each in queries.items()}
    page = ["## Old claims", "", "Paired differences of MAP@R in points, first minus second, 95 % intervals over"]
    page += ["queries and seeds; bold: significant at 5 % after Holm's correction over this table.", ""]
    page += [*claims(queries), ""]
    tracks: dict[str, dict[str, Mapping[str, Standing]]] = {}
    for name, found in standing.items():
        tracks.setdefault(name.partition(":")[0], {})[name] = found
    for track, found in tracks.items():
        if len(found) > 1:
            page += [f"## {track}: all data sets", "", "MAP@R; * is not distinguishable from the best."]
            page += ["", *overview(found), ""]
    for name, folder in folders.items():
        page += [f"## {name}", "", *table(folder / "tested", standing[name]), "", *repeated(folder), ""]
    put(RESULTS, "\n".join(page).rstrip() + "\n", "Losses, equally tuned")
    picture(standing, RESULTS.with_suffix(".png"))
    put_lines(RESULTS, (kept(line, name) for name, folder in folders.items() for line in lines(folder / "tested")))
    print(f"written: {RESULTS}, .png, .jsonl")
