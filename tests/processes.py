"""What each process of `test_distributed_processes` does: real ones, by gloo. `python processes.py RANK SIZE FOLDER`.

The end is an error of one of them, which the others must hear of.

Every check is against one process with the whole batch, computed here before the processes meet.
"""

import datetime
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_ext import losses, miners
from pml_ext.evaluation.accuracy import RetrievalAccuracyCalculator
from pml_ext.evaluation.sharded import sharded_accuracy
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
    "PML's proxies": lambda: pml_losses.ProxyAnchorLoss(CLASSES, D),
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


def check_evaluation(rank, size):
    own = own_part(rank, size)
    x, labels = batch(0)
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1", "mean_average_precision_at_r"), device="cpu")
    expected = calculator.get_accuracy(x, labels)
    found = sharded_accuracy(calculator, x[own], labels[own])
    for name, value in expected.items():
        assert abs(found[name] - float(value)) < 1e-12, name


def check_errors(rank, size):
    with pytest.raises(ValueError, match="the dimension of embeddings must be the same on all processes"):
        DistributedLoss(losses.RAWLoss())(torch.randn(3, D - rank), LABELS[:3])


def example(rank, size, folder):
    """As torchrun starts it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import several_processes

    values, recall = several_processes.main(steps=6)
    dist_of = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    port = folder / "port"
    if rank == 0:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port.with_suffix(".new").write_text(str(free.getsockname()[1]))
        port.with_suffix(".new").rename(port)
    while not port.exists():
        time.sleep(0.01)
    os.environ |= {**dist_of, "MASTER_PORT": port.read_text()}
    together, recall_together = several_processes.main(steps=6)
    dist.destroy_process_group()
    assert together == pytest.approx(values, rel=1e-4), (together, values)
    assert abs(recall - recall_together) < 0.02


def main(rank, size, folder):
    example(rank, size, folder)
    references = {}
    for name, make in LOSSES.items():
        loss, miner = made(make)
        references[name] = train(network(), loss, batch, miner)
    cached = train(network(norm=True), losses.RAWLoss(), batch)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    check_losses(rank, size, references)
    check_cached(rank, size, cached)
    check_views(rank, size)
    check_group(rank, size)
    check_evaluation(rank, size)
    check_errors(rank, size)
    dist.barrier()
    dist.destroy_process_group()
    fail(rank, size, folder)


def fail(rank, size, folder):
    """The last process raises an error in the second step; the others are not to wait for it for ever."""
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{folder}/other", rank=rank, world_size=size, timeout=timeout)
    x, labels = batch(0)
    loss = DistributedLoss(losses.RAWLoss())
    loss(x, labels)
    if rank == size - 1:
        raise KeyError("a mistake of one process")
    loss(x, labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
