"""Seconds and memory of a step: the protocol.

Time: every sample is preceded by one of the floor, so that it carries its own; jobs come in shuffled order; medians of
the paired ratios. Memory: one step in a process of its own after a small one, the peak less what was there before.
"""

import math
import multiprocessing
import random
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from speed_jobs import FLOOR, Setting, Step, all_jobs, batch, floor
from torch import Tensor

# A sample of less than this many seconds is a few steps in a row.
SAMPLE = 4e-3
WARM_UP = Setting(64, 0, 4)


class Measured(Protocol):
    """What can be timed."""

    @property
    def key(self) -> str:
        """A name of its own."""

    def step(self, setting: Setting, x: Tensor, labels: Tensor) -> Step:
        """One forward and backward pass, ready to be run again and again."""


class Times(NamedTuple):
    """Medians over the rounds: of the ratio to the floor with its quartiles, of both times in seconds."""

    ratio: float
    ratio_low: float
    ratio_high: float
    seconds: float
    floor_seconds: float
    rounds: int


def seconds(step: Step, repeats: int, device: str) -> float:
    """Seconds of one step: of the process's time on a CPU, by events on a GPU."""
    if device == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            step()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1000 / repeats
    before = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - before) / repeats


def warm_up(step: Step, device: str) -> float:
    """Run a step three times, or until it takes a third of a second; returns seconds."""
    for _ in range(3):
        found = seconds(step, 1, device)
        if found > 0.3:
            break
    return found


def times(
    jobs: Iterable[Measured], setting: Setting, device: str, *, rounds: int, budget: float, base: Step | None = None
) -> dict[str, Times | Exception]:
    """The times of all jobs, by key, or why there are none.

    Args:
        jobs: what to measure.
        setting: the batch.
        device: "cpu" or "cuda".
        rounds: how many samples of each job at most.
        budget: after about this many seconds of a job no further sample of it is taken, if there are three.
        base: the floor (default ``None``: that of the batch).
    """
    x, labels = batch(setting, device)
    base = base or floor(setting, device)
    base_repeats = math.ceil(SAMPLE / max(warm_up(base, device), 1e-6))
    floor_seconds = seconds(base, base_repeats, device)
    steps: dict[str, tuple[Step, int, int]] = {}
    result: dict[str, Times | Exception] = {}
    for job in jobs:
        try:
            step = job.step(setting, x, labels)
            spent = warm_up(step, device)
        except Exception as error:  # a peer that cannot run is a result
            result[job.key] = error
            continue
        repeats = math.ceil(SAMPLE / max(spent, 1e-6))
        in_budget = int(budget / (repeats * spent + base_repeats * floor_seconds))
        steps[job.key] = step, repeats, min(rounds, max(3, in_budget))
    samples: dict[str, list[tuple[float, float]]] = {key: [] for key in steps}
    order = random.Random(0)
    for number in range(rounds):
        keys = [key for key, (_, _, wanted) in steps.items() if number < wanted]
        order.shuffle(keys)
        for key in keys:
            step, repeats, _ = steps[key]
            samples[key].append((seconds(base, base_repeats, device), seconds(step, repeats, device)))
    return result | {key: _summary(found) for key, found in samples.items()}


def _summary(samples: list[tuple[float, float]]) -> Times:
    ratios = sorted(own / base for base, own in samples)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    base, own = (statistics.median(each) for each in zip(*samples, strict=True))
    return Times(middle, low, high, own, base, len(samples))


def peak_megabytes(key: str, setting: Setting, device: str, chunk_size: int | None = None) -> float:
    """The peak of one step of the job of that key above its inputs, in megabytes of 10^6 bytes."""
    if device == "cuda":
        return _peak_of_step(key, setting, device, chunk_size)
    # A server that has the libraries loaded forks: a process of its own for every step, in milliseconds.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["pml_ext.catalog"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(sender, key, setting, device, chunk_size))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        raise MemoryError(f"the process ended with code {process.exitcode}") from None
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _send_peak(sender, key: str, setting: Setting, device: str, chunk_size: int | None) -> None:
    torch.set_num_threads(1)
    # PML's own code warns about itself.
    warnings.filterwarnings("ignore", module="pytorch_metric_learning")
    try:
        sender.send(_peak_of_step(key, setting, device, chunk_size))
    except Exception as error:
        sender.send(_words(error))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _peak_of_step(key: str, setting: Setting, device: str, chunk_size: int | None) -> float:
    small = Setting(WARM_UP.n, setting.d, min(WARM_UP.per_class, setting.per_class))
    _step_of(key, small, device, chunk_size)()
    step = _step_of(key, setting, device, chunk_size)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = _reset_peak()
    step()
    return (_peak() - before) / 1e6


def _step_of(key: str, setting: Setting, device: str, chunk_size: int | None) -> Step:
    if key == FLOOR:
        return floor(setting, device)
    (job,) = [each for each in all_jobs() if each.key == key]
    return job.step(setting, *batch(setting, device), chunk_size=chunk_size)


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _reset_peak() -> float:
    """Bytes in use; on Linux the peak starts anew from here."""
    if not _STATUS.exists():
        return _peak()
    _RESET.write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    if not _STATUS.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return _status("VmHWM")


def _status(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return float(found[1]) * 1024
