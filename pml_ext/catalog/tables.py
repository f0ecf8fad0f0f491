"""The catalog as tables: a row for each recipe, loss, miner and wrapper; a terminal, a notebook, Markdown."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytorch_metric_learning.distances import BaseDistance
from torch import nn

from pml_ext import _pml, losses, miners, spaces, wrappers
from pml_ext.catalog import registry
from pml_ext.catalog.registry import Entry
from pml_ext.shown import table

_WIDTH = 118


class Recipes(Mapping[str, Entry]):
    """Every recipe by name, in a mapping that shows itself as a table."""

    def __getitem__(self, name: str) -> Entry:
        return registry.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(registry.entries)

    def __len__(self) -> int:
        return len(registry.entries)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Name, loss, miner and source of every recipe."""
        return [(name, *_made_of(each), each.source) for name, each in self.items()]

    def __repr__(self) -> str:
        rows = [("name", "made of", "source")]
        rows += [(name, " + ".join(filter(None, made)), source) for name, *made, source in self.rows()]
        first = max(len(row[0]) for row in rows)
        half = (_WIDTH - first - 4) // 2
        return "\n".join(
            f"{name:{first}}  {_cut(made, half):{half}}  {_cut(source, half)}" for name, made, source in rows
        )

    def _repr_html_(self) -> str:
        head = ("name", "formula of the loss", "source", "needs", "loss", "miner")
        rows = (
            (
                name,
                _formula(getattr(self[name].default, "loss", None)),
                source,
                ", ".join(self[name].required),
                loss,
                miner,
            )
            for name, loss, miner, source in self.rows()
        )
        return table(head, rows, notes=["explain(name) says what each is, with its formula"])


def _formula(part: Any) -> str:
    """The formula of L in a loss's docstring; that of its inner loss where it says only what that compares."""
    doc = inspect.getdoc(type(part)) or ""
    found = re.search(r"^ {4}(L(?:_\w+)? +=.*(?:\n {5,}\S.*)*)$", doc.split("\nArgs:")[0], re.MULTILINE)
    own = " ".join(found[1].split()) if found else ""
    return (_formula(part.loss) if own.startswith("L = L'(x, y, ") else "") or own


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


recipes: Recipes = Recipes()


def described(part: nn.Module, without: Sequence[str] = ()) -> str:
    """The call that makes a loss, miner or another part: the arguments in which it differs from its defaults.

    Args:
        part: the loss, miner or other part.
        without: names of arguments that are left out, whatever their values.

    Example:
        >>> from pytorch_metric_learning.distances import LpDistance
        >>> described(losses.KNNSoftmaxLoss(k=None, distance=LpDistance()))
        'KNNSoftmaxLoss(k=None, distance=LpDistance())'
    """
    if isinstance(part, BaseDistance):  # one of PML 3 may have to be asked
        part = copy.copy(part)
        _pml.describe(part)
    changed = []
    for name, default in spaces.arguments(type(part)).items():
        if name in without or name in _LEFT_OUT or not hasattr(part, name):
            continue
        value = getattr(part, name)
        inner = getattr(part, "loss", None)
        if name == "distance" and value is getattr(inner, "distance", None):  # a wrapper has that of its loss
            continue
        if name == "loss" and isinstance(part, wrappers.RandomSliceLoss):  # which wraps it once more itself
            value = value.loss
        written = _written(value, without)
        if written not in (None, _written(default, without), _default_part(part, name)):
            changed.append(f"{name}={written}")
    return f"{type(part).__name__}({', '.join(changed)})"


# What says nothing about the method, or what the class has said.
_LEFT_OUT = ("collect_stats", "reducer", "is_inverted")


def _default_part(part: nn.Module, name: str) -> str | None:
    """PML's losses, miners and distances make these themselves where none is given."""
    make = getattr(part, f"get_default_{name}", None) or getattr(part, f"default_{name}", None)
    return None if make is None else _written(make())


def _written(value: Any, without: Sequence[str] = ()) -> str | None:
    if isinstance(value, nn.ModuleList | list | tuple):
        return f"[{', '.join(str(_written(each, without)) for each in value)}]"
    if isinstance(value, nn.ModuleDict | dict):
        return f"{{{', '.join(f'{key!r}: {_written(each, without)}' for key, each in value.items())}}}"
    if isinstance(value, nn.Module):
        return described(value, without)
    if isinstance(value, bool | int | float | str) or value is None:
        return repr(value)
    return None


def _made_of(each: Entry) -> tuple[str, str]:
    """The loss and the miner of a recipe, as calls; those that have their defaults by name alone."""
    if inspect.isclass(each.make) or each.default is None:
        return each.make.__name__, ""
    loss, miner = each.default.loss, each.default.miner
    made = [described(loss, each.required), "" if miner is None else described(miner)]
    return made[0].removesuffix("()"), made[1].removesuffix("()")


def all_losses() -> list[type]:
    """Every loss class of this package, by name."""
    return [getattr(losses, name) for name in losses.__all__]


def all_miners() -> list[type]:
    """Every miner class of this package, by name."""
    return [getattr(miners, name) for name in miners.__all__]


def all_wrappers() -> list[type]:
    """Every wrapper class of this package, by name."""
    return [getattr(wrappers, name) for name in wrappers.__all__]


def tables() -> str:
    """The documentation's tables of losses, miners, wrappers and recipes, in Markdown."""
    return "\n\n".join(
        (
            "**Losses**\n\n" + _class_table(all_losses()),
            "**Miners**\n\n" + _class_table(all_miners()),
            "**Wrappers**\n\n" + _class_table(all_wrappers()),
            "**Methods of the literature**, by `pml_ext.catalog.build(name)`\n\n" + _recipe_table(),
            "Sources: "
            + "; ".join(f"{key} is {meaning}" for key, meaning in registry.KEYS.items())
            + ". Forks of both exist under several owners; the copies of 2018 carry no license, and no code is copied.",
        )
    )


def _class_table(classes: list[type]) -> str:
    rows = (f"| `{cls.__name__}({', '.join(_own_arguments(cls))})` | {_first_line(cls)} |" for cls in classes)
    return "\n".join(("| class and defaults | what it does |", "|---|---|", *rows))


def _recipe_table() -> str:
    rows = (
        f"| {name} | {' | '.join(f'`{part}`' if part else '' for part in made)} | {source} |"
        for name, *made, source in recipes.rows()
    )
    return "\n".join(("| name | loss | miner | source |", "|---|---|---|---|", *rows))


def _own_arguments(cls: type) -> list[str]:
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind < p.VAR_KEYWORD]
    return [p.name if p.default is p.empty else f"{p.name}={_written(p.default)}" for p in parameters]


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


_MARKED = re.compile(
    r"(<!-- tables: python -m pml_ext.catalog docs/catalog.md -->\n).*(<!-- end of tables -->)", re.DOTALL
)


def with_tables(text: str) -> str:
    """The text of a page with the tables between its two marks brought up to date."""
    text, found = _MARKED.subn(lambda mark: f"{mark[1]}\n{tables()}\n\n{mark[2]}", text)
    if not found:
        raise ValueError("the marks of the tables are missing in the page")
    return text
