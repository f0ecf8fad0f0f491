"""Time and memory of every method of the catalog, against the floor, PML and loops over anchors.

    python benchmarks/speed.py                              everything: a quarter of an hour on one core
    python benchmarks/speed.py --quick                      a look, in two minutes
    python benchmarks/speed.py --entries RAW NCA --n 256    some methods on batches of one's own
    python benchmarks/speed.py --large                      also the memory of `chunk_size` at n = 32768
    python benchmarks/speed.py --report                     the table and the plot again, from the measurements
    python benchmarks/speed.py --peers                      beside other packages, whichever are installed
    python benchmarks/speed.py --peers --report             their page and picture again

The floor F is the time of X X^T and the two products of its backward pass. Measurements are appended to speed.jsonl as
soon as they are there, one line each; --resume continues an interrupted run. The table (speed.md) and the plot
(speed.png) are made at the end, and the goals are printed as a checklist.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import speed_peers
import speed_peers_page
import torch
from speed_jobs import FLOOR, Job, Setting, all_jobs, batch, set_chunk_size
from speed_measure import Times, peak_megabytes, seconds, times
from speed_report import LARGE, MAIN, MANY, QUARTER, SMALL, Lines, checklist, plot, table

import pml_ext
from pml_ext.benchmark import environment

HERE = Path(__file__).resolve().parent
# Batches, and which sides are measured there. Loops and PML only where a goal or the plot needs them.
ALL, OURS, WITH_STOCK = ("ours", "stock", "loop"), ("ours",), ("ours", "stock")
PLAN: dict[Setting, tuple[str, ...]] = {
    Setting(64, 512, 4): WITH_STOCK,
    SMALL: ALL,
    QUARTER: WITH_STOCK,
    Setting(512, 512, 4): WITH_STOCK,
    MAIN: ALL,
    Setting(2048, 512, 4): WITH_STOCK,
    LARGE: WITH_STOCK,
    Setting(128, 128, 4): OURS,
    Setting(1024, 128, 4): WITH_STOCK,
    Setting(1024, 512, 8): OURS,
    Setting(1024, 512, 32): OURS,
}
QUICK: dict[Setting, tuple[str, ...]] = {Setting(128, 128, 4): WITH_STOCK, Setting(512, 128, 4): WITH_STOCK}
# Of large batches only these, and with many per class only what scales with it.
AT_LARGE = ("row", "center", "batch", "stock")
MANY_PER_CLASS = ("RAW", "BatchAll", "BatchHard", "SemiHard", "NCA")
MEMORY_AT = (SMALL.n, 512, MAIN.n, LARGE.n)
# With a chunk size: two batches, to see how memory grows between them.
LINEAR = (Setting(8192, 128, 4), Setting(32768, 128, 4))
LINEAR_SMALL = Setting(1024, 128, 4)
LINEAR_SOME = ("RAW", "BatchAll", "NCA")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", nargs="+", metavar="NAME", help="methods, losses or miners, with what PML has")
    parser.add_argument("--n", nargs="+", type=int, help="batch sizes, instead of the usual settings")
    parser.add_argument("--d", nargs="+", type=int, help="dimensions (with --n; by default 512)")
    parser.add_argument("--per-class", nargs="+", type=int, help="samples per class (with --n; by default 4)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each job at most (default 9, at least 3)")
    parser.add_argument("--seconds", type=float, default=0.4, help="... within this time, if there are 3 (default 0.4)")
    parser.add_argument("--slowest", type=float, default=5, help="skip what takes longer a step, seconds (default 5)")
    parser.add_argument("--memory-limit", type=float, default=4, help="skip what takes more, GB (default 4)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="two small batches, three samples")
    parser.add_argument("--large", nargs="?", const="some", choices=("some", "all"), help="memory of chunk_size, too")
    parser.add_argument("--chunk-size", type=int, default=256, help="of --large (default 256)")
    parser.add_argument("--resume", action="store_true", help="keep what is in speed.jsonl, measure the rest")
    parser.add_argument("--report", action="store_true", help="measure nothing, make table and plot")
    parser.add_argument(
        "--peers", action="store_true", help="other packages beside ours, into peers.jsonl, peers.md, peers.png"
    )
    parser.add_argument("--no-compile", action="store_true", help="with --peers: without torch.compile")
    options = parser.parse_args(arguments)
    known = {job.name for job in all_jobs()}
    for name in options.entries or ():
        if name not in known:
            parser.error(f"--entries: {name!r} is none of {', '.join(sorted(known))}")
    if (options.d or options.per_class) and not options.n:
        parser.error("--d and --per-class need --n")
    if options.rounds < 3:
        parser.error("--rounds must be at least 3")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    return options


def plan(options: argparse.Namespace) -> Iterator[tuple[Setting, list[Job]]]:
    """The batches, and what is measured with each."""
    jobs = [job for job in all_jobs() if options.entries is None or job.name in options.entries]
    if options.n:
        for setting in product(options.n, options.d or [512], options.per_class or [4]):
            yield Setting(*setting), jobs
        return
    for setting, sides in (QUICK if options.quick else PLAN).items():
        yield setting, [job for job in jobs if job.side in sides and (setting.n <= MAIN.n or job.family in AT_LARGE)]
    if not options.quick:
        yield MANY, [job for job in jobs if job.side == "ours" and job.name in MANY_PER_CLASS]


def hardware(device: str) -> str:
    """What it runs on."""
    found = environment.hardware()
    cores = "1 core" if found["cores"] == 1 else f"{found['cores']} cores"
    return str(found["gpus"][0]) if device == "cuda" else f"{found['cpu']}, {cores}"


class Record:
    """The file of measurements."""

    def __init__(self, path: Path, device: str, resume: bool) -> None:
        self.path = path
        self.lines = read(path) if resume else []
        path.parent.mkdir(parents=True, exist_ok=True)
        # Also cuts off half a line of an interrupted run.
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        versions = {name: version(name) for name in ("torch", "pytorch-metric-learning")}
        self.common = {
            "device": device,
            "threads": torch.get_num_threads(),
            "hardware": hardware(device),
            "versions": {"python": platform.python_version(), **versions, "pml_ext": pml_ext.__version__},
            "commit": environment.commit() or "unknown",
        }

    def has(self, job: str, setting: Setting, mode: str = "full") -> bool:
        """Whether this was measured before."""
        keys = ((line["job"], line["n"], line["d"], line["per_class"], line["mode"]) for line in self.lines)
        return (job, *setting, mode) in keys

    def seconds(self, job: Job, setting: Setting) -> float:
        """About how long a step takes, from what it took on the largest smaller batch; 0 if that is not known."""
        smaller = [
            (line["n"], line["seconds"] * (setting.n / line["n"]) ** job.growth)
            for line in self.lines
            if (line["job"], line["d"], line["per_class"], line["mode"])
            == (job.key, setting.d, setting.per_class, "full")
            and line["n"] < setting.n
            and "seconds" in line
        ]
        return max(smaller)[1] if smaller else 0.0

    def add(self, job: str, family: str, what: str, setting: Setting, mode: str = "full", **values: Any) -> None:
        """One more line."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = {"job": job, "family": family, "what": what, **setting._asdict(), "mode": mode}
        line |= {name: round(value, 9) if isinstance(value, float) else value for name, value in values.items()}
        line |= {**self.common, "date": date}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)


def read(path: Path) -> list[dict[str, Any]]:
    """The measurements in a file; half a line at its end does not count."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"{path}: left out a line that is not complete")
    return found


def too_much(job: Job, setting: Setting, record: Record, options: argparse.Namespace) -> str:
    """Why a job is not tried, or nothing."""
    size, spent = job.bytes(setting) / 1e9, record.seconds(job, setting)
    if options.device == "cpu":
        spent = max(spent, job.seconds(setting))
    if spent > options.slowest:
        return f"it would take about {spent:.0f} s a step, the limit is {options.slowest:g} s"
    if size > options.memory_limit:
        return f"it would take about {size:.0f} GB, the limit is {options.memory_limit:g} GB"
    return ""


def measure(setting: Setting, jobs: list[Job], record: Record, options: argparse.Namespace) -> None:
    """All jobs on one batch."""
    if all(record.has(job.key, setting) for job in jobs):
        return
    print(f"n = {setting.n}, d = {setting.d}, {setting.per_class} per class", flush=True)
    reasons = {job.key: too_much(job, setting, record, options) for job in jobs}
    tried = [job for job in jobs if not reasons[job.key]]
    rounds = 3 if options.quick else options.rounds
    found = times(tried, setting, options.device, rounds=rounds, budget=options.seconds)
    with_memory = bool(options.n) or setting.n in MEMORY_AT or setting == MANY
    base = [each.floor_seconds for each in found.values() if isinstance(each, Times)]
    if base:
        peak = {"peak_mb": peak_megabytes(FLOOR, setting, options.device)} if with_memory else {}
        floor_seconds = sorted(base)[len(base) // 2]
        record.add(FLOOR, "floor", "three matrix products", setting, ratio=1.0, seconds=floor_seconds, **peak)
    for job in jobs:
        reason, values = reasons[job.key], {}
        result = found.get(job.key)
        if isinstance(result, Times):
            values = result._asdict()
        elif result is not None:
            reason = f"{type(result).__name__}: {result}".splitlines()[0][:200]
        if not reason and with_memory:
            try:
                values["peak_mb"] = peak_megabytes(job.key, setting, options.device)
            except (MemoryError, RuntimeError) as error:
                reason = f"no memory measured: {error}"
        if reason:
            values["skipped"] = reason
        record.add(job.key, job.family, job.what, setting, **values)
        print("   ", _said(job.key, values), flush=True)


def _said(key: str, values: dict[str, Any]) -> str:
    words = [f"{key:36}"]
    if "ratio" in values:
        words.append(f"{values['ratio']:8.2f} F {values['seconds'] * 1e3:10.2f} ms")
    if "peak_mb" in values:
        words.append(f"{values['peak_mb']:8.1f} MB")
    return " ".join([*words, values.get("skipped", "")])


def measure_linear(record: Record, options: argparse.Namespace) -> None:
    """The memory of every row loss, or of some, with a chunk size, where the matrix itself would take 4 GB.

    Before it, on a smaller batch in float64: value and gradient are those without a chunk size.
    """
    jobs = [job for job in all_jobs() if job.family == "row"]
    if options.large == "some":
        jobs = [job for job in jobs if job.name in (options.entries or LINEAR_SOME)]
    for job in jobs:
        if all(record.has(job.key, setting, "linear") for setting in LINEAR):
            continue
        value, gradient = chunked_difference(job, options.chunk_size, options.device)
        for setting in LINEAR:
            peak = peak_megabytes(job.key, setting, options.device, options.chunk_size)
            step = job.step(setting, *batch(setting, options.device), chunk_size=options.chunk_size)
            values = {
                "chunk_size": options.chunk_size,
                "peak_mb": peak,
                "seconds": seconds(step, 1, options.device),
                "value_difference": value,
                "gradient_difference": gradient,
            }
            record.add(job.key, job.family, job.what, setting, "linear", **values)
            print(f"    {job.key:36} n = {setting.n:6} {peak:6.0f} MB {values['seconds']:6.1f} s", flush=True)
        print(
            f"    {'':36} differences at n = {LINEAR_SMALL.n}: value {value:.1e}, gradient {gradient:.1e}", flush=True
        )


def chunked_difference(job: Job, chunk_size: int, device: str) -> tuple[float, float]:
    """How far value and gradient with a chunk size are from those without one, relatively, in float64."""
    x, labels = batch(LINEAR_SMALL, device, torch.float64)
    results = []
    for size in (None, chunk_size):
        function = job.make(LINEAR_SMALL)
        set_chunk_size(function, size)
        leaf = x.clone().requires_grad_()
        value = function(leaf, labels)
        value.backward()
        results.append((value.detach(), leaf.grad))
    (value, gradient), (chunked_value, chunked_gradient) = results
    by_value = (value - chunked_value).abs() / value.abs().clamp(min=1e-30)
    by_gradient = (gradient - chunked_gradient).abs().max() / gradient.abs().max().clamp(min=1e-30)
    difference = float(by_value), float(by_gradient)
    if max(difference) > 1e-9:
        raise AssertionError(f"{job.key} with chunk_size={chunk_size} is another loss: differences {difference}")
    return difference


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then report."""
    options = parse(arguments)
    path = options.out / "speed.jsonl"
    if options.report and options.peers:
        speed_peers_page.again(options.out)
        return
    if options.report:
        report(read(path), options.out)
        return
    torch.set_num_threads(1)
    # PML's own code warns about itself.
    warnings.filterwarnings("ignore", module="pytorch_metric_learning")
    if options.peers:
        speed_peers.run(options)
        return
    record = Record(path, options.device, options.resume)
    began = time.monotonic()
    try:
        for setting, jobs in plan(options):
            measure(setting, jobs, record, options)
        if options.large:
            measure_linear(record, options)
    except KeyboardInterrupt:
        print("interrupted: --resume continues")
    print(f"{time.monotonic() - began:.0f} s")
    report(record.lines, options.out)


def report(lines: list[dict[str, Any]], out: Path) -> None:
    """The table, the plot, and the goals on the screen."""
    if not lines:
        sys.exit("nothing was measured")
    found = Lines(lines)
    command = " ".join(["python benchmarks/speed.py", *(["--device cuda"] if lines[0]["device"] == "cuda" else [])])
    (out / "speed.md").write_text(table(found, command), encoding="utf-8")
    plot(found, out / "speed.png")
    print(f"wrote {out / 'speed.jsonl'}, speed.md and speed.png")
    if lines[0]["device"] == "cpu":
        print(f"\nGoals (medians of ratios, one thread):\n{checklist(found)}")


if __name__ == "__main__":
    main()
