"""A map of some test classes under each loss: the embeddings in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pml_ext import palette
from pml_ext.shown import text

from .markup import name

CLASSES = 12
OF_A_CLASS = 40  # samples, so that every point can be seen
SEED = 0
# Six hues of Okabe and Ito's palette, which color-blind readers can tell apart, times two shapes.
HUES = (*palette.HUES, "currentColor")
WIDTH, MARGIN = 400.0, 12.0


def maps(test: Any, embeddings: Mapping[str, Tensor]) -> str:
    """The embeddings of some classes in two dimensions by t-SNE, each loss beside the others, with one legend.

    Args:
        test: the dataset that was embedded: `labels` and `classes`.
        embeddings: of each loss, [n, d], normalized.
    """
    shown, index = chosen(test)
    if len(index) < 3:
        return ""
    kinds = torch.searchsorted(shown, test.labels[index]).tolist()
    names = [str(test.classes[label]) for label in shown.tolist()]
    drawn = []
    for loss, vectors in embeddings.items():
        places = projected(vectors[index])
        marks = "".join(_mark(kind, x, y, names[kind]) for kind, (x, y) in zip(kinds, places.tolist(), strict=True))
        drawn.append(
            f'<figure class="drawn"><figcaption>{name(loss)}</figcaption>'
            f'<svg role="img" aria-label="map of {text(loss)}" viewBox="0 0 {WIDTH:g} {WIDTH:g}">{marks}</svg></figure>'
        )
    legend = "".join(
        f'<li><svg viewBox="-6 -6 12 12">{_mark(kind, 0, 0, each)}</svg>{name(each)}</li>'
        for kind, each in enumerate(names)
    )
    return f'<ul class="legend">{legend}</ul><div class="curves">{"".join(drawn)}</div>'


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


def _mark(kind: int, x: float, y: float, label: str) -> str:
    fill = HUES[kind % len(HUES)]
    tip = f"<title>{text(label)}</title>"
    if kind // len(HUES) % 2:
        return f'<path fill="{fill}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z">{tip}</path>'
    return f'<circle fill="{fill}" cx="{x:.1f}" cy="{y:.1f}" r="4">{tip}</circle>'
