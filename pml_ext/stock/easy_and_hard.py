"""One positive and one negative for each row: the easiest, the hardest or a semi-hard one. The lists are short."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.chosen import Batch
from pml_ext.stock.incidence import Incidence, by_lists
from pml_ext.stock.mined import Mined
from pml_ext.stock.negatives import Counted

# Score and column of the chosen pair of each row, and whether there is one; among equal scores the first, as in PML.
One = tuple[Tensor, Tensor, Tensor]


def easy_and_hard(miner: Any, batch: Batch) -> Mined:
    """Index lists: anchors, positives, anchors, negatives."""
    parts = [_of_rows(miner, batch, start, stop) for start, stop in batch.scores.parts]
    rows, positives, negatives = torch.cat(parts, 1).unbind()
    lists = rows, positives, rows, negatives
    counts, scores = batch.pairs.counts, batch.scores

    def incidence() -> Incidence:
        return by_lists(lists, *scores.shape[:2], counts, by_rows=not scores.are_kept, is_apart=True)

    return Mined(4, scores.shape, lambda: lists, incidence, scores)


def _of_rows(miner: Any, batch: Batch, start: int, stop: int) -> Tensor:
    scores, pairs, is_similar = batch.scores.rows(start, stop), batch.pairs.rows(start, stop), batch.scores.sign < 0
    if miner.pos_strategy == miner.SEMIHARD:
        negatives = _negative(miner, scores, pairs, is_similar, None)
        positives = _positive(miner, scores, pairs, is_similar, negatives[0])
    else:
        positives = _positive(miner, scores, pairs, is_similar, None)
        bound = positives[0] if miner.neg_strategy == miner.SEMIHARD else None
        negatives = _negative(miner, scores, pairs, is_similar, bound)
    (rows,) = (positives[2] & negatives[2]).nonzero(as_tuple=True)
    return torch.stack([rows + start, positives[1][rows], negatives[1][rows]])


def _positive(miner: Any, scores: Tensor, pairs: Incidence, is_similar: bool, bound: Tensor | None) -> One:
    """The positive with the largest or smallest score; their columns are in ascending order."""
    largest = (miner.pos_strategy == miner.EASY) == is_similar
    values, worst = scores.gather(1, pairs.positives), _worst(scores, largest)
    if not values.shape[1]:
        return values.new_zeros(len(values)), pairs.positives.new_zeros(len(values)), pairs.counts.any(1)
    keep = _allowed(values, miner.allowed_pos_range, bound, largest)
    there = pairs.counts > 0 if keep is None else (pairs.counts > 0) & (keep > 0)
    values = values.masked_fill(~there, worst)
    found = values.max(1) if largest else values.min(1)
    return found.values, pairs.positives.gather(1, found.indices[:, None]).squeeze(1), there.any(1)


def _negative(miner: Any, scores: Tensor, pairs: Incidence, is_similar: bool, bound: Tensor | None) -> One:
    largest = (miner.neg_strategy == miner.EASY) != is_similar
    worst = _worst(scores, largest)
    candidates = pairs.negatives.blank(scores.clone(), worst)
    keep = _allowed(scores, miner.allowed_neg_range, bound, largest)
    if keep is not None:
        candidates = Counted(keep, False, keep).blank(candidates, worst)
    values = candidates.amax(1) if largest else candidates.amin(1)
    # Falling numbers make the first of equal scores a maximum: argmax or nonzero would take ten times as long.
    falling = torch.arange(scores.shape[1], 0, -1, dtype=scores.dtype, device=scores.device)
    equal = torch.eq(candidates, values[:, None], out=candidates).mul_(falling)
    return values, (scores.shape[1] - equal.amax(1)).long(), values != worst


def _worst(scores: Tensor, largest: bool) -> float:
    """A value that no search for the largest, or smallest, score finds."""
    limits = torch.finfo(scores.dtype)
    return limits.min if largest else limits.max


def _allowed(values: Tensor, limits: Any, bound: Tensor | None, largest: bool) -> Tensor | None:
    """1 where scores are within the limits and beyond the bound, 0 elsewhere; None if there is neither."""
    tests = [] if limits is None else [(torch.ge, limits[0]), (torch.le, limits[1])]
    if bound is not None:
        tests.append((torch.lt if largest else torch.gt, bound[:, None]))
    keep = None
    for compare, level in tests:
        found = compare(values, level, out=torch.empty_like(values))
        keep = found if keep is None else keep.mul_(found)
    return keep
