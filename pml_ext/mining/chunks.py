"""The search for positives and negatives of some anchors at a time, and what is kept of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext.miners.positive_aware import ceilings
from pml_ext.mining.draws import keys
from pml_ext.mining.scores import Scores
from pml_ext.mining.tuples import MinedTuples


@dataclass(frozen=True)
class Rule:
    """Which references are taken: the arguments of `mine`."""

    num_positives: int
    num_negatives: int
    positives: str
    is_random: bool
    range_min: int
    range_max: int | None
    absolute_margin: float | None
    relative_margin: float | None
    max_score: float | None
    min_score: float | None
    reference: str
    of_pairs: bool
    one_per_class: bool

    @property
    def filters(self) -> list[str]:
        """The names of the filters in use."""
        names = ("absolute_margin", "relative_margin", "max_score", "min_score")
        return [name for name in names if getattr(self, name) is not None] + ["one_per_class"] * self.one_per_class

    @property
    def has_margins(self) -> bool:
        """Whether a limit is relative to a positive."""
        return self.absolute_margin is not None or self.relative_margin is not None

    @property
    def needs_positive(self) -> bool:
        """Whether an anchor without a positive has no tuple."""
        return self.num_positives > 0 or self.positives == "all" or self.has_margins


class Tuples(NamedTuple):
    """Indices and scores of t tuples, a row each."""

    anchors: Tensor  # [t]
    positives: Tensor  # [t, kp]
    negatives: Tensor  # [t, kn]
    positive_scores: Tensor
    negative_scores: Tensor


class Found(NamedTuple):
    """What was found for some anchors, how many candidates were looked at, and how many each filter dropped."""

    tuples: Tuples
    looked_at: int
    dropped: dict[str, int]


class Gathered:
    """What was found for one chunk after another, copied to one place.

    Small tensors that stay behind among large ones that are freed would take the place of the next large ones.

    Args:
        nothing: what is found for no anchors.
        size: how many tuples to expect.
    """

    def __init__(self, nothing: Found, size: int) -> None:
        self.looked_at, self.dropped, self.count = 0, nothing.dropped, 0
        self.rows = Tuples(*(each.new_empty(size, *each.shape[1:]) for each in nothing.tuples))

    def add(self, found: Found) -> None:
        """Those of some more anchors."""
        self.looked_at += found.looked_at
        self.dropped = {name: count + found.dropped[name] for name, count in self.dropped.items()}
        size, stop = len(self.rows.anchors), self.count + len(found.tuples.anchors)
        if stop > size:
            before, after = self.tuples(), max(stop, 2 * size)
            self.rows = Tuples(*(each.new_empty(after, *each.shape[1:]) for each in before))
            self._put(before, 0)
        self._put(found.tuples, self.count)
        self.count = stop

    def _put(self, some: Tuples, start: int) -> None:
        for rows, each in zip(self.rows, some, strict=True):
            rows[start : start + len(each)] = each

    def tuples(self) -> Tuples:
        """All that were added, and no more memory than that."""
        is_full = self.count == len(self.rows.anchors)
        return self.rows if is_full else Tuples(*(each[: self.count].clone() for each in self.rows))


class Search:
    """The search of some anchors at a time."""

    def __init__(
        self,
        *,
        rule: Rule,
        scores: Scores,
        sign: float,
        ids: Tensor,
        ref_ids: Tensor,
        groups: Tensor | None,
        is_own: bool,
        seed: int,
    ) -> None:
        self.rule, self.scores, self.sign, self.seed = rule, scores, sign, seed
        self.ids, self.ref_ids, self.groups, self.is_own = ids, ref_ids, groups, is_own
        # The references by class: class c has those from starts[c] to starts[c + 1] of the order.
        self.order = ref_ids.argsort(stable=True)
        classes = int(torch.cat([ids, ref_ids]).amax()) + 1 if len(ids) + len(ref_ids) else 0
        self.sizes = torch.bincount(ref_ids, minlength=classes)
        self.starts = self.sizes.cumsum(0) - self.sizes
        most = int(self.sizes.amax()) if classes else 0
        self.num_positives = max(most - is_own, 1) if rule.positives == "all" else rule.num_positives

    def chunk(self, rows: Tensor, candidates: Tensor | None) -> Found:
        """The tuples of some anchors [b]."""
        members, is_member = self._members(rows)
        block = self.scores.block(rows) if candidates is None else None
        of_members = self.scores.pairs(rows, members) if block is None else block.gather(1, members)
        is_positive = is_member & ~self._is_barred(rows, members)
        reference = self._reference(rows, of_members, members, is_positive, block)
        positives, positive_scores = self._positives(rows, of_members, members, is_positive, block)
        if block is not None:
            # What fills up is of the class too, unless that has no reference at all.
            of_class = self.ref_ids[members] == self.ids[rows].unsqueeze(1)
            block.scatter_(1, members, of_members.masked_fill(of_class, -torch.inf))
        rank = self._ranking(rows, block, candidates)
        # One line of the search for each anchor, or for each of its positives.
        line = torch.arange(len(rows), device=rows.device)
        if self.rule.of_pairs:
            width = positives.shape[1]
            line = line.repeat_interleave(width)
            reference = positive_scores.flatten()
            positives, positive_scores = positives.reshape(-1, 1), positive_scores.reshape(-1, 1)
            kept = positives[:, 0] >= 0
            # An anchor without positives keeps one line.
            kept |= (torch.arange(len(line), device=line.device) % max(width, 1) == 0) & (positives[:, 0] < 0)
            line, reference, positives, positive_scores = (
                y[kept] for y in (line, reference, positives, positive_scores)
            )
        limit = len(self.ref_ids) if candidates is None else candidates.shape[1]
        negatives, negative_scores, looked_at, dropped = self._negatives(rows, line, reference, rank, limit)
        found = Tuples(rows[line], positives, negatives, positive_scores, negative_scores)
        return Found(found, looked_at, dropped)

    def _members(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The references of the class of each row [b, most], and which of them are no repetition to fill up."""
        ids = self.ids[rows]
        sizes, starts = self.sizes[ids].unsqueeze(1), self.starts[ids].unsqueeze(1)
        places = torch.arange(int(sizes.amax()) if len(rows) else 0, device=rows.device)
        at = starts + torch.minimum(places, sizes - 1).clamp_min(0)
        return self.order[at.clamp_max(max(len(self.order) - 1, 0))], places < sizes

    def _is_barred(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which references are the anchor itself or of its group, [b, k]."""
        barred = (columns == rows.unsqueeze(1)) & self.is_own
        if self.groups is not None:
            own = self.groups[rows].unsqueeze(1)
            barred |= (own == self.groups[columns]) & (own >= 0)
        return barred

    def _best(
        self, rows: Tensor, values: Tensor, members: Tensor, k: int, sign: int, block: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The k members that are largest times the sign, equals by index: scores [b, k], columns [b, k].

        Values that are -inf times the sign are absent.
        """
        k = min(k, members.shape[1])
        signed = sign * values
        if block is not None and self.scores.is_product and k:
            # What the product may have put on the wrong side of the cut is scored again.
            last = signed.topk(k).values[:, -1:]
            near = (signed >= last - 2 * self.scores.error) & (signed > -torch.inf)
            width = int(near.sum(1).amax()) if len(rows) else 0
            chosen = near.float().topk(max(width, k), dim=1).indices.sort(1).values
            members, near = members.gather(1, chosen), near.gather(1, chosen)
            exact = self.scores.pairs(rows, members)
            signed = torch.where(near, sign * exact, -torch.inf)
        # Members of one class stand in the order of their indices, and the sort is stable.
        signed, order = signed.sort(dim=1, descending=True, stable=True)
        return sign * signed[:, :k], members.gather(1, order)[:, :k]

    def _reference(
        self, rows: Tensor, values: Tensor, members: Tensor, is_positive: Tensor, block: Tensor | None
    ) -> Tensor:
        """The score of its positives from which an anchor's margins start, [b]; not a number without positives."""
        none = values.new_full((len(rows),), torch.nan)
        if not self.rule.has_margins or not members.shape[1]:
            return none
        if self.rule.reference == "mean":
            total = torch.where(is_positive, values.double(), 0.0).sum(1)
            return (total / is_positive.sum(1)).to(values.dtype)
        sign = 1 if self.rule.reference == "max" else -1
        values = values.masked_fill(~is_positive, -sign * torch.inf)
        best, _ = self._best(rows, values, members, 1, sign, block)
        return torch.where(is_positive.any(1), best[:, 0], none)

    def _positives(
        self, rows: Tensor, values: Tensor, members: Tensor, is_positive: Tensor, block: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The positives of each anchor [b, kp] and their scores, -1 and not a number where there is none."""
        kp = self.num_positives
        k = min(kp, members.shape[1])
        columns, scores = rows.new_full((len(rows), kp), -1), values.new_full((len(rows), kp), torch.nan)
        if k and self.rule.positives == "random":
            drawn = keys(self.seed, rows.unsqueeze(1), members).masked_fill_(~is_positive, torch.iinfo(torch.int64).max)
            chosen = drawn.argsort(dim=1, stable=True)[:, :k]
            there, places = is_positive.gather(1, chosen), members.gather(1, chosen)
            exact = self.scores.pairs(rows, places) if self.scores.is_product else values.gather(1, chosen)
        elif k:
            sign = 1 if self.rule.positives == "easiest" else -1
            values = values.masked_fill(~is_positive, -sign * torch.inf)
            exact, places = self._best(rows, values, members, k, sign, block)
            there = exact.isfinite()
        if k:
            columns[:, :k] = torch.where(there, places, -1)
            scores[:, :k] = torch.where(there, exact, torch.nan)
        return columns, scores

    def _ranking(
        self, rows: Tensor, block: Tensor | None, candidates: Tensor | None
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """A function that gives the first k negatives of some of the rows by falling score; -inf for none.

        From a block of scores in which those of an anchor's class are -inf, or from the candidates.
        """
        if block is not None:
            if self.groups is not None:
                own = self.groups[rows].unsqueeze(1)
                block.masked_fill_((own == self.groups) & (own >= 0), -torch.inf)
            return lambda some, k: self.scores.nearest(rows[some], block if len(some) == len(rows) else block[some], k)
        assert candidates is not None
        columns, order = candidates.to(rows.device).sort(dim=1, stable=True)
        barred = columns < 0
        barred[:, 1:] |= columns[:, 1:] == columns[:, :-1]
        columns = columns.clamp_min(0)
        barred |= self._is_barred(rows, columns) | (self.ref_ids[columns] == self.ids[rows].unsqueeze(1))
        scores = self.scores.pairs(rows, columns).masked_fill_(barred, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        columns = columns.gather(1, order)
        return lambda some, k: (scores[some, :k], columns[some, :k])

    def _negatives(
        self,
        rows: Tensor,
        line: Tensor,
        reference: Tensor,
        rank: Callable[[Tensor, int], tuple[Tensor, Tensor]],
        limit: int,
    ) -> tuple[Tensor, Tensor, int, dict[str, int]]:
        """The negatives of each line [t, kn], their scores, how many were looked at, and how many each filter drops."""
        rule, kn = self.rule, self.rule.num_negatives
        negatives = line.new_full((len(line), kn), -1)
        negative_scores = reference.new_full((len(line), kn), torch.nan)
        dropped, looked_at = dict.fromkeys(rule.filters, 0), 0
        end = limit if rule.range_max is None else min(rule.range_max, limit)
        # Without a filter the first ones are those that are taken.
        first = rule.range_min + (2 * kn if rule.filters else kn)
        width = end if rule.is_random or rule.range_max is not None else min(first, limit)
        left = torch.arange(len(line), device=line.device)
        while len(left):
            anchors, of_anchor = line[left].unique(return_inverse=True)
            scores, columns = rank(anchors, width)
            scores, columns = scores[of_anchor, rule.range_min :], columns[of_anchor, rule.range_min :]
            kept, drops = self._filtered(scores, columns, reference[left])
            taken = self._taken(rows[line[left]], columns, kept)
            there = scores > -torch.inf
            missing = (taken.sum(1) < kn) & there.all(1)
            if scores.shape[1] and rule.min_score is not None:
                missing &= scores[:, -1] >= self.sign * rule.min_score
            if rule.needs_positive and rule.has_margins:
                missing &= ~reference[left].isnan()
            done = ~missing if width < end else torch.ones_like(missing)
            # Those looked at: down to the last one that is taken, or all if some are missing or drawn.
            upto = taken.flip(1).cummax(1).values.flip(1) if taken.shape[1] else taken
            whole = (taken.sum(1) < kn) | rule.is_random
            seen = there & (upto | whole.unsqueeze(1)) & done.unsqueeze(1)
            looked_at += int(seen.sum())
            for name, drop in drops.items():
                dropped[name] += int((drop & seen).sum())
            lines, places = (taken & done.unsqueeze(1)).nonzero(as_tuple=True)
            at = (taken.cumsum(1) - 1)[lines, places]
            negatives[left[lines], at] = columns[lines, places]
            negative_scores[left[lines], at] = scores[lines, places]
            left, width = left[~done], min(2 * width, end)
        if rule.is_random:
            negatives, negative_scores = self._shuffled(rows[line], negatives, negative_scores)
        return negatives, negative_scores, looked_at, dropped

    def _filtered(self, scores: Tensor, columns: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Which ranked negatives pass [t, k], and which each filter drops."""
        rule = self.rule
        levels = ceilings(
            reference.unsqueeze(1),
            absolute_margin=rule.absolute_margin,
            relative_margin=rule.relative_margin,
            max_score=None if rule.max_score is None else self.sign * rule.max_score,
        )
        # Without positives a ceiling is not a number, and nothing is below it.
        drops = {name: ~(scores < level) for name, level in levels.items()}
        if rule.min_score is not None:
            drops["min_score"] = scores < self.sign * rule.min_score
        kept = scores > -torch.inf
        for drop in drops.values():
            kept = kept & ~drop
        if rule.one_per_class and columns.shape[1]:
            # Each class is represented by the first of it that passes.
            classes = torch.where(kept, self.ref_ids[columns], -1)
            ordered, order = classes.sort(dim=1, stable=True)
            again = torch.zeros_like(kept)
            again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
            drops["one_per_class"] = torch.empty_like(kept).scatter_(1, order, again) & kept
            kept = kept & ~drops["one_per_class"]
        return kept, drops

    def _taken(self, rows: Tensor, columns: Tensor, kept: Tensor) -> Tensor:
        """Which of those that pass are taken, at most `num_negatives` of a line."""
        kn = self.rule.num_negatives
        if not self.rule.is_random:
            return kept & (kept.cumsum(1) <= kn)
        last = torch.iinfo(torch.int64).max
        drawn = keys(self.seed + 1, rows.unsqueeze(1), columns).masked_fill_(~kept, last)
        chosen = drawn.argsort(dim=1, stable=True)[:, :kn]
        return kept & torch.zeros_like(kept).scatter_(1, chosen, True)

    def _shuffled(self, rows: Tensor, columns: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The drawn negatives in random order, absent ones last."""
        last = torch.iinfo(torch.int64).max
        order = (
            keys(self.seed + 1, rows.unsqueeze(1), columns).masked_fill_(columns < 0, last).argsort(dim=1, stable=True)
        )
        return columns.gather(1, order), scores.gather(1, order)

    def empty(self) -> Found:
        """The tuples of no anchors."""
        none, scores = self.ids.new_empty(0), self.scores.embeddings.new_empty(0)
        kp, kn = 1 if self.rule.of_pairs else self.num_positives, self.rule.num_negatives
        dropped = dict.fromkeys(self.rule.filters, 0)
        return Found(
            Tuples(none, none.view(0, kp), none.view(0, kn), scores.view(0, kp), scores.view(0, kn)), 0, dropped
        )

    def tuples(self, found: Gathered) -> MinedTuples:
        """All chunks together, in the units of the distance."""
        tuples, looked_at = found.tuples(), found.looked_at
        return MinedTuples(
            anchors=tuples.anchors,
            positives=tuples.positives,
            negatives=tuples.negatives,
            positive_scores=tuples.positive_scores.mul_(self.sign),
            negative_scores=tuples.negative_scores.mul_(self.sign),
            needs_positive=self.rule.needs_positive,
            dropped={name: count / looked_at if looked_at else float("nan") for name, count in found.dropped.items()},
            looked_at=looked_at,
        )
