"""Time and memory of exact evaluation, against the matrix product alone, a k-NN search and PML's calculator.

``python benchmarks/evaluation.py`` writes ``benchmarks/results/evaluation.jsonl`` and prints a Markdown table. A size
is ``n x d x classes``, or with a gallery of its own ``queries:references x d x classes``.
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
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext.evaluation import RetrievalAccuracyCalculator, TorchKNN

RESULTS = Path(__file__).parent / "results" / "evaluation.jsonl"
SIZES = (
    "5000x128x1000",
    "6000x128x100",
    "10000x128x100",
    "10000x512x1000",
    "60000x128x11300",
    "3000:60000x128x11300",
    "1000:1000000x128x200000",
)
RECALL = tuple(range(1, 1001))
RECALL_NAMES = tuple(f"recall_at_{k}" for k in RECALL)
# What PML calls precision_at_1, mean_average_precision_at_r, r_precision and mean_reciprocal_rank.
PML_NAMES = ("precision_at_1", "mean_average_precision_at_r", "r_precision", "mean_reciprocal_rank")


# Queries and labels; and, where they are not compared with one another, references and their labels.
Data = tuple[Tensor, ...]


class Size(NamedTuple):
    """What is evaluated: n queries among themselves, or, unless m is 0, among m references; dimensions and classes."""

    n: int
    m: int
    d: int
    classes: int

    @staticmethod
    def of(text: str) -> "Size":
        """From ``n x d x classes`` or ``n:m x d x classes``."""
        both, d, classes = text.split("x")
        n, _, m = both.partition(":")
        return Size(int(n), int(m or 0), int(d), int(classes))


SMALL = Size(600, 0, 16, 100)


def product(x: Tensor, labels: Tensor, reference: Tensor | None = None, reference_labels: Tensor | None = None) -> None:
    """Form all products in chunks of 512 rows, fewer with a large gallery, and do nothing with them."""
    reference = x if reference is None else reference
    rows = max(1, min(512, (1 << 26) // len(reference)))
    for start in range(0, len(x), rows):
        x[start : start + rows] @ reference.T


def ours(include: tuple[str, ...], **kwargs: object) -> Callable[..., object]:
    """Make a job of our calculator."""

    def job(x: Tensor, *rest: Tensor) -> object:
        calculator = RetrievalAccuracyCalculator(RECALL, include=include, device=x.device, **kwargs)
        return calculator.get_accuracy(x, *rest)

    return job


def stock(k: int | str | None) -> Callable[..., object]:
    """Make a job of PML's calculator."""

    def job(x: Tensor, *rest: Tensor) -> object:
        # Of PML 2 alone; benchmarks/mining.py, which takes its data from here, runs beside either version.
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        return AccuracyCalculator(include=PML_NAMES, k=k, device=x.device).get_accuracy(x, *rest)

    return job


COLLAPSED = "the same, embeddings collapsed to two clusters"

JOBS: dict[str, Callable[..., object]] = {
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


def make_data(size: Size, device: str, *, collapsed: bool = False) -> Data:
    """Make embeddings of classes of equal size but for one; collapsed ones have no class but one of two points."""
    generator = torch.Generator().manual_seed(0)
    n = size.n + size.m
    labels = (torch.arange(n) % size.classes)[torch.randperm(n, generator=generator)]
    x = torch.randn(n, size.d, generator=generator).mul_(1e-3 if collapsed else 3)
    centers = torch.randn(2 if collapsed else size.classes, size.d, generator=generator)
    which = torch.randint(2, (n,), generator=generator) if collapsed else labels
    for some, of_center in zip(x.split(1 << 14), which.split(1 << 14), strict=True):
        some.add_(centers[of_center])
        torch.nn.functional.normalize(some, out=some)
    x, labels = x.to(device), labels.to(device)
    return (x, labels) if size.m == 0 else (x[size.m :], labels[size.m :], x[: size.m], labels[: size.m])


def seconds(job: str, *data: Tensor) -> float:
    """Time a job: processor time, or on a GPU the time until it is done."""
    on_gpu = data[0].is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    JOBS[job](*data)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def measure_time(jobs: list[str], size: Size, device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return for each job its median time and the median of its multiples of the product."""
    small = make_data(SMALL, device)
    for job in jobs:
        seconds(job, *small)
    data = make_data(size, device)
    collapsed = make_data(size, device, collapsed=True) if COLLAPSED in jobs else ()
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


def measure_memory(job: str, size: Size, device: str) -> float:
    """Return the gigabytes that a job takes beside its data, from a process of its own."""
    arguments = [job, *size, device]
    command = [sys.executable, __file__, "--memory-of", json.dumps(arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(job: str, size: Size, device: str) -> float:
    """Run a job and return the gigabytes that it took beside its data."""
    JOBS[job](*make_data(SMALL, device))
    data = make_data(size, device, collapsed=job == COLLAPSED)
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
    lines = ["| queries | references | d | classes | job | seconds | x product | GB |"]
    lines += ["|---:|---:|---:|---:|:---|---:|---:|---:|"]
    row = "| {n} | {references} | {d} | {classes} | {job} | {seconds:.2f} | {times_product:.2f} | {gigabytes:.2f} |"
    lines += [row.format(references=each["m"] or "", **each) for each in results]
    return "\n".join(lines)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument(
        "--jobs",
        nargs="+",
        default=[job for job in JOBS if job != "product alone"],
        metavar="NAME",
        help="some of the jobs",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds up to n = 20000, a third of them beyond")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        job, *numbers, device = json.loads(arguments.memory_of)
        print(peak_memory(job, Size(*numbers), device))
        return

    results: list[dict[str, object]] = []
    for text in arguments.sizes:
        size = Size.of(text)
        chosen = [job for job in arguments.jobs if job in JOBS and size.n + size.m <= LARGEST.get(job, 1 << 62)]
        repeats = arguments.repeats if size.n * (size.m or size.n) <= 20_000**2 else math.ceil(arguments.repeats / 3)
        times = measure_time(["product alone", *chosen], size, arguments.device, repeats)
        for job, numbers in times.items():
            gigabytes = measure_memory(job, size, arguments.device)
            about = {**size._asdict(), "device": arguments.device, "repeats": repeats}
            results.append({"job": job, **about, **numbers, "gigabytes": gigabytes})
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(r) + "\n" for r in results))
    print(table(results))


if __name__ == "__main__":
    main()
