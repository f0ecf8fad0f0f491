"""What a method of the catalog is: its formula, parts, defaults, source and where it differs from the reference."""

import inspect
import re
import textwrap
from typing import Any

from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from torch import nn

from pml_ext.catalog import Recipe

_SECTION = re.compile(r"^(Args|Shape|Defaults|Source|Raises|Example|Attributes):$", re.MULTILINE)


def sections(docstring: str) -> dict[str, str]:
    """The parts of a class docstring by name; what stands before the first section is called "Formula"."""
    head, *rest = _SECTION.split(inspect.cleandoc(docstring))
    found = {name: textwrap.dedent(text.strip("\n")) for name, text in zip(rest[::2], rest[1::2], strict=True)}
    return {"Formula": head.strip()} | found


def explain(recipe: Recipe) -> str:
    """A page about a recipe in plain text: every loss it is made of, outermost first, and its miner."""
    parts = [f"{recipe.name}\n{'=' * len(recipe.name)}", f"From: {recipe.source}"]
    losses = [module for module in recipe.loss.modules() if isinstance(module, BaseMetricLossFunction)]
    parts += [_part("Loss", loss) for loss in losses]
    miners = [module for module in recipe.loss.modules() if hasattr(module, "mine")]
    parts += [_part("Miner", miner) for miner in miners + ([recipe.miner] if recipe.miner else [])]
    return "\n\n".join(parts)


def _part(kind: str, part: nn.Module) -> str:
    doc = sections(type(part).__doc__ or "no description")
    lines = [f"{kind}: {_signature(part)}", "", textwrap.indent(doc["Formula"], "  ")]
    lines += ["", f"  distance: {_of_pml(part.distance)}"] if hasattr(part, "distance") else []
    lines += [f"  reducer: {_of_pml(part.reducer)}"] if hasattr(part, "reducer") else []
    if "Source" in doc:
        lines += ["", "  source and differences:", textwrap.indent(doc["Source"], "    ")]
    return "\n".join(lines)


def _signature(part: nn.Module) -> str:
    recorded = getattr(part, "_record_these", [])
    values = ", ".join(f"{name}={getattr(part, name)!r}" for name in recorded)
    return f"{type(part).__module__}.{type(part).__name__}({values})"


def _of_pml(part: Any) -> str:
    shown = [
        f"{name}={getattr(part, name)!r}" for name in ("p", "power", "normalize_embeddings") if hasattr(part, name)
    ]
    children = [f"{name}: {type(child).__name__}" for name, child in getattr(part, "reducers", {}).items()]
    return f"{type(part).__name__}({', '.join(shown + children)})"
