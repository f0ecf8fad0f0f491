"""Retrieval metrics of every query: exact, at any depth, without the nearest neighbors of all queries at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.watched import bar_of_pairs

from .knn import Points, full_float32, shifted, smallest, squared_distances
from .ranks import CountedRanks, counted_ranks
from .selected import selected_ranks

# Which references [r, m] are to be passed over by the queries of these indices [r].
Ignored = Callable[[Tensor], Tensor]


class RetrievalScores(NamedTuple):
    """The scores of n queries; None for those that were not requested."""

    matches: Tensor  # [n], how many references have the query's class
    first_match_rank: Tensor  # [n]
    r_precision: Tensor | None  # [n]
    average_precision_at_r: Tensor | None  # [n]
    average_precision: Tensor | None  # [n]
    hits: Tensor  # [n, len(hits_at)], how many of them are among the nearest


class _Matches(NamedTuple):
    """Some matches of some queries: each has a rank among all references and an order among all of its query's."""

    rows: Tensor  # [r], which queries
    first: Tensor  # [r], the rank of the nearest match; m where it was not found
    ranks: Tensor  # [r, s], from 0; m where there is no match
    orders: Tensor  # [r, s] or [s], from 1


def retrieval_scores(
    query: Tensor,
    query_classes: Tensor,
    reference: Tensor,
    reference_classes: Tensor,
    own: Tensor | None,
    k: int,
    *,
    at_r: bool = True,
    at_k: bool = True,
    hits_at: Sequence[int] = (),
    ignored: Ignored | None = None,
    tile_size: int | None = None,
) -> RetrievalScores:
    r"""Score the ranking of all references by their distance to each query.

    With :math:`h_j = 1` if the reference of rank j = 1, 2, ... has the class of the query and otherwise 0, and R the
    number of references that have it:

    .. math::

        \text{r\_precision} &= \frac{1}{\min(R, k)} \sum_{j \le \min(R, k)} h_j \\
        \text{average\_precision\_at\_r} &= \frac{1}{R} \sum_{j \le \min(R, k)} \frac{h_j}{j} \sum_{i \le j} h_i \\
        \text{average\_precision} &= \frac{1}{R} \sum_{j \le k} \frac{h_j}{j} \sum_{i \le j} h_i

    Of small classes the rank of every match is counted; of large ones the nearest references of other classes are
    selected, with which matches are compared; where a match and another reference are equally close, the nearest
    references are searched, equal ones ordered by index. The first match's rank is exact in all cases. At no time are
    there more than some 2**24 distances.

    Args:
        query: [n, d].
        query_classes: [n], integers from 0.
        reference: [m, d].
        reference_classes: [m], integers from 0.
        own: [n], the reference that is the query itself, which is left out (``None``: there is none).
        k: at least 1.
        at_r: compute ``r_precision`` and ``average_precision_at_r`` (default ``True``).
        at_k: compute ``average_precision`` (default ``True``).
        hits_at: depths at which to count the matches (default ``()``).
        ignored: tells which references the query of an index ignores (default ``None``: none). With it, ranks are not
            counted: the nearest references are searched.
        tile_size: see :func:`counted_ranks`.

    Returns:
        The scores in float64, the rank from 0 as integers. A query without any match has the rank m and the scores 0.

    Raises:
        ValueError: an embedding is so large that its distances overflow float32.
    """
    n, m, self_count = len(query), len(reference), int(own is not None)
    with torch.no_grad(), full_float32(query.device):
        data = _Data(*shifted(query, reference), query_classes, reference_classes, own, ignored)
        matches = _count_matches(data)
        k = min(k, m - self_count)
        cut = matches.clamp(max=k)
        # How many of the nearest references decide the scores.
        depths = torch.full_like(cut, k) if at_k else cut if at_r else torch.zeros_like(cut)
        if hits_at:
            depths = depths.clamp(min=min(max(hits_at), m - self_count))

        first = torch.full_like(matches, m)
        r_hits, at_r_sums, at_k_sums = query.new_zeros(3, n, dtype=torch.float64)
        hits = matches.new_zeros(n, len(hits_at))
        for found in _matches(data, (matches > 0).nonzero()[:, 0], matches, depths, tile_size):
            rows = found.rows
            first[rows] = found.first
            if at_r:
                inside = found.ranks < cut[rows, None]
                r_hits[rows] = inside.sum(dim=1).double()
                at_r_sums[rows] = _precision_sum(found, inside)
            if at_k:
                at_k_sums[rows] = _precision_sum(found, found.ranks < k)
            for column, depth in enumerate(hits_at):
                hits[rows, column] = (found.ranks < min(depth, m)).sum(dim=1)
    r = matches.clamp(min=1)
    return RetrievalScores(
        matches,
        first,
        r_hits / r.clamp(max=k) if at_r else None,
        at_r_sums / r if at_r else None,
        at_k_sums / r if at_k else None,
        hits,
    )


def reciprocal_rank(rank: Tensor, k: int) -> Tensor:
    """Return 1 / (rank + 1) in float64, 0 for ranks from k on."""
    return torch.where(rank < k, 1 / (rank.double() + 1), 0)


def shares_below(ranks: Tensor, ks: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    """The share of the ranks of each group that are below each k, by one histogram: [g, len(ks)] in float64.

    Args:
        ranks: [n].
        ks: ascending.
        groups: [n], integers from 0.
        sizes: [g], how many ranks of each group there are.
    """
    bins = len(ks) + 1
    places = torch.bucketize(ranks, ks, right=True).add_(groups, alpha=bins)
    counts = torch.bincount(places, minlength=bins * len(sizes)).view(-1, bins)
    return counts[:, :-1].cumsum(dim=1).double() / sizes[:, None]


def vote_is_right(
    query: Tensor,
    query_classes: Tensor,
    reference: Tensor,
    reference_classes: Tensor,
    own: Tensor | None,
    ks: Sequence[int],
    *,
    ignored: Ignored | None = None,
) -> Tensor:
    """Whether most of the k nearest references have the class of the query, for each k [n, len(ks)].

    Ties between classes are broken in favor of the class with the nearest reference.

    Args:
        query: [n, d].
        query_classes: [n], integers from 0.
        reference: [m, d].
        reference_classes: [m], integers from 0.
        own: see :func:`retrieval_scores`.
        ks: each at least 1.
        ignored: see :func:`retrieval_scores`.
    """
    right = torch.zeros(len(query), len(ks), dtype=torch.bool, device=query.device)
    with torch.no_grad(), full_float32(query.device):
        data = _Data(*shifted(query, reference), query_classes, reference_classes, own, ignored)
        rows = torch.arange(len(query), device=query.device)
        depth = min(max(ks), len(reference) - int(own is not None))
        if depth < 1:
            return right
        for found in _nearest(data, rows, torch.full_like(rows, depth)):
            # Votes are compared pairwise: so many of them at a time.
            for some in torch.arange(len(found.rows), device=rows.device).split(
                max(1, thresholds.DISTANCES // depth**2)
            ):
                # References that are not there come last and have no vote.
                there = found.distances[some] < torch.inf
                votes = reference_classes[found.indices[some]]
                equal = (votes[:, :, None] == votes[:, None, :]) & there[:, None, :]
                for column, k in enumerate(ks):
                    counts = equal[:, :k, :k].sum(dim=2)
                    # The first of the largest: the columns are in the order of the distances.
                    order = counts * (depth + 1) - torch.arange(counts.shape[1], device=rows.device)
                    elected = votes.gather(1, order.argmax(dim=1, keepdim=True))[:, 0]
                    right[found.rows[some], column] = (elected == query_classes[found.rows[some]]) & there[:, 0]
    return right


class _Data(NamedTuple):
    query: Points
    reference: Points
    query_classes: Tensor
    reference_classes: Tensor
    own: Tensor | None
    ignored: Ignored | None


def _count_matches(data: _Data) -> Tensor:
    """Count the references [n] that have the class of each query, without itself and those that it ignores."""
    classes = 1 + int(torch.cat([data.query_classes, data.reference_classes]).max())
    matches = torch.bincount(data.reference_classes, minlength=classes)[data.query_classes]
    if data.own is not None:
        matches -= 1
    if data.ignored is None:
        return matches
    rows = torch.arange(len(matches), device=matches.device)
    for chunk in rows.split(max(1, thresholds.DISTANCES // len(data.reference_classes))):
        ignored = data.ignored(chunk) & (data.reference_classes == data.query_classes[chunk, None])
        if data.own is not None:
            ignored.scatter_(1, data.own[chunk, None], False)
        matches[chunk] -= ignored.sum(dim=1)
    return matches


def _matches(data: _Data, rows: Tensor, matches: Tensor, depths: Tensor, tile_size: int | None) -> Iterator[_Matches]:
    """Find the matches of the given queries, at least those nearer than the depth, by the fastest way.

    The first match of every query is found; a query can be in two results, of which the second has it.
    """
    m, d = data.reference.given.shape
    some = min(16, m - int(data.own is not None))
    if data.ignored is not None:
        yield from _searched(data, rows, depths.clamp(min=some))
        return
    all_ranks = int(depths.sum()) > 0
    is_small = (matches <= _counting_limit(d, depths, m, data.own is not None)) | (depths == 0)
    counted, tied = [rows[is_small[rows]]], [rows[:0]]
    points = data.query, data.query_classes, data.reference, data.reference_classes, data.own
    for group in selected_ranks(*points, rows[~is_small[rows]], depths):
        found = _clear(group)
        yield found
        counted.append(found.rows[found.first == m])
        tied.append(group.rows[group.tied])

    counted_rows = torch.cat(counted)
    if len(counted_rows):
        for group in counted_ranks(
            data.query.all_at(counted_rows),
            data.query_classes[counted_rows],
            data.reference,
            data.reference_classes,
            None if data.own is None else data.own[counted_rows],
            torch.where(is_small & all_ranks, matches, 1)[counted_rows],
            tile_size,
        ):
            group = group._replace(rows=counted_rows[group.rows])
            yield _clear(group)
            tied.append(group.rows[group.tied])

    # Most have a match among a few neighbors, and then need no further look at ties.
    yield from _searched(data, torch.cat(tied), depths.clamp(min=some))


def _clear(group: CountedRanks) -> _Matches:
    """The matches of the queries that have no tied one."""
    ranks = group.ranks[~group.tied]
    return _Matches(
        group.rows[~group.tied], ranks[:, 0], ranks, torch.arange(1, 1 + ranks.shape[1], device=ranks.device)
    )


def _counting_limit(d: int, depths: Tensor, m: int, is_symmetric: bool) -> Tensor:
    """Estimate up to how many matches counting is faster than the product of all pairs and a selection.

    Counting saves half of the product where queries are references.
    """
    return thresholds.COUNTED_MATCHES + (d // 64 if is_symmetric else 0) + 4 * depths // m


class _Neighbors(NamedTuple):
    """The nearest references of some queries."""

    rows: Tensor  # [r], which queries
    distances: Tensor  # [r, k], ascending; infinite for the query itself and what it ignores
    indices: Tensor  # [r, k]
    everything: Tensor  # [r, m], the distances to all references; the next result overwrites it


def _nearest(data: _Data, rows: Tensor, depths: Tensor) -> Iterator[_Neighbors]:
    """Find the nearest references of the given queries, of each at least so many as its depth."""
    if len(rows) == 0:
        return
    m = len(data.reference.squares)
    rows = rows[depths[rows].argsort()]
    most = int(depths[rows[-1]])
    chunk_size = max(1, thresholds.DISTANCES // (m + 8 * most))
    buffer = data.reference.squares.new_empty(min(len(rows), chunk_size) * m)
    with bar_of_pairs("searching", len(rows) * m) as done:
        for chunk in rows.split(chunk_size):
            own = None if data.own is None else data.own[chunk]
            distances = squared_distances(data.query.at(chunk), data.reference, buffer, own)
            if data.ignored is not None:
                distances.masked_fill_(data.ignored(chunk), torch.inf)
            yield _Neighbors(chunk, *smallest(distances, int(depths[chunk[-1]])), distances)
            done(len(chunk) * m)


def _searched(data: _Data, rows: Tensor, depths: Tensor) -> Iterator[_Matches]:
    """Find the matches among the nearest references of the given queries, and the first one wherever it is."""
    m = len(data.reference.squares)
    for found in _nearest(data, rows, depths):
        classes = data.query_classes[found.rows, None]
        hits = (data.reference_classes[found.indices] == classes) & (found.distances < torch.inf)  # [r, depth]
        ranks = torch.where(hits, torch.arange(hits.shape[1], device=hits.device), m)
        first = ranks.amin(dim=1)
        if (missed := first == m).any():
            first[missed] = _closer_than_any_match(found.everything[missed], data.reference_classes == classes[missed])
        yield _Matches(found.rows, first, ranks, hits.cumsum(dim=1))


def _closer_than_any_match(distances: Tensor, matches: Tensor) -> Tensor:
    """Count the distances [r, m] of each row before its smallest match, equal ones ordered by column."""
    smallest_match, column = distances.masked_fill(~matches, torch.inf).min(dim=1, keepdim=True)
    before = distances < smallest_match
    before |= (distances == smallest_match) & (torch.arange(distances.shape[1], device=column.device) < column)
    return before.sum(dim=1)


def _precision_sum(found: _Matches, inside: Tensor) -> Tensor:
    """Add up the precisions at the matches that are inside [r, s]."""
    precision = found.orders.double() / (found.ranks + 1)
    return precision.mul_(inside).sum(dim=1)
