"""Time and memory of mining beyond the batch, against the matrix product and the top-k that it cannot do without.

    python benchmarks/mining.py                    60,000 embeddings, 10,000 classes: five minutes
    python benchmarks/mining.py --anchors 60000    timed for all anchors, not for 3,000 of them: half an hour

Protocol: one thread; embeddings as those of `benchmarks/evaluation.py`; in every round each job is timed, in process
time, right after the product of its anchors with all embeddings and the top-k of each row, 256 anchors at a time;
medians over the rounds. Memory is the peak with all embeddings as anchors, in a process of its own, less what it held
when data and modules were there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from evaluation import Size, make_data, resident
from torch import Tensor

from pml_ext.benchmark import environment
from pml_ext.mining import class_graph, mine

RESULTS = Path(__file__).parent / "results" / "mining.jsonl"
ROWS = 256


class Batch(NamedTuple):
    """What a job is given: embeddings [n, d], labels [n], which are anchors, and how many candidates of each."""

    x: Tensor
    labels: Tensor
    anchors: Tensor
    candidates: int


def product_and_top(batch: Batch) -> None:
    """The scores of all anchors with all embeddings, and the largest of each row."""
    for rows in batch.anchors.split(ROWS):
        (batch.x[rows] @ batch.x.T).topk(batch.candidates)


def _mined(**settings: object) -> Callable[[Batch], object]:
    def job(batch: Batch) -> object:
        return mine(batch.x, batch.labels, anchors=batch.anchors, range_max=batch.candidates, **settings)

    return job


def _graph(representative: str) -> Callable[[Batch], object]:
    return lambda batch: class_graph(batch.x, batch.labels, batch.candidates, representative=representative)


FLOOR = "product and top-k"
JOBS: dict[str, Callable[[Batch], object]] = {
    FLOOR: product_and_top,
    "mine": _mined(),
    "mine, relative_margin=0.05": _mined(relative_margin=0.05),
    "mine, all candidates": lambda batch: mine(
        batch.x, batch.labels, anchors=batch.anchors, num_negatives=batch.candidates
    ),
}
# Of all classes with all classes: anchors are no choice of theirs.
GRAPHS: dict[str, Callable[[Batch], object]] = {
    "class graph of means": _graph("mean"),
    "class graph of random samples": _graph("random"),
}


def data(size: Size, anchors: int, candidates: int) -> Batch:
    """Embeddings in any order, the first of which are anchors."""
    x, labels = make_data(size, "cpu")
    return Batch(x, labels, torch.arange(min(anchors, len(x))), candidates)


def seconds(job: Callable[[Batch], object], batch: Batch) -> float:
    """Process time of a job."""
    start = time.process_time()
    job(batch)
    return time.process_time() - start


def measure(job: str, batch: Batch, floor: Batch, rounds: int) -> dict[str, float]:
    """The median time of a job, and of its multiples of the product and the top-k of another batch."""
    pairs = [(seconds(product_and_top, floor), seconds((JOBS | GRAPHS)[job], batch)) for _ in range(rounds)]
    return {
        "seconds": statistics.median(own for _, own in pairs),
        "times_floor": statistics.median(own / base for base, own in pairs),
    }


def megabytes(job: str, size: Size, candidates: int) -> float:
    """The peak of a job above its data, from a process of its own."""
    command = [sys.executable, __file__, "--memory-of", json.dumps([job, size, candidates])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(job: str, size: Size, candidates: int) -> float:
    """Run a job on all anchors and return the megabytes that it took beside its data (Linux)."""
    run = (JOBS | GRAPHS)[job]
    run(data(Size(600, 0, 16, 100), 100, 5))
    batch = data(size, size.n, candidates)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run(batch)
    return (resident("VmHWM") - before) / 1e6


def read(path: Path) -> dict[str, dict[str, object]]:
    """The lines of a file by their jobs; those that are measured again are replaced."""
    found = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    return {line["job"]: line for line in found}


def table(lines: list[dict[str, object]]) -> str:
    """Lay the results out in Markdown."""
    rows = ["| job | embeddings | d | classes | anchors | candidates | seconds | x product and top-k | MB |"]
    rows += ["|:---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    row = "| {job} | {n} | {d} | {classes} | {anchors} | {candidates} | {seconds:.2f} | {times_floor:.2f} | {mb:.0f} |"
    return "\n".join(rows + [row.format(**line) for line in lines])


def main(arguments: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="60000x128x12000", help="n x d x classes (default 60000x128x12000)")
    parser.add_argument("--graph", default="20000x128x10000", help="of the class graph (default 20000x128x10000)")
    parser.add_argument("--jobs", nargs="+", choices=[*JOBS, *GRAPHS], metavar="NAME", help="some of the jobs")
    parser.add_argument("--anchors", type=int, default=3000, help="how many of the embeddings (default 3000)")
    parser.add_argument("--candidates", type=int, default=50, help="of each anchor (default 50)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default benchmarks/results/mining.jsonl")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.memory_of:
        job, numbers, candidates = json.loads(given.memory_of)
        print(peak(job, Size(*numbers), candidates))
        return
    lines = read(given.out)
    for jobs, text in ((JOBS, given.size), (GRAPHS, given.graph)):
        size = Size.of(text)
        anchors = min(given.anchors, size.n) if jobs is JOBS else size.classes
        wanted = [job for job in jobs if given.jobs is None or job in given.jobs]
        batch = data(size, anchors, given.candidates) if wanted else None
        for job in wanted:
            # Of a graph the floor is that of as many vectors as there are classes.
            of_classes = Size(size.classes, 0, size.d, size.classes)
            floor = batch if jobs is JOBS else data(of_classes, anchors, given.candidates)
            line = {"job": job, **size._asdict(), "anchors": anchors, "candidates": given.candidates}
            line |= measure(job, batch, floor, given.rounds)
            line["mb"] = megabytes(job, size, given.candidates)
            lines[job] = line | {"commit": environment.commit(), "cpu": environment.hardware()["cpu"]}
            given.out.parent.mkdir(exist_ok=True)
            given.out.write_text("".join(json.dumps(each) + "\n" for each in lines.values()))
            print(json.dumps(line), file=sys.stderr, flush=True)
    print(table(list(lines.values())))


if __name__ == "__main__":
    main()
