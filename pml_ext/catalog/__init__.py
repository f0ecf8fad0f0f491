"""The methods of the literature by name, with their parts, and the tables of the documentation.

A recipe is a function that makes a loss, or a loss and its miner; `recipe` adds one of your own.
`python -m pml_ext.catalog` prints the tables; `python -m pml_ext.catalog docs/catalog.md` writes them into that file.
"""

from pml_ext.catalog import (  # noqa: F401
    centers,
    contrastive,
    deviance,
    distributions,
    info_nce,
    lifted,
    nca,
    ranks,
    slices,
    triplet,
)
from pml_ext.catalog.registry import KEYS, Entry, Recipe, build, recipe, required, space
from pml_ext.catalog.tables import all_losses, all_miners, all_wrappers, described, recipes, tables, with_tables
from pml_ext.renamed import renamed

__all__ = [
    "KEYS",
    "Entry",
    "Recipe",
    "all_losses",
    "all_miners",
    "all_wrappers",
    "build",
    "described",
    "recipe",
    "recipes",
    "required",
    "space",
    "tables",
    "with_tables",
]


def __dir__() -> list[str]:
    return __all__


__getattr__ = renamed(__name__, __name__, needs="required")
