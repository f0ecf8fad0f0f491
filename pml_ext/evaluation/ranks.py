"""Ranks of matches by counting what is closer: no neighbors are searched, no matrix of all distances is formed."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.watched import bar_of_pairs

from .knn import Points, blocks, recompute_near

# More than four times what a distance can be; and less than any.
FAR: Final = torch.finfo(torch.float32).max
NO_MATCH: Final = -torch.inf


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
    order = slots_of_class.argsort(stable=True)
    # As floats, which are compared several times faster, with floats as the result.
    keys = torch.arange(classes, device=slots.device, dtype=_exact_float(classes))
    key_of_class = torch.empty_like(keys).index_copy_(0, order, keys)
    query_keys, rows = key_of_class[query_classes].sort(stable=True)
    reference_keys = key_of_class[reference_classes]
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
        ranks = (closer[i].long() + before).masked_fill_(levels[i] == NO_MATCH, len(reference_classes))
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
        left = _with_squares(query, query_order, 0)
        left[:, 2:].mul_(-2)
        right = _with_squares(reference, reference_order, 1)
        self.query, self.query_order = query, query_order
        self.reference, self.reference_order = reference, reference_order
        self.query_keys, self.reference_keys, self.shared = query_keys, reference_keys, shared
        self.rows = _slices(query_keys, 0, size)
        self.columns = (self.rows if shared else []) + _slices(reference_keys, shared, size)
        self.row_ranges = _first_and_last(query_keys, self.rows)
        self.column_ranges = _first_and_last(reference_keys, self.columns)
        # A view costs as much as a comparison of a small tile: each is made once.
        self.left = [left[where] for where in self.rows]
        self.right = [right[where].T for where in self.columns]
        largest = max(where.stop - where.start for where in self.rows + self.columns)
        self.memory = left.new_empty(2, largest**2)
        self.buffers: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        # Tiles with matches are computed for the levels; as many as are held are not computed again.
        self.kept: dict[tuple[int, int], Tensor] = {}
        self.near_rows, self.near_columns = (
            [thresholds.NEAR * squares[where].max().item() for where in slices]
            for squares, slices in ((query_squares, self.rows), (reference_squares, self.columns))
        )

    def distances(self, i: int, j: int) -> Tensor:
        """Compute one tile [r, c], infinite for a query and itself; the next call overwrites it."""
        rows, columns = self.rows[i], self.columns[j]
        distances = torch.mm(self.left[i], self.right[j], out=self._two_buffers(i, j)[0])
        if columns.start < self.shared and i == j:
            distances.fill_diagonal_(torch.inf)
        if distances.amin().item() < self.near_rows[i] + self.near_columns[j]:
            near = self.query.at(self.query_order[rows]), self.reference.at(self.reference_order[columns])
            recompute_near(distances, *near)
        return distances

    def matches(self, i: int, j: int) -> Tensor | None:
        """Return 1 where a tile has pairs of one class [r, c], a query and itself among them, 0 elsewhere.

        None if it has none; the next call overwrites it.
        """
        (first_row, last_row), (first_column, last_column) = self.row_ranges[i], self.column_ranges[j]
        if last_row < first_column or last_column < first_row:
            return None
        rows, columns = self.query_keys[self.rows[i], None], self.reference_keys[self.columns[j]]
        return torch.eq(rows, columns, out=self._two_buffers(i, j)[1])

    def nearest_matches(self, i: int, slots: int) -> Tensor:
        """Return the distances of the nearest matches [slots, r] of one tile's rows, ascending, then NO_MATCH."""
        where = self.rows[i]
        nearest = self.memory.new_full((where.stop - where.start, slots), FAR)
        for j in range(len(self.columns)):
            matches = self.matches(i, j)
            if matches is None:
                continue
            distances = self.distances(i, j)
            if not self._is_mirrored(i, j) and (len(self.kept) + 1) * distances.numel() <= thresholds.DISTANCES:
                self.kept[i, j] = distances.add(matches, alpha=FAR)
            found = distances.add_(matches.neg_().add_(1), alpha=FAR)
            if slots == 1:
                nearest = torch.minimum(nearest, found.amin(dim=1, keepdim=True))
            else:
                nearest = torch.cat([nearest, found], dim=1).topk(slots, largest=False).values
        return nearest.masked_fill_(nearest >= FAR, NO_MATCH).T.contiguous()

    def count_other_classes(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Count the references of other classes that are closer than each level, and those that are not farther."""
        # To numbers of another type they would be added several times slower.
        dtype = _exact_float(len(self.reference_keys))
        closer = [torch.zeros_like(level, dtype=dtype) for level in levels]
        not_farther = [torch.zeros_like(level, dtype=dtype) for level in levels]
        counts = [list(zip(*pair, strict=True)) for pair in zip(closer, not_farther, strict=True)]
        # [r, 1] and [1, r] of each slot.
        sides = [[level.unsqueeze(1 + along).unbind() for level in levels] for along in (0, 1)]

        def count(i: int, distances: Tensor, result: Tensor, along: int) -> None:
            # A comparison is several times faster with floats as its result than with booleans.
            for level, (less, not_more) in zip(sides[along][i], counts[i], strict=True):
                less.add_(torch.lt(distances, level, out=result).sum(dim=along))
                not_more.add_(torch.le(distances, level, out=result).sum(dim=along))

        tiles = [(i, j) for i in range(len(self.rows)) for j in range(len(self.columns)) if not self._is_mirrored(i, j)]
        with bar_of_pairs("ranking", len(self.query_keys) * len(self.reference_keys)) as done:
            for i, j in tiles:
                distances, result = self._of_other_classes(i, j), self._two_buffers(i, j)[1]
                count(i, distances, result, along=1)
                is_both = self.columns[j].start < self.shared and j > i
                if is_both:
                    count(j, distances, result, along=0)
                done(distances.numel() * (1 + is_both))
        return closer, not_farther

    def _is_mirrored(self, i: int, j: int) -> bool:
        """Whether a tile of queries with queries is the transpose of another one before it."""
        return j < i and self.columns[j].start < self.shared

    def _of_other_classes(self, i: int, j: int) -> Tensor:
        """One tile of distances, FAR or more between a query and its matches."""
        if (i, j) in self.kept:
            return self.kept[i, j]
        distances, matches = self.distances(i, j), self.matches(i, j)
        return distances if matches is None else distances.add_(matches, alpha=FAR)

    def _two_buffers(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        shape = len(self.left[i]), self.right[j].shape[1]
        if shape not in self.buffers:
            first, second = self.memory[:, : shape[0] * shape[1]].view(2, *shape)
            self.buffers[shape] = first, second
        return self.buffers[shape]


def _with_squares(points: Points, order: Tensor, place: int) -> Tensor:
    """The points in some order, about the origin, behind two columns: their squares in that place, and 1."""
    found = points.given.new_empty(len(order), 2 + points.given.shape[1])
    start = 0
    for some in blocks(found):
        torch.sub(points.given[order[start : start + len(some)]], points.origin, out=some[:, 2:])
        start += len(some)
    found[:, :2] = 1
    found[:, place] = points.squares[order]
    return found


def _exact_float(numbers: int) -> torch.dtype:
    """The type of which so many whole numbers are all different."""
    return torch.float32 if numbers <= 1 << 24 else torch.float64


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
