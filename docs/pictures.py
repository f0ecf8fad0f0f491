"""Pair weights of the methods of the catalog, as SVG that takes the colors of the page that it stands in.

`python docs/pictures.py` draws all of them anew in `docs/assets/weights`, `python docs/pictures.py RAW NCA` two. A
method whose loss compares samples has three panels of lines, as `pml_ext.analysis.plots.weight_curves` has; one that
compares slices, class centers or proxies has a panel of points, the pairs of a batch drawn at random.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from pml_ext import catalog
from pml_ext.analysis import NoPairWeightsError
from pml_ext.analysis.curves import CLASSES, MOVING, SPAN, compares_samples, drawn_pairs, weight_lines
from pml_ext.catalog import Recipe

WEIGHTS = Path(__file__).parent / "assets" / "weights"
DIMENSION = 8
POINTS = 35
_SIZES = {"num_classes": CLASSES, "embedding_size": DIMENSION}
_TICKS = (0, 0.5)
# A panel, in units of the picture: where it begins, its size, and what is left free below it for words.
_WIDTH, _HEIGHT, _GAP, _WORDS = 150, 64, 18, 42
_KINDS = {"positive": "pull", "negative": "push"}


def weights(name: str) -> str:
    """The picture of a method.

    Raises:
        NoPairWeightsError: it has no pair weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recipe = catalog.build(name, **{need: _SIZES[need] for need in catalog.recipes[name].required})
        in_lines = compares_samples(recipe.loss, dimension=DIMENSION)
        panels = _lines(recipe) if in_lines else _points(recipe)
    width = len(panels) * (_WIDTH + _GAP) + 2 * _GAP
    ticks = _TICKS if in_lines else ()
    frames = (_panel(i, words, marks, ticks) for i, (words, marks) in enumerate(panels))
    return "\n".join(
        [
            f'<svg class="weights" role="img" viewBox="0 0 {width} {_HEIGHT + _WORDS}" style="max-width: {width}px">',
            f"<title>Pair weights of {name} against similarity</title>",
            *(line for frame in frames for line in frame),
            "</svg>\n",
        ]
    )


def _panel(number: int, words: str, marks: Iterable[str], ticks: Iterable[float]) -> Iterator[str]:
    yield f'<g transform="translate({_GAP + number * (_WIDTH + _GAP)} 6)">'
    places = {tick: round(_WIDTH * (tick - SPAN[0]) / (SPAN[1] - SPAN[0])) for tick in ticks}
    drawn = "".join(f"M{x} {_HEIGHT}v4" for x in places.values())
    yield f'<path class="axes" d="M0 0V{_HEIGHT}H{_WIDTH}{drawn}"/>'
    yield from marks
    for tick, x in places.items():
        yield f'<text x="{x}" y="{_HEIGHT + 15}" text-anchor="middle">{tick:g}</text>'
    yield f'<text x="{_WIDTH / 2:g}" y="{_HEIGHT + 29}" text-anchor="middle">{words}</text>'
    yield "</g>"


def _lines(recipe: Recipe) -> list[tuple[str, list[str]]]:
    grid = torch.linspace(*SPAN, POINTS)
    places = [_WIDTH * i / (POINTS - 1) for i in range(POINTS)]
    panels: list[tuple[str, list[str]]] = [(f"similarity of {moving}", []) for moving in MOVING]
    for kind, lines in weight_lines(recipe.loss, grid, dimension=DIMENSION).items():
        for (_, marks), line in zip(panels, lines, strict=True):
            points = " ".join(f"{x:.0f},{_HEIGHT * (1 - y):.1f}" for x, y in zip(places, line, strict=True))
            marks.append(f'<polyline class="{_KINDS[kind]}" points="{points}"/>')
    return panels


def _points(recipe: Recipe) -> list[tuple[str, list[str]]]:
    found = drawn_pairs(recipe, dimension=DIMENSION)
    of_pairs = found.pos | found.neg
    score, weight = found.similarity, found.weights
    low, high = score[of_pairs].min(), score[of_pairs].max()
    x = (_WIDTH * (score - low) / (high - low)).nan_to_num()
    y = _HEIGHT * (1 - weight / weight[of_pairs].max().clamp_min(1e-30))
    marks = []
    for kind, mask in (("push", found.neg), ("pull", found.pos)):
        places = dict.fromkeys(f"M{a:.0f} {b:.0f}h0" for a, b in zip(x[mask].tolist(), y[mask].tolist(), strict=True))
        marks.append(f'<path class="{kind} points" d="{"".join(places)}"/>')
    return [("similarity, pairs of a batch", marks)]


def main(names: list[str]) -> None:
    """Draw these, or all."""
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    if not names:
        for path in WEIGHTS.glob("*.svg"):
            path.unlink()
    for name in names or catalog.recipes:
        try:
            drawn = weights(name)
        except NoPairWeightsError as error:
            print(f"{name}: no picture, {error}")
        else:
            (WEIGHTS / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
