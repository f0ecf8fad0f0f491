"""Time and memory of exact evaluation, against the matrix product alone, a k-NN search and PML's calculator.

``python benchmarks/evaluation.py`` writes ``benchmarks/results/evaluation.jsonl`` and prints a Markdown table.
Protocol: one thread; embeddings are a class center + 3 x noise, normalized, in shuffled order, those of a network that
has collapsed are two points with noise of 1e-3, whatever their class; in every round each job
is timed right after the product of all pairs in chunks of 512 rows, and counted as a multiple of it; medians over the
rounds. Memory is the peak of a process of its own, less what it held when the data and all modules were there.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from pml_ext.evaluation import RetrievalAccuracyCalculator, TorchKNN

RESULTS = Path(__file__).parent / "results" / "evaluation.jsonl"
RECALL = tuple(range(1, 1001))
RECALL_NAMES = tuple(f"recall_at_{k}" for k in RECALL)
# What PML calls precision_at_1, mean_average_precision_at_r, r_precision and mean_reciprocal_rank.
PML_NAMES = ("precision_at_1", "mean_average_precision_at_r", "r_precision", "mean_reciprocal_rank")


def product(embeddings: Tensor, labels: Tensor) -> None:
    """Form all products in chunks of 512 rows and do nothing with them."""
    for start in range(0, len(embeddings), 512):
        embeddings[start : start + 512] @ embeddings.T


def ours(include: tuple[str, ...], **kwargs: object) -> Callable[[Tensor, Tensor], object]:
    """Make a job of our calculator."""
    return lambda x, y: RetrievalAccuracyCalculator(RECALL, include=include, device=x.device, **kwargs).get_accuracy(
        x, y
    )


def stock(k: int | str | None) -> Callable[[Tensor, Tensor], object]:
    """Make a job of PML's calculator."""
    return lambda x, y: AccuracyCalculator(include=PML_NAMES, k=k, device=x.device).get_accuracy(x, y)


COLLAPSED = "the same, embeddings collapsed to two clusters"

JOBS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "product alone": product,
    "recall@1..1000": ours(RECALL_NAMES),
    "P@1, MAP@R, R-precision, MRR": ours(PML_NAMES),
    "recall@1..1000, P@1, MAP@R, R-precision, MRR": ours((*RECALL_NAMES, *PML_NAMES), k=None),
    COLLAPSED: ours((*RECALL_NAMES, *PML_NAMES), k=None),
    "recall@1..1000 by TorchKNN": ours(RECALL_NAMES, knn_func=TorchKNN()),
    "PML: P@1, MAP@R, R-precision, MRR, k=max_bin_count": stock("max_bin_count"),
    "PML: P@1, MAP@R, R-precision, MRR, k=None": stock(None),
}


# The largest n of jobs that then take too long or, 12 bytes and more for each of n^2 pairs, too much memory.
LARGEST = {"PML: P@1, MAP@R, R-precision, MRR, k=None": 6000, "recall@1..1000 by TorchKNN": 20_000, COLLAPSED: 20_000}


def make_data(n: int, d: int, classes: int, device: str, *, collapsed: bool = False) -> tuple[Tensor, Tensor]:
    """Make embeddings of classes of equal size but for one; collapsed ones have no class but one of two points."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=generator)]
    embeddings = torch.randn(n, d, generator=generator).mul_(1e-3 if collapsed else 3)
    centers = torch.randn(2 if collapsed else classes, d, generator=generator)
    embeddings += centers[torch.randint(2, (n,), generator=generator) if collapsed else labels]
    return torch.nn.functional.normalize(embeddings, out=embeddings).to(device), labels.to(device)


def seconds(job: str, embeddings: Tensor, labels: Tensor) -> float:
    """Time a job: processor time, or on a GPU the time until it is done."""
    on_gpu = embeddings.is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    JOBS[job](embeddings, labels)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def measure_time(n: int, d: int, classes: int, device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return for each job its median time and the median of its multiples of the product."""
    small = make_data(600, d, 100, device)
    jobs = [job for job in JOBS if n <= LARGEST.get(job, n)]
    for job in jobs:
        seconds(job, *small)
    data = make_data(n, d, classes, device)
    collapsed = make_data(n, d, classes, device, collapsed=True)
    samples: dict[str, list[tuple[float, float]]] = {job: [] for job in jobs}
    for _ in range(repeats):
        for job in random.sample(jobs[1:], len(jobs) - 1):
            floor = seconds("product alone", *data)
            samples[job].append((seconds(job, *(collapsed if job == COLLAPSED else data)), floor))
            samples["product alone"].append((floor, floor))
    return {
        job: {
            "seconds": statistics.median(x for x, _ in pairs),
            "times_product": statistics.median(x / floor for x, floor in pairs),
        }
        for job, pairs in samples.items()
    }


def measure_memory(job: str, n: int, d: int, classes: int, device: str) -> float:
    """Return the gigabytes that a job takes beside its data, from a process of its own."""
    arguments = [job, n, d, classes, device]
    command = [sys.executable, __file__, "--memory-of", json.dumps(arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(job: str, n: int, d: int, classes: int, device: str) -> float:
    """Run a job and return the gigabytes that it took beside its data."""
    JOBS[job](*make_data(600, d, 100, device))
    data = make_data(n, d, classes, device, collapsed=job == COLLAPSED)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        JOBS[job](*data)
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    # Resets the peak. (That of getrusage would be inherited from the parent process.)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    JOBS[job](*data)
    return (resident("VmHWM") - before) / 1e9


def resident(which: str) -> int:
    """Return the bytes of memory that the process has, or had at its peak (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(which))
    return 1024 * int(line.split()[1])


def table(results: list[dict[str, object]]) -> str:
    """Lay the results out in Markdown."""
    lines = ["| n | d | classes | job | seconds | x product | GB |", "|---:|---:|---:|:---|---:|---:|---:|"]
    row = "| {n} | {d} | {classes} | {job} | {seconds:.2f} | {times_product:.2f} | {gigabytes:.2f} |"
    lines += [row.format(**each) for each in results]
    return "\n".join(lines)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=["5000x128x1000", "10000x128x100", "10000x512x1000", "60000x128x11300"]
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds up to n = 20000, a third of them beyond")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(peak_memory(*json.loads(arguments.memory_of)))
        return

    results: list[dict[str, object]] = []
    for size in arguments.sizes:
        n, d, classes = map(int, size.split("x"))
        repeats = arguments.repeats if n <= 20_000 else math.ceil(arguments.repeats / 3)
        times = measure_time(n, d, classes, arguments.device, repeats)
        for job, numbers in times.items():
            gigabytes = measure_memory(job, n, d, classes, arguments.device)
            about = {"n": n, "d": d, "classes": classes, "device": arguments.device, "repeats": repeats}
            results.append({"job": job, **about, **numbers, "gigabytes": gigabytes})
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(r) + "\n" for r in results))
    print(table(results))


if __name__ == "__main__":
    main()
