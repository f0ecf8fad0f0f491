"""Ranks of matches by the nearest references of other classes, which are selected and not searched."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.watched import bar_of_pairs

from .knn import Points, squared_distances
from .ranks import CountedRanks


def selected_ranks(
    query: Points,
    query_classes: Tensor,
    reference: Points,
    reference_classes: Tensor,
    own: Tensor | None,
    rows: Tensor,
    depths: Tensor,
) -> Iterator[CountedRanks]:
    r"""Rank the matches of some queries among all references, as far as a depth.

    .. math::

        \text{rank of the } j\text{-th nearest match } p \text{ of } q
            = j + \big| \{ r : r \text{ of another class}, \lVert q - r \rVert < \lVert q - p \rVert \} \big|,
            \quad j = 0, 1, \dots

    which is exact where fewer than the depth are closer: these are among so many that were selected, in order. The
    cost is that of the product of all pairs and of a partition, whatever the number of matches.

    Args:
        query: n points in float32.
        query_classes: [n], integers from 0.
        reference: m points, about the same origin.
        reference_classes: [m], integers from 0.
        own: [n], the reference that is the query itself, which is neither a match nor closer than one (``None``: there
            is none).
        rows: which queries, each with a match.
        depths: [n], from 1.

    Returns:
        Groups of these queries, each in one of them. A match of which so many others as the depth are closer has the
        rank m. In a tied row the references that are no match do not count as closer.
    """
    if len(rows) == 0:
        return
    m = len(reference_classes)
    sizes = torch.bincount(reference_classes, minlength=1 + int(query_classes.max()))
    order, starts = reference_classes.argsort(stable=True), sizes.cumsum(0) - sizes
    widths = torch.maximum(sizes[query_classes[rows]], depths[rows])
    rows = rows[widths.argsort()]
    most = thresholds.DISTANCES // (m + 8 * int(widths.max()))
    length = max(1, min(max(thresholds.SELECTED // m, thresholds.SELECTED_ROWS), most))
    buffer = reference.squares.new_empty(min(len(rows), length) * m)
    with bar_of_pairs("ranking", len(rows) * m) as done:
        for chunk in rows.split(length):
            classes = query_classes[chunk]
            own_columns = None if own is None else own[chunk]
            distances = squared_distances(query.at(chunk), reference, buffer, own_columns)
            # [r, s]; where a class is smaller than the largest, its first member again.
            slots = torch.arange(int(sizes[classes].max()), device=rows.device)
            there = slots < sizes[classes, None]
            columns = order[starts[classes, None] + slots * there]
            levels = distances.gather(1, columns).masked_fill_(~there, torch.inf)
            distances.scatter_(1, columns, torch.inf)
            levels = smallest_values(levels, max(1, len(slots) - int(own is not None)))
            others = smallest_values(distances, min(m, int(depths[chunk].max())))
            closer, not_farther = torch.searchsorted(others, levels), torch.searchsorted(others, levels, right=True)
            is_match = levels < torch.inf
            ranks = closer + torch.arange(levels.shape[1], device=closer.device)
            ranks.masked_fill_(~is_match | (closer == others.shape[1]), m)
            yield CountedRanks(chunk, ranks, ((closer != not_farther) & is_match).any(dim=1))
            done(len(chunk) * m)


def smallest_values(x: Tensor, k: int) -> Tensor:
    """The k smallest of each row [r, m], ascending; the numbers are overwritten.

    NumPy selects and sorts with vector instructions where torch does not, in as many threads as torch has.
    """
    if x.device.type != "cpu":
        return x.topk(k, largest=False).values

    def select(numbers: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        if k < numbers.shape[1]:
            numbers.partition(k - 1, axis=1)
        numbers[:, :k].sort(axis=1)

    threads = min(torch.get_num_threads(), len(x))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(select, np.array_split(x.numpy(), threads)))
    else:
        select(x.numpy())
    return x[:, :k].contiguous()
