"""The description of a loss, by name or as an object: its page, and the picture of its pair weights."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_ext import shown
from pml_ext.analysis.curves import CLASSES, compares_samples, drawn_pairs
from pml_ext.analysis.explain import explain as page_of
from pml_ext.analysis.pair_weights import NoPairWeightsError
from pml_ext.benchmark import files, losses
from pml_ext.catalog import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIMENSION = 8  # of the embeddings of a method on its page: small, because every number of the page can be any
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """A page about a loss: `str` has all of it, `figure` draws its pair weights.

    Args:
        name: name of the loss.
        page: formula, parts, defaults, source and differences.
        recipe: the loss that was looked at, with its miner.
    """

    name: str
    page: str
    recipe: Recipe

    @cached_property
    def _drawn(self) -> tuple[Figure | None, str]:
        try:
            return _picture(self.recipe), ""
        except NoPairWeightsError as error:
            return None, f"No plot: {error}."

    @property
    def figure(self) -> Figure | None:
        """The pair weights of the loss; None if it has none."""
        return self._drawn[0]

    def __str__(self) -> str:
        return f"{self.page}\n\n{self._drawn[1]}" if self._drawn[1] else self.page

    def __repr__(self) -> str:
        return shown.on_a_screen(self.page, "print() shows them")

    def _repr_html_(self) -> str:
        drawn = ""
        if self.figure is not None:
            from pml_ext.figures import png

            drawn = shown.picture(png(self.figure, dpi=80), f"pair weights of {self.name}")
        return shown.framed(f"{shown.preformatted(str(self))}{drawn}")


def explain(loss: Any) -> Explanation:
    """Explain a loss: formula, parts, defaults, source, differences from the reference code, and pair weights.

    Args:
        loss: a name as `Experiment` takes it, "RAW" or "pml:TripletMarginLoss", a loss, a loss with a miner, a recipe.

    Raises:
        BenchmarkError: no loss of that name, or a method with a trainer of its own. It is a ValueError.

    Example:
        >>> print(str(explain("RAW")).splitlines()[0])
        RAW
    """
    spec = losses.parse(loss)
    recipe = replace(spec.build(classes=CLASSES, embedding_size=DIMENSION), name=spec.name)
    page = page_of(recipe)
    needed = losses.told(loss) if isinstance(loss, str) else ()
    if needed:
        values = {"num_classes": CLASSES, "embedding_size": DIMENSION, "descriptors_dim": DIMENSION}
        chosen = " and ".join(f"{name}={values[name]}" for name in needed)
        page += f"\n\nChosen for this page, for you to give: {chosen}."
    return Explanation(spec.name, page, recipe)


def drawn(found: Explanation, out: Path | None) -> Path:
    """Write the figure into just that file: matplotlib by itself would add an ending to a name without one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    assert found.figure is not None
    out = out or Path(f"{re.sub('[^A-Za-z0-9_.+-]+', '_', found.name).strip('_')}_weights.png")
    ending = out.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS:
        raise ValueError(f"--out must end in {', '.join(FORMATS)} or have no ending, for a PNG; got {out.name!r}")
    FigureCanvasAgg(found.figure)
    stream = io.BytesIO()
    found.figure.savefig(stream, format=ending or "png", dpi=120)
    if out.exists() and not out.is_file():  # a device or a pipe
        out.write_bytes(stream.getvalue())
    else:
        files.write(out, stream.getvalue())
    return out


def _picture(recipe: Recipe) -> Figure:
    """Curves of the loss if it compares samples, else its weights on a batch drawn at random."""
    from pml_ext.analysis.plots import weight_curves, weight_scatter

    if compares_samples(recipe.loss, dimension=DIMENSION):
        name = recipe.name if recipe.miner is None else f"{recipe.name}\n(without\nits miner)"
        return weight_curves({name: recipe.loss}, dimension=DIMENSION)
    found = drawn_pairs(recipe, dimension=DIMENSION)
    return weight_scatter(
        found, title=f"{recipe.name}: pair weights of {len(found.beyond)} samples of {CLASSES} classes"
    )
