"""What accelerated miners choose from, and the pairs that a rule for each row selects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.incidence import PAIRS, Incidence
from pml_ext.stock.mined import Lists, Mined
from pml_ext.stock.miner_scores import MinerScores
from pml_ext.stock.negatives import Counted, Made, Negatives


@dataclass(frozen=True)
class Batch:
    """What a miner chooses from.

    Args:
        scores: [n, m], as its distance computes them.
        pairs: all pairs that the labels define.
    """

    scores: MinerScores
    pairs: Incidence

    def part(self, start: int, stop: int) -> Part:
        """The rows from `start` to `stop`."""
        pairs = self.pairs.rows(start, stop)
        distances = self.scores.distances(start, stop)
        return Part(distances, distances.gather(1, pairs.positives), pairs.counts > 0, pairs.negatives)


@dataclass(frozen=True)
class Part:
    """Some rows of a batch.

    Args:
        distances: [r, m], smaller is nearer; may be overwritten.
        near: [r, k], distances of the positives.
        there: [r, k], which of the k columns hold a positive.
        negatives: those that the labels define.
    """

    distances: Tensor
    near: Tensor
    there: Tensor
    negatives: Negatives


# For some rows: which positives are kept [r, k], and the kept negatives as 1 and 0 [r, m].
Rule = Callable[[Part], tuple[Tensor, Tensor]]


def multi_similarity(miner: Any) -> Rule:
    """Positives beyond the nearest negative minus epsilon, negatives within the farthest positive plus epsilon."""
    epsilon = miner.epsilon

    def rule(part: Part) -> tuple[Tensor, Tensor]:
        farthest = _extreme(part.near.masked_fill(~part.there, -torch.inf), largest=True)
        far = part.negatives.blank(part.distances, torch.inf)
        nearest = _extreme(far, largest=False)
        torch.lt(far.sub_(epsilon), farthest[:, None], out=far)
        return part.there & (part.near + epsilon > nearest[:, None]), far

    return rule


def pair_margin(miner: Any) -> Rule:
    """Positives beyond one margin, negatives within another."""
    sign = -1.0 if miner.distance.is_inverted else 1.0
    nearest, farthest = sign * miner.pos_margin, sign * miner.neg_margin

    def rule(part: Part) -> tuple[Tensor, Tensor]:
        far = part.negatives.blank(part.distances, torch.inf)
        return part.there & (part.near > nearest), torch.lt(far, farthest, out=far)

    return rule


def _extreme(values: Tensor, *, largest: bool) -> Tensor:
    if values.shape[1] == 0:
        return values.new_full((len(values),), -torch.inf if largest else torch.inf)
    return values.amax(1) if largest else values.amin(1)


def by_rule(batch: Batch, rule: Rule, *, by_score: bool) -> Mined:
    """The pairs that a rule chooses; the negatives are chosen anew whenever they are needed.

    Args:
        batch: the pairs to choose from.
        rule: which of them to keep.
        by_score: whether the lists of a row are ordered by score; else by column.
    """
    like = batch.pairs.counts
    counts, lengths = torch.empty_like(like), like.new_empty(len(like))
    for start, stop in batch.scores.parts:
        near, far = rule(batch.part(start, stop))
        counts[start:stop], lengths[start:stop] = near, far.sum(1)

    def make(start: int, stop: int) -> Negatives:
        return Counted(rule(batch.part(start, stop))[1], False, lengths[start:stop])

    negatives = Made(make, 0, len(like), lengths)
    found = replace(batch.pairs, kind=PAIRS, counts=counts, negatives=negatives)
    scores = batch.scores if by_score else None
    return Mined(4, batch.scores.shape, lambda: listed(found, batch.scores.parts, scores), lambda: found, batch.scores)


def listed(pairs: Incidence, parts: list[tuple[int, int]], order: MinerScores | None = None) -> Lists:
    """Index lists of positives and negatives, sorted by row, then by column or by the scores in `order`."""
    near: list[Tensor] = [torch.empty(2, 0, dtype=torch.long, device=pairs.counts.device)]
    far = list(near)
    for start, stop in parts:
        part = pairs.rows(start, stop)
        rows, slots = (part.counts > 0).nonzero(as_tuple=True)
        like = torch.empty(stop - start, pairs.columns, device=rows.device)
        for into, found in (
            (near, (rows, part.positives[rows, slots])),
            (far, part.negatives.present(like).nonzero(as_tuple=True)),
        ):
            rows, columns = found if order is None else _by_score(order.rows(start, stop), *found)
            into.append(torch.stack([rows + start, columns]))
    return *torch.cat(near, 1).unbind(), *torch.cat(far, 1).unbind()


def _by_score(scores: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort(scores[rows, columns], stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    return rows[order], columns[order]


def hard_share(miner: Any, batch: Batch) -> Mined:
    """The hardest share of all pairs of the batch: the farthest positives, the nearest negatives; hardest first."""
    pairs, scores = batch.pairs, batch.scores.rows(0, len(batch.pairs.counts))
    far_is_largest = batch.scores.sign > 0
    rows, slots = (pairs.counts > 0).nonzero(as_tuple=True)
    columns = pairs.positives[rows, slots]
    first = _first(scores[rows, columns], miner.filter_percentage, largest=far_is_largest)
    near = torch.zeros_like(pairs.counts)
    near[rows[first], slots[first]] = 1
    there = pairs.negatives.present(scores)
    values = scores[there]
    number = _number(values, miner.filter_percentage)
    keep = _share(values, number, largest=not far_is_largest).to(scores.dtype)
    far = torch.zeros_like(scores).masked_scatter_(there, keep)
    found = replace(pairs, kind=PAIRS, counts=near, negatives=Counted(far, False, far.sum(1)))

    def lists() -> Lists:
        order = torch.topk(scores[there], number, largest=not far_is_largest).indices
        others, negatives = there.nonzero(as_tuple=True)
        return rows[first], columns[first], others[order], negatives[order]

    return Mined(4, batch.scores.shape, lists, lambda: found, batch.scores)


def _number(values: Tensor, share: float) -> int:
    return math.ceil(share * len(values))


def _first(values: Tensor, share: float, *, largest: bool) -> Tensor:
    return torch.topk(values, _number(values, share), largest=largest).indices


def _share(values: Tensor, number: int, *, largest: bool) -> Tensor:
    """Which values are the `number` largest or smallest; among equal values those that topk takes, as in PML."""
    if number == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    level = values.kthvalue(len(values) - number + 1 if largest else number).values
    keep = values >= level if largest else values <= level
    if int(keep.sum()) == number:
        return keep
    keep = torch.zeros_like(keep)
    keep[torch.topk(values, number, largest=largest).indices] = True
    return keep
