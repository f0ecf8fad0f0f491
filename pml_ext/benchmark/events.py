"""The events of a running experiment, for trackers and other callbacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pml_ext.benchmark.result import Result


@dataclass(frozen=True)
class RunStarted:
    """The training of a loss with one seed begins or continues.

    Args:
        loss: its name.
        seed: the seed.
        fold: which of the folds; None without folds.
    """

    loss: str
    seed: int
    fold: int | None


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and measured.

    Args:
        loss: the name of the loss.
        seed: the seed.
        fold: which of the folds; None without folds.
        epoch: its number, from 1 on.
        epochs: how many there will be.
        metrics: on the validation classes, or on the test classes where there are none, with the mean "loss" and the
            "seconds" of training.
    """

    loss: str
    seed: int
    fold: int | None
    epoch: int
    epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunEnded:
    """A run was tested, or has failed.

    Args:
        result: the result that its line in results.jsonl holds.
    """

    result: Result


Event = RunStarted | EpochEnded | RunEnded
Callback = Callable[[Event], object]


class Teller:
    """Tells every callback; one that raises is not called again, and ends no run.

    Args:
        callbacks: each is called with every event.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = list(callbacks)
        for each in self._callbacks:
            if not callable(each):
                raise TypeError(f"callbacks must be called with an event, got {each!r}")

    def __call__(self, event: Event) -> None:
        """Tell an event."""
        for each in list(self._callbacks):
            try:
                each(event)
            except Exception as error:
                self._callbacks.remove(each)
                name = getattr(each, "__name__", type(each).__name__)
                warnings.warn(f"callback {name} is not called again: {type(error).__name__}: {error}", stacklevel=2)
