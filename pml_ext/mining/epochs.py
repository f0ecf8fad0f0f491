"""The base of all samplers of batches: epochs, processes, and resuming."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from pml_ext import arguments


class EpochBatches(Sampler[list[int]], ABC):
    """Batches of indices, a pure function of the seed and the epoch: a `batch_sampler` for a `DataLoader`.

    Every process makes the whole list. Process r of W takes batches r, r + W, ... of it; the remainder at the end is
    dropped, so that all processes have the same number. Subclasses implement `batches`.

    Args:
        seed: seed of all random choices, the same on every process.
        num_replicas: the number of processes.
        rank: the number of this process, from 0.
    """

    def __init__(self, *, seed: int, num_replicas: int, rank: int) -> None:
        self.seed: int = arguments.seed("seed", seed)
        self.num_replicas: int = int(arguments.count("num_replicas", num_replicas))
        self.rank: int = 0 if rank == 0 else int(arguments.count("rank", rank))
        if self.rank >= self.num_replicas:
            raise ValueError(f"rank must be below num_replicas = {self.num_replicas}, got {rank}")
        self.epoch: int = 0
        # Batches of all processes: where the next pass begins, where the last one began, and how far it came.
        self._start = self._begun = self._given = 0
        self._made: tuple[int, list[list[int]]] | None = None

    @abstractmethod
    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch for all processes together."""

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch. Without it every pass gives the same batches, as with `DistributedSampler`."""
        epoch = 0 if epoch == 0 else int(arguments.count("epoch", epoch))
        if epoch != self.epoch:
            self.epoch, self._start, self._begun, self._given = epoch, 0, 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of this process, from the position of a loaded state."""
        whole, start, epoch = self._whole(), self._start, self.epoch
        self._begun = self._given = start
        for step in range(self._steps(whole)):
            # Counted before it is given out: afterwards nothing runs until the next one is asked for.
            if self.epoch == epoch:
                self._given = start + (step + 1) * self.num_replicas
            yield list(whole[start + step * self.num_replicas + self.rank])
        if self.epoch == epoch:
            self._start = 0

    def __len__(self) -> int:
        """The number of batches of this process in the next pass."""
        return self._steps(self._whole())

    def _steps(self, whole: list[list[int]]) -> int:
        return max(0, len(whole) - self._start) // self.num_replicas

    def _whole(self) -> list[list[int]]:
        if self._made is None or self._made[0] != self.epoch:
            self._made = self.epoch, self.batches(self.epoch)
        return self._made[1]

    def _forget(self) -> None:
        """Make the batches anew: what they depend on has changed."""
        self._made = None

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """The position in the epoch. It may be loaded with another number of processes.

        Args:
            consumed: how many batches of this epoch this process has trained on, without those before a loaded state;
                None (default) for the number that was fetched, which is larger with the workers of a `DataLoader`.
        """
        given = self._given
        if consumed is not None:
            consumed = 0 if consumed == 0 else int(arguments.count("consumed", consumed))
            given = self._begun + consumed * self.num_replicas
        return {"seed": self.seed, "epoch": self.epoch, "consumed": given, "num_replicas": self.num_replicas}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that a state counts as consumed; no other batch is left out or repeated."""
        self.seed, self.epoch = int(state["seed"]), int(state["epoch"])
        self._start = self._begun = self._given = int(state["consumed"])
        self._forget()
