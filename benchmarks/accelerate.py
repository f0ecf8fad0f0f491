"""What `pml_ext.accelerate` saves: stock losses and miners of PML beside themselves without tuples.

    python benchmarks/accelerate.py                      # every line is written as it comes, and kept: minutes to hours
    python benchmarks/accelerate.py --batch 128 --classes 4 --names NTXentLoss TripletMarginLoss

Each measurement is a process of its own on one thread: the ratio to three matrix products of the batch, medians of
paired samples of process time, and the peak above the inputs. One that needs more than `--gigabytes` or `--seconds`
dies, and so is said. `benchmarks/results/accelerate.{jsonl,md,png}` are made from the lines.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from speed_jobs import Setting, Step, batch, floor
from speed_measure import SAMPLE, _peak, _reset_peak, _summary, seconds, warm_up

from pml_ext import accelerate, thresholds
from pml_ext.benchmark import environment
from pml_ext.stock.coverage import statement

RESULTS = Path(__file__).parent / "results"
# A loss, or a miner with the loss that it is used with most.
SUBJECTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    **{
        name: lambda name=name: (getattr(losses, name)(), None)
        for name in (
            "NTXentLoss",
            "LiftedStructureLoss",
            "TupletMarginLoss",
            "HistogramLoss",
            "TripletMarginLoss",
            "MarginLoss",
            "SignalToNoiseRatioContrastiveLoss",
            "FastAPLoss",
            "CircleLoss",
            "MultiSimilarityLoss",
            "GeneralizedLiftedStructureLoss",
            "SupConLoss",
            "IntraPairVarianceLoss",
            "ContrastiveLoss",
            "NCALoss",
        )
    },
    "RankedListLoss": lambda: (losses.RankedListLoss(margin=0.4, Tn=10), None),
    "MultiSimilarityMiner + MultiSimilarityLoss": lambda: (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
    "TripletMarginMiner + TripletMarginLoss": lambda: (
        losses.TripletMarginLoss(margin=0.2),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
    ),
    "BatchHardMiner + TripletMarginLoss": lambda: (losses.TripletMarginLoss(), miners.BatchHardMiner()),
    "BatchEasyHardMiner + ContrastiveLoss": lambda: (losses.ContrastiveLoss(), miners.BatchEasyHardMiner()),
    "PairMarginMiner + ContrastiveLoss": lambda: (losses.ContrastiveLoss(), miners.PairMarginMiner()),
}
SIDES = ("stock", "accelerated")


def step_of(name: str, side: str, setting: Setting, chunk_size: int | None) -> Step:
    """One forward and backward pass."""
    loss, miner = SUBJECTS[name]()
    if side == "accelerated":
        loss = accelerate(loss, chunk_size=chunk_size, strict=miner is None)
        miner = None if miner is None else accelerate(miner, chunk_size=chunk_size)
    x, labels = batch(setting, "cpu")

    def step() -> None:
        leaf = x.clone().requires_grad_()
        mined = None if miner is None else miner(leaf, labels)
        loss(leaf, labels, mined).backward()

    return step


def measure(name: str, side: str, setting: Setting, chunk_size: int | None, budget: float) -> dict[str, float]:
    """Peak of the first step, and the ratio to the floor."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # only lines of the measurement are read
    with thresholds.replaced(STOCK_PAYS=0):
        step_of(name, side, Setting(32, setting.d, 4), chunk_size)()
    step, base = step_of(name, side, setting, chunk_size), floor(setting, "cpu")
    before = _reset_peak()
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    peak = (_peak() - before) / 1e6
    base_repeats = max(1, round(SAMPLE / max(warm_up(base, "cpu"), 1e-6)))
    repeats = max(1, round(SAMPLE / first))
    rounds = min(21, max(3, int(budget / (first * repeats))))
    samples = [(seconds(base, base_repeats, "cpu"), seconds(step, repeats, "cpu")) for _ in range(rounds)]
    found = _summary(samples)
    return {"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high, "megabytes": peak, "rounds": rounds}


def in_a_process(job: dict[str, Any], gigabytes: float, limit: float) -> dict[str, Any]:
    """Measure in a process of its own; why it died, if it did."""
    command = [sys.executable, __file__, "--one", json.dumps(job), "--gigabytes", str(gigabytes)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"died": f"over {limit:.0f} s"}
    if ended.returncode != 0 or not ended.stdout.strip():
        memory = "memory" in ended.stderr.lower() or ended.returncode < 0
        words = (ended.stderr.strip().splitlines() or ["no word"])[-1]
        return {"died": f"over {gigabytes:g} GB" if memory else words[:160]}
    return dict(json.loads(ended.stdout.strip().splitlines()[-1]))


def table(lines: list[dict[str, Any]]) -> str:
    """One table for each setting: stock, accelerated, times as fast, memory."""
    settings = sorted({(line["n"], line["d"], line["per_class"], line["chunk_size"] or 0) for line in lines})
    out = ["# Stock PML, and the same accelerated", "", "    python benchmarks/accelerate.py", ""]
    if lines:
        hardware = lines[-1]["hardware"]
        out += [
            f"{hardware['cpu']}, one thread, float32, torch {lines[-1]['versions']['torch']},"
            f" PML {lines[-1]['versions']['pytorch-metric-learning']}, commit {str(lines[-1]['commit'])[:7]}.",
            "F is the time of three matrix products n x n x d of the same batch; MB is the peak above the inputs.",
            "A stock loss dies where its process needs more memory or time than it was given.",
            "",
            "![Time of a step, stock and accelerated](accelerate.png)",
            "",
        ]
    for n, d, per_class, chunk in settings:
        title = f"## n = {n}, d = {d}, {per_class} per class" + (f", chunk_size = {chunk}" if chunk else "")
        out += [title, "", "| | stock F | accelerated F | times as fast | stock MB | accelerated MB |"]
        out += ["|---|---|---|---|---|---|"]
        for name in SUBJECTS:
            found = {
                line["side"]: line
                for line in lines
                if (line["name"], line["n"], line["d"], line["per_class"], line["chunk_size"] or 0)
                == (name, n, d, per_class, chunk)
            }
            if "accelerated" in found:
                out.append(_row(name, found.get("stock", {"died": "not run"}), found["accelerated"]))
        out.append("")
    out += ["## What is accelerated", "", statement(), ""]
    return "\n".join(out)


def _row(name: str, stock: dict[str, Any], fast: dict[str, Any]) -> str:
    if "died" in fast:
        return f"| {name} | {_cell(stock, 'ratio')} | {fast['died']} | | {_cell(stock, 'megabytes')} | |"
    times = f"{stock['ratio'] / fast['ratio']:.3g}" if "ratio" in stock else ""
    cells = (_cell(stock, "ratio"), _cell(fast, "ratio"), times, _cell(stock, "megabytes"), _cell(fast, "megabytes"))
    return f"| {name} | " + " | ".join(cells) + " |"


def _cell(found: dict[str, Any], key: str) -> str:
    if "died" in found:
        return f"dies: {found['died']}" if key == "ratio" else ""
    return f"{found[key]:,.0f}" if key == "megabytes" or found[key] >= 100 else f"{found[key]:.3g}"


def picture(lines: list[dict[str, Any]], path: Path) -> None:
    """Bars of time, stock beside accelerated, of the setting with most lines: large batches and small classes first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = [(line["n"], line["d"], line["per_class"]) for line in lines if not line["chunk_size"]]
    if not keys:
        return
    best = max(set(keys), key=lambda key: (keys.count(key), key[0], -key[2], key[1]))
    chosen = [line for line in lines if (line["n"], line["d"], line["per_class"]) == best and not line["chunk_size"]]
    names = [name for name in SUBJECTS if any(line["name"] == name and "ratio" in line for line in chosen)]
    figure = Figure(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for offset, side, color in ((0.2, "stock", "#b0b0b0"), (-0.2, "accelerated", "#2a6f97")):
        found = {line["name"]: line for line in chosen if line["side"] == side}
        places = [len(names) - 1 - names.index(name) + offset for name in names if "ratio" in found.get(name, {})]
        values = [found[name]["ratio"] for name in names if "ratio" in found.get(name, {})]
        axes.barh(places, values, 0.38, color=color, label=side)
        for name in names:
            if "died" in found.get(name, {}):
                place = len(names) - 1 - names.index(name) + offset
                axes.text(1, place, f" dies: {found[name]['died']}", va="center", fontsize=7, color="#a03020")
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("time of a step / time of three matrix products")
    axes.set_title(f"n = {best[0]}, d = {best[1]}, {best[2]} per class", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure what is not yet measured, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[128, 256, 1024], metavar="N")
    parser.add_argument("--dimension", nargs="+", type=int, default=[128, 512], metavar="D")
    parser.add_argument("--classes", nargs="+", type=int, default=[4, 32], metavar="K", help="samples of each class")
    parser.add_argument("--chunk", type=int, default=None, metavar="ROWS")
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS / "accelerate")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        job = json.loads(given.one)
        limit = int(given.gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        setting = Setting(job["n"], job["d"], job["per_class"])
        print(json.dumps(measure(job["name"], job["side"], setting, job["chunk_size"], budget=4)))
        return
    path = given.out.with_suffix(".jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {tuple(line[key] for key in ("name", "side", "n", "d", "per_class", "chunk_size")) for line in lines}
    about = {
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for n in given.batch:
        for d in given.dimension:
            for per_class in given.classes:
                for name in given.names:
                    for side in SIDES:
                        chunk = given.chunk if side == "accelerated" else None
                        if (name, side, n, d, per_class, chunk) in done:
                            continue
                        job = {"name": name, "side": side, "n": n, "d": d, "per_class": per_class, "chunk_size": chunk}
                        line = job | in_a_process(job, given.gigabytes, given.seconds) | about
                        said = line.get("died") or f"{line['ratio']:.2f} F, {line['megabytes']:.0f} MB"
                        print(f"{name}, {side}, n = {n}, d = {d}, {per_class} per class: {said}", flush=True)
                        lines.append(line)
                        with path.open("a") as file:
                            file.write(json.dumps(line) + "\n")
    given.out.with_suffix(".md").write_text(table(lines))
    picture(lines, given.out.with_suffix(".png"))
    print(f"written: {given.out}.jsonl, .md, .png")


if __name__ == "__main__":
    main()
