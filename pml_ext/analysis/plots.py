"""Pictures of pair weights. Every function returns a matplotlib `Figure`; nothing is shown or saved."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor

from pml_ext.analysis.health import Health
from pml_ext.analysis.pair_weights import PairWeights, pair_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles repeat the difference.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
PULL, PUSH = _COLOURS[0], _COLOURS[1]

# The batch behind the curves: an anchor, and the cosine similarities of its positives and of its negatives to it. The
# first of each is the pair whose weight is drawn.
_POSITIVES = (0.5, 0.7)
_NEGATIVES = (0.6, 0.5, 0.4)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "pml_ext[benchmark]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def _row(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors whose first one has these cosine similarities to the others, and labels."""
    scores = torch.cat((positives, negatives)).double().clamp(-1, 1)
    others = torch.cat((scores.unsqueeze(1), torch.diag((1 - scores.square()).sqrt())), dim=1)
    anchor = torch.zeros(1, others.shape[1], dtype=torch.float64)
    anchor[0, 0] = 1
    labels = torch.cat((torch.zeros(1 + len(positives)), torch.ones(len(negatives)))).long()
    return torch.cat((anchor, others)), labels


def _weight(loss: BaseMetricLossFunction, positives: Tensor, negatives: Tensor, column: int) -> float:
    """Weight of one pair of the anchor, whose positives are columns 1, 2, ..., then its negatives."""
    embeddings, labels = _row(positives, negatives)
    weights = pair_weights(loss, embeddings, labels).weights
    return float(weights.reshape(-1, *weights.shape[-2:]).mean(0)[0, column])


def _moved(kind: str, case: int, score: float) -> tuple[Tensor, Tensor]:
    """The similarities of positives and negatives when in a case (self, positives, negatives) one thing moves."""
    positives, negatives = torch.tensor(_POSITIVES), torch.tensor(_NEGATIVES)
    drawn, same = (positives, 1) if kind == "positive" else (negatives, 2)
    if case == 0:
        drawn[0] = score
    else:
        moving = positives if case == 1 else negatives
        moving[1 if case == same else 0 :] = score
    return positives, negatives


def _summed(loss: BaseMetricLossFunction) -> BaseMetricLossFunction:
    """A copy of the loss that adds its anchors up, so that no weight depends on how many others are active."""
    loss = copy.deepcopy(loss)
    for module in loss.modules():
        if isinstance(module, BaseMetricLossFunction):
            module.set_reducer(SumReducer())
    return loss


def weight_curves(
    losses: Mapping[str, BaseMetricLossFunction] | BaseMetricLossFunction, *, points: int = 81, relative: bool = True
) -> "Figure":
    """Weight of a pair against similarity, for one loss or for several side by side: the three cases of the MS paper.

    An anchor has positives of cosine similarity 0.5 and 0.7 and negatives of 0.6, 0.5 and 0.4. Drawn is the weight of
    the first negative (upper row) and of the first positive (lower row), while one thing moves in each column: the
    similarity of the pair itself, that of the anchor's other positives, and that of its other negatives. Anchors are
    summed, whatever the reducer of the loss.

    Args:
        losses: name -> loss, or one loss. Any loss that `pair_weights` can analyse.
        points: number of similarities computed on each curve.
        relative: divide each curve by the largest weight of its loss in the row, so that shapes can be compared.

    Source:
        Wang et al., "Multi-Similarity Loss with General Pair Weighting", CVPR 2019, figure 2.
    """
    named = losses if isinstance(losses, Mapping) else {type(losses).__name__: losses}
    figure = _figure(11, 6)
    axes = figure.subplots(2, 3, sharex=True, sharey="row" if relative else False)
    grid = torch.linspace(-0.2, 0.99, points)
    titles = ("self", "positive-relative", "negative-relative")
    for number, (name, loss) in enumerate(named.items()):
        summed = _summed(loss)
        for row, (kind, column) in enumerate((("negative", 1 + len(_POSITIVES)), ("positive", 1))):
            curves = [
                [_weight(summed, *_moved(kind, case, float(score)), column) for score in grid] for case in range(3)
            ]
            top = max(map(max, curves)) if relative else 1.0
            for axis, curve in zip(axes[row], curves, strict=True):
                axis.plot(
                    grid,
                    [weight / top if top else 0.0 for weight in curve],
                    color=_COLOURS[number % len(_COLOURS)],
                    linestyle=_STYLES[number % len(_STYLES)],
                    label=name,
                )
            axes[row, 0].set_ylabel(f"weight of a {kind}")
    for case, moving in enumerate(("pair itself", "other positives", "other negatives")):
        axes[0, case].set_title(titles[case])
        axes[1, case].set_xlabel(f"similarity of the {moving}")
    if relative:
        figure.suptitle("pair weights, as a share of the largest of each loss", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(named), 3), frameon=False)
    return figure


def weight_matrix(pairs: PairWeights, labels: Tensor, *, title: str = "") -> "Figure":
    """Heat map of the pair weights of a batch, sorted by class: pull in blue, push in red.

    Args:
        pairs: the result of `pair_weights`, references being the batch.
        labels: [n].
        title: of the figure.
    """
    figure = _figure(6, 5)
    axis = figure.subplots()
    order = labels.argsort(stable=True)
    weights = pairs.weights.reshape(-1, *pairs.weights.shape[-2:]).mean(0)
    signed = torch.where(pairs.pos.reshape(weights.shape), -weights, weights)[order][:, order]
    top = float(signed.abs().max()) or 1.0
    image = axis.imshow(signed.numpy(force=True), cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    edges = labels[order].diff().nonzero().flatten().tolist()
    for edge in edges:
        axis.axhline(edge + 0.5, color="grey", linewidth=0.4)
        axis.axvline(edge + 0.5, color="grey", linewidth=0.4)
    axis.set(xlabel="reference, sorted by class", ylabel="anchor, sorted by class", title=title)
    bar = figure.colorbar(image, ax=axis)
    bar.set_label("pull  <-  pair weight  ->  push")
    return figure


def budget(history: Mapping[int, Health], *, title: str = "") -> "Figure":
    """Pull and push over training, and on how many pairs of an anchor the gradient rests.

    Args:
        history: iteration -> `Health`, as `EmbeddingHealth.history`.
        title: of the figure.
    """
    figure = _figure(8, 5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    iterations = list(history)

    def draw(axis: Any, name: str, label: str, colour: str, style: str = "-") -> None:
        axis.plot(iterations, [getattr(h, name) for h in history.values()], color=colour, linestyle=style, label=label)

    draw(upper, "pull", "pull (positives)", PULL)
    draw(upper, "push", "push (negatives)", PUSH, "--")
    upper.set(ylabel="sum of pair weights", title=title, ylim=(0, None))
    draw(lower, "effective_pairs", "effective pairs of an anchor", _COLOURS[2])
    draw(lower, "effective_rank", "effective rank of the embeddings", _COLOURS[3], "--")
    lower.set(xlabel="iteration", ylabel="number", ylim=(0, None))
    for axis in (upper, lower):
        axis.legend(frameon=False)
    return figure
