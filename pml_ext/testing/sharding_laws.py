"""Laws of several processes, simulated by threads: however a batch is divided, nothing changes."""

import copy
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext.pairs import PairMasks
from pml_ext.ranks import Group
from pml_ext.seeded import Seeded
from pml_ext.testing.cases import Batch
from pml_ext.testing.law import assert_close, is_ours, law, reseed
from pml_ext.testing.threads import run_as_ranks
from pml_ext.wrappers import DistributedLoss, DistributedMiner
from pml_ext.wrappers.distributed_batch import AllPairs, OwnPairs


def split(case: Batch) -> list[slice]:
    """The samples of each of 2 to 4 processes, of which some may have none; the seed of the case says which."""
    draw = random.Random(case.seed * 7919 + sum(case.sizes))
    number, n = draw.randint(2, 4), sum(case.sizes)
    cuts = sorted(draw.randint(0, n) for _ in range(number - 1))
    return [slice(start, stop) for start, stop in pairwise((0, *cuts, n))]


def _remembers(subject: Any) -> bool:
    return any(isinstance(part, Seeded) for part in subject.modules()) or any(True for _ in subject.buffers())


class Run(NamedTuple):
    """What comes of some calls and one backward pass: on one process, or on several, put together."""

    value: Tensor
    gradient: Tensor
    parameters: list[Tensor | None]
    state: list[Tensor]


def settled(subject: Any) -> Any:
    """A copy in double precision which draws, instead of from the global generators, from streams of its own."""
    subject = copy.deepcopy(subject).double()
    for part in subject.modules():
        if isinstance(part, Seeded) and part.seed is None:
            part.__dict__["seed"] = 7
    return subject


def on_one(loss: Any, miner: Any, batch: tuple[Tensor, Tensor], calls: int = 1) -> Run:
    """What one process makes of the whole batch."""
    loss, miner = settled(loss), miner and settled(miner)
    return _run(loss, loss, lambda x, y: (x, y, miner and miner(x, y)), batch, calls)


def on_several(
    loss: Any, miner: Any, batch: tuple[Tensor, Tensor], parts: list[slice], calls: int = 1
) -> tuple[Run, list[Run]]:
    """What several make of their parts: one run with the gradients put together, and those of all."""
    copies = [(settled(loss), miner and settled(miner)) for _ in parts]

    def of_rank(group: Any) -> tuple[Run, list[str]]:
        own, mine = copies[group.rank]
        whole = DistributedLoss(own, mine, group=group, gradients="summed")
        here = tuple(x[parts[group.rank]] for x in batch)
        return _run(whole, own, lambda x, y: (x, y), here, calls), group.calls

    runs, exchanges = zip(*run_as_ranks(len(parts), of_rank), strict=True)
    assert all(each == exchanges[0] for each in exchanges), f"the processes exchange different things: {exchanges}"
    return runs[0]._replace(gradient=torch.cat([run.gradient for run in runs])), list(runs)


def _run(called: Any, loss: Any, arguments: Any, batch: Any, calls: int) -> Run:
    x, labels = batch
    x = x.detach().clone().requires_grad_()
    value = torch.zeros(())
    for _ in range(calls):
        value = called(*arguments(x, labels))
    if value.requires_grad:
        value.backward()
    gradient = torch.zeros_like(x) if x.grad is None else x.grad
    state = [b.detach().clone() for b in loss.buffers() if b.is_floating_point()]
    return Run(value.detach(), gradient, [p.grad for p in loss.parameters()], state)


@law("loss", "batch", is_ours, stage="use", as_shipped_only=True)
def sharding_changes_nothing(loss: Any, case: Batch) -> None:
    """Several processes, each with some samples or none, have the value, gradients and state of one process with all.

    The value is the same on each of them, the gradients of the loss's own parameters are too, and all of them exchange
    the same, whatever samples they have.
    """
    check_sharding(loss, None, replace(case, layout="random", ref_sizes=()))


def check_sharding(loss: Any, miner: Any, case: Batch) -> None:
    """The law for a loss with a miner; what remembers is called twice, and finds the state that it left.

    Of equal scores rounding decides which is the hardest, so cases should have none.
    """
    batch = case.embeddings, case.labels
    calls = 2 if any(True for part in (loss, miner) if part is not None and _remembers(part)) else 1
    reseed()
    one = on_one(loss, miner, batch, calls)
    reseed()
    together, each = on_several(loss, miner, batch, split(case), calls)
    assert_close(together.gradient, one.gradient, "the gradient")
    for rank, run in enumerate(each):
        assert_close(run.value, one.value, f"the value on process {rank}")
        for mine, expected in zip(run.parameters, one.parameters, strict=True):
            if mine is not None or expected is not None:
                there = next(x for x in (expected, mine) if x is not None)
                mine, expected = (torch.zeros_like(there) if x is None else x for x in (mine, expected))
                assert_close(mine, expected, f"the gradient of a parameter on process {rank}")
        for mine, expected in zip(run.state, one.state, strict=True):
            assert_close(mine, expected, f"the state on process {rank}")


@law("miner", "batch", stage="use", as_shipped_only=True)
def sharding_changes_no_pair(miner: Any, case: Batch) -> None:
    """Several processes find the same pairs as one process."""
    case = replace(case, layout="random", ref_sizes=())
    reseed()
    one = settled(miner)(case.embeddings, case.labels)
    parts = split(case)
    copies = [settled(miner) for _ in parts]

    def of_rank(group: Group) -> Any:
        own = parts[group.rank]
        return DistributedMiner(copies[group.rank], group=group)(case.embeddings[own], case.labels[own])

    reseed()
    found = run_as_ranks(len(parts), of_rank)
    for pairs in found:
        if isinstance(pairs, AllPairs):
            assert _as_sets(pairs) == _as_sets(one), "other pairs"
        else:
            assert isinstance(pairs, OwnPairs)
    if isinstance(found[0], OwnPairs):
        every = PairMasks(*(torch.cat(masks) for masks in zip(*found, strict=True)))
        assert _as_sets(every.indices()) == _as_sets(one), "other pairs"


def _as_sets(pairs: Any) -> list[set[tuple[int, ...]]]:
    pairs = pairs.indices() if isinstance(pairs, PairMasks) else pairs
    sides = [pairs] if len(pairs) == 3 else [pairs[:2], pairs[2:]]
    return [set(zip(*(x.tolist() for x in side), strict=True)) for side in sides]
