"""A map of some test classes under each loss: the embeddings in two dimensions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pml_ext import palette
from pml_ext.shown import text

from . import retrievals
from .markup import name

CLASSES = 12
NEIGHBORS = 6
TILE, ACROSS = 48, 20  # pixels of a sample, and samples in a row of the sheet
OF_A_CLASS = 40  # samples, so that every point can be seen
SEED = 0
# Six hues of Okabe and Ito's palette, which color-blind readers can tell apart, times two shapes.
HUES = (*palette.HUES, "var(--ink)")
DOTS = "".join(f".k{number} {{ --dot: {hue}; }}\n" for number, hue in enumerate(HUES))
WIDTH, MARGIN = 400.0, 12.0


def maps(test: Any, embeddings: Mapping[str, Tensor], *, images: bool = True) -> str:
    """The embeddings of some classes in two dimensions by t-SNE, each loss beside the others, with one legend.

    It answers without a script: a point that is hovered or has the focus shows its sample and whether its nearest is
    right, one that is clicked lists its neighbors, and the colors are those of classes or of right and wrong.

    Args:
        test: the dataset that was embedded: `labels` and `classes`.
        embeddings: of each loss, [n, d], normalized.
        images: whether the samples are images. Default True.
    """
    shown, index = chosen(test)
    if len(index) < 3:
        return ""
    kinds = torch.searchsorted(shown, test.labels[index]).tolist()
    names = [str(test.classes[label]) for label in shown.tolist()]
    sheet = _sheet(test, index.tolist()) if images else ""
    drawn = [
        _map(number, loss, vectors, test, index, kinds, names, pictured=images)
        for number, (loss, vectors) in enumerate(embeddings.items())
    ]
    legend = "".join(f'<li><i class="dot {_kind(kind)}"></i>{name(each)}</li>' for kind, each in enumerate(names))
    ways = "".join(
        f'<label><input type="radio" name="colors" class="by-{way}"{checked}> {words}</label>'
        for way, words, checked in (("class", "classes", " checked"), ("verdict", "right and wrong", ""))
    )
    return (
        f'<div class="maps" id="points">{sheet}<p class="ways">Colors of {ways}</p><ul class="legend">{legend}</ul>'
        f'<div class="curves">{"".join(drawn)}</div></div>'
    )


def _map(
    number: int,
    loss: str,
    vectors: Tensor,
    test: Any,
    index: Tensor,
    kinds: list[int],
    names: list[str],
    *,
    pictured: bool,
) -> str:
    """The map of one loss: its points, and below it a list for each of them, of which the chosen one is seen."""
    scores = vectors[index] @ vectors[index].T
    near = scores.fill_diagonal_(-torch.inf).topk(min(NEIGHBORS, len(index) - 1)).indices.tolist()
    points, lists = [], []
    for i, (x, y) in enumerate((projected(vectors[index]) / WIDTH * 100).tolist()):
        nearest = retrievals.nearest(test, vectors, int(index[i]))[:1]
        right = bool(nearest) and bool(test.labels[nearest[0]] == test.labels[index[i]])
        verdict, mark = ("right", "✓") if right else ("wrong", "✗")
        found = f"nearest: {retrievals.class_of(test, nearest[0])}" if nearest else "nothing near"
        own = _tile(i, "", pictured)
        points.append(
            f'<a class="dot {_kind(kinds[i])} {verdict}" href="#m{number}-{i}" style="left:{x:.1f}%;top:{y:.1f}%">'
            f'<span class="card">{own}{text(names[kinds[i]])}<small>{mark} {text(found)}</small></span></a>'
        )
        tiles = "".join(
            f"<li>{_tile(j, 'right' if kinds[j] == kinds[i] else 'wrong', pictured)}{text(names[kinds[j]])}</li>"
            for j in near[i]
        )
        lists.append(
            f'<div class="near" id="m{number}-{i}"><p>{own} {text(names[kinds[i]])}: nearest on the map '
            f'<a href="#points">close</a></p><ol>{tiles}</ol></div>'
        )
    drawn = f'<div class="map" role="group" aria-label="map of {text(loss)}">{"".join(points)}</div>'
    return f'<figure class="drawn"><figcaption>{name(loss)}</figcaption>{drawn}{"".join(lists)}</figure>'


def _kind(kind: int) -> str:
    return f"k{kind % len(HUES)}" + (" up" if kind // len(HUES) % 2 else "")


def _tile(i: int, verdict: str, pictured: bool) -> str:
    if not pictured:
        return ""
    frame = f" {verdict}" if verdict else ""
    return f'<b class="tile{frame}" style="--x:{i % ACROSS};--y:{i // ACROSS}"></b>'


def _sheet(test: Any, index: list[int]) -> str:
    """One picture of all samples, from which each takes its tile: every one is in the page once."""
    from PIL import Image, ImageOps

    of = retrievals.images(test)
    sheet = Image.new("RGB", (TILE * min(ACROSS, len(index)), TILE * -(-len(index) // ACROSS)))
    for i, sample in enumerate(index):
        small = ImageOps.pad(of(sample).convert("RGB"), (TILE, TILE))
        sheet.paste(small, (i % ACROSS * TILE, i // ACROSS * TILE))
    stream = io.BytesIO()
    sheet.save(stream, "jpeg", quality=80)
    code = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"<style>.tile {{ background-image: url(data:image/jpeg;base64,{code}); }}</style>"


def chosen(test: Any) -> tuple[Tensor, Tensor]:
    """Some classes, drawn once, sorted, and which samples of them are shown."""
    classes = torch.unique(test.labels)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(SEED))[:CLASSES]
    shown = classes[order].sort().values
    return shown, torch.cat([torch.nonzero(test.labels == label)[:OF_A_CLASS, 0] for label in shown])


def projected(vectors: Tensor) -> Tensor:
    """Embeddings [n, d] as places in the picture [n, 2]."""
    from sklearn.manifold import TSNE

    perplexity = min(15.0, (len(vectors) - 1) / 3)
    # Points that are all the same have no principal components.
    start = "pca" if vectors.shape[1] > 1 and vectors.std(dim=0).max() > 0 else "random"
    mapped = TSNE(perplexity=perplexity, init=start, random_state=0)
    places = torch.from_numpy(mapped.fit_transform(vectors.cpu().numpy()))
    low, high = places.amin(dim=0), places.amax(dim=0)
    return MARGIN + (places - low) / (high - low).clamp(min=1e-9) * (WIDTH - 2 * MARGIN)
