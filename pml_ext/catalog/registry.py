"""Recipes: functions that make a method of the literature, their overrides, and what a search may change in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from pml_ext import spaces
from pml_ext.shown import table
from pml_ext.spelling import hint
from pml_ext.wrappers.mined import mined_pairs

Make = TypeVar("Make", bound=Callable[..., Any])

KEYS: Mapping[str, str] = MappingProxyType(
    {
        "DM18": "Deep_metric, the public collection of losses by Xun Wang, 2018, without a paper",
        "DM20": "the successor of DM18, 2020",
    }
)
"""What the short names of sources mean, here and in the docstrings of losses, miners and wrappers.

Forks of both exist under several owners, and the copies of 2018 carry no license. No code is copied from them: each
formula is implemented anew, and every difference from the code is stated.
"""

# Needs of which any number will do, to look at what a recipe is made of.
_SIZES = ("num_classes", "embedding_size")


@dataclass(frozen=True, repr=False)
class Recipe:
    """A named method, ready to use: its parts drop into PML's trainers as `loss_funcs` and `mining_funcs`.

    Args:
        name: the name in the literature.
        loss: a PML loss.
        miner: a PML miner, or None if the loss takes all pairs.
        source: where the method comes from, and how this form differs.
    """

    name: str
    loss: nn.Module
    miner: nn.Module | None
    source: str

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mine, then compute the loss: embeddings [n, d], labels [n] -> a scalar."""
        pairs = None if self.miner is None else mined_pairs(self.miner, self.loss, embeddings, labels)
        loss: Tensor = self.loss(embeddings, labels, pairs)
        return loss

    def __repr__(self) -> str:
        return "\n".join([self.name, *(f"  {name:8} {what}" for name, what in self._told())])

    def _repr_html_(self) -> str:
        return table(("", "what it is"), self._told(), caption=self.name, notes=["explain(recipe) says more"])

    def _told(self) -> list[tuple[str, str]]:
        parts = [("loss", self.loss), ("miner", self.miner)]
        written = [
            (name, type(part).__name__ if isinstance(part, nn.Module) else str(part))
            for name, part in parts
            if part is not None
        ]
        return [*written, ("source", self.source)]

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Every part with the name of its argument: the loss first, named "", then the parts that it is made of.

        All parts of a miner are named "miner".
        """
        yield from _inside("", self.loss)
        if self.miner is not None:
            yield from _inside("miner", self.miner)


def _inside(place: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    level = [(place, part)]
    while level:
        yield from level
        level = [
            (place if place == "miner" or isinstance(outer, nn.ModuleList) else name, inner)
            for place, outer in level
            for name, inner in outer.named_children()
        ]


@dataclass(frozen=True)
class Entry:
    """How to make a recipe.

    Args:
        name: the name in the literature.
        make: the function or class that makes its loss, or its loss and its miner.
        source: where the method comes from, and how this form differs.
    """

    name: str
    make: Callable[..., Any]
    source: str

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of `make`. Those without a default are required, those with one can be overridden."""
        return inspect.signature(self.make).parameters

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The arguments that have no default."""
        parameters = self.parameters.values()
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return tuple(each.name for each in parameters if each.default is each.empty and each.kind not in variadic)

    @cached_property
    def default(self) -> Recipe | None:
        """The recipe without overrides, for any sizes; None for one that needs more than sizes."""
        if not set(self.required) <= set(_SIZES):
            return None
        with torch.random.fork_rng(devices=[]):  # centers are drawn
            return self.recipe(dict.fromkeys(self.required, 2))

    @cached_property
    def targets(self) -> Mapping[tuple[str, str], str]:
        """The parameter that sets an argument of a part, by the place of the part and the name of the argument.

        A parameter sets the argument of its name in the outermost part that has one. For an argument of a miner, or of
        an inner part if the name is taken, its name begins with the place: `miner_k`, `loss_alpha`.
        """
        found: dict[tuple[str, str], str] = {}
        for place, part in self.default.parts() if self.default else ():
            for argument in spaces.arguments(type(part)):
                free = place != "miner" and argument not in found.values()
                if free and (argument in self.parameters or not place):
                    found.setdefault((place, argument), argument)
                elif f"{place}_{argument}" in self.parameters:
                    found.setdefault((place, argument), f"{place}_{argument}")
        return found

    @cached_property
    def space(self) -> Mapping[str, spaces.Range]:
        """The search ranges by keyword of `build`: from the annotation, or from the class of the part."""
        hints = get_type_hints(self.make, include_extras=True) if inspect.isfunction(self.make) else {}
        stated = {
            name: each
            for name, hint in hints.items()
            for each in getattr(hint, "__metadata__", ())
            if isinstance(each, spaces.Range)
        }
        found: dict[str, spaces.Range] = {}
        for place, part in self.default.parts() if self.default else ():
            named = {key[1]: name for key, name in self.targets.items() if key[0] == place}
            values = {key: self.parameters[name].default for key, name in named.items() if name in self.parameters}
            of_class = spaces.ranges(type(part), values)
            for argument, name in named.items():
                if (each := stated.pop(name, None) or of_class.get(argument)) is not None:
                    found.setdefault(f"{place}.{argument}" if name != argument else argument, each)
        return found | stated

    def parameter(self, keyword: str) -> str:
        """The parameter that a keyword of `build` means.

        Raises:
            TypeError: the part does not exist, or has no such argument.
        """
        if keyword in self.parameters:
            return keyword
        place, dot, argument = keyword.rpartition(".")
        meant = [
            name for key, name in self.targets.items() if key == (place, argument) or (not dot and key[1] == keyword)
        ]
        if dot and not meant:
            raise TypeError(
                f"{self.name} has no part that takes {keyword}; its search space is {', '.join(self.space) or 'empty'}"
            )
        return meant[0] if meant else keyword

    def recipe(self, arguments: Mapping[str, Any]) -> Recipe:
        """The recipe with these arguments of `make`."""
        made = self.make(**arguments)
        loss, miner = made if isinstance(made, tuple) else (made, None)
        return Recipe(self.name, loss, miner, self.source)


entries: dict[str, Entry] = {}


def recipe(name: str, *, source: str) -> Callable[[Make], Make]:
    """Register the function or class that makes a method: it returns a loss, or a loss and its miner.

    Its signature says what the method requires and what can be overridden: arguments without a default are required,
    those with one can be overridden. The argument `miner_k` is the keyword `miner.k` of `build`. Search ranges are
    known for the arguments of classes of this package and of PML; an annotation gives another range:
    `gamma: Annotated[float, Range(0.1, 0.9, 0.5)] = 0.5`.

    Args:
        name: the name in the literature.
        source: where the method comes from, and where it differs.

    Raises:
        ValueError: another function has registered a recipe of that name.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> @recipe("RAWWithoutMiddle", source="an example")
        ... def raw_without_middle(*, gamma: float = 0.4, **kwargs):
        ...     return RAWLoss(gamma=gamma, epsilon=0.3, **kwargs)
        >>> build("RAWWithoutMiddle", alpha=3).loss.gamma
        0.4
        >>> _ = entries.pop("RAWWithoutMiddle")
    """

    def register(make: Make) -> Make:
        taken = entries.get(name)
        if taken is not None and _place(taken.make) != _place(make):
            raise ValueError(f"the name {name!r} is taken, by {'.'.join(_place(taken.make))}")
        entries[name] = Entry(name, make, source)
        return make

    return register


def _place(make: Callable[..., Any]) -> tuple[str, str]:
    return make.__module__, make.__qualname__


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: no recipe has that name; the message lists the nearest, or all.
    """
    if name not in entries:
        raise ValueError(f"no recipe is called {name!r}: {hint(name, sorted(entries))}")
    return entries[name]


def build(name: str, **overrides: Any) -> Recipe:
    """Make the recipe of that name, with other values for the arguments that are given.

    Keywords are the arguments of the function that makes it, and of its loss. A dot selects an argument of a part:
    `miner.<argument>` one of the miner, `<part>.<argument>` one of the part that is passed as the argument `<part>`.

    Raises:
        ValueError: no recipe has that name; the message lists the nearest, or all.
        TypeError: an argument without a default is missing (see `required`), or no part takes a keyword.

    Example:
        >>> recipe = build("BinDeviance2018", base=0.4, **{"miner.epsilon": 0.2})
        >>> recipe.loss.base, recipe.miner.epsilon
        (0.4, 0.2)
        >>> recipe = build("CenterNCA", alpha=8)
        >>> recipe.loss.loss.alpha
        8
    """
    found = entry(name)
    missing = [argument for argument in found.required if argument not in overrides]
    if missing:
        raise TypeError(f"{name} needs {', '.join(missing)}: give {' and '.join(f'{each}=' for each in missing)}")
    arguments: dict[str, Any] = {}
    for keyword, value in overrides.items():
        parameter = found.parameter(keyword)
        if parameter in arguments:
            raise TypeError(f"{name} was given {parameter} twice, once as {keyword}")
        arguments[parameter] = value
    return found.recipe(arguments)


def space(name: str) -> dict[str, spaces.Range]:
    """The search space of a recipe: the keywords of `build` that a search may change, with their ranges.

    Example:
        >>> for keyword, values in space("BinDeviance2018").items():
        ...     print(keyword, values)
        alpha 0.5 to 8 (2), log
        beta 12.5 to 200 (50), log
        base 0.2 to 0.8 (0.5)
        balance 0.2 to 5 (1), log
        miner.epsilon 0.01 to 0.25 (0.05), log
    """
    return dict(entry(name).space)


def required(name: str) -> tuple[str, ...]:
    """The arguments that `build` must be given for that recipe: those that have no default.

    Example:
        >>> required("RAW"), required("MCA")
        ((), ('num_classes', 'embedding_size'))
    """
    return entry(name).required
