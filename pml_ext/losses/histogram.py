"""The histogram loss."""

from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments, thresholds
from pml_ext.base import BatchLoss
from pml_ext.bins import looked_up, sums_of_rows
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import LossArguments


def histogram(sim: Tensor, pos: Tensor, neg: Tensor, *, n_bins: int, center: float) -> Tensor:
    """Histogram loss of each batch: sim, pos, neg [.., n, m] -> [..]. See `HistogramLoss`."""
    return histogram_of(bin_sums(sim, pos, neg, n_bins=n_bins, center=center))


def bin_sums(sim: Tensor, pos: Tensor, neg: Tensor, *, n_bins: int, center: float) -> Tensor:
    """Of each bin how many scores are in it, and what they give to its upper node: sim, pos, neg [.., n, m].

    Sums over rows: [.., number and share, positives and negatives, bins].
    """
    place = (sim - center + 1).clamp(0, 2).mul(n_bins / 2)
    with torch.no_grad():
        # The bin of a NaN is any; its share of the upper node is NaN.
        node = place.floor().clamp_(max=n_bins - 1).nan_to_num_(0.0)
    upper = place - node
    # Bins of the positives, then of the negatives, then one for all other pairs.
    node = torch.where(pos, node, torch.where(neg, node + n_bins, 2 * n_bins)).long()

    def per_bin(values: Tensor) -> Tensor:
        # Per anchor first: the sum of millions of shares in one number would lose them in float32.
        rows = sim.new_zeros(*sim.shape[:-1], 2 * n_bins + 1).scatter_add(-1, node, values)
        bins: Tensor = rows.sum(-2)[..., :-1].unflatten(-1, (2, n_bins))
        return bins  # [.., positives and negatives, bins]

    return torch.stack((per_bin(torch.ones_like(sim)), per_bin(upper)), dim=-3)


def histogram_of(sums: Tensor) -> Tensor:
    """The loss from the sums over all rows."""
    numbers, uppers = sums.unbind(-3)
    # What a bin does not give to its upper node it gives to its lower one.
    nodes = F.pad(uppers, (1, 0)) + F.pad(numbers - uppers, (0, 1))
    of_pos, of_neg = (nodes / numbers.sum(-1, keepdim=True).clamp(min=1)).unbind(-2)
    return (of_neg * of_pos.cumsum(-1)).sum(-1)


def histogram_weights(sides: Sides, *, n_bins: int, center: float) -> SideWeights:
    """Histogram loss of a batch and its pair weights in closed form.

    What a score in bin b gives to node b + 1 it takes from node b: its weight is the derivative by their difference.
    """
    n_pos, n_neg = sides.pos_count.sum().clamp(min=1), sides.neg_count.sum().clamp(min=1)
    # What is absent lies at the end of the range, the positives' at the upper one.
    of_pos = _nodes(sides.pos, n_bins, center, sides.pos.numel() - sides.pos_count.sum(), n_bins) / n_pos
    of_neg = _nodes(sides.neg, n_bins, center, sides.neg.numel() - sides.neg_count.sum(), 0) / n_neg
    loss = (of_neg * of_pos.cumsum(0)).sum().to(sides.neg.dtype)
    pos = _of_bins(sides.pos, of_neg[:-1] * (-n_bins / 2 / n_pos), center)
    return SideWeights(loss, pos, _of_bins(sides.neg, of_pos[1:] * (n_bins / 2 / n_neg), center))


def _nodes(scores: Tensor, n_bins: int, center: float, absent: Tensor, at: int) -> Tensor:
    """The scores' sums at the n_bins + 1 nodes, less those that are absent, at one of these."""
    numbers, uppers = scores.new_zeros(2, n_bins, dtype=torch.float64)
    for block in _blocks(scores):
        bins, upper, _ = _places(block, n_bins, center)
        # Per anchor first: the sum of millions of shares in one number would lose them in float32.
        for total, rows in zip((numbers, uppers), sums_of_rows(bins, upper, n_bins), strict=True):
            total += rows.sum(0, dtype=torch.float64)
    nodes = F.pad(uppers, (1, 0)) + F.pad(numbers - uppers, (0, 1))
    nodes[at] -= absent
    return nodes


def _of_bins(scores: Tensor, slopes: Tensor, center: float) -> Tensor:
    """For each score the slope in its bin, 0 beyond the range; overwrites the scores."""
    slopes = slopes.to(scores.dtype)
    for block in _blocks(scores):
        bins, _, inside = _places(block, len(slopes), center)
        block.copy_(looked_up(slopes, bins).mul_(inside))
    return scores


def _places(scores: Tensor, n_bins: int, center: float) -> tuple[Tensor, Tensor, Tensor]:
    """The bin of each score, the share of its upper node, and 1 for scores in the range, 0 beyond."""
    reach = scores.sub(center - 1)
    place = reach.clamp(0, 2)
    inside = torch.eq(reach, place, out=reach)
    # The bin of a NaN is any; its share of the upper node is NaN.
    node = place.mul_(n_bins / 2).floor().clamp_(max=n_bins - 1).nan_to_num_(0.0)
    return node, place.sub_(node), inside


def _blocks(scores: Tensor) -> tuple[Tensor, ...]:
    """Rows whose temporaries stay in a core's cache."""
    blocks: tuple[Tensor, ...] = scores.split(max(1, thresholds.HISTOGRAM_BLOCK // scores.shape[1]))
    return blocks


@final
class HistogramLoss(BatchLoss):
    r"""The probability that a random negative pair is at least as similar as a random positive pair, from histograms.

    The scores of all positive and of all negative pairs are turned into histograms with n_bins + 1 nodes t_r from
    center - 1 to center + 1, where each score is split linearly between its two nearest nodes (at a distance of Delta):

        L = sum_r h-_r sum_{q <= r} h+_q,   h_r = mean over the pairs of [1 - |s - t_r| / Delta]+

    Args:
        n_bins: number of bins, at least 1, one less than the number of nodes.
        center: middle of the range of the histograms, which has length 2 and to which scores are clamped; a level of
            the distance (1 for `LpDistance`, whose values lie between 0 and 2 for normalized embeddings).
        kwargs: those of every PML loss.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, needs a positive and a negative pair in the batch. The loss of a batch is one number, so the
        reducer has no effect.

    Source:
        Ustinova, Lempitsky, "Learning Deep Embeddings with Histogram Loss", NIPS 2016, arXiv 1611.00822, with
        n_bins + 1 = R of the paper. A drop-in for PML's `HistogramLoss`, which raises for a similarity of 1 (two equal
        embeddings) and takes no `ref_emb`; with an `indices_tuple` PML counts a pair and its mirror image once, here
        both count. The original code finds bins by float equality and loses most pairs in float32, unless n_bins is a
        power of two.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> HistogramLoss()(embeddings, labels)
        tensor(0.2500)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(histogram_weights)
    levels: ClassVar[tuple[str, ...]] = ("center",)

    def __init__(self, *, n_bins: int = 100, center: float = 0, **kwargs: Unpack[LossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(n_bins=arguments.count("n_bins", n_bins), center=arguments.finite("center", center))

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_batch(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Histogram loss of the batch."""
        return histogram(sim, pos, neg, **self.hyperparameters())
