"""Is a loss of several processes that of one? And what do memory and time of a process grow with?

    python benchmarks/distributed.py                    # everything, to benchmarks/results/distributed.md
    python benchmarks/distributed.py --only memory      # a part; the others stay there as they are

Parity: three steps of SGD in float64 under `DistributedDataParallel`, every method, loss and miner of the package and
losses of PML, against one process with the concatenated batch: values times one, gradients, parameters of the network
and of the loss, and its buffers. PML's wrapper has equal batches, ours equal, unequal and empty ones.
Training: the main job on digits, by one process and by torchrun with several, epoch by epoch.
Memory: the peak above what was there before, of the process with the largest. Time: CPU seconds of the busiest process.
"""

import argparse
import ctypes
import datetime
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers as pml_reducers
from pytorch_metric_learning import regularizers as pml_regularizers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pml_ext import catalog, centers, losses, miners, thresholds, wrappers
from pml_ext.seeded import Seeded
from pml_ext.wrappers import CrossBatchMemory, DistributedLoss, DistributedMiner, SelfSupervisedLoss

CLASSES, D, N, STEPS = 6, 8, 24, 3
KNOWN = {"num_classes": CLASSES, "embedding_size": D}
LABELS = torch.tensor([0] * 6 + [1] * 5 + [2] * 4 + [3] * 4 + [4] * 3 + [5] * 2)
SIZES = {
    2: {"equal": (12, 12), "unequal": (15, 9), "empty": (24, 0)},
    3: {"equal": (8, 8, 8), "unequal": (11, 8, 5), "empty": (13, 0, 11)},
    4: {"equal": (6, 6, 6, 6), "unequal": (9, 7, 5, 3), "empty": (0, 12, 0, 12)},
}
PLAIN = (
    *(
        "ContrastiveLoss",
        "TripletMarginLoss",
        "MultiSimilarityLoss",
        "NTXentLoss",
        "CircleLoss",
        "NCALoss",
        "SupConLoss",
    ),
    *("SupConLoss", "HistogramLoss", "LiftedStructureLoss", "FastAPLoss", "PNPLoss", "TupletMarginLoss"),
    *(
        "GeneralizedLiftedStructureLoss",
        "IntraPairVarianceLoss",
        "SignalToNoiseRatioContrastiveLoss",
        "AngularLoss",
        "NPairsLoss",
    ),
)
PROXIES = ("ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "ArcFaceLoss", "NormalizedSoftmaxLoss")
OF_PML: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN},
    **{name: dict(KNOWN) for name in PROXIES},
    "MarginLoss": {"num_classes": CLASSES, "learn_beta": True},
    "RankedListLoss": {"margin": 0.4, "Tn": 1.0},
}
WRAPPERS: dict[str, Callable[[], Any]] = {
    "AnchorWeightedLoss(RAW)": lambda: wrappers.AnchorWeightedLoss(losses.RAWLoss()),
    "AnchorWeightedLoss(PML's triplets)": lambda: wrappers.AnchorWeightedLoss(pml_losses.TripletMarginLoss()),
    "BranchLoss(RAW)": lambda: wrappers.BranchLoss(losses.RAWLoss(), 2),
    "BranchDiversityRegularizer": lambda: wrappers.BranchLoss(
        losses.RAWLoss(), 2, embedding_regularizer=wrappers.BranchDiversityRegularizer(2, beta=4)
    ),
    "MinedLoss, by rows": lambda: wrappers.MinedLoss(losses.BinomialDevianceLoss(), miners.HardNegativePairMiner()),
    "MinedLoss, drawn": lambda: wrappers.MinedLoss(losses.BinomialDevianceLoss(), miners.InverseDensityMiner()),
    "RandomSliceLoss": lambda: wrappers.RandomSliceLoss(losses.RAWLoss(), 2),
    "centers of the batch": lambda: wrappers.CentersAsReferences(losses.KNNSoftmaxLoss(), centers.BatchCenters()),
    "centers of clusters": lambda: wrappers.CentersAsReferences(
        losses.KNNSoftmaxLoss(), centers.KMeansCenters(n_clusters=4)
    ),
    "running centers": lambda: wrappers.CentersAsReferences(
        losses.KNNSoftmaxLoss(), centers.RunningCenters(CLASSES, D)
    ),
    "learned centers": lambda: wrappers.CentersAsReferences(
        losses.KNNSoftmaxLoss(), centers.LearnedCenters(CLASSES, D)
    ),
    "chunk_size": lambda: losses.RAWLoss(chunk_size=5),
    "a regularizer": lambda: losses.RAWLoss(
        embedding_regularizer=pml_regularizers.LpRegularizer(), embedding_reg_weight=0.1
    ),
}
REDUCERS: dict[str, Callable[[], Any]] = {
    "AvgNonZeroReducer": pml_reducers.AvgNonZeroReducer,
    "SumReducer": pml_reducers.SumReducer,
    "DivisorReducer": pml_reducers.DivisorReducer,
    "ThresholdReducer": lambda: pml_reducers.ThresholdReducer(low=0.2, high=3),
    "ClassWeightedReducer": lambda: pml_reducers.ClassWeightedReducer(torch.arange(1.0, CLASSES + 1).double()),
    "PerAnchorReducer": pml_reducers.PerAnchorReducer,
}
Made = tuple[Any, Any]
TITLES = {"parity": "Parity with one process", "training": "Training", "memory": "Memory", "time": "Time"}
HEAD = "# Several processes\n\nBy `python benchmarks/distributed.py`, whose docstring says what is compared.\n"


def cases() -> dict[str, Callable[[], Made]]:
    """What is compared: name -> a function that makes a loss and a miner, or None."""
    made: dict[str, Callable[[], Made]] = {}

    def recipe(name: str) -> Made:
        built = catalog.build(name, **{each: KNOWN.get(each, 40) for each in catalog.needs(name)})
        return built.loss, built.miner

    def of_class(kind: Any, **given: Any) -> Made:
        return kind(**given), None

    for name in catalog.recipes:
        made[f"recipe {name}"] = partial(recipe, name)
    for kind in catalog.all_losses():
        try:
            kind()
        except TypeError:
            continue
        made[f"loss {kind.__name__}"] = partial(of_class, kind)
    made["loss CenterLoss, running"] = lambda: (losses.CenterLoss(CLASSES, D), None)
    made["loss CenterLoss, learned"] = lambda: (losses.CenterLoss(CLASSES, D, centers="learned"), None)
    for kind in catalog.all_miners():
        if kind not in (miners.CappedMiner, miners.ChainedMiner, miners.GuidedMiner):
            made[f"miner {kind.__name__}"] = lambda kind=kind: (losses.BinomialDevianceLoss(), kind())  # type: ignore[misc]
    for name, around in WRAPPERS.items():
        made[f"wrapper {name}"] = lambda around=around: (around(), None)  # type: ignore[misc]
    for name, reducer in REDUCERS.items():
        made[f"reducer {name}"] = lambda reducer=reducer: (  # type: ignore[misc]
            losses.BatchAllTripletLoss(reducer=reducer()), None)  # fmt: skip
    made["CrossBatchMemory(RAW), a queue of 40"] = lambda: (CrossBatchMemory(losses.RAWLoss(), D, 40), None)
    made["SelfSupervisedLoss(RAW)"] = lambda: (SelfSupervisedLoss(losses.RAWLoss()), None)
    for name, given in OF_PML.items():
        made[f"PML {name}"] = partial(of_class, getattr(pml_losses, name), **given)
    made["PML MultiSimilarityLoss, its miner"] = lambda: (
        pml_losses.MultiSimilarityLoss(), pml_miners.MultiSimilarityMiner())  # fmt: skip
    made["PML MarginLoss, DistanceWeightedMiner"] = lambda: (
        pml_losses.MarginLoss(),
        pml_miners.DistanceWeightedMiner(),
    )
    made["PML CrossBatchMemory, a queue of 40"] = lambda: (
        pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), D, 40), None)  # fmt: skip
    made["PML MultipleLosses"] = lambda: (
        pml_losses.MultipleLosses([pml_losses.ContrastiveLoss(), losses.RAWLoss()]), None)  # fmt: skip
    return made


def made(make: Callable[[], Made], *, seeded: bool) -> Made:
    """A loss and a miner in double precision; what draws has a stream of its own, if `seeded`, to be compared."""
    torch.manual_seed(3)
    loss, miner = make()
    for part in [*loss.modules(), *(miner.modules() if miner is not None else [])]:
        if seeded and isinstance(part, Seeded) and part.seed is None:
            part.seed = 7
    return loss.double(), miner


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, other views of them, labels."""
    generator = torch.Generator().manual_seed(100 + step)
    labels = LABELS[torch.randperm(N, generator=generator)]
    x, other = torch.randn(2, N, 10, generator=generator, dtype=torch.float64)
    x = x + labels.unsqueeze(1) / 3
    return x, x + 0.3 * other, labels


def train(model: nn.Module, loss: Any, miner: Any, own: slice, seed: int, views: bool) -> dict[str, Tensor]:
    """The gradients of the first step, and all numbers at the end."""
    parameters = [*model.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.05)
    first, values = [], []
    for step in range(STEPS):
        x, other, labels = (each[own] for each in batch(step))
        torch.manual_seed(seed + 17 * step)
        optimizer.zero_grad()
        if views:
            value = loss(*model(torch.cat((x, other))).split([len(x), len(x)]))
        else:
            embeddings = model(x)
            pairs = None if miner is None else miner(embeddings, labels)
            value = loss(embeddings, labels) if pairs is None else loss(embeddings, labels, pairs)
        value.backward()
        if step == 0:
            first = [p.grad for p in model.parameters()], [p.grad for p in loss.parameters() if p.grad is not None]
        values.append(value.detach())
        optimizer.step()
    state = [b for b in loss.buffers() if b.is_floating_point()]
    return {
        "value": torch.stack(values),
        "gradient of the network": _flat(first[0]),
        "gradient of its parameters": _flat(first[1]),
        "network": _flat(model.parameters()),
        "parameters": _flat(loss.parameters()),
        "state": _flat(state),
    }


def _flat(tensors: Any) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(x.detach().double().flatten() for x in tensors)])


def network() -> nn.Module:
    """What is trained."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, D)).double()


def wrapped(how: str, loss: Any, miner: Any) -> Made:
    """The loss and the miner for several processes."""
    from pml_ext._pml import DistributedLossWrapper, DistributedMinerWrapper

    if how == "ours":
        return DistributedLoss(loss), miner and DistributedMiner(miner)
    efficient = how == "PML, efficient"
    whole: nn.Module = DistributedLossWrapper(loss, efficient=efficient)
    if any(True for _ in loss.parameters()):
        whole = DistributedDataParallel(whole)
    return whole, miner and DistributedMinerWrapper(miner, efficient=efficient)


def verdict(found: dict[str, Tensor], expected: dict[str, Tensor], size: int, name: str, how: str) -> str:
    """What is wrong first, or that nothing is."""
    limit = 1e-8 if "JSDiv" in name else 1e-10
    for what, wanted in expected.items():
        mine = found[what] / size if what == "value" and how != "ours" else found[what]
        if mine.shape != wanted.shape:
            return f"{what}: {len(mine)} numbers for {len(wanted)}"
        scale = float(wanted.norm())
        error = float((mine - wanted).norm()) / (scale or 1)
        if not error <= limit:
            factor = float(mine @ wanted) / float(wanted @ wanted) if scale else float("nan")
            return f"{what}: x {factor:.2f}, off by {error:.0e}"
    return "exact"


def parity(rank: int, size: int) -> dict[str, Any]:
    """A verdict for each case, wrapper and division of the batch, of this process."""
    results: dict[str, Any] = {}
    for name, make in cases().items():
        views = name.startswith("SelfSupervised")
        rows: dict[str, str] = {}
        for how in ("PML", "PML, efficient", "ours"):
            kinds = SIZES[size] if how == "ours" else {"equal": SIZES[size]["equal"]}
            for kind, sizes in kinds.items():
                start = sum(sizes[:rank])
                loss, miner = made(make, seeded=how == "ours")
                expected = train(network(), loss, miner, slice(0, N), 1234, views)
                loss, miner = made(make, seeded=how == "ours")
                own = slice(start, start + sizes[rank])
                try:
                    model = DistributedDataParallel(network())
                    whole, mines = wrapped(how, loss, miner)
                    found = train(model, whole, mines, own, 1234 + 1000 * rank, views)
                    rows[f"{how}, {kind}"] = verdict(found, expected, size, name, how)
                except (TypeError, ValueError, AssertionError, RuntimeError) as error:
                    rows[f"{how}, {kind}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:70]}"
        results[name] = rows
        if rank == 0:
            print(name, rows, file=sys.stderr, flush=True)
    return results


@contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """A function that says, afterwards, how many MB the process needed at most beyond what it had."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield lambda: (_status("VmHWM") - before) / 1e6


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def jobs() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """What is measured, up to which size of the whole batch."""
    from pml_ext._pml import DistributedLossWrapper as Wrapper

    multi, triplets = losses.MultiSimilarityLoss, losses.BatchAllTripletLoss
    return {
        "PML's wrapper, PML's MultiSimilarityLoss": (lambda: Wrapper(pml_losses.MultiSimilarityLoss()), 2048),
        "PML's wrapper, our MultiSimilarityLoss": (lambda: Wrapper(multi()), 8192),
        "DistributedLoss(MultiSimilarityLoss())": (lambda: DistributedLoss(multi()), 8192),
        "DistributedLoss(MultiSimilarityLoss(chunk_size=128))": (lambda: DistributedLoss(multi(chunk_size=128)), 8192),
        "DistributedLoss(MultiSimilarityLoss(), ring=True)": (lambda: DistributedLoss(multi(), ring=True), 8192),
        "DistributedLoss(PML's MultiSimilarityLoss)": (lambda: DistributedLoss(pml_losses.MultiSimilarityLoss()), 8192),
        "PML's wrapper, PML's TripletMarginLoss": (lambda: Wrapper(pml_losses.TripletMarginLoss()), 512),
        "DistributedLoss(BatchAllTripletLoss())": (lambda: DistributedLoss(triplets()), 8192),
        "DistributedLoss(BatchAllTripletLoss(chunk_size=128))": (
            lambda: DistributedLoss(triplets(chunk_size=128)),
            8192,
        ),
        "DistributedLoss(HistogramLoss())": (lambda: DistributedLoss(losses.HistogramLoss()), 8192),
        "DistributedLoss(LiftedStructureLoss())": (lambda: DistributedLoss(losses.LiftedStructureLoss()), 8192),
        "DistributedLoss(MeanGapLoss())": (lambda: DistributedLoss(losses.MeanGapLoss()), 8192),
    }


def measured(rank: int, size: int, what: str, ns: list[int]) -> dict[str, Any]:
    """MB, or CPU seconds, of one step of each job."""
    results: dict[str, Any] = {name: {} for name in jobs()}
    for n in [64, *ns]:
        generator = torch.Generator().manual_seed(n)
        labels = torch.arange(n) // 4
        x = torch.randn(n // 4, 128, generator=generator).repeat_interleave(4, 0)
        order = torch.randperm(n, generator=generator)
        own = order[rank * n // size : (rank + 1) * n // size]
        x = x + 1.5 * torch.randn(n, 128, generator=generator)
        mine, names = x[own].clone(), labels[own].clone()
        for name, (make, most) in jobs().items():
            if n > most:
                continue
            loss = make()

            def step(loss: nn.Module = loss, mine: Tensor = mine, names: Tensor = names) -> None:
                loss(mine.clone().requires_grad_(), names).backward()

            dist.barrier()
            if what == "memory":
                with peak() as used:
                    step()
                results[name][n] = used()
            else:
                step()
                times = []
                for _ in range(3):
                    dist.barrier()
                    begin = time.process_time()
                    step()
                    times.append(time.process_time() - begin)
                results[name][n] = min(times)
    return {name: {n: value for n, value in row.items() if n != 64} for name, row in results.items()}


def run(part: str, size: int, *more: str) -> list[dict[str, Any]]:
    """What each of some processes found."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(__file__).resolve().parents[1]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        }
        command = [sys.executable, __file__, "--part", part, *more, "--size", str(size), "--folder", folder]
        started = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(size)]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit(f"{part} with {size} processes failed: {codes}")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def worker(options: argparse.Namespace) -> None:
    """One process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # PML's fall-backs warn in every process
    logging.disable(logging.WARNING)
    store, timeout = f"file://{options.folder}/store", datetime.timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=store, rank=options.rank, world_size=options.size, timeout=timeout)
    if options.part == "parity":
        # As larger batches are computed, in blocks and by own rows.
        with thresholds.replaced(STOCK_PAYS=0, SUMMED_SCORES=4 * N, SUMMED_FROM=0):
            found = parity(options.rank, options.size)
    else:
        found = measured(options.rank, options.size, options.part, options.samples)
    Path(options.folder, f"{options.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def parity_table(sizes: list[int]) -> list[str]:
    """The lines of the table, worst verdict of all processes and divisions."""
    found = {size: run("parity", size) for size in sizes}
    lines, right, wrong = [], 0, 0
    for name in found[sizes[0]][0]:
        columns = []
        for how in ("PML", "PML, efficient"):
            verdicts = {ranks[0][name][f"{how}, equal"] for ranks in found.values()}
            columns.append("exact" if verdicts == {"exact"} else found[sizes[0]][0][name][f"{how}, equal"])
        ours = [
            verdict
            for ranks in found.values()
            for rank in ranks
            for how, verdict in rank[name].items()
            if how.startswith("ours")
        ]
        bad = [verdict for verdict in ours if verdict != "exact"]
        right, wrong = right + (not bad), wrong + bool(bad)
        lines.append(f"| {name} | {columns[0]} | {columns[1]} | {bad[0] if bad else f'exact ({len(ours)} runs)'} |")
    numbers = ", ".join(map(str, sizes))
    return [
        f"## {TITLES['parity']}",
        "",
        f"{numbers} processes, gloo, float64, {STEPS} steps of SGD under DistributedDataParallel. PML's wrapper with "
        "equal batches, its value divided by the number of processes; ours with equal, unequal and empty ones. What "
        "draws is seeded alike for ours, and as usual for PML's. What is wrong first is shown, with "
        f"{sizes[0]} processes: factor and relative error. Ours: {right} exact, {wrong} wrong.",
        "",
        "| what | PML's wrapper | `efficient=True` | `DistributedLoss` |",
        "|---|---|---|---|",
        *lines,
        "",
    ]


def measured_table(part: str, size: int, ns: list[int]) -> list[str]:
    """The lines of a table of memory or time."""
    ranks = run(part, size, "--samples", *map(str, ns))
    unit = "MB above what was there, largest process" if part == "memory" else "CPU seconds of a step, busiest process"
    lines = [f"## {TITLES[part]}", "", f"{unit}; {size} processes, float32, d = 128, 4 per class, one thread each.", ""]
    lines += [f"| batch of all | {' | '.join(map(str, ns))} |", "|---" * (1 + len(ns)) + "|"]
    for name in ranks[0]:
        values = [max(rank[name].get(str(n), float("nan")) for rank in ranks) for n in ns]
        shown = ["" if value != value else f"{value:.1f}" if part == "memory" else f"{value:.3f}" for value in values]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return [*lines, ""]


def trained(size: int, epochs: int, steps: int) -> list[dict[str, float]]:
    """What so many processes find in each epoch of one run."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        start = [sys.executable, "-m"]
        if size > 1:
            start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m"]
        given = ["--data", "digits", "--losses", "RAW", "--epochs", str(epochs), "--steps", str(steps)]
        given += ["--batch-size", "40", "--classes-per-batch", "5", "--device", "cpu", "--out", str(out)]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        subprocess.run([*start, "pml_ext.benchmark", *given], env=environment, check=True, stdout=sys.stderr)
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    history: list[dict[str, float]] = next(line["history"] for line in lines if line["loss"] == "RAW")
    return history


def training_table(sizes: list[int]) -> list[str]:
    """The lines of the table of a run by different numbers of processes."""
    epochs, steps = 8, 5
    found = {size: trained(size, epochs, steps) for size in [1, *sizes]}
    lines = [
        f"## {TITLES['training']}",
        "",
        f"`python -m pml_ext.benchmark --data digits --losses RAW`, with {', '.join(map(str, sizes))} processes under "
        f"`torchrun`: Adam, float32, {steps} steps an epoch, of batches of 40. Mean loss of the epoch, and recall@1 in "
        "per cent. The first steps differ by rounding, which Adam then multiplies, as it does between machines.",
        "",
        f"| epoch | {' | '.join('1 process' if size == 1 else f'{size} processes' for size in found)} |",
        "|---" * (1 + len(found)) + "|",
    ]
    for epoch in range(epochs):
        cells = [f"{one[epoch]['loss']:.5f}, {100 * one[epoch]['recall_at_1']:.1f}" for one in found.values()]
        lines.append(f"| {epoch + 1} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(TITLES), choices=TITLES, help="parts to measure anew")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 3, 4], help="for parity")
    parser.add_argument("--samples", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "distributed.md")
    for name in ("--rank", "--size"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    for name in ("--folder", "--part"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        worker(options)
        return
    before = options.out.read_text() if options.out.exists() else ""
    for part in options.only:
        if part in ("memory", "time"):
            lines = measured_table(part, 4, options.samples)
        else:
            lines = (parity_table if part == "parity" else training_table)(options.processes)
        # A part is written when it is measured: the next one may take longer than there is time.
        before = with_part(before, part, "\n".join(lines).strip())
        options.out.write_text(before)
    print(before)


def with_part(report: str, part: str, text: str) -> str:
    """The report with another text of a part; the others, which have titles of their own, as they are."""
    sections = {section.partition("\n")[0]: section.strip() for section in report.split("\n## ")[1:]}
    sections[TITLES[part]] = text.removeprefix("## ")
    known = [sections[title] for title in TITLES.values() if title in sections]
    return "\n".join([HEAD, *(f"## {section}\n" for section in known)])


if __name__ == "__main__":
    main()
