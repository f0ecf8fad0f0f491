"""`python -m pml_ext.analysis explain NAME`: what a method of the catalog is, and the picture of its pair weights."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from pml_ext import catalog
from pml_ext.analysis.explain import explain
from pml_ext.analysis.pair_weights import NoPairWeightsError, pair_weights
from pml_ext.analysis.plots import compares_samples, weight_curves, weight_scatter

# The batch on which a method is looked at: small, because every number of the page can be any.
CLASSES, SAMPLES, DIMENSION = 4, 6, 8
_NUMBERS = {"num_classes": CLASSES, "embedding_size": DIMENSION}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pml_ext.analysis", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True)
    page = command.add_parser("explain", help="formula, parts, defaults, source, differences, and the weight plot")
    page.add_argument("name", help="a name of the catalog, such as RAW")
    page.add_argument("--out", type=Path, help="where to write the plot; default NAME_weights.png")
    given = parser.parse_args(arguments)
    try:
        needed = {name: _NUMBERS[name] for name in catalog.needs(given.name)}
        recipe = catalog.build(given.name, **needed)
        print(explain(recipe))
        if needed:
            chosen = " and ".join(f"{name}={value}" for name, value in needed.items())
            print(f"\nChosen for this page, for you to give: {chosen}.")
        try:
            figure = _picture(recipe)
        except NoPairWeightsError as error:
            print(f"\nNo plot: {error}.")
            return 0
        out = given.out or Path(f"{given.name}_weights.png")
        figure.savefig(out, dpi=120)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nPair weights drawn in {out}")
    return 0


def _picture(recipe: catalog.Recipe) -> Any:
    """Curves of the loss if it compares samples, else its weights on a batch drawn at random."""
    if compares_samples(recipe.loss, dimension=DIMENSION):
        name = recipe.name if recipe.miner is None else f"{recipe.name}\n(without\nits miner)"
        return weight_curves({name: recipe.loss}, dimension=DIMENSION)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        labels = torch.arange(CLASSES).repeat_interleave(SAMPLES)
        # Classes that overlap: a batch in the middle of training.
        embeddings = torch.randn(CLASSES, DIMENSION)[labels] + torch.randn(len(labels), DIMENSION)
        mined = None if recipe.miner is None else recipe.miner(embeddings, labels)
        found = pair_weights(recipe.loss, embeddings, labels, mined)
    return weight_scatter(found, title=f"{recipe.name}: pair weights of {len(labels)} samples of {CLASSES} classes")


if __name__ == "__main__":
    sys.exit(main())
