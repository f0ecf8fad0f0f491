"""The global random states: set from one seed, saved, and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def seed_everything(seed: int) -> None:
    """Seed Python, numpy (PML's miners draw from it) and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - PML draws from numpy's global state
    torch.manual_seed(seed)


def state() -> dict[str, Any]:
    """All global random states, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: dict[str, Any]) -> None:
    """Go back to what `state` returned."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(saved["torch"].cpu())
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["cuda"]])


def with_seeds(batches: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Batches of indices, each with a seed of its own for `Drawn`; one number is drawn, from torch's CPU generator."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
    seeds = iter(torch.randint(2**62, (sum(map(len, batches)),), generator=generator).tolist())
    return [[(index, next(seeds)) for index in batch] for batch in batches]


class Drawn(Dataset[Any]):
    """Samples, each drawn from torch's CPU generator as its own seed says: alike in any process, of any number.

    Args:
        samples: a data set.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, chosen: tuple[int, int]) -> Any:
        index, seed = chosen
        torch.default_generator.manual_seed(seed)
        return self.samples[index]


class Stream:
    """A random state of torch's own CPU generator beside the global one.

    What draws within it does not depend on what was drawn outside.

    Args:
        seed: where it starts.
    """

    def __init__(self, seed: int) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draw from this stream for a while."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(before)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = state["state"].cpu()
