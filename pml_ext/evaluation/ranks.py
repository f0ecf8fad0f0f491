"""Ranks of matches by counting what is closer: no neighbours are searched, no matrix of all distances is formed."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext import thresholds

from .knn import Points, recompute_near


class CountedRanks(NamedTuple):
    """The ranks of the matches of some of the queries."""

    rows: Tensor  # [r], which queries
    ranks: Tensor  # [r, s], ascending from 0; m in the slots beyond the matches of a query
    tied: Tensor  # [r], whether a match and a reference that is none are equally close


def counted_ranks(
    query: Points,
    query_classes: Tensor,
    reference: Points,
    reference_classes: Tensor,
    own: Tensor | None,
    slots: Tensor,
    tile_size: int | None = None,
) -> Iterator[CountedRanks]:
    r"""Rank the nearest matches of every query among all references.

    .. math::

        \text{rank of the } j\text{-th nearest match } p \text{ of } q
            = j + \big| \{ r : r \text{ of another class}, \lVert q - r \rVert < \lVert q - p \rVert \} \big|,
            \quad j = 0, 1, \dots

    The distances are formed in square tiles, and each is compared with the distances of the matches while it is in the
    cache. Where queries are references too, a tile of two groups of queries serves both, so that half of all products
    suffice. A slot costs two comparisons with every reference; beside the results some copies of the embeddings and
    two tiles are held.

    Args:
        query: n points in float32.
        query_classes: [n], integers from 0.
        reference: m points, about the same origin.
        reference_classes: [m], integers from 0.
        own: [n], the reference that is the query itself, which is neither a match nor closer than one (``None``: there
            is none).
        slots: [n], how many of the nearest matches to rank, at least 1, the same for all queries of a class.
        tile_size: rows and columns of a tile (default ``None``: what is fast on the device).

    Returns:
        Groups of queries, each query in one of them. In a tied row the references that are no match do not count as
        closer.
    """
    # Sorted by slots and class, the matches lie in few tiles, and the rows of a tile have about equally many slots.
    classes = 1 + int(torch.cat([query_classes, reference_classes]).max())
    slots_of_class = slots.new_zeros(classes).index_copy_(0, query_classes, slots)
    query_keys, rows = (slots_of_class[query_classes] * classes + query_classes).sort(stable=True)
    reference_keys = slots_of_class[reference_classes] * classes + reference_classes
    shared = 0 if own is None else len(query_classes)
    columns = reference_keys.argsort(stable=True)
    if own is not None:
        is_own = torch.zeros_like(reference_keys, dtype=torch.bool).index_fill_(0, own, True)
        columns = torch.cat([own[rows], columns[~is_own[columns]]])

    tiles = _Tiles(
        query,
        rows,
        query_keys,
        reference,
        columns,
        reference_keys[columns],
        shared,
        tile_size or (thresholds.TILE_CPU if slots.device.type == "cpu" else thresholds.TILE_GPU),
    )
    slots_of_row = slots[rows].tolist()
    levels = [tiles.nearest_matches(i, max(slots_of_row[where])) for i, where in enumerate(tiles.rows)]
    closer, not_farther = tiles.count_other_classes(levels)
    for i, where in enumerate(tiles.rows):
        before = torch.arange(len(levels[i]), device=slots.device)[:, None]
        ranks = (closer[i].long() + before).masked_fill_(levels[i] == -torch.inf, len(reference_classes))
        yield CountedRanks(rows[where], ranks.T, (closer[i] != not_farther[i]).any(dim=0))


class _Tiles:
    """The squared distances of queries to references, both in an order by class, in tiles."""

    def __init__(
        self,
        query: Points,
        query_order: Tensor,
        query_keys: Tensor,
        reference: Points,
        reference_order: Tensor,
        reference_keys: Tensor,
        shared: int,
        size: int,
    ) -> None:
        query_squares, reference_squares = query.squares[query_order], reference.squares[reference_order]
        # With the squares as the first two factors, D[i, j] of two queries rounds like D[j, i].
        ones, more_ones = (torch.ones_like(x)[:, None] for x in (query_squares, reference_squares))
        self.left = torch.cat([query_squares[:, None], ones, -2 * query.moved[query_order]], dim=1)
        self.right = torch.cat([more_ones, reference_squares[:, None], reference.moved[reference_order]], dim=1)
        self.query, self.query_order = query, query_order
        self.reference, self.reference_order = reference, reference_order
        self.query_keys, self.reference_keys, self.shared = query_keys, reference_keys, shared
        self.rows = _slices(query_keys, 0, size)
        self.columns = (self.rows if shared else []) + _slices(reference_keys, shared, size)
        self.row_ranges = _first_and_last(query_keys, self.rows)
        self.column_ranges = _first_and_last(reference_keys, self.columns)
        largest = max(where.stop - where.start for where in self.rows + self.columns)
        self.buffers = self.left.new_empty(2, largest**2)
        self.near_rows, self.near_columns = (
            [thresholds.NEAR * squares[where].max().item() for where in slices]
            for squares, slices in ((query_squares, self.rows), (reference_squares, self.columns))
        )

    def distances(self, i: int, j: int) -> Tensor:
        """Compute one tile [r, c], infinite for a query and itself; the next call overwrites it."""
        rows, columns = self.rows[i], self.columns[j]
        left, right = self.left[rows], self.right[columns]
        distances = torch.mm(left, right.T, out=self._buffer(0, len(left), len(right)))
        if columns.start < self.shared and i == j:
            distances.fill_diagonal_(torch.inf)
        if distances.min() < self.near_rows[i] + self.near_columns[j]:
            near = self.query.at(self.query_order[rows]), self.reference.at(self.reference_order[columns])
            recompute_near(distances, *near)
        return distances

    def matches(self, i: int, j: int) -> Tensor | None:
        """Return where a tile has pairs of one class [r, c], a query and itself among them; None if nowhere."""
        (first_row, last_row), (first_column, last_column) = self.row_ranges[i], self.column_ranges[j]
        if last_row < first_column or last_column < first_row:
            return None
        return self.query_keys[self.rows[i], None] == self.reference_keys[self.columns[j]]

    def nearest_matches(self, i: int, slots: int) -> Tensor:
        """Return the distances of the nearest matches [slots, r] of one tile's rows; -inf where there are fewer."""
        where = self.rows[i]
        nearest = self.left.new_full((where.stop - where.start, slots), torch.inf)
        for j in range(len(self.columns)):
            matches = self.matches(i, j)
            if matches is None:
                continue
            found = self.distances(i, j).masked_fill_(~matches, torch.inf)
            nearest = torch.cat([nearest, found], dim=1).topk(slots, largest=False).values
        return nearest.masked_fill_(nearest == torch.inf, -torch.inf).T.contiguous()

    def count_other_classes(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Count the references of other classes that are closer than each level, and those that are not farther."""
        closer = [torch.zeros_like(level, dtype=torch.float64) for level in levels]
        not_farther = [torch.zeros_like(level, dtype=torch.float64) for level in levels]

        def count(i: int, distances: Tensor, along: int) -> None:
            # A comparison is several times faster with floats as its result than with booleans.
            result = self._buffer(1, *distances.shape)
            for slot, level in enumerate(levels[i].unsqueeze(1 + along)):  # [r, 1] or [1, r]
                closer[i][slot] += torch.lt(distances, level, out=result).sum(dim=along)
                not_farther[i][slot] += torch.le(distances, level, out=result).sum(dim=along)

        for i in range(len(self.rows)):
            for j, columns in enumerate(self.columns):
                both_are_queries = columns.start < self.shared
                if both_are_queries and j < i:
                    continue
                distances, matches = self.distances(i, j), self.matches(i, j)
                if matches is not None:
                    distances.masked_fill_(matches, torch.inf)
                count(i, distances, along=1)
                if both_are_queries and j > i:
                    count(j, distances, along=0)
        return closer, not_farther

    def _buffer(self, which: int, rows: int, columns: int) -> Tensor:
        return self.buffers[which, : rows * columns].view(rows, columns)


def _slices(sorted_keys: Tensor, start: int, size: int) -> list[slice]:
    """Cut the range from ``start`` on, sorted, into slices of about ``size``, between classes if those are small."""
    # Equal lengths: a last tile of a few rows would be multiplied in another order, and its ties rounded differently.
    keys = sorted_keys[start:]
    count = -(-len(keys) // size)
    cuts = torch.tensor([len(keys) * i // count for i in range(1, count)], dtype=torch.long, device=keys.device)
    class_starts = torch.searchsorted(keys, keys[cuts])
    cuts = torch.where(cuts - class_starts < size // 4, class_starts, cuts)
    bounds = [0, *cuts.tolist(), len(keys)]
    return [slice(start + a, start + b) for a, b in pairwise(bounds) if a < b]


def _first_and_last(sorted_keys: Tensor, slices: list[slice]) -> list[tuple[int, int]]:
    first = sorted_keys[[where.start for where in slices]].tolist()
    last = sorted_keys[[where.stop - 1 for where in slices]].tolist()
    return list(zip(first, last, strict=True))
