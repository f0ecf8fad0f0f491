"""`python -m pml_ext explain NAME`: what a loss is, and the picture of its pair weights."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pml_ext.analysis.explain import explain
from pml_ext.analysis.pair_weights import NoPairWeightsError, pair_weights
from pml_ext.analysis.plots import compares_samples, weight_curves, weight_scatter
from pml_ext.benchmark import files, losses, streams
from pml_ext.benchmark.errors import explain as explain_error
from pml_ext.catalog import Recipe

# The batch on which a method is looked at: small, because every number of the page can be any.
CLASSES, SAMPLES, DIMENSION = 4, 6, 8
FORMATS = ("png", "svg", "pdf")


def main(arguments: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code."""
    parser.description = "Formula, parts, defaults, source, differences from the reference code, and the weight plot."
    parser.add_argument("name", help="a loss as the main job takes it: RAW, RAWLoss, pml:TripletMarginLoss, my:Loss")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to draw the plot. Default: NAME_weights.png")
    given = parser.parse_args(arguments)
    try:
        recipe = replace(losses.build(given.name, classes=CLASSES, embedding_size=DIMENSION), name=given.name)
        streams.say(explain(recipe))
        needed = losses.told(given.name)
        if needed:
            values = {"num_classes": CLASSES, "embedding_size": DIMENSION, "descriptors_dim": DIMENSION}
            chosen = " and ".join(f"{name}={values[name]}" for name in needed)
            streams.say(f"\nChosen for this page, for you to give: {chosen}.")
        try:
            figure = _picture(recipe)
        except NoPairWeightsError as error:
            streams.say(f"\nNo plot: {error}.")
            return 0
        out = given.out or Path(f"{re.sub('[^A-Za-z0-9_.+-]+', '_', given.name).strip('_')}_weights.png")
        _draw(figure, out)
    except (ValueError, TypeError, ImportError) as error:
        streams.complain(f"pml_ext explain: {' '.join(str(error).split())}")
        return 2
    except OSError as error:
        streams.complain(f"pml_ext explain: {explain_error(error)}")
        return 2
    streams.say(f"\nPair weights drawn in {out}")
    return 0


def _draw(figure: Any, out: Path) -> None:
    """Into just that file: matplotlib by itself would add an ending to a name without one."""
    ending = out.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS:
        raise ValueError(f"--out must end in {', '.join(FORMATS)} or have no ending, for a PNG; got {out.name!r}")
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format=ending or "png", dpi=120)
    if out.exists() and not out.is_file():  # a device or a pipe
        out.write_bytes(stream.getvalue())
    else:
        files.write(out, stream.getvalue())


def _picture(recipe: Recipe) -> Any:
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
