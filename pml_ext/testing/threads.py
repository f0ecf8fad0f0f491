"""Threads that simulate processes: a test takes milliseconds, and an error has a traceback."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from pml_ext.ranks import Group, Pending

T = TypeVar("T")


class _World:
    """What the threads share."""

    def __init__(self, size: int, timeout: float) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=timeout)
        self.slots: list[Any] = [None] * size
        self.lock = threading.RLock()
        self.has_ended = False

    def end(self) -> None:
        """One of them is done: who waits for it, or will, waits in vain."""
        self.has_ended = True
        if self.barrier.n_waiting:
            self.barrier.abort()

    def wait(self) -> None:
        if self.has_ended:
            self.barrier.abort()
        self.barrier.wait()


class Threads(Group):
    """One of several threads that stand for processes.

    Attributes:
        calls: the names of the exchanges so far, which must be the same in all.
    """

    def __init__(self, world: _World, rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size
        self.calls: list[str] = []

    def _exchanged(self, what: str, x: Any) -> list[Any]:
        self.calls.append(what)
        self.world.slots[self.rank] = what, x
        self.world.wait()
        every = list(self.world.slots)
        # Not `wait`: who is first through this one may be done.
        self.world.barrier.wait()
        names = [name for name, _ in every]
        if len(set(names)) > 1:
            raise RuntimeError(f"the processes do not exchange the same: {names}")
        return [x for _, x in every]

    def _tensors(self, what: str, x: Tensor) -> Tensor:
        every = self._exchanged(what, x.detach().clone())
        kinds = [(tuple(each.shape), each.dtype) for each in every]
        if len(set(kinds)) > 1:
            raise RuntimeError(f"the tensors of {what} differ between the processes: {kinds}")
        return torch.stack(every)

    def all_gather(self, x: Tensor) -> Tensor:
        """The tensors of all threads."""
        return self._tensors("all_gather", x)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Their sum."""
        return self._tensors("all_reduce", x).sum(0)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This one's part of their sum."""
        return self._tensors("reduce_scatter", x).sum(0)[self.rank]

    def of_first(self, x: Tensor) -> Tensor:
        """The tensor of the first thread."""
        return self._tensors("of_first", x)[0]

    def pass_on(self, x: Tensor, to: int, out: Tensor, source: int) -> Pending:
        """Every thread sends at the same time."""
        sent = self._exchanged("pass_on", (to, x.detach().clone()))
        assert sent[source][0] == self.rank, f"process {source} sends to {sent[source][0]}, not to {self.rank}"
        out.copy_(sent[source][1])
        return _Done()

    def alone(self) -> AbstractContextManager[Any]:
        """One thread at a time: they have one global generator."""
        return self.world.lock


class _Done(Pending):
    def wait(self) -> None:
        """It is done already."""


def run_as_ranks(size: int, function: Callable[[Threads], T], *, timeout: float = 60) -> list[T]:
    """Run a function in several threads that take the place of processes, each called with its `Group`.

    Args:
        size: number of threads.
        function: called in each thread with its group, whose `rank` is the number of the thread; pass it to
            `DistributedLoss` as `group`.
        timeout: seconds after which threads that wait for each other give up.

    Raises:
        Exception: the first exception of a thread.
        RuntimeError: the threads do not make the same exchanges.

    Example:
        >>> import torch
        >>> run_as_ranks(3, lambda group: int(group.all_reduce(torch.tensor(group.rank))))
        [3, 3, 3]
    """
    world = _World(size, timeout)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(Threads(world, rank))
            world.end()
        except threading.BrokenBarrierError as error:
            errors.append(error)
        except BaseException as error:
            errors.insert(0, error)
            world.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not errors:
        return results
    if isinstance(errors[0], threading.BrokenBarrierError):
        raise RuntimeError("the processes do not exchange the same number of times") from errors[0]
    raise errors[0]
