"""The pictures that show images and embeddings: a gallery of retrievals, and a map in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from pml_ext import palette
from pml_ext.figures import Picture
from pml_ext.shown import one_line

RIGHT, WRONG = palette.GREEN, palette.VERMILION
NEIGHBORS = 8
QUERIES = 4
SIDE = 96  # pixels of a photograph
MAPPED = 12  # classes in the map
# Twelve classes: six hues that color-blind readers can tell apart, times two markers.
HUES = (*palette.HUES, palette.BLACK)
MARKERS = ("o", "^")


def gallery(test: Any, embeddings: Mapping[str, Tensor]) -> Figure:
    """For a few queries, the nearest test images under each loss; the right ones framed, the wrong ones crossed.

    Args:
        test: the dataset of the queries.
        embeddings: of each loss, [n, d], normalized.
    """
    queries = _some(len(test), min(QUERIES, len(test)))
    rows = len(queries) * len(embeddings)
    figure = Picture(figsize=(8.5, 0.72 * rows + 1.1))
    figure.suptitle(
        f"Nearest {NEIGHBORS} of {len(test)} images of unseen classes, for {len(queries)} queries drawn at random",
        x=0.02,
        y=1 - 0.25 / figure.get_figheight(),
        ha="left",
        fontsize=12,
    )
    figure.text(0.02, 1 - 0.66 / figure.get_figheight(), "green: same class as the query", color=RIGHT, fontsize=10)
    figure.text(0.36, 1 - 0.66 / figure.get_figheight(), "orange, crossed: another class", color=WRONG, fontsize=10)
    outer = figure.add_gridspec(
        len(queries), 1, hspace=0.12, left=0.02, right=0.98, bottom=0.01, top=1 - 0.85 / figure.get_figheight()
    )
    for i, query in enumerate(queries):
        grid = outer[i].subgridspec(
            len(embeddings), NEIGHBORS + 2, width_ratios=[1.25, 2.2, *[1] * NEIGHBORS], hspace=0.1, wspace=0.1
        )
        axes = figure.add_subplot(grid[:, 0])
        _picture(axes, test, query)
        axes.set_title(_name(test, query, 22), fontsize=8, loc="left", parse_math=False)
        axes.set_ylabel("query", fontsize=8)
        for row, (loss, vectors) in enumerate(embeddings.items()):
            label = figure.add_subplot(grid[row, 1])
            label.set_axis_off()
            label.text(1.0, 0.5, loss, ha="right", va="center", fontsize=9 if len(loss) < 18 else 7, parse_math=False)
            for column, neighbor in enumerate(_nearest(vectors, query)):
                _framed(figure.add_subplot(grid[row, column + 2]), test, query, neighbor)
    return figure


def projection(test: Any, embeddings: Mapping[str, Tensor]) -> Figure:
    """A t-SNE map of some unseen classes under each loss, side by side.

    Args:
        test: the dataset that was embedded.
        embeddings: of each loss, [n, d], normalized.
    """
    from sklearn.manifold import TSNE

    classes = torch.unique(test.labels)
    shown = classes[_some(len(classes), min(MAPPED, len(classes)))]
    # Large classes are thinned, so that every point can be seen.
    index = torch.cat([torch.nonzero(test.labels == label)[:40, 0] for label in shown])
    columns = min(2, len(embeddings))
    rows = math.ceil(len(embeddings) / columns)
    figure = Picture(figsize=(4.2 * columns + 1.2, 4.0 * rows + 0.7), layout="constrained")
    figure.suptitle(
        f"{len(shown)} unseen classes drawn at random, embeddings mapped to two dimensions by t-SNE", fontsize=12
    )
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (loss, vectors) in zip(panels, embeddings.items(), strict=False):
        perplexity = min(15.0, (len(index) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors[index].cpu().numpy())
        for i, label in enumerate(shown.tolist()):
            inside = (test.labels[index] == label).numpy()
            axes.scatter(
                *points[inside].T,
                s=30,
                color=HUES[i % len(HUES)],
                marker=MARKERS[i // len(HUES) % len(MARKERS)],
                edgecolors="white",
                linewidths=0.4,
                label=one_line(test.classes[label], 24),
            )
        axes.set_title(loss, loc="left", parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("t-SNE 1 (no unit)", fontsize=8)
        axes.set_ylabel("t-SNE 2 (no unit)", fontsize=8)
    for axes in panels[len(embeddings) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right center", title="class", frameon=False, fontsize=12)
    for words in legend.get_texts():
        words.set_parse_math(False)
    return figure


def _some(count: int, number: int) -> list[int]:
    # Drawn once, the same for every experiment: nobody picks the pictures.
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(0))[:number].tolist())


def _nearest(vectors: Tensor, query: int) -> list[int]:
    scores = vectors @ vectors[query]
    scores[query] = -math.inf
    nearest: list[int] = scores.topk(min(NEIGHBORS, len(vectors) - 1)).indices.tolist()
    return nearest


def _name(test: Any, index: int, longest: int) -> str:
    return one_line(test.classes[int(test.labels[index])], longest)


def _picture(axes: Any, test: Any, index: int) -> None:
    if hasattr(test, "image"):  # as it is, before it was made an input
        from PIL import ImageOps

        axes.imshow(ImageOps.pad(test.image(index), (SIDE, SIDE), color="white"), interpolation="nearest")
    else:
        axes.imshow(test[index][0].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _framed(axes: Any, test: Any, query: int, index: int) -> None:
    _picture(axes, test, index)
    right = bool(test.labels[query] == test.labels[index])
    for spine in axes.spines.values():
        spine.set_color(RIGHT if right else WRONG)
        spine.set_linewidth(3)
    if not right:  # not by color alone
        axes.plot([0.72, 0.94], [0.72, 0.94], color=WRONG, linewidth=2, transform=axes.transAxes)  # the name is below
        axes.plot([0.72, 0.94], [0.94, 0.72], color=WRONG, linewidth=2, transform=axes.transAxes)
    words = axes.text(
        0.06, 0.08, _name(test, index, 11), color="white", fontsize=6.5, transform=axes.transAxes, parse_math=False
    )
    words.set_path_effects([withStroke(linewidth=1.5, foreground="black")])  # white on white photographs too
