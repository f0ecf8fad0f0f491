"""How long a training step takes, from the first steps on: what is said about it must not be far off."""

from __future__ import annotations

from statistics import fmean

BLOCK = 5  # steps, at least; the first ones import, allocate and fill caches, so that they tell nothing
AGREE = 1.25  # two blocks, one after the other, differ by no more than this factor, or the speed is not known yet
BLOCKS = 10  # after which it is said all the same
PATIENCE = 60.0  # seconds, after which three steps must do


class Pace:
    """Tells the seconds of a step when two blocks of steps have taken the same.

    Args:
        workers: processes that load images; their batches come in bursts, of which a block has whole ones. Default 0.

    Example:
        >>> pace = Pace()
        >>> [pace.step(seconds) for seconds in (9, 3, 1, 1, 1, *(1,) * 10)][-3:]
        [None, None, 1.0]
    """

    def __init__(self, workers: int = 0) -> None:
        self._block = BLOCK if workers < 2 else -(-BLOCK // workers) * workers
        self._steps: list[float] = []

    def step(self, seconds: float) -> float | None:
        """Take the seconds of one more step; the seconds of a step to come, or None while that is not known."""
        self._steps.append(seconds)
        blocks = [
            fmean(self._steps[i : i + self._block]) for i in range(0, len(self._steps) - self._block + 1, self._block)
        ]
        if len(self._steps) % self._block == 0 and len(blocks) > 2:
            before, last = blocks[-2:]
            if max(before, last) <= AGREE * min(before, last):
                return fmean((before, last))
            if len(blocks) >= BLOCKS:
                return last
        if len(self._steps) > 3 and sum(self._steps) > PATIENCE:
            return fmean(self._steps[1:]) if len(blocks) < 2 else blocks[-1]
        return None
