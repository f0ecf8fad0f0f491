"""A gallery: for some queries, what each loss finds nearest, the right ones told from the wrong ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pml_ext.shown import text

from .markup import name

QUERIES = 6
NEIGHBORS = 8
SIDE = 112  # pixels
SEED = 0


def gallery(test: Any, embeddings: Mapping[str, Tensor]) -> str:
    """The queries and their nearest references under each loss, in HTML.

    Args:
        test: the dataset of the queries: `labels`, `classes`, and `image(i)` or samples that are tensors in 0..1; with
            `query`, `gallery` and `sequences` only those are asked and answer that an evaluation asks.
        embeddings: of each loss, [n, d], normalized.
    """
    queries = chosen(test)
    picture = pictures(test)
    parts = []
    for query in queries:
        rows = []
        for loss, vectors in embeddings.items():
            found = nearest(test, vectors, query)
            right = sum(int(test.labels[i] == test.labels[query]) for i in found)
            items = "".join(_item(test, picture, query, i) for i in found)
            rows.append(
                f'<div class="row"><p>{name(loss)} <span class="muted">{right} of {len(found)}</span></p>'
                f'<ol class="found">{items}</ol></div>'
            )
        own = f"{picture(query)}<figcaption>{name(class_of(test, query))}</figcaption>"
        parts.append(f'<section class="query"><figure class="asks">{own}</figure><div>{"".join(rows)}</div></section>')
    return "".join(parts)


def chosen(test: Any) -> list[int]:
    """Some queries, drawn once, the same for every experiment: nobody picks the pictures."""
    asked = getattr(test, "query", None)
    index = torch.arange(len(test)) if asked is None else asked.nonzero()[:, 0]
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(SEED))[:QUERIES]
    places: list[int] = index[order].sort().values.tolist()
    return places


def nearest(test: Any, vectors: Tensor, query: int) -> list[int]:
    """The samples nearest to a query: of the gallery, without itself and without its own sequence."""
    allowed = torch.ones(len(vectors), dtype=torch.bool)
    answers, sequences = getattr(test, "gallery", None), getattr(test, "sequences", None)
    if answers is not None:
        allowed &= answers
    if sequences is not None:
        allowed &= sequences != sequences[query]
    allowed[query] = False
    scores = (vectors @ vectors[query]).masked_fill(~allowed, -torch.inf)
    places: list[int] = scores.topk(min(NEIGHBORS, int(allowed.sum()))).indices.tolist()
    return places


def class_of(test: Any, index: int) -> str:
    """The name of a sample's class."""
    return str(test.classes[int(test.labels[index])])


def _item(test: Any, picture: Callable[[int], str], query: int, index: int) -> str:
    right = bool(test.labels[index] == test.labels[query])
    kind, mark = ("right", "✓") if right else ("wrong", "✗")  # not by color alone
    caption = name(class_of(test, index))
    return f'<li class="{kind}">{picture(index)}<span class="mark" title="{kind}">{mark}</span>{caption}</li>'


def images(test: Any) -> Callable[[int], Any]:
    """What gives the image of a sample, as it was before it was made an input where that is known."""
    from PIL import Image

    def image_of(index: int) -> Any:
        if hasattr(test, "image"):
            return test.image(index)
        pixels = (test[index][0].clamp(0, 1) * 255).round().byte()
        return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())

    return image_of


def pictures(test: Any) -> Callable[[int], str]:
    """What makes a small picture of a sample, an `img` that holds it."""
    image_of = images(test)

    def picture(index: int) -> str:
        image = image_of(index).copy()  # a data set may hand out its own
        small = max(image.size) <= SIDE
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        # Few pixels stay sharp.
        kind = "png" if small else "jpeg"
        (image if small else image.convert("RGB")).save(stream, kind)
        code = base64.b64encode(stream.getvalue()).decode("ascii")
        return f'<img alt="{text(class_of(test, index))}" class="{kind}" src="data:image/{kind};base64,{code}">'

    return picture
