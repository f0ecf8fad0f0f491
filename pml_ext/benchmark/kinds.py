"""The kinds of values that an argument of an experiment can have: how each is checked, and read from a command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.spelling import hint


def did_you_mean(kind: str, name: str, known: Sequence[str]) -> str:
    """One line for a name that is not known, with what may have been meant.

    >>> did_you_mean("loss", "raww", ["RAW", "NCA"])
    "unknown loss 'raww'; did you mean RAW?"
    """
    return f"unknown {kind} {str(name)[:80]!r}; {hint(name, known)}"


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` on, below `below`."""

    least: int = 0
    below: int | None = None
    parse: Any = field(default=int, init=False)

    def check(self, name: str, value: Any) -> int:
        """The value, an int; BenchmarkError for anything else."""
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < self.least:
            raise BenchmarkError(f"{name} must be a whole number of at least {self.least}, got {value!r}")
        if self.below is not None and int(value) >= self.below:
            raise BenchmarkError(f"{name} must be below {self.below}, got {value}")
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number: above `above` or from `least` on, and below `below` or up to `most`."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    parse: Any = field(default=float, init=False)

    def check(self, name: str, value: Any) -> float:
        """The value, a float; BenchmarkError for anything else."""
        bounds = [
            *([f"above {self.above:g}"] if self.above is not None else []),
            *([f"of at least {self.least:g}"] if self.least is not None else []),
            *([f"below {self.below:g}"] if self.below is not None else []),
            *([f"at most {self.most:g}"] if self.most is not None else []),
        ]
        right = (
            isinstance(value, Real)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (self.above is None or float(value) > self.above)
            and (self.least is None or float(value) >= self.least)
            and (self.below is None or float(value) < self.below)
            and (self.most is None or float(value) <= self.most)
        )
        if not right:
            raise BenchmarkError(f"{name} must be a finite number {' and '.join(bounds)}, got {value!r}")
        return float(value)


@dataclass(frozen=True)
class Text:
    """A text; where there are `choices`, one of them."""

    choices: tuple[str, ...] = ()
    parse: Any = field(default=str, init=False)

    def check(self, name: str, value: Any) -> str:
        """The value; BenchmarkError for anything but a text that is allowed."""
        if not isinstance(value, str):
            raise BenchmarkError(f"{name} must be a text, got {value!r}")
        if self.choices and value not in self.choices:
            raise BenchmarkError(did_you_mean(name, value, self.choices))
        return value


@dataclass(frozen=True)
class Switch:
    """True or false."""

    parse: Any = field(default=None, init=False)

    def check(self, name: str, value: Any) -> bool:
        """The value; BenchmarkError for anything but True and False."""
        if not isinstance(value, bool):
            raise BenchmarkError(f"{name} must be True or False, got {value!r}")
        return value


@dataclass(frozen=True)
class Anything:
    """A text on the command line, any object from Python."""

    parse: Any = field(default=str, init=False)

    def check(self, name: str, value: Any) -> Any:
        """The value as it is."""
        if value is None or isinstance(value, (bool, int, float)) or value == "":
            raise BenchmarkError(f"{name} must be a name or an object, got {value!r}")
        return value


@dataclass(frozen=True)
class Several:
    """At least one value of a kind, all different; one alone may stand for itself."""

    kind: Whole | Number | Text | Anything
    distinct: bool = True
    most: int | None = None

    @property
    def parse(self) -> Any:
        """How one of them is read."""
        return self.kind.parse

    def check(self, name: str, value: Any) -> tuple[Any, ...]:
        """The values as a tuple; BenchmarkError for none, for two that are equal, and for a wrong one."""
        alone = isinstance(value, str) or not isinstance(value, (Sequence, set, frozenset, range))
        values = (value,) if alone else tuple(value)
        if not values:
            raise BenchmarkError(f"{name} must not be empty")
        if self.most is not None and len(values) > self.most:
            raise BenchmarkError(f"{name} must be at most {self.most} values, got {len(values)}")
        checked = tuple(self.kind.check(f"each of {name}", each) for each in values)
        names = [each if isinstance(each, (str, int, float)) else id(each) for each in checked]
        if self.distinct and len(set(names)) < len(names):
            raise BenchmarkError(
                f"{name} must be different from each other, got {', '.join(str(each) for each in values)[:200]}"
            )
        return checked


Kind = Whole | Number | Text | Switch | Anything | Several
