"""What goes wrong on one of several real processes, and what the others hear: a part of what `processes.py` does.

Each way to fail is a fork of every process, the last of which is the culprit; nobody may wait in vain for longer than
the time-out of the group.
"""

import datetime
import os
import signal
import time
import traceback

import torch
import torch.distributed as dist

from pml_ext import losses, miners
from pml_ext.evaluation.accuracy import RetrievalAccuracyCalculator
from pml_ext.evaluation.sharded import sharded_accuracy
from pml_ext.wrappers import DistributedLoss, DistributedMiner

TIMEOUT, N, D = 240, 8, 4
SHORT = 2  # seconds, where the time-out itself is what ends the wait
LABELS = torch.arange(N) // 2
WAITED = "RuntimeError: process 0 of {size} waited in vain for the others"


def samples():
    return torch.randn(N, D, requires_grad=True)


def step(loss, x=None):
    loss(samples() if x is None else x, LABELS).backward()


def killed(is_culprit, _):
    loss = DistributedLoss(losses.RAWLoss())
    step(loss)
    if is_culprit:
        os.kill(os.getpid(), signal.SIGKILL)
    step(loss)


def raises(is_culprit, _):
    loss = DistributedLoss(losses.RAWLoss())
    step(loss)
    if is_culprit:
        raise KeyError("mine alone")
    step(loss)


def raises_backward(is_culprit, _):
    x = samples()

    def fail(grad):
        raise KeyError("mine alone, backward")

    y = x * 2
    value = DistributedLoss(losses.RAWLoss())(y, LABELS)
    if is_culprit:
        value.register_hook(fail)
    value.backward()


def stops_early(is_culprit, _):
    loss = DistributedLoss(losses.MultiSimilarityLoss())
    for _ in range(1 if is_culprit else 2):
        step(loss)


def hangs(is_culprit, folder):
    group = dist.new_group(timeout=datetime.timedelta(seconds=SHORT))
    loss = DistributedLoss(losses.RAWLoss(), group=group)
    step(loss)
    if is_culprit:
        while not (folder / "the others gave up").exists():
            time.sleep(0.02)
        raise KeyError("hung")
    try:
        step(loss)
    finally:
        (folder / "the others gave up").touch()


def other_dimension(is_culprit, _):
    DistributedLoss(losses.RAWLoss())(torch.randn(N, D + is_culprit), LABELS)


def other_loss(is_culprit, _):
    step(DistributedLoss(losses.HistogramLoss() if is_culprit else losses.RAWLoss()))


def other_hyperparameter(is_culprit, _):
    step(DistributedLoss(losses.RAWLoss(gamma=0.5 if is_culprit else 1.0), equal_sizes=True))


def other_miner(is_culprit, _):
    miner = miners.KNearestNegativeMiner(k=2 if is_culprit else 3)
    DistributedMiner(miner)(samples(), LABELS)


def wrong_labels(is_culprit, _):
    DistributedLoss(losses.RAWLoss())(samples(), LABELS[: N - is_culprit])


def other_evaluation(is_culprit, _):
    calculator = RetrievalAccuracyCalculator(include=("recall_at_1",), recall_at=(1,), device="cpu")
    sharded_accuracy(calculator, torch.randn(N, D + is_culprit), LABELS)


# How, what the culprit ends with, and what the first process hears.
WAYS = {
    killed: (None, WAITED),
    raises: ("KeyError: 'mine alone'", WAITED),
    raises_backward: ("KeyError: 'mine alone, backward'", WAITED),
    stops_early: ("", WAITED),
    hangs: ("KeyError: 'hung'", WAITED),
    other_dimension: (alike := "ValueError: the dimension of embeddings must be the same on all processes", alike),
    other_loss: (alike := "ValueError: the loss and its miner must be the same on all processes", alike),
    other_hyperparameter: (alike, alike),
    other_miner: (alike, alike),
    wrong_labels: ("ValueError: ", "RuntimeError: process {last} of {size} was called with wrong arguments"),
    other_evaluation: (alike := "ValueError: dimensions and dtypes must be the same on all processes", alike),
}


def in_a_fork(way, rank, size, folder):
    """How a way to fail ends here: the error in one line, "" for none, None if the process was killed."""
    told = folder / f"{way.__name__} {rank}"
    child = os.fork()
    if child == 0:
        try:
            timeout = datetime.timedelta(seconds=TIMEOUT)
            store = f"file://{folder}/{way.__name__}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)
            way(rank == size - 1, folder)
            told.write_text("")
        except BaseException as error:
            told.write_text(f"{type(error).__name__}: {error}")
            traceback.print_exc()
        # Neither Python's nor gloo's way out: what a process that ends leaves behind.
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else told.read_text()


def check(rank, size, folder):
    """All ways, one after another, before this process has a group of its own."""
    folder.mkdir(exist_ok=True)
    for way, (of_culprit, of_others) in WAYS.items():
        began = time.monotonic()
        found = in_a_fork(way, rank, size, folder)
        seconds = time.monotonic() - began
        expected = of_culprit if rank == size - 1 else of_others
        if expected is None:
            assert found is None, f"{way.__name__}: {found}"
            continue
        expected = expected.format(size=size, last=size - 1).replace("process 0", f"process {rank}")
        assert found is not None, f"{way.__name__}: killed"
        assert found.startswith(expected), f"{way.__name__}: {found!r} and not {expected!r}"
        assert bool(found) == bool(expected), f"{way.__name__}: {found!r}"
        assert seconds < TIMEOUT / 2, f"{way.__name__} took {seconds:.0f} s: the time-out was waited for"
