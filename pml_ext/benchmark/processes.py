"""The processes that run one experiment together, as torchrun starts them: who does what, and who writes.

All of them train and embed, each its share of a batch or of a set; what they find is the same on all. The first one
alone writes, says and draws; what only it can know - what is in the folder - the others hear from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from pml_ext.benchmark.errors import BenchmarkError

if TYPE_CHECKING:
    from torch import Tensor

    from pml_ext.ranks import Group

T = TypeVar("T")
# What the first process does alone takes its time: the features of a frozen trunk, the report. One that dies is known
# at once all the same.
PATIENCE = timedelta(hours=6)


class ToldError(BenchmarkError):
    """What the first process could not do, on the other ones."""


class Team:
    """The processes of an experiment.

    Args:
        group: they; None if this is the only one.

    Attributes:
        rank: which of them this is.
        size: how many there are.
    """

    def __init__(self, group: Group | None) -> None:
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank, group.size)

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def sizes(self, n: int) -> tuple[int, ...]:
        """How many of n things each process has: near-equal numbers."""
        return tuple((r + 1) * n // self.size - r * n // self.size for r in range(self.size))

    def share(self, n: int) -> slice:
        """Which of n things are those of this process.

        >>> Team(None).share(5)
        slice(0, 5, None)
        """
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def all_rows(self, x: Tensor, n: int) -> Tensor:
        """The n rows of all, of which each process has its share."""
        if self.group is None:
            return x
        from pml_ext.ranks import Ranks

        return Ranks(self.group, self.sizes(n)).all_rows(x)

    def seed(self, seed: int, epoch: int) -> int:
        """A seed for what each process draws by itself in an epoch; an epoch depends on no other one."""
        digest = sha256(f"{seed} {epoch} {self.rank}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def meet(self) -> None:
        """Wait until all have come so far."""
        if self.group is not None:
            import torch

            self.group.all_reduce(torch.zeros(1))

    def first(self, work: Callable[[], T]) -> T:
        """What the first process finds, on every process.

        Raises:
            Exception: on the first one what it raises, on the others a `ToldError` of one line.
        """
        if self.group is None:
            return work()
        import torch
        from torch import distributed

        told: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_first:
            try:
                told[0] = work()
            except Exception as failure:
                error, told[1] = failure, " ".join(str(failure).split()) or type(failure).__name__
        distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if error is not None:
            raise error
        if told[1] is not None:
            raise ToldError(told[1])
        found: T = told[0]
        return found


ALONE = Team(None)


def team() -> Team:
    """The processes of torch.distributed, or this one alone."""
    from pml_ext.ranks import group_of

    return Team(group_of(None))


def from_environment() -> tuple[int, int]:
    """Which process this is, of how many, as torchrun says it."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, size) if size > 1 else (0, 1)


@contextmanager
def joined() -> Iterator[Team]:
    """Meet the processes that torchrun has started with this one, each on a device of its own if there are enough."""
    import torch
    from torch import distributed

    _, size = from_environment()
    if size == 1 or not distributed.is_available() or distributed.is_initialized():
        yield team()
        return
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % devices)
    is_enough = devices >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "gloo" if not devices else f"cpu:gloo,cuda:{'nccl' if is_enough else 'gloo'}"
    distributed.init_process_group(backend, timeout=PATIENCE)
    yield team()
    # After an error the others are told by its end.
    distributed.destroy_process_group()
