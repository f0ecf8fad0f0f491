"""Losses of all pairs at once by own rows: what they need of the others are sums over rows, and a few extremes.

A sum over the rows of all processes is one number everywhere, with own rows' part of the gradient (`ranks.add_up`); one
that every process goes on to use in its own rows gets the gradients of all of them back (`ranks.total`). Scores are
computed in blocks of rows, and once more in the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_ext import thresholds
from pml_ext.base import BatchLoss
from pml_ext.losses import HistogramLoss, LiftedStructureLoss, MeanGapLoss
from pml_ext.losses.histogram import bin_sums, histogram_of
from pml_ext.losses.mean_gap import number_kept, slack
from pml_ext.masked import masked_logsumexp, unknown
from pml_ext.ranks import Group, add_up, total
from pml_ext.vectors import in_full
from pml_ext.wrappers.distributed_batch import AllPairs, OwnPairs, Shard, own_pairs

# Scores, positives and negatives of a block of rows [b, m], and its first row, to what is found of it.
OfBlock = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, ...]]


class Blocks:
    """Own rows of the matrix of all pairs, in blocks.

    Args:
        loss: whose scores they have.
        shard: own anchors and all references.
        pairs: None for all, by labels.
    """

    def __init__(self, loss: BatchLoss, shard: Shard, pairs: AllPairs | OwnPairs | None) -> None:
        self.loss, self.group = loss, shard.ranks.group
        x, refs = in_full(shard.own, shard.refs)
        assert refs is not None
        self.x, self.refs = x, refs
        self.pos, self.neg = own_pairs(shard, pairs)
        rows = max(1, thresholds.SUMMED_SCORES // max(len(self.refs), 1))
        # None is a block too, of the right shape.
        self.starts = range(0, max(len(self.x), 1), rows)
        self.rows = rows

    def _block(self, of_block: OfBlock, start: int, x: Tensor, refs: Tensor) -> tuple[Tensor, ...]:
        rows = slice(start, start + self.rows)
        pos, neg = self.pos[rows], self.neg[rows]
        sim = self.loss.similarity(x, refs)
        return of_block(torch.where(pos | neg, sim, 0.0), pos, neg, start)

    @torch.no_grad()
    def look(self, of_block: OfBlock) -> list[tuple[Tensor, ...]]:
        """What is found of each block, without a gradient."""
        return [self._block(of_block, start, self.x[start : start + self.rows], self.refs) for start in self.starts]

    def learn(self, of_block: OfBlock) -> list[tuple[Tensor, ...]]:
        """The same with one; scores are not kept."""
        return [
            checkpoint(
                partial(self._block, of_block, start),
                self.x[start : start + self.rows],
                self.refs,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in self.starts
        ]

    def numbers(self) -> tuple[int, int]:
        """How many positive and negative pairs all processes have."""
        both = torch.stack((self.pos.sum(), self.neg.sum()))
        pos, neg = self.group.all_reduce(both).tolist()
        return int(pos), int(neg)


def sums_pay(loss: BatchLoss, scores: int) -> bool:
    """Whether the sums are better than the whole batch on every process, which has so many scores."""
    return type(loss) in OF_KIND and (isinstance(loss, HistogramLoss) or scores > thresholds.SUMMED_FROM)


def by_sums(loss: BatchLoss, shard: Shard, pairs: AllPairs | OwnPairs | None) -> Tensor:
    """The loss of the pairs of all processes."""
    blocks = Blocks(loss, shard, pairs)
    n_pos, n_neg = blocks.numbers()
    if not (n_pos and n_neg):
        return blocks.x.new_zeros(())
    of_kind: Callable[..., Tensor] = OF_KIND[type(loss)]
    return of_kind(blocks, n_pos, n_neg, **loss.hyperparameters())


def _histogram(blocks: Blocks, n_pos: int, n_neg: int, *, n_bins: int, center: float) -> Tensor:
    def sums(sim: Tensor, pos: Tensor, neg: Tensor, start: int) -> tuple[Tensor, ...]:
        return (bin_sums(sim, pos, neg, n_bins=n_bins, center=center).double(),)

    return histogram_of(add_up(_sum(blocks.learn(sums)), blocks.group)).to(blocks.x.dtype)


def _lifted_structure(blocks: Blocks, n_pos: int, n_neg: int, *, neg_margin: float, pos_margin: float) -> Tensor:
    group = blocks.group

    def largest(sim: Tensor, pos: Tensor, neg: Tensor, start: int) -> tuple[Tensor, ...]:
        push = (sim - neg_margin).masked_fill(~neg, -torch.inf)
        return (torch.cat((push, push.new_full((1, push.shape[1]), -torch.inf))).amax(0),)

    # Of each column, over the rows of all processes.
    top = _largest(torch.stack([found for (found,) in blocks.look(largest)]).amax(0), group)
    top = torch.where(top == -torch.inf, 0.0, top)

    def exponentials(sim: Tensor, pos: Tensor, neg: Tensor, start: int) -> tuple[Tensor, ...]:
        return ((sim - neg_margin - top).masked_fill(~neg, -torch.inf).exp().sum(0),)

    sums = total(_sum(blocks.learn(exponentials)), group)
    empty = torch.finfo(top.dtype).min  # as `masked_logsumexp` has it
    of_positive = torch.where(sums > 0, torch.where(sums > 0, sums, 1.0).log() + top, empty)

    def terms(sim: Tensor, pos: Tensor, neg: Tensor, start: int) -> tuple[Tensor, ...]:
        of_anchor = masked_logsumexp(sim - neg_margin, neg).unsqueeze(-1)
        violation = torch.relu(pos_margin - sim + torch.logaddexp(of_anchor, of_positive))
        return (torch.where(pos, violation.square(), 0.0).sum(-1).sum() + unknown(sim).sum(),)

    return add_up(_sum(blocks.learn(terms)), group) / (2 * n_pos)


def _mean_gap(blocks: Blocks, n_pos: int, n_neg: int, *, fraction: float) -> Tensor:
    kept = number_kept(n_pos, fraction)
    if kept == 0:
        return blocks.x.new_zeros(())
    pos, neg = _Nearest(blocks, kept, 0), _Nearest(blocks, min(kept, n_neg), 1)
    margin = slack(torch.maximum(pos.extreme, neg.extreme))

    def gap(sim: Tensor, is_pos: Tensor, is_neg: Tensor, start: int) -> tuple[Tensor, ...]:
        pull = pos.weights(sim, is_pos) * (sim < neg.mean - margin)
        push = neg.weights(sim, is_neg) * (sim > pos.mean + margin)
        # From the means: sums of differences from them are small.
        of_pull, of_push = ((sim - mean) * weights for mean, weights in ((pos.mean, pull), (neg.mean, push)))
        numbers = torch.stack([weights.sum(-1).sum() for weights in (pull, push)])
        return torch.stack([each.sum(-1).sum() for each in (of_pull, of_push)]), numbers, unknown(sim).sum()

    sums, numbers, strange = (add_up(x, blocks.group) for x in map(_sum_of, zip(*blocks.learn(gap), strict=True)))
    numbers = numbers.detach()
    means = torch.where(numbers > 0, torch.stack((pos.mean, neg.mean)) + sums / numbers.clamp(min=1e-30), 0.0)
    return means[1] - means[0] + strange


class _Nearest:
    """The k largest scores of one side over all processes; equal ones that are last share what is left.

    Attributes:
        mean: theirs.
        extreme: the largest absolute value among them.
    """

    def __init__(self, blocks: Blocks, k: int, side: int) -> None:
        self.group, self.side = blocks.group, side

        def candidates(sim: Tensor, pos: Tensor, neg: Tensor, start: int) -> tuple[Tensor, ...]:
            scores = sim.masked_fill(~(pos, neg)[side], -torch.inf).flatten()
            return (scores.topk(min(k, len(scores))).values,)

        own = torch.cat([found for (found,) in blocks.look(candidates)])
        own = own.topk(min(k, len(own))).values
        padded = own.new_full((k,), -torch.inf)
        padded[: len(own)] = own
        scores = self.group.all_gather(padded).flatten().topk(k).values
        self.last = scores[-1]
        self.mean = scores[0] + (scores - scores[0]).mean()
        self.extreme = scores.abs().amax()

        def equal(sim: Tensor, pos: Tensor, neg: Tensor, start: int) -> tuple[Tensor, ...]:
            return (((sim == self.last) & (pos, neg)[side]).sum(),)

        number = self.group.all_reduce(_sum(blocks.look(equal)))
        left = k - (scores > self.last).sum()
        self.share = left.to(scores.dtype) / number.clamp(min=1)

    def weights(self, sim: Tensor, mask: Tensor) -> Tensor:
        """How far each of some scores is one of them, 0..1."""
        sim = sim.detach()
        return mask * ((sim > self.last) + (sim == self.last) * self.share)


def _sum(found: list[tuple[Tensor, ...]]) -> Tensor:
    """The sum over blocks of which one thing was found each."""
    return _sum_of(tuple(each for (each,) in found))


def _sum_of(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(parts).sum(0)


def _largest(x: Tensor, group: Group) -> Tensor:
    return group.all_gather(x).amax(0)


OF_KIND: dict[type, Any] = {
    HistogramLoss: _histogram,
    LiftedStructureLoss: _lifted_structure,
    MeanGapLoss: _mean_gap,
}
