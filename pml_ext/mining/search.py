"""Mining over a data set: for every anchor its positives and the hardest negatives that pass the filters, exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.evaluation.knn import full_float32
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.miners.positive_aware import Reference, ceilings
from pml_ext.mining.draws import keys
from pml_ext.mining.scores import Scores
from pml_ext.mining.tuples import MinedTuples

Positives = Literal["hardest", "random", "easiest", "all"]
Strategy = Literal["top", "random"]
Per = Literal["anchor", "pair"]

# So many scores are held at once: 16 MB of float32, and a few times that beside them.
_SCORES = 1 << 22


@torch.no_grad()
def mine(
    embeddings: Array,
    labels: Array,
    *,
    references: Array | None = None,
    reference_labels: Array | None = None,
    anchors: Array | None = None,
    num_positives: int = 1,
    num_negatives: int = 5,
    positives: Positives = "hardest",
    strategy: Strategy = "top",
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    reference: Reference = "max",
    per: Per = "anchor",
    one_per_class: bool = False,
    groups: Array | None = None,
    distance: nn.Module | None = None,
    chunk_size: int | None = None,
    candidates: Array | None = None,
    generator: torch.Generator | None = None,
) -> MinedTuples:
    r"""Mine tuples over a whole data set, exactly and in bounded memory.

        N'_i = k of { n : range_min <= rank_i(n) < range_max, min_score <= c_in < tau_i }
        tau_i = min(r_i - absolute_margin, r_i - relative_margin |r_i|, max_score),  r_i = max_{p in P_i} c_ip

    where rank_i counts the negatives of anchor i by falling score c_in from 0 on, before any filter. A margin excludes
    negatives that are as near as the positives: with incomplete labels these are mostly unlabeled positives. With clean
    labels they are the very errors to learn from, and a margin does harm.

    Args:
        embeddings: [n, d], computed in eval mode, in the order of the data set.
        labels: [n], numbers or strings.
        references: [m, d], where positives and negatives come from; None (default) for the embeddings themselves.
        reference_labels: [m].
        anchors: indices of the embeddings that are anchors; None (default) for all. Several processes can share the
            work: each mines a different part of the anchors, and `MinedTuples.joined` joins the parts.
        num_positives: how many positives of each anchor, default 1; 0 for negatives only.
        num_negatives: how many negatives of each anchor, default 5.
        positives: which ones: the ``"hardest"`` (default), ``"easiest"``, ``"random"`` ones, or ``"all"``, the
            hardest first.
        strategy: ``"top"`` (default) for the hardest negatives that pass the filters, or ``"random"`` for random ones
            of all that pass. For a large data set give `range_max` with it: without, all negatives of every anchor must
            be ranked.
        range_min: the rank of the first negative to consider, default 0. With a network that is not yet trained, the
            first ranks are noise.
        range_max: the rank before which negatives are considered; None (default) for no limit.
        absolute_margin: how much less similar than r_i a negative must be, at least 0; None (default) for none.
        relative_margin: the same as a share of |r_i|, at least 0: 0.05 keeps negatives with less than 95 % of a
            positive r_i. None (default) for none.
        max_score: an upper limit on the similarity of a negative, in the units of the distance (with a distance, the
            smallest allowed one); None (default) for none.
        min_score: a lower limit on the similarity of a negative, likewise; None (default) for none.
        reference: which positive gives r_i: the nearest (``"max"``, default) or the farthest (``"min"``), or ``"mean"``
            for the mean of their scores.
        per: ``"anchor"`` (default), or ``"pair"``: each positive of an anchor has its own limit tau_i, and so its own
            negatives; the anchor then occurs once for each positive.
        one_per_class: whether to take at most one negative of each class. Default False.
        groups: [n], integers: samples of one group are neither positives nor negatives of each other (near
            duplicates, frames of one video); -1 is no group.
        distance: any PML distance; default `CosineSimilarity`. Margins are differences of its values.
        chunk_size: the number of anchors at a time; by default as many as give 2^22 scores. The tuples do not depend on
            it, except by rounding with distances other than cosine and inner products.
        candidates: [n, k] or, with `anchors`, [a, k]: references to consider instead of all, for example from an
            approximate index, which need not use labels; -1 is none. Ranks are those among the candidates.
        generator: generator of the random draws; torch's global one by default.

    Shape:
        embeddings [n, d], labels [n] -> `MinedTuples` of one row for each anchor.

    Source:
        The limits are those of NV-Retriever (de Souza Moreira et al. 2024, arXiv 2407.15831), their names those of
        sentence-transformers' ``mine_hard_negatives``; `one_per_class` and mining anew during training are those of
        Radenovic et al. (ECCV 2016), random negatives of the first ranks those of ANCE (Xiong et al. 2021, arXiv
        2007.00808). Different: ranks count before the filters; the relative margin has the right sign for negative
        scores; a score equal to the limit is dropped; with several positives the nearest one counts by default, not the
        farthest; draws are a function of the generator, the anchor and the reference.

    Raises:
        TypeError, ValueError: arguments of other types or shapes; embeddings that are not finite; a range of ranks
            smaller than the number of negatives; margins or ``per="pair"`` without positives; groups with references.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> mine(embeddings, torch.tensor([0, 0, 1, 1]), num_negatives=2).negatives
        tensor([[2, 3],
                [2, 3],
                [1, 0],
                [1, 0]])
    """
    rule = _Rule(
        num_positives=_count("num_positives", num_positives),
        num_negatives=arguments.count("num_negatives", num_negatives),
        positives=_choice("positives", positives, Positives),
        is_random=_choice("strategy", strategy, Strategy) == "random",
        range_min=_count("range_min", range_min),
        range_max=arguments.count("range_max", range_max, optional=True),
        absolute_margin=_optional(arguments.non_negative, "absolute_margin", absolute_margin),
        relative_margin=_optional(arguments.non_negative, "relative_margin", relative_margin),
        max_score=_optional(arguments.finite, "max_score", max_score),
        min_score=_optional(arguments.finite, "min_score", min_score),
        reference=_choice("reference", reference, Reference),
        of_pairs=_choice("per", per, Per) == "pair",
        one_per_class=arguments.flag("one_per_class", one_per_class),
    )
    if range_max is not None and range_max < range_min + num_negatives:
        raise ValueError(
            f"range_max must be at least range_min + num_negatives = {range_min + num_negatives}, got {range_max}"
        )
    if rule.of_pairs and rule.num_positives == 0 and rule.positives != "all":
        raise ValueError("per='pair' needs positives, got num_positives=0")
    if distance is not None and not isinstance(distance, BaseDistance):
        raise TypeError(f"distance must be a PML distance (a BaseDistance), got {distance!r}")
    distance = CosineSimilarity() if distance is None else distance
    _pml.describe(distance)
    chunk_size = arguments.count("chunk_size", chunk_size, optional=True)

    x = _vectors("embeddings", embeddings)
    given_labels = checked_labels("labels", labels, len(x))
    if references is None:
        if reference_labels is not None:
            raise ValueError("reference_labels was given without references")
        refs = None
        (ids,) = class_ids(given_labels)
        ref_ids = ids
    else:
        refs = _vectors("references", references).to(x)
        if refs.shape[1] != x.shape[1]:
            raise ValueError(
                f"references must have the dimension of the embeddings, got {refs.shape[1]} and {x.shape[1]}"
            )
        if reference_labels is None:
            raise ValueError("references need reference_labels, got None")
        if groups is not None:
            raise ValueError("groups must be None with references: they are those of one data set")
        ids, ref_ids = class_ids(given_labels, checked_labels("reference_labels", reference_labels, len(refs)))
    rows = _indices("anchors", anchors, len(x)) if anchors is not None else torch.arange(len(x), device="cpu")
    m = len(x) if refs is None else len(refs)
    seed = 0
    if rule.is_random or rule.positives == "random":
        device = generator.device if generator is not None else torch.device("cpu")
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
    places = None if candidates is None else _candidates(candidates, len(rows), m)
    chunk = chunk_size or max(1, _SCORES // max(1, m if places is None else places.shape[1] * 8))

    with full_float32(x.device):
        search = _Search(
            rule=rule,
            scores=Scores(distance, x, refs),
            sign=1.0 if distance.is_inverted else -1.0,
            ids=ids.to(x.device),
            ref_ids=ref_ids.to(x.device),
            groups=None if groups is None else _groups(groups, len(x)).to(x.device),
            is_own=refs is None,
            seed=seed,
        )
        found = _Gathered(search.empty(), len(rows))
        for start in range(0, len(rows), chunk):
            some = None if places is None else places[start : start + chunk]
            found.add(search.chunk(rows[start : start + chunk].to(x.device), some))
    return search.tuples(found)


@dataclass(frozen=True)
class _Rule:
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
        return self.absolute_margin is not None or self.relative_margin is not None

    @property
    def needs_positive(self) -> bool:
        return self.num_positives > 0 or self.positives == "all" or self.has_margins


class _Tuples(NamedTuple):
    anchors: Tensor  # [t]
    positives: Tensor  # [t, kp]
    negatives: Tensor  # [t, kn]
    positive_scores: Tensor
    negative_scores: Tensor


class _Found(NamedTuple):
    tuples: _Tuples
    looked_at: int
    dropped: dict[str, int]


class _Gathered:
    """What was found for one chunk after another, copied to one place.

    Small tensors that stay behind among large ones that are freed would take the place of the next large ones.

    Args:
        nothing: what is found for no anchors.
        size: how many tuples to expect.
    """

    def __init__(self, nothing: _Found, size: int) -> None:
        self.looked_at, self.dropped, self.count = 0, nothing.dropped, 0
        self.rows = _Tuples(*(each.new_empty(size, *each.shape[1:]) for each in nothing.tuples))

    def add(self, found: _Found) -> None:
        """Those of some more anchors."""
        self.looked_at += found.looked_at
        self.dropped = {name: count + found.dropped[name] for name, count in self.dropped.items()}
        size, stop = len(self.rows.anchors), self.count + len(found.tuples.anchors)
        if stop > size:
            before, after = self.tuples(), max(stop, 2 * size)
            self.rows = _Tuples(*(each.new_empty(after, *each.shape[1:]) for each in before))
            self._put(before, 0)
        self._put(found.tuples, self.count)
        self.count = stop

    def _put(self, some: _Tuples, start: int) -> None:
        for rows, each in zip(self.rows, some, strict=True):
            rows[start : start + len(each)] = each

    def tuples(self) -> _Tuples:
        """All that were added, and no more memory than that."""
        is_full = self.count == len(self.rows.anchors)
        return self.rows if is_full else _Tuples(*(each[: self.count].clone() for each in self.rows))


class _Search:
    """The search of some anchors at a time."""

    def __init__(
        self,
        *,
        rule: _Rule,
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

    def chunk(self, rows: Tensor, candidates: Tensor | None) -> _Found:
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
        found = _Tuples(rows[line], positives, negatives, positive_scores, negative_scores)
        return _Found(found, looked_at, dropped)

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

    def empty(self) -> _Found:
        """The tuples of no anchors."""
        none, scores = self.ids.new_empty(0), self.scores.embeddings.new_empty(0)
        kp, kn = 1 if self.rule.of_pairs else self.num_positives, self.rule.num_negatives
        dropped = dict.fromkeys(self.rule.filters, 0)
        return _Found(
            _Tuples(none, none.view(0, kp), none.view(0, kn), scores.view(0, kp), scores.view(0, kn)), 0, dropped
        )

    def tuples(self, found: _Gathered) -> MinedTuples:
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


def as_tensor(given: Any) -> Tensor:
    """A tensor as it is, without its history; of anything else one on the CPU."""
    return given.detach() if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")


def _vectors(name: str, given: Any) -> Tensor:
    """Embeddings [n, d] in the precision that they have, at least single; refused if they are not finite."""
    x = as_tensor(given)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if x.ndim != 2:
        raise ValueError(f"{name} must be embeddings of shape [n, d], got shape {tuple(x.shape)}")
    bad = ~x.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"{name} has {int(bad.sum())} rows that are NaN or infinite; the first is {int(bad.nonzero()[0])}"
        )
    return x


def _integers(name: str, given: Any) -> Tensor:
    x = as_tensor(given)
    if x.numel() and (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
        raise TypeError(f"{name} must be integers, got {x.dtype}")
    return x.long()


def _indices(name: str, given: Any, size: int) -> Tensor:
    x = _integers(name, given).cpu()
    if x.ndim != 1:
        raise ValueError(f"{name} must be a list of indices, got shape {tuple(x.shape)}")
    outside = (x < 0) | (x >= size)
    if outside.any():
        raise ValueError(f"{name} must be in 0..{size - 1}, got {int(x[outside][0])}")
    return x


def _candidates(given: Any, rows: int, size: int) -> Tensor:
    x = _integers("candidates", given)
    if x.ndim != 2 or len(x) != rows:
        raise ValueError(f"candidates must be one row of indices for each of {rows} anchors, got {tuple(x.shape)}")
    outside = (x < -1) | (x >= size)
    if outside.any():
        raise ValueError(f"candidates must be in -1..{size - 1}, got {int(x[outside][0])}")
    return x


def _groups(given: Any, size: int) -> Tensor:
    x = _integers("groups", given)
    if x.shape != (size,):
        raise ValueError(f"groups must be one integer for each of {size} embeddings, got shape {tuple(x.shape)}")
    return x


def _count(name: str, value: Any) -> int:
    """Return an integer of at least 0."""
    arguments.non_negative(name, value)
    return 0 if value == 0 else int(arguments.count(name, value))


def _optional(check: Callable[[str, Any], float], name: str, value: Any) -> float | None:
    return None if value is None else check(name, value)


def _choice(name: str, value: Any, choices: Any) -> str:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
    return str(value)
