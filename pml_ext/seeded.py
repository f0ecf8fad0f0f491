"""Random draws: a seed, its stream call by call, and the position in the stream."""

import hashlib
from typing import Any

import torch

from pml_ext import arguments


class Seeded:
    """A base class for random draws, placed before that of the miner or loss. Draw with `self.generator(device)`.

    Args:
        seed: None for torch's global generator, an integer for a stream of its own (the same pairs, call by call, on
            the same device; its position is in `state_dict`), or a `torch.Generator` on the embeddings' device. In eval
            mode the stream does not advance: every call draws what the next training call will draw.
        kwargs: those of the other base class.
    """

    is_random: bool = True
    training: bool

    def __init__(self, *, seed: int | torch.Generator | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        given = seed is None or isinstance(seed, torch.Generator)
        self.seed: int | torch.Generator | None = seed if given else arguments.seed("seed", seed)
        self._calls = 0

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The generator of this call. A call number instead of a running state survives pickling and resuming."""
        if isinstance(self.seed, torch.Generator):
            return self.seed if self.training else self.seed.clone_state()
        if self.seed is None:
            return None
        call = self._calls + 1
        if self.training:
            self._calls = call
        # Hashed, because the CPU generator takes the low 32 bits of a seed: all must depend on seed and call.
        digest = hashlib.sha256(f"{self.seed} {call}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

    def get_extra_state(self) -> dict[str, Any]:
        """The position in the stream, for `state_dict`."""
        state = self.seed.get_state() if isinstance(self.seed, torch.Generator) else None
        return {"calls": self._calls, "generator": state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from the saved position."""
        self._calls = state["calls"]
        if isinstance(self.seed, torch.Generator) and state["generator"] is not None:
            self.seed.set_state(state["generator"])
