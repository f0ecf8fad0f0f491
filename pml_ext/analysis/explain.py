"""The description of a method of the catalog: formula, parts, defaults, source, and differences from the reference."""

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor, nn

from pml_ext import _pml
from pml_ext.analysis.formulas import composed, formula, is_ours, sections
from pml_ext.catalog import KEYS, Recipe
from pml_ext.centers import CenterSource
from pml_ext.wrappers import CrossBatchMemory, SelfSupervisedLoss

_KINDS = (
    ("Loss", (BaseMetricLossFunction, *_pml.WRAPPERS, CrossBatchMemory, SelfSupervisedLoss)),
    ("Centers", CenterSource),
    ("Regularizer", BaseRegularizer),
    ("Miner", BaseMiner),
)


def settings(part: nn.Module) -> dict[str, str]:
    """The distance and the reducer of a part, if it has them."""
    distance, reducer = (getattr(part, name, None) for name in ("distance", "reducer"))
    distance = None if isinstance(part, BaseRegularizer) else distance  # which has one, and no use for it
    found = {} if distance is None else {"distance": _distance(distance)}
    return found if reducer is None else found | {"reducer": _reducer(reducer)}


def explain(recipe: Recipe) -> str:
    """A page about a recipe in plain text: all of its parts, from the outside in, with the miner at the end.

    Example:
        >>> from pml_ext.catalog import build
        >>> print(explain(build("BatchHard")).splitlines()[0])
        BatchHard
    """
    head = f"{recipe.name}\n{'=' * len(recipe.name)}\n\nFrom {recipe.source}."
    whole = composed(recipe)
    head += f"\n\n{textwrap.indent(whole, '  ')}\n\nIts parts:" if whole else ""
    page = "\n\n".join([head, *(_part(kind, module) for kind, module in parts(recipe))])
    keys = [f"{key} is {meaning}." for key, meaning in KEYS.items() if key in page]
    return "\n\n".join([page, *keys])


def parts(recipe: Recipe) -> Iterator[tuple[str, nn.Module]]:
    """All parts of a recipe and their kinds, from the outside in, with the miner at the end."""
    for module in (*recipe.loss.modules(), *([] if recipe.miner is None else recipe.miner.modules())):
        kind = next((name for name, base in _KINDS if isinstance(module, base)), "")
        # A part of another package's part, or one that only helps another, is no choice of the recipe's.
        if kind and not type(module).__name__.startswith("_"):
            yield kind, module


def _part(kind: str, part: nn.Module) -> str:
    doc = sections(type(part).__doc__ or "")
    package = ".".join(type(part).__module__.split(".")[:2])
    lines = [*textwrap.wrap(f"{kind}: {signature(part)}", 116, subsequent_indent="    "), f"  from {package}"]
    lines += ["", textwrap.indent(formula(part), "  ")]
    of_part = settings(part)
    lines += ["", *(f"  {name}: {value}" for name, value in of_part.items())] if of_part else []
    for title, name in (("arguments", "Args"), ("defaults", "Defaults"), ("source and differences", "Source")):
        if name in doc:
            lines += ["", f"  {title}:", textwrap.indent(doc[name], "    ")]
    return "\n".join(lines)


def signature(part: nn.Module) -> str:
    """The call that makes a part like this one, with the arguments that it keeps as attributes.

    Example:
        >>> from pml_ext.losses import BatchHardTripletLoss
        >>> signature(BatchHardTripletLoss(margin=0.2))
        'BatchHardTripletLoss(margin=0.2)'
    """
    names = [name for name in inspect.signature(type(part)).parameters if hasattr(part, name)]
    # Two arguments that PML keeps as something else: a statistic, and a reciprocal.
    names = names if is_ours(part) else [name for name in names if name != "embedding_size"]
    shown = {name: _written(getattr(part, name)) for name in names}
    if type(part).__name__ == "SoftTripleLoss" and not is_ours(part):
        shown["gamma"] = f"{1 / part.gamma:g}"  # type: ignore[operator]
    return f"{type(part).__name__}({', '.join(f'{name}={value}' for name, value in shown.items() if value)})"


def _written(value: Any) -> str:
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, (list, tuple)) and value:
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, Tensor):
        return f"{value.item():g}" if value.numel() == 1 else ""
    return getattr(value, "__name__", None) or repr(value)


def _distance(part: Any) -> str:
    facts = _pml.facts(part)
    kind = "larger is closer" if facts.is_inverted else "smaller is closer"
    normalized = "normalized embeddings" if facts.normalize_embeddings else "embeddings as they are"
    return f"{type(part).__name__}(p={facts.p!r}, power={facts.power!r}) of {normalized}, {kind}"


def _reducer(part: Any) -> str:
    children = getattr(part, "reducers", None)
    if children is None:
        return type(part).__name__
    return ", ".join(f"{type(child).__name__} of {name}" for name, child in children.items())
