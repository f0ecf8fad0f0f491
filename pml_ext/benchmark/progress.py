"""One bar for all runs, on a terminal or in a notebook, nothing elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tqdm import TqdmWarning

from pml_ext.watched import in_notebook, watched

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # that a notebook without ipywidgets has a bar of text
    from tqdm.auto import tqdm

__all__ = ["Progress", "Steps", "in_notebook", "tqdm", "watched"]

T = TypeVar("T")
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Progress:
    """A bar over the epochs of the whole experiment, that moves with every step and says the time left.

    Args:
        epochs: epochs of all runs together.
        done: of these, epochs that an earlier start of this experiment has finished.
        shown: draw it. Default: on a terminal, and in a notebook.
    """

    def __init__(self, epochs: int, done: int = 0, *, shown: bool | None = None) -> None:
        self.shown = watched() if shown is None else shown
        self.who = ""
        self._done = done
        self._note = self._loss = ""
        # An experiment of no epoch left has a bar that is full.
        self._bar = tqdm(total=max(epochs, 1), initial=done, bar_format=BAR, disable=not self.shown, dynamic_ncols=True)

    def steps(self, batches: Iterable[T], count: int) -> Steps[T]:
        """Go through the batches of an epoch; `set_postfix_str` of what is returned says more."""
        self._describe(self.who)
        return Steps(batches, count, self)

    def images(self, batches: Iterable[T], count: int) -> Iterator[T]:
        """Go through the batches of a test."""
        self._describe(f"{self.who}, testing")
        yield from batches

    def epoch_done(self, note: str) -> None:
        """One more epoch of the experiment is finished."""
        self._note, self._loss = note, ""
        self._done += 1
        self.at(0.0)

    def at(self, share: float, said: str = "") -> None:
        """So much of the current epoch is done."""
        self._loss = said or self._loss
        if not self.shown:
            return
        self._bar.set_postfix_str(", ".join(each for each in (self._loss, self._note) if each), refresh=False)
        self._bar.update(self._done + share - self._bar.n)

    def _describe(self, words: str) -> None:
        if self.shown:
            self._bar.set_description_str(words)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()


class Steps(Generic[T]):
    """The batches of an epoch, each of which moves the bar."""

    def __init__(self, batches: Iterable[T], count: int, progress: Progress) -> None:
        self._batches, self._count, self._progress, self._said = batches, count, progress, ""

    def __iter__(self) -> Iterator[T]:
        for i, batch in enumerate(self._batches):
            yield batch
            self._progress.at(min(1.0, (i + 1) / self._count), self._said)

    def set_postfix_str(self, said: str, refresh: bool = True) -> None:
        """Say something beside the bar."""
        self._said = said
