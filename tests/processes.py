"""What the processes of `test_distributed_processes` do: real ones, by gloo. `python processes.py SIZE FOLDER`.

All are forks of one that has imported everything, which takes longer than what they do, and has trained nothing.

Every check is against one process with the whole batch, computed here before the processes meet.
"""

import datetime
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import failing_processes
import pytest
import torch
import torch.distributed as dist
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_ext import _pml, losses, miners
from pml_ext.benchmark import Experiment, evaluate, plots
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.processes import Team
from pml_ext.centers import RunningCenters
from pml_ext.datasets.glyphs import render
from pml_ext.evaluation.accuracy import RetrievalAccuracyCalculator
from pml_ext.evaluation.sharded import sharded_accuracy
from pml_ext.losses import CenterLoss
from pml_ext.ranks import Processes
from pml_ext.trainers import Cached
from pml_ext.wrappers import CrossBatchMemory, DistributedLoss, DistributedMiner, SelfSupervisedLoss

N, D, CLASSES, STEPS = 24, 8, 6, 3
SIZES = {2: (15, 9), 4: (9, 0, 11, 4)}
LABELS = torch.tensor([0] * 6 + [1] * 5 + [2] * 4 + [3] * 4 + [4] * 3 + [5] * 2)


def batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    labels = LABELS[torch.randperm(N, generator=generator)]
    return torch.randn(N, 10, generator=generator, dtype=torch.float64) + labels.unsqueeze(1) / 3, labels


def network(norm=False):
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16) if norm else nn.Tanh(), nn.Linear(16, D)).double()


def made(make):
    torch.manual_seed(3)
    made = make()
    loss, miner = made if isinstance(made, tuple) else (made, None)
    return loss.double(), miner


LOSSES = {
    "RAW": losses.RAWLoss,
    "MultiSimilarity in chunks": lambda: losses.MultiSimilarityLoss(chunk_size=4),
    "BatchAll": losses.BatchAllTripletLoss,
    "Histogram": losses.HistogramLoss,
    "PML's triplets": lambda: (pml_losses.TripletMarginLoss(), pml_miners.TripletMarginMiner()),
    "PML's proxies": lambda: pml_losses.SoftTripleLoss(CLASSES, D),
    "learned centers": lambda: losses.CenterLoss(CLASSES, D, centers="learned"),
    "running centers": lambda: losses.CenterLoss(CLASSES, D),
    "mined": lambda: (losses.BinomialDevianceLoss(), miners.HardNegativePairMiner()),
    "a queue that wraps": lambda: CrossBatchMemory(losses.RAWLoss(), D, 40),
}


def train(model, loss, part, miner=None):
    """Values and numbers after some steps."""
    parameters = [*model.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.05)
    values = []
    for step in range(STEPS):
        x, labels = part(step)
        optimizer.zero_grad()
        embeddings = model(x)
        pairs = None if miner is None else miner(embeddings, labels)
        value = loss(embeddings, labels) if pairs is None else loss(embeddings, labels, pairs)
        value.backward()
        optimizer.step()
        values.append(value.item())
    state = [b for b in loss.buffers() if b.is_floating_point()]
    return torch.cat([torch.tensor(values).double(), *(x.detach().flatten() for x in [*parameters, *state])])


def assert_equal(name, found, expected):
    assert found.shape == expected.shape, name
    error = float((found - expected).norm() / expected.norm())
    assert error < 1e-10, f"{name}: off by {error:.1e}"


def own_part(rank, size):
    start = sum(SIZES[size][:rank])
    return slice(start, start + SIZES[size][rank])


def check_losses(rank, size, references):
    own = own_part(rank, size)

    def part(step):
        x, labels = batch(step)
        return x[own], labels[own]

    for name, make in LOSSES.items():
        loss, miner = made(make)
        model = DistributedDataParallel(network())
        # Half of them with the miner inside, and half beside.
        inside = miner if name == "mined" else None
        whole = DistributedLoss(loss, inside)
        beside = DistributedMiner(miner) if miner is not None and inside is None else None
        if any(True for _ in loss.parameters()) and name == "PML's proxies":
            whole = DistributedDataParallel(whole)
        found = train(model, whole, part, beside)
        assert_equal(name, found, references[name])
        first = [torch.empty_like(found) for _ in range(size)]
        dist.all_gather(first, found)
        assert all(torch.equal(found, other) for other in first), f"{name}: processes differ"


class Counted:
    """How often gradients are reduced."""

    def __init__(self, model):
        self.calls = 0
        model.register_comm_hook(None, self.hook)

    def hook(self, _, bucket):
        self.calls += 1
        done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return done.then(lambda future: future.value()[0] / dist.get_world_size())


def check_cached(rank, size, reference):
    own = own_part(rank, size)
    for outside in (True, False):
        inner = network(norm=True)
        # Chunks of 4: another number of them on each process.
        if outside:
            model = ddp = DistributedDataParallel(Cached(inner, 4))
        else:
            ddp = DistributedDataParallel(inner)
            model = Cached(ddp, 4)
        counted = Counted(ddp)
        found = train(model, DistributedLoss(losses.RAWLoss()), lambda step: tuple(x[own] for x in batch(step)))
        assert_equal(f"cached, DDP {'outside' if outside else 'inside'}", found, reference)
        assert counted.calls == STEPS, f"gradients were reduced {counted.calls} times in {STEPS} steps"
        x, labels = (each[own] for each in batch(0))
        with ddp.no_sync():
            DistributedLoss(losses.RAWLoss())(model(x), labels).backward()
        assert counted.calls == STEPS, "no_sync was not heeded"


def check_views(rank, size):
    own = own_part(rank, size)
    (x, _), (y, _) = batch(0), batch(1)
    loss, model = SelfSupervisedLoss(losses.RAWLoss()), network()
    embeddings = model(torch.cat((x, y)))
    value = loss(*embeddings.split(N))
    value.backward()
    ddp = DistributedDataParallel(network())
    first, second = ddp(torch.cat((x[own], y[own]))).split([len(x[own])] * 2)
    mine = DistributedLoss(loss)(first, second)
    mine.backward()
    assert_equal("views, value", mine.detach().reshape(1), value.detach().reshape(1))
    for found, expected in zip(ddp.parameters(), model.parameters(), strict=True):
        assert_equal("views, gradient", found.grad, expected.grad)


def check_group(rank, size):
    """Processes of a group are alone with each other: here one of the first two."""
    group = dist.new_group([0, 1])
    if rank > 1:
        with pytest.raises(ValueError, match="group does not hold this process"):
            DistributedLoss(losses.RAWLoss(), group=group)(torch.randn(2, D), LABELS[:2])
        return
    x, labels = batch(0)
    cut = slice(0, 10) if rank == 0 else slice(10, N)
    model, reference = network(), network()
    losses.RAWLoss()(reference(x), labels).backward()
    DistributedLoss(losses.RAWLoss(), group=group, gradients="summed")(model(x[cut]), labels[cut]).backward()
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        dist.all_reduce(found.grad, group=group)
        assert_equal("group", found.grad, expected.grad)


def check_running_centers(rank, size):
    """They move by the samples of all, however many each has, and by those that all see once."""
    found, expected = (RunningCenters(CLASSES, 10).double() for _ in range(2))
    for step, owner in enumerate((None, 0, size - 1)):
        x, labels = batch(step)
        own = own_part(rank, size) if owner is None else slice(N if rank == owner else 0)
        found(x[own], labels[own])
        expected(x, labels)
    torch.testing.assert_close(found.centers, expected.centers, rtol=0, atol=1e-14)
    if _pml.HAS_TERMS:
        return

    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    def six(seed):
        return torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))

    # PML's wrapper gives each process the samples of all; without it each has its own. The last are the same in all.
    labels, seeds = torch.arange(6) // 2, [[*range(size)], [*range(size, 2 * size)], [2 * size] * size]
    for gathered in (True, False):
        loss, expected = CenterLoss(3, 2), RunningCenters(3, 2)
        call = DistributedLossWrapper(loss) if gathered else loss
        for step, of_all in enumerate(seeds):
            call(six(of_all[rank]), labels)
            seen = of_all if gathered or step < 2 else of_all[:1]
            expected(torch.cat([six(seed) for seed in seen]), labels.repeat(len(seen)))
        torch.testing.assert_close(loss.centers.centers, expected.centers)
        each = [torch.empty_like(expected.centers) for _ in range(size)]
        dist.all_gather(each, loss.centers.centers)
        assert all(torch.equal(each[0], other) for other in each) or not gathered, "centers differ"


def check_evaluation(rank, size):
    own = own_part(rank, size)
    x, labels = batch(0)
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1", "mean_average_precision_at_r"), device="cpu")
    expected = calculator.get_accuracy(x, labels)
    found = sharded_accuracy(calculator, x[own], labels[own])
    for name, value in expected.items():
        assert abs(found[name] - float(value)) < 1e-12, name


def job(folder, epochs, **more):
    given = {"steps": 3, "batch_size": 20, "classes_per_batch": 5, "optimizer": "sgd", "learning_rate": 0.02}
    given |= {"losses": ("MultiSimilarityLoss", "SoftTripleLoss"), "data": "digits", "device": "cpu"}
    return Experiment(**(given | more), epochs=epochs, out=str(folder)).run(resume=None)


METHOD = {"losses": ("HDML-NPair-balanced",), "optimizer": "adam", "learning_rate": 1e-4, "steps": 2}


def losses_of(results):
    return {one.loss: [epoch["loss"] for epoch in one.history] for one in results.runs if one.history}


def job_alone(folder):
    """What one process finds, and where another one stops after its first epoch."""
    whole = job(folder / "whole", 2)
    job(folder / "begun", 1)
    return whole, job(folder / "method alone", 1, **METHOD)


def check_job(rank, size, folder, alone):
    together = job(folder / "together", 1)
    begun = job(folder / "begun", 2)
    method = job(folder / "method", 1, **METHOD)
    if rank == 0:
        alone, method_alone = alone
        (found,), (wanted,) = losses_of(method).values(), losses_of(method_alone).values()
        assert found == pytest.approx(wanted, rel=1e-3), "HDML"
        expected = losses_of(alone)
        for name, values in losses_of(begun).items():
            assert values == pytest.approx(expected[name], rel=1e-4), f"{name}, begun by one process"
        for name, values in losses_of(together).items():
            assert values == pytest.approx(expected[name][:1], rel=1e-5), f"{name}, by all"
        found, wanted = (each.runs[0].metrics for each in (together, alone))
        assert found == pytest.approx(wanted, abs=0.01), "the untrained network"
        files = {path.name for path in (folder / "together").iterdir()}
        assert {"results.jsonl", "table.md", "experiment.json"} <= files, files
    # An error of the first process is one of all, before anything is waited for.
    with pytest.raises(BenchmarkError, match="is not empty"):
        job(folder, 1)
    big = job(folder / "large", 1, losses=("RAW",), accumulate=2, cached_chunk=4, freeze_batch_norm=True)
    assert not big.runs[-1].error


def check_measures(rank, size):
    own = Team(Processes())
    x, labels = batch(0)
    x = torch.nn.functional.normalize(x).float()
    query = torch.arange(N) % 3 > 0
    for more in ({}, {"query": query, "gallery": ~query}, {"sequences": torch.arange(N) % 4}):
        data = SimpleNamespace(labels=labels, **more)
        given = {"recall_at": (1, 2), "device": torch.device("cpu"), "clusters": True}
        expected = evaluate.measure(x, data, **given)
        found = evaluate.measure(x, data, **given, team=own)
        assert list(found) == list(expected)
        assert dict(found) == pytest.approx(dict(expected), abs=1e-12, nan_ok=True)
        for name, values in expected.per_query.items():
            assert torch.equal(found.per_query[name].nan_to_num(-1), values.nan_to_num(-1)), name
        assert torch.equal(found.query_classes, expected.query_classes)


def example(rank, size, folder):
    """As torchrun starts it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import several_processes

    dist_of = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    port, alone = folder / "port", folder / "alone"
    if rank == 0:
        torch.save(several_processes.main(steps=6), alone)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port.with_suffix(".new").write_text(str(free.getsockname()[1]))
        port.with_suffix(".new").rename(port)
    while not port.exists():
        time.sleep(0.01)
    os.environ |= {**dist_of, "MASTER_PORT": port.read_text()}
    together, recall_together = several_processes.main(steps=6)
    dist.destroy_process_group()
    values, recall = torch.load(alone)
    assert together == pytest.approx(values, rel=1e-4), (together, values)
    assert abs(recall - recall_together) < 0.02


def main(rank, size, folder):
    failing_processes.check(rank, size, folder / "failures")
    example(rank, size, folder)
    references = {}
    for name, make in LOSSES.items():
        loss, miner = made(make)
        references[name] = train(network(), loss, batch, miner)
    cached = train(network(norm=True), losses.RAWLoss(), batch)
    # What is drawn takes its time and is the same.
    plots.draw = lambda *_: []
    alone = job_alone(folder / "jobs") if rank == 0 else None
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=240),
    )
    check_losses(rank, size, references)
    check_cached(rank, size, cached)
    check_views(rank, size)
    check_group(rank, size)
    check_running_centers(rank, size)
    check_evaluation(rank, size)
    check_measures(rank, size)
    check_job(rank, size, folder / "jobs", alone)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:  # and by one process what several have begun
        expected, found = losses_of(alone[0]), losses_of(job(folder / "jobs" / "together", 2))
        for name, values in found.items():
            assert values == pytest.approx(expected[name], rel=1e-4), f"{name}, begun by all"


def fork(rank, size, folder):
    """The process of that rank."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        main(rank, size, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    render()  # the images of the example
    size = int(sys.argv[1])
    for child in [fork(rank, size, Path(sys.argv[2])) for rank in range(size)]:
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"a process ended with {os.waitstatus_to_exitcode(status)}"
    print(f"{size} processes are one")
