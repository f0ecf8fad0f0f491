"""Progress bars on a terminal or in a notebook, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


class Progress:
    """Two bars: epochs of the whole experiment, with the time left, and steps of the current epoch.

    Args:
        epochs: epochs of all runs together.
        done: of these, epochs that an earlier start of this experiment has finished.
        shown: draw them. Default: on a terminal.
    """

    def __init__(self, epochs: int, done: int = 0, *, shown: bool | None = None) -> None:
        self.shown = _watched() if shown is None else shown
        self.who = ""
        self._epochs = tqdm(total=epochs, initial=done, unit="epoch", desc="all runs", disable=not self.shown)

    def steps(self, batches: Iterable[T], count: int) -> Any:
        """Go through the batches of an epoch; the bar's `set_postfix_str` says more."""
        return tqdm(batches, total=count, desc=self.who, unit="step", leave=False, disable=not self.shown)

    def images(self, batches: Iterable[T], count: int) -> Iterator[T]:
        """Go through the batches of a test."""
        bar: Iterator[T] = tqdm(
            batches, total=count, desc=f"{self.who} testing", unit="batch", leave=False, disable=not self.shown
        )
        return bar

    def epoch_done(self, note: str) -> None:
        """One more epoch of the experiment is finished."""
        self._epochs.set_postfix_str(note, refresh=False)
        self._epochs.update()

    def skipped(self, epochs: int) -> None:
        """So many epochs will not be trained."""
        if epochs:
            self._epochs.total -= epochs
            self._epochs.refresh()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._epochs.close()


def _watched() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is no error output, or it is closed
        return False
