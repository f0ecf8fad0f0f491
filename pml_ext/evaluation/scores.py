"""Retrieval metrics of every query: exact, at any depth, without the nearest neighbours of all queries at once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .knn import DISTANCES_PER_CHUNK, Points, full_float32, shifted, smallest, squared_distances
from .ranks import counted_ranks


class RetrievalScores(NamedTuple):
    """The scores of n queries, each [n]; those that were not asked for are None."""

    first_match_rank: Tensor
    r_precision: Tensor | None
    average_precision_at_r: Tensor | None
    average_precision: Tensor | None


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
    ref_includes_query: bool,
    k: int,
    *,
    at_r: bool = True,
    at_k: bool = True,
    tile_size: int | None = None,
) -> RetrievalScores:
    r"""Score the ranking of all references by their distance to each query.

    With :math:`h_j = 1` if the reference of rank j = 1, 2, ... has the class of the query and otherwise 0, and R the
    number of references that have it:

    .. math::

        \text{r\_precision} &= \frac{1}{\min(R, k)} \sum_{j \le \min(R, k)} h_j \\
        \text{average\_precision\_at\_r} &= \frac{1}{R} \sum_{j \le \min(R, k)} \frac{h_j}{j} \sum_{i \le j} h_i \\
        \text{average\_precision} &= \frac{1}{R} \sum_{j \le k} \frac{h_j}{j} \sum_{i \le j} h_i

    Of small classes the rank of every match is counted; of large ones, and where a match and another reference are
    equally close, the nearest references are searched, equal ones ordered by index. The first match's rank is exact
    in both cases. At no time are there more than some 2**24 distances.

    Args:
        query: [n, d].
        query_classes: [n], integers from 0.
        reference: [m, d].
        reference_classes: [m], integers from 0.
        ref_includes_query: the first n references are the queries, and a query is no reference of its own.
        k: at least 1.
        at_r: compute ``r_precision`` and ``average_precision_at_r`` (default ``True``).
        at_k: compute ``average_precision`` (default ``True``).
        tile_size: see :func:`counted_ranks`.

    Returns:
        The scores in float64, the rank from 0 as integers. A query without any match has the rank m and the scores 0.

    Raises:
        ValueError: an embedding is so large that its distances overflow float32.
    """
    n, m, self_count = len(query), len(reference), int(ref_includes_query)
    classes = 1 + int(torch.cat([query_classes, reference_classes]).max())
    matches = torch.bincount(reference_classes, minlength=classes)[query_classes] - self_count  # [n]
    k = min(k, m - self_count)
    cut = matches.clamp(max=k)
    # How many of the nearest references decide the scores.
    depths = torch.full_like(cut, k) if at_k else cut if at_r else torch.zeros_like(cut)

    first = torch.full_like(matches, m)
    hits, at_r_sums, at_k_sums = query.new_zeros(3, n, dtype=torch.float64)
    with torch.no_grad(), full_float32(query.device):
        data = _Data(*shifted(query, reference), query_classes, reference_classes, ref_includes_query)
        for found in _matches(data, (matches > 0).nonzero()[:, 0], matches, depths, tile_size):
            rows = found.rows
            first[rows] = found.first
            if at_r:
                inside = found.ranks < cut[rows, None]
                hits[rows] = inside.sum(dim=1).double()
                at_r_sums[rows] = _precision_sum(found, inside)
            if at_k:
                at_k_sums[rows] = _precision_sum(found, found.ranks < k)
    r = matches.clamp(min=1)
    return RetrievalScores(
        first,
        hits / r.clamp(max=k) if at_r else None,
        at_r_sums / r if at_r else None,
        at_k_sums / r if at_k else None,
    )


def reciprocal_rank(rank: Tensor, k: int) -> Tensor:
    """Return 1 / (rank + 1) in float64, 0 for ranks from k on."""
    return torch.where(rank < k, 1 / (rank.double() + 1), 0)


class _Data(NamedTuple):
    query: Points
    reference: Points
    query_classes: Tensor
    reference_classes: Tensor
    ref_includes_query: bool


def _matches(data: _Data, rows: Tensor, matches: Tensor, depths: Tensor, tile_size: int | None) -> Iterator[_Matches]:
    """Find the matches of the given queries, at least those nearer than the depth, by the faster of two ways.

    The first match of every query is found; a query can be in two results, of which the second has it.
    """
    m, d = data.reference.moved.shape
    all_ranks = int(depths.sum()) > 0
    is_small = (matches <= _counting_limit(d, depths, m)) | (depths == 0)
    counted = [rows[is_small[rows]]]
    for found in _searched(data, rows[~is_small[rows]], depths):
        yield found
        counted.append(found.rows[found.first == m])

    counted_rows = torch.cat(counted)
    tied = [counted_rows[:0]]
    if len(counted_rows):
        for group in counted_ranks(
            data.query.at(counted_rows),
            data.query_classes[counted_rows],
            data.reference,
            data.reference_classes,
            counted_rows if data.ref_includes_query else None,
            torch.where(is_small & all_ranks, matches, 1)[counted_rows],
            tile_size,
        ):
            clear = ~group.tied
            ranks = group.ranks[clear]
            orders = torch.arange(1, 1 + ranks.shape[1], device=ranks.device)
            yield _Matches(counted_rows[group.rows[clear]], ranks[:, 0], ranks, orders)
            tied.append(counted_rows[group.rows[group.tied]])

    # Most have a match among a few neighbours, and then need no further look at ties.
    some = min(16, m - int(data.ref_includes_query))
    yield from _searched(data, torch.cat(tied), depths.clamp(min=some), settle_first=True)


def _counting_limit(d: int, depths: Tensor, m: int) -> Tensor:
    """Estimate up to how many matches counting, with half of the products, is faster than the product and a search."""
    return 8 + d // 64 + 256 * depths // m


def _searched(data: _Data, rows: Tensor, depths: Tensor, *, settle_first: bool = False) -> Iterator[_Matches]:
    """Find the matches among the nearest references of the given queries, if asked also the first one wherever."""
    if len(rows) == 0:
        return
    m = len(data.reference.squares)
    rows = rows[depths[rows].argsort()]
    most = int(depths[rows[-1]])
    chunk_size = max(1, DISTANCES_PER_CHUNK // (m + 8 * most))
    buffer = data.reference.squares.new_empty(min(len(rows), chunk_size) * m)
    for chunk in rows.split(chunk_size):
        own = chunk if data.ref_includes_query else None
        distances = squared_distances(data.query.at(chunk), data.reference, buffer, own)
        depth = int(depths[chunk[-1]])
        nearest = smallest(distances, depth)[1]
        classes = data.query_classes[chunk, None]
        hits = data.reference_classes[nearest] == classes  # [r, depth]
        ranks = torch.where(hits, torch.arange(depth, device=hits.device), m)
        first = ranks.amin(dim=1)
        if settle_first and (missed := first == m).any():
            first[missed] = _first_match_rank(distances[missed], data.reference_classes == classes[missed])
        yield _Matches(chunk, first, ranks, hits.cumsum(dim=1))


def _first_match_rank(distances: Tensor, matches: Tensor) -> Tensor:
    """Count the distances [r, m] of each row before its smallest match, equal ones ordered by column."""
    smallest_match, column = distances.masked_fill(~matches, torch.inf).min(dim=1, keepdim=True)
    before = distances < smallest_match
    before |= (distances == smallest_match) & (torch.arange(distances.shape[1], device=column.device) < column)
    return before.sum(dim=1)


def _precision_sum(found: _Matches, inside: Tensor) -> Tensor:
    """Add up the precisions at the matches that are inside [r, s]."""
    precision = found.orders.double() / (found.ranks + 1)
    return precision.mul_(inside).sum(dim=1)
