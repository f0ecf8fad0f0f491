"""Pictures of pair weights. Every function returns a matplotlib `Figure` that a notebook shows and `savefig` writes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pml_ext import palette
from pml_ext.analysis.curves import CASES, MOVING, SPAN, weight_lines
from pml_ext.analysis.health import COLLAPSED_SPREAD, Health
from pml_ext.analysis.pair_weights import PairWeights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito's colors, which color-blind readers can tell apart; line styles and markers repeat the difference.
PULL, PUSH, PAIRS, RANK = palette.HUES[:4]


def _figure(width: float, height: float) -> "Figure":
    from pml_ext.figures import Picture

    return Picture(figsize=(width, height), layout="constrained")


def _plain(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def weight_curves(losses: Mapping[str, nn.Module] | nn.Module, *, points: int = 61, dimension: int = 8) -> "Figure":
    """Weight of a pair against similarity, a loss in each row, in the three cases of the Multi-Similarity paper.

    An anchor has positives of cosine similarity 0.5 and 0.7 and negatives of 0.6, 0.5 and 0.4. The weights of the first
    positive and of the first negative are drawn against a similarity that varies, a different one in each column: that
    of the pair itself, that of the anchor's other positives, and that of its other negatives. Anchors are summed,
    whatever the reducer of the loss, and each line is relative to the largest weight of its kind in the row.

    Args:
        losses: name -> loss, or one loss, for which `compares_samples` holds.
        points: number of similarities computed on each line.
        dimension: dimension of the embeddings, at least 6, for losses that depend on it.

    Raises:
        NoPairWeightsError: a loss has no pair weights.

    Source:
        Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, section 3.
    """
    named = losses if isinstance(losses, Mapping) else {type(losses).__name__: losses}
    figure = _figure(9, 1.3 + 1.35 * len(named))
    panels = figure.subplots(len(named), 3, sharex=True, sharey=True, squeeze=False)
    grid = torch.linspace(*SPAN, points)
    styles = {"positive": (PULL, "-"), "negative": (PUSH, "--")}
    for axes, (name, loss) in zip(panels, named.items(), strict=True):
        for kind, lines in weight_lines(loss, grid, dimension=dimension).items():
            color, style = styles[kind]
            for axis, line in zip(axes, lines, strict=True):
                axis.plot(grid, line, style, color=color, linewidth=2, label=f"{kind} pair")
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis in axes:
            _plain(axis)
            axis.set_yticks([0, 1])
            axis.set_ylim(-0.08, 1.08)
    for case in range(3):
        panels[0, case].set_title(CASES[case], fontsize="medium")
        panels[-1, case].set_xlabel(f"similarity of {MOVING[case]}", fontsize="small")
    figure.suptitle("Weight of a pair, as a share of its largest", x=0.01, ha="left")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    where = "positives at 0.5 and 0.7, negatives at 0.6, 0.5 and 0.4, unless they move"
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, title=where)
    return figure


def weight_scatter(pairs: PairWeights, *, title: str = "", ax: Any = None) -> "Figure":
    """Weight against similarity of every pair of a batch, for any loss that has pair weights.

    Args:
        pairs: the result of `pair_weights`.
        title: title of the figure.
        ax: matplotlib axes to draw on. Default: those of a new figure, which a notebook shows.
    """
    figure = _figure(6.5, 4.2) if ax is None else ax.figure
    axis = figure.subplots() if ax is None else ax
    positive, negative = ("positive", "negative") if pairs.given else ("pulled", "pushed")
    for kind, mask, color, marker in ((positive, pairs.pos, PULL, "o"), (negative, pairs.neg, PUSH, "^")):
        x, y = (matrix[mask].numpy(force=True) for matrix in (pairs.similarity, pairs.weights))
        axis.scatter(x, y, s=22, color=color, marker=marker, alpha=0.7, linewidths=0, label=f"{kind} pair")
    axis.set(xlabel="score (larger is closer)", ylabel="pair weight |dL/dS|")
    axis.set_ylim(bottom=0)
    axis.set_title(title, loc="left")
    _plain(axis)
    if ax is None:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    else:
        axis.legend(frameon=False)
    return figure


def weight_matrix(
    pairs: PairWeights, labels: Tensor, ref_labels: Tensor | None = None, *, title: str = "", ax: Any = None
) -> "Figure":
    """Heat map of the pair weights of a batch, sorted by class: pull in blue, push in red.

    The matrices of several comparisons are averaged.

    Args:
        pairs: the result of `pair_weights`.
        labels: [n], labels of the anchors.
        ref_labels: [m], labels of the references; by default those of the batch.
        title: title of the figure.
        ax: matplotlib axes to draw on. Default: those of a new figure, which a notebook shows.

    Raises:
        ValueError: labels of another number than there are anchors or references.
    """
    signed = pairs.derivative.reshape(-1, *pairs.derivative.shape[-2:]).mean(0)
    columns = labels if ref_labels is None else ref_labels
    if signed.shape != (len(labels), len(columns)):
        raise ValueError(f"{tuple(signed.shape)} weights need as many labels, got {len(labels)} and {len(columns)}")
    figure = _figure(6, 4.8) if ax is None else ax.figure
    axis = figure.subplots() if ax is None else ax
    order, column_order = labels.argsort(stable=True), columns.argsort(stable=True)
    signed = signed[order][:, column_order]
    top = float(signed.abs().max()) or 1.0
    image = axis.imshow(
        signed.numpy(force=True), cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest", aspect="auto"
    )
    for draw, classes in ((axis.axhline, labels[order]), (axis.axvline, columns[column_order])):
        for edge in classes.diff().nonzero().flatten().tolist():
            draw(edge + 0.5, color=palette.GRAY, linewidth=0.6)
    axis.set(xlabel="reference, sorted by class", ylabel="anchor, sorted by class")
    axis.set_title(title, loc="left")
    bar = figure.colorbar(image, ax=axis)
    bar.set_label("pulled   $\\leftarrow$   pair weight   $\\rightarrow$   pushed")
    return figure


def budget(history: Mapping[int, Health], *, title: str = "") -> "Figure":
    """Pull and push over training, the number of effective pairs per anchor, and the spread of the embeddings.

    The background is gray where a failure was found.

    Args:
        history: iteration -> `Health`, as `EmbeddingHealth.history`.
        title: title of the figure.
    """
    figure = _figure(8, 6)
    panels = figure.subplots(3, 1, sharex=True)
    iterations, measured = list(history), list(history.values())
    lines = (
        (0, "pull", "pull (positives)", PULL, "-"),
        (0, "push", "push (negatives)", PUSH, "--"),
        (1, "effective_pairs", "effective pairs of an anchor", PAIRS, "-"),
        (1, "effective_rank", "effective rank of the embeddings", RANK, "--"),
        (2, "spread", "spread of the directions", palette.GRAY, "-"),
    )
    for panel, name, label, color, style in lines:
        # Embeddings that are all the same have a spread of 0, which no logarithm shows.
        values = [max(getattr(health, name), 1e-7 if name == "spread" else 0) for health in measured]
        panels[panel].plot(iterations, values, style, color=color, linewidth=2, marker="o", markersize=3, label=label)
    for axis, label in zip(panels, ("sum of pair weights", "number", "spread, 0..1"), strict=True):
        _plain(axis)
        axis.set_ylabel(label)
        if axis is panels[2]:
            axis.set_yscale("log")
            axis.set_ylim(min([*values, COLLAPSED_SPREAD]) / 2, 1.2)
            axis.axhline(COLLAPSED_SPREAD, color=PUSH, linestyle=":", label="collapsed below")
        else:
            axis.set_ylim(bottom=0)
        # Beside the lines, which may run anywhere.
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for i, health in enumerate(measured):
            if health.failure:
                left = iterations[max(i - 1, 0)] if i else iterations[0]
                axis.axvspan(
                    (left + iterations[i]) / 2, _until(iterations, i), color=palette.GRAY, alpha=0.18, linewidth=0
                )
    names = list(dict.fromkeys(health.failure.split(":")[0] for health in measured if health.failure))
    panels[-1].set_xlabel("iteration" + (f" (gray: {', '.join(names)})" if names else ""))
    panels[0].set_title(title, loc="left")
    return figure


def _until(iterations: list[int], i: int) -> float:
    return iterations[i] if i + 1 == len(iterations) else (iterations[i] + iterations[i + 1]) / 2
