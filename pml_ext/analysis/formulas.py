"""Formulas: that of a part, as its docstring has it, and that of a whole method, composed of those of its parts."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pytorch_metric_learning.losses import MultipleLosses
from torch import nn

from pml_ext.analysis.pml_parts import FORMULAS
from pml_ext.catalog import Recipe
from pml_ext.miners import ChainedMiner
from pml_ext.wrappers import RandomSliceLoss

_SECTION = re.compile(r"^(Args|Shape|Defaults|Source|Raises|Example|Attributes):$", re.MULTILINE)
# The first line of a wrapper that changes what is compared, not how.
_SAME_FORM = re.compile(r"\A    L = L'\(x, y, .*\n*")
_LOSS = re.compile(r"\bL('*)(?:_(\w+))?(?!\w)")


def sections(docstring: str) -> dict[str, str]:
    """The sections of a class docstring by name; the text before the first section is called "Formula"."""
    head, *rest = _SECTION.split(inspect.cleandoc(docstring))
    found = {name: textwrap.dedent(text.strip("\n")) for name, text in zip(rest[::2], rest[1::2], strict=True)}
    return {"Formula": head.strip()} | found


def formula(part: nn.Module) -> str:
    """What a part of a recipe does, and its formula; of PML's own classes, too.

    Example:
        >>> from pytorch_metric_learning.miners import MultiSimilarityMiner
        >>> print(formula(MultiSimilarityMiner()).splitlines()[0])
        Keeps the positives that are not much nearer than a negative, and the converse.
    """
    own = FORMULAS.get(type(part).__name__, "PML's own: its documentation has the formula.")
    return sections(type(part).__doc__ or "")["Formula"] if is_ours(part) else own


def is_ours(part: nn.Module) -> bool:
    """Whether a part is of this package, or of another one, but not of PML."""
    return not type(part).__module__.startswith("pytorch_metric_learning")


def composed(recipe: Recipe) -> str:
    """The formula of a whole method that has several parts, as Markdown; "" for one whose loss is all of it.

    An inner loss is called L', as in the formula of what wraps it. A wrapper that only chooses what its loss compares
    leaves the form of that loss: it says what the sets of positives P_i and of negatives N_i are.

    Example:
        >>> from pml_ext.catalog import build
        >>> print(composed(build("ABatchAll")).splitlines()[0])
            L_i = a_i L'_i ,   a_i = S-_i / (S+_i + S-_i)
    """
    found = list(_of_loss(recipe.loss, "L"))
    for miner in (*(getattr(part, "miner", None) for part in recipe.loss.modules()), recipe.miner):
        found += _of_miner(miner) if isinstance(miner, nn.Module) else []
    return "\n\n".join(found) if len(found) > 1 else ""


def _of_loss(part: Any, name: str) -> Iterator[str]:
    shown = _equations(part) or f"    L = {type(part).__name__}(x, y)"
    inner = part.loss.loss if isinstance(part, RandomSliceLoss) else getattr(part, "loss", None)
    if isinstance(part, MultipleLosses):
        weights = dict(part.weights if part.is_dict else enumerate(part.weights))
        yield f"    {name} = " + " + ".join(_times(weight, f"{name}'_{{{key}}}") for key, weight in weights.items())
        for key in weights:
            yield from _of_loss(part.losses[key], f"{name}'_{{{key}}}")
    elif not isinstance(inner, nn.Module):
        yield _named(shown, name)
    elif _SAME_FORM.match(shown):
        yield from _of_loss(inner, name)
        sets = _SAME_FORM.sub("", shown)
        yield from [sets] if sets else []
        yield from _of_centers(part)
    else:
        yield _named(shown, name)
        yield from (within := list(_of_loss(inner, f"{name}'")))
        if f"{name}'_i" in _named(shown, name) and not any(f"{name}'_i" in each for each in within):
            yield f"where {name}'_i is the share of anchor i in {name}'."
    if isinstance(regularizer := getattr(part, "embedding_regularizer", None), nn.Module):
        yield f"{_times(part.embedding_reg_weight, 'R')} is added to {name}, with"
        yield _named(_equations(regularizer), "R")


def _of_centers(part: Any) -> Iterator[str]:
    if (source := getattr(part, "centers", None)) is not None:
        yield _equations(source) or f"The centers c are those of `{type(source).__name__}`."
        if getattr(part, "leave_one_out", False):
            yield "where the mean of the group of sample i, for itself, is that of the other samples of the group."


def _of_miner(miner: Any) -> Iterator[str]:
    if isinstance(miner, ChainedMiner):
        for each in miner.miners:
            yield from _of_miner(each)
        return
    name, shown = type(miner).__name__, _equations(miner)
    does = formula(miner).partition("\n\n")[0]
    told = f"Of the pairs, `{name}` {does[:1].lower()}{does[1:]}" if shown else f"The pairs are those of `{name}`."
    yield textwrap.fill(told, 116)
    yield from filter(None, [shown])


def _times(weight: float, of: str) -> str:
    return of if weight == 1 else f"{weight:g} {of}"


def _equations(part: nn.Module) -> str:
    """The indented lines of a formula, and a paragraph that ends in a colon before such lines."""
    indent = " " * 4
    _, *paragraphs = formula(part).split("\n\n")
    return "\n\n".join(
        each
        for each, following in pairwise([*paragraphs, ""])
        if each.startswith(indent) or (each.endswith(":") and following.startswith(indent))
    )


def _named(equations: str, name: str) -> str:
    """The equations of L as those of another letter, L' or L'_{calibration}: L_i is then L'_{calibration, i}."""

    def renamed(found: re.Match[str]) -> str:
        primes, index = found.groups()
        if not index:
            return name + primes
        return f"{name[:-1]}, {index}}}" if name.endswith("}") else f"{name}{primes}_{index}"

    return _LOSS.sub(renamed, equations)
