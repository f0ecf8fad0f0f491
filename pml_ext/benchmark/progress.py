"""Progress bars on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from pytorch_metric_learning.testers import base_tester
from pytorch_metric_learning.trainers import base_trainer
from tqdm import tqdm


class _Bar(tqdm):
    """PML describes its bar by the loss alone; this one says first whose loss it is."""

    def __init__(self, iterable: Iterable[Any], who: str, **kwargs: Any) -> None:
        self.who = who
        super().__init__(iterable, desc=who, **kwargs)

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        super().set_description(f"{self.who} {desc}", refresh)


class Progress:
    """Two bars: epochs of the whole experiment, with the time left, and steps of the current epoch.

    Args:
        epochs: epochs of all runs together.
        done: of these, epochs that an earlier start of this experiment has finished.
        shown: draw them. Default: on a terminal.
    """

    def __init__(self, epochs: int, done: int = 0, *, shown: bool | None = None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.who = ""
        self._epochs = tqdm(total=epochs, initial=done, unit="epoch", desc="all runs", disable=not self.shown)

    def epoch_done(self, note: str) -> None:
        """One more epoch of the experiment is finished."""
        self._epochs.set_postfix_str(note, refresh=False)
        self._epochs.update()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._epochs.close()

    @contextmanager
    def bars_of_pml(self) -> Iterator[None]:
        """Replace the bars that PML's trainer and tester always draw."""

        def steps(iterable: Iterable[Any]) -> Any:
            return _Bar(iterable, self.who, unit="step", leave=False, disable=not self.shown)

        def images(iterable: Iterable[Any]) -> Any:
            return tqdm(iterable, desc=f"{self.who} testing", leave=False, disable=not self.shown)

        before = base_trainer.tqdm, base_tester.tqdm
        base_trainer.tqdm = SimpleNamespace(tqdm=steps)
        base_tester.tqdm = SimpleNamespace(tqdm=images)
        try:
            yield
        finally:
            base_trainer.tqdm, base_tester.tqdm = before
