"""Pair weights of a loss against similarity, as numbers: what `plots` draws."""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor, nn

from pml_ext import _pml
from pml_ext.analysis.pair_weights import PairWeights, pair_weights
from pml_ext.catalog import Recipe

Kind = Literal["positive", "negative"]

# The batch behind the curves: an anchor, and the cosine similarities of its positives and of its negatives to it. The
# first of each is the pair whose weight is drawn.
_POSITIVES = (0.5, 0.7)
_NEGATIVES = (0.6, 0.5, 0.4)
CASES = ("self", "positive-relative", "negative-relative")
MOVING = ("the pair itself", "the other positives", "the other negatives")
SPAN = (-0.2, 0.99)
"""The similarities between which lines are drawn."""


# How far from a common place each class is, and its samples from their mean: the first class is so tight that its
# samples are within every margin of positives, and so near to others that theirs are within the margin of negatives.
_FROM_THE_MIDDLE = (0.2, 0.4, 0.8, 1.2)
_FROM_THE_MEAN = (0.1, 0.4, 0.8, 0.8)
CLASSES = len(_FROM_THE_MIDDLE)
"""The classes of a method whose pairs are drawn."""
_SAMPLES = 6


def drawn_pairs(recipe: Recipe, *, dimension: int = 8) -> PairWeights:
    """Pair weights of a method on a batch drawn at random, for a loss that compares with centers, proxies or slices.

    Args:
        recipe: a loss that takes `CLASSES` classes, and its miner.
        dimension: of the embeddings. Default 8.

    Raises:
        NoPairWeightsError: the loss has none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        places = torch.tensor(_FROM_THE_MIDDLE)[:, None] * torch.randn(CLASSES, dimension)
        labels = torch.arange(CLASSES).repeat_interleave(_SAMPLES)
        means = (torch.randn(dimension) + places)[labels]
        embeddings = means + torch.tensor(_FROM_THE_MEAN)[labels, None] * torch.randn(len(labels), dimension)
        mined = None if recipe.miner is None else recipe.miner(embeddings, labels)
        return pair_weights(recipe.loss, embeddings, labels, mined)


def _row(positives: Tensor, negatives: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Unit vectors whose first one has these cosine similarities to the others, and labels."""
    scores = torch.cat((positives, negatives)).double().clamp(-1, 1)
    number = len(scores)
    embeddings = torch.zeros(1 + number, max(dimension, 1 + number), dtype=torch.float64)
    embeddings[0, 0] = 1
    embeddings[1:, 0] = scores
    embeddings[1:, 1 : 1 + number] = torch.diag((1 - scores.square()).sqrt())
    return embeddings, torch.cat((torch.zeros(1 + len(positives)), torch.ones(len(negatives)))).long()


def _moved(kind: str, case: int, score: float) -> tuple[Tensor, Tensor]:
    """The similarities of positives and negatives when those of one case (self, positives, negatives) vary."""
    positives, negatives = torch.tensor(_POSITIVES), torch.tensor(_NEGATIVES)
    drawn, same = (positives, 1) if kind == "positive" else (negatives, 2)
    if case == 0:
        drawn[0] = score
    else:
        moving = positives if case == 1 else negatives
        moving[1 if case == same else 0 :] = score
    return positives, negatives


def _summed(loss: nn.Module) -> nn.Module:
    """A copy of the loss in float64 that sums over the anchors, so that no weight depends on how many are active."""
    loss = copy.deepcopy(loss).double()
    for module in loss.modules():
        if isinstance(module, BaseMetricLossFunction):
            _pml.set_reducer(module, SumReducer())
    return loss


def _weight(loss: nn.Module, positives: Tensor, negatives: Tensor, dimension: int, column: int) -> float:
    weights = pair_weights(loss, *_row(positives, negatives, dimension)).weights
    return float(weights[0, column])


def compares_samples(loss: nn.Module, *, dimension: int = 8) -> bool:
    """Whether the loss compares the samples of a batch with each other, so that its weights can be drawn as curves.

    A loss that compares slices, class centers or proxies has no curves, but a `weight_scatter`.

    Args:
        loss: any loss.
        dimension: dimension of the embeddings that are used, at least 6.

    Raises:
        NoPairWeightsError: the loss has no pair weights.
    """
    distance = getattr(loss, "distance", None) or getattr(getattr(loss, "loss", None), "distance", None)
    embeddings, labels = _row(*_moved("positive", 0, 0.5), dimension)
    found = pair_weights(_summed(loss), embeddings, labels)
    if distance is None or not found.given:
        return False
    with torch.no_grad():
        expected = distance(embeddings) * _pml.sign(distance)
    return found.similarity.shape == expected.shape and torch.allclose(found.similarity, expected)


def weight_lines(loss: nn.Module, grid: Tensor, *, dimension: int = 8) -> Mapping[Kind, list[list[float]]]:
    """Weight of one positive and of one negative pair along a grid of similarities, a line for each of `CASES`.

    An anchor has positives of cosine similarity 0.5 and 0.7 and negatives of 0.6, 0.5 and 0.4. Along the grid varies
    the similarity of the pair itself, that of the anchor's other positives, or that of its other negatives. Anchors are
    summed, whatever the reducer of the loss, and each line is relative to the largest weight of its kind.

    Args:
        loss: one that `compares_samples`.
        grid: similarities, [k].
        dimension: dimension of the embeddings, at least 6, for losses that depend on it.

    Raises:
        NoPairWeightsError: the loss has no pair weights.
    """
    summed = _summed(loss)
    columns: tuple[tuple[Kind, int], ...] = (("positive", 1), ("negative", 1 + len(_POSITIVES)))
    found: dict[Kind, list[list[float]]] = {}
    for kind, column in columns:
        lines = [
            [_weight(summed, *_moved(kind, case, float(score)), dimension, column) for score in grid]
            for case in range(len(CASES))
        ]
        top = max(map(max, lines)) or 1.0
        found[kind] = [[weight / top for weight in line] for line in lines]
    return found
