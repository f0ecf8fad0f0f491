"""Exact nearest neighbors in plain torch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pml_ext import arguments, thresholds


class TorchKNN:
    r"""Exact k nearest neighbors by squared Euclidean distance, called like PML's ``FaissKNN``.

    The distances of one chunk of queries to all m references are one matrix product,

    .. math::

        \lVert q - r \rVert^2 = \lVert q - o \rVert^2 + \lVert r - o \rVert^2 - 2 \langle q - o, r - o \rangle ,

    computed in float32 on the device of the embeddings. The origin ``o`` is the reference nearest to the mean of the
    references: without it the expansion cancels when all embeddings lie close together or far from zero. Where it still
    cancels, for example with two clusters far apart, the distance is summed from the squared differences instead. So
    every squared distance is correct to about three digits, those of near pairs to seven. Equal distances are ordered
    by the index of the reference, and the distances of integer-valued embeddings are exact, so that their ties are too.
    Neither autocast nor a reduced ``float32_matmul_precision`` reduces the precision of the distances.

    It works wherever PML takes a ``knn_func``, except in the methods of ``InferenceModel`` that keep an index
    (``train_knn``, ``get_nearest_neighbors``).

    Args:
        chunk_size: queries per matrix product (default ``None``: as many as make 2**24 distances). Beside a copy of
            the embeddings about ``4 * chunk_size * m`` bytes are held, and up to four times as many while ties for
            the last place are settled.

    Raises:
        TypeError: ``chunk_size`` is not an integer.
        ValueError: ``chunk_size`` is less than 1.

    Source:
        The distance and the handling of ``ref_includes_query`` are those of ``FaissKNN`` with ``faiss.IndexFlatL2``
        (Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", 2017). Where faiss fills up with the
        index -1 (fewer references than k, NaN), this class raises ``ValueError``.

    Example:
        >>> embeddings = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 2.0]])
        >>> distances, indices = TorchKNN()(embeddings, 2, embeddings, ref_includes_query=True)
        >>> indices.tolist()
        [[2, 1], [3, 0], [0, 1], [1, 2]]
        >>> distances.tolist()
        [[1.0, 9.0], [4.0, 9.0], [1.0, 10.0], [4.0, 10.0]]
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None:
            arguments.count("chunk_size", chunk_size)
        self.chunk_size = chunk_size

    def __call__(
        self, query: Tensor, k: int, reference: Tensor, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Find the k nearest references of every query.

        Args:
            query: [n, d].
            k: how many references to return for each query.
            reference: [m, d].
            ref_includes_query: the first n references are the queries, and query i is not a neighbor of itself (default
                ``False``).

        Returns:
            Squared distances [n, k] in float32, ascending, and the indices [n, k] of the references.

        Raises:
            TypeError: ``k`` is not an integer.
            ValueError: ``k`` is less than 1 or more than the references there are (the query itself not counted); the
                shapes do not fit; an embedding is NaN, infinite, or so large that its distances overflow float32.
        """
        arguments.count("k", k)
        if query.ndim != 2 or reference.ndim != 2 or query.shape[1] != reference.shape[1]:
            raise ValueError(
                "query and reference must be [n, d] and [m, d], "
                f"got shapes {tuple(query.shape)} and {tuple(reference.shape)}"
            )
        n, m = len(query), len(reference)
        if ref_includes_query and n > m:
            raise ValueError(f"ref_includes_query is True, but there are {n} queries and only {m} references")
        available = m - int(ref_includes_query)
        if k > available:
            raise ValueError(f"k is {k}, but each query has only {available} references to choose from")

        with torch.no_grad(), full_float32(query.device):
            queries, references = shifted(query, reference)
            own = torch.arange(n, device=query.device) if ref_includes_query else None

            chunk_size = self.chunk_size or max(1, thresholds.DISTANCES // m)
            buffer = queries.squares.new_empty(min(n, chunk_size) * m)
            distances = buffer.new_empty(n, k)
            indices = torch.empty(n, k, dtype=torch.long, device=query.device)
            for start in range(0, n, chunk_size):
                rows = slice(start, start + chunk_size)
                own_columns = None if own is None else own[rows]
                chunk = squared_distances(queries.at(rows), references, buffer, own_columns)
                distances[rows], indices[rows] = smallest(chunk, k)
        return distances, indices


class Copies:
    """Which of some embeddings [n, d] are the same, bit for bit."""

    def __init__(self, given: Tensor) -> None:
        self.given = given

    @cached_property
    def ids(self) -> Tensor:
        """A number for each [n], equal for copies."""
        ids: Tensor = torch.unique(self.given, dim=0, return_inverse=True)[1]
        return ids


@dataclass(frozen=True)
class Points:
    """Embeddings, and what their distances are computed from.

    Args:
        given: [n, d].
        origin: [d].
        squares: the squared norms of the embeddings about the origin, [n].
        copies: of all embeddings that these are some of.
        places: where these are among them, [n].
    """

    given: Tensor
    origin: Tensor
    squares: Tensor
    copies: Copies
    places: Tensor

    @cached_property
    def moved(self) -> Tensor:
        """The embeddings about the origin [n, d], once somebody asks for them."""
        return self.given - self.origin

    def at(self, index: Tensor | slice) -> "Points":
        """Some of the points."""
        return Points(self.given[index], self.origin, self.squares[index], self.copies, self.places[index])

    def all_at(self, index: Tensor) -> "Points":
        """Some of the points, without a copy if they are all of them in their order."""
        is_whole = len(index) == len(self.places) and torch.equal(self.places[index], self.places)
        return self if is_whole else self.at(index)

    def distinct(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the points without copies [k, d], and which of these each one is [len(index)]."""
        found, which = self.copies.ids[self.places[index]].unique(return_inverse=True)
        one = torch.empty_like(found).index_copy_(0, which, index)
        return self.given[one], which


def shifted(query: Tensor, reference: Tensor) -> tuple[Points, Points]:
    """Return both in float32 about the reference nearest to the mean; refuse distances that overflow."""
    _check_distances_finite("query", query.float())
    if reference is not query:
        _check_distances_finite("reference", reference.float())
    origin = _nearest_to_the_mean(reference.float())
    first = _about(origin, query.float())
    return first, first if reference is query else _about(origin, reference.float())


def _nearest_to_the_mean(x: Tensor) -> Tensor:
    """The one of some vectors [m, d] that is nearest to their mean [d]."""
    mean = x.mean(dim=0)
    return x[torch.cat([(some - mean).square_().sum(dim=1) for some in blocks(x)]).argmin()]


def _about(origin: Tensor, x: Tensor) -> Points:
    squares = torch.cat([(some - origin).square_().sum(dim=1) for some in blocks(x)])
    return Points(x, origin, squares, Copies(x), torch.arange(len(x), device=x.device))


def squared_distances(query: Points, reference: Points, buffer: Tensor, own: Tensor | None = None) -> Tensor:
    """Return the squared distances [n, m] of n queries to m references, in the buffer.

    The distance to the reference ``own`` [n], the query itself, is infinite.
    """
    n, m = len(query.squares), len(reference.squares)
    # Fresh memory for every chunk would cost as much as the product.
    distances = buffer[: n * m].view(n, m)
    torch.addmm(reference.squares, query.moved, reference.moved.T, alpha=-2, out=distances)
    # Rounding can leave a distance of zero slightly negative.
    distances.add_(query.squares[:, None]).clamp_(min=0)
    if own is not None:
        distances.scatter_(1, own[:, None], torch.inf)
    if n:
        rows = (distances.amin(dim=1) < thresholds.NEAR * (query.squares + reference.squares.max())).nonzero()[:, 0]
        # Nothing is split into one part that is nothing, and computing that takes as many calls as anything.
        for some in rows.split(max(1, thresholds.NEAR_DISTANCES // m)) if len(rows) else ():
            distances[some] = recompute_near(distances[some], query.at(some), reference)
    return distances


def recompute_near(distances: Tensor, query: Points, reference: Points) -> Tensor:
    """Compute the distances [n, m] of near pairs again, in place, so that copies have equal ones."""
    near = distances < thresholds.NEAR * (query.squares[:, None] + reference.squares)
    if int(near.sum()) < thresholds.EXPANDED:
        i, j = near.nonzero(as_tuple=True)
        return distances.index_put_((i, j), _by_differences(query.given, reference.given, i, j))
    rows, columns = _where_any(near)
    (q, q_of), (r, r_of) = query.distinct(rows), reference.distinct(columns)
    sums = _expanded(q, r)[q_of][:, r_of]
    return _put(distances, rows, columns, near, sums)


def _expanded(query: Tensor, reference: Tensor, attempts: int = 3) -> Tensor:
    """The squared distances [n, m] of vectors by products in double precision.

    About an origin among them the expansion loses no digit that single precision has, unless two are many hundred times
    nearer to one another than to the origin. Pairs that are, in another cluster say, are computed again about an origin
    of their own, and where they are few, or at last, from the differences.
    """
    middle = reference[(reference - reference.mean(dim=0)).square().sum(dim=1).argmin()].double()
    q, r = query.double() - middle, reference.double() - middle
    squares = q.square().sum(dim=1)[:, None] + r.square().sum(dim=1)
    distances = torch.addmm(squares, q, r.T, alpha=-2).clamp_(min=0)
    near = distances < thresholds.NEAR_DOUBLE * squares
    distances = distances.float()
    if attempts:
        # A vector is near itself, wherever the origin is: rows of few such pairs do not come again.
        few = near & (near.view(torch.uint8).sum(dim=1) <= thresholds.NEAR_FEW)[:, None]
        near &= ~few
    else:
        few = near
    for i, j in zip(*(x.split(thresholds.NEAR_DISTANCES) for x in few.nonzero(as_tuple=True)), strict=True):
        distances[i, j] = _by_differences(query, reference, i, j)
    rows, columns = _where_any(near)
    if attempts == 0 or len(rows) == 0:
        return distances
    return _put(distances, rows, columns, near, _expanded(query[rows], reference[columns], attempts - 1))


def _by_differences(query: Tensor, reference: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The squared distances [p] of the pairs of rows i, j, by the same operations in the same order for each."""
    sums = query.new_zeros(len(i))
    for q, r in zip(query.T, reference.T, strict=True):
        sums.add_((q[i] - r[j]).square_())
    return sums


def _where_any(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and the columns of a mask [n, m] in which there is anything."""
    numbers = mask.view(torch.uint8)
    return numbers.amax(dim=1).nonzero()[:, 0], numbers.amax(dim=0).nonzero()[:, 0]


def _put(distances: Tensor, rows: Tensor, columns: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Put the values [r, c] of some rows and columns into the distances [n, m], where the mask [n, m] is."""
    if mask.shape == values.shape:
        return torch.where(mask, values, distances, out=distances)
    where = (rows[:, None], columns)
    distances[where] = torch.where(mask[where], values, distances[where])
    return distances


def smallest(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest of each row [r, m] and their columns, equal ones by column; the values must be >= 0."""
    m = distances.shape[1]
    values, columns = _topk(distances, min(k + 1, m))
    keys = _pack(values, columns)[:, :k].sort(dim=1).values
    if k < m:
        # topk picks any of the values that tie for the last place.
        tied = values[:, k - 1] == values[:, k]
        if tied.any():
            all_keys = _pack(distances[tied], torch.arange(m, device=distances.device))
            keys[tied] = all_keys.topk(k, largest=False).values
    return _unpack(keys)


def _topk(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest of each row [r, m], sorted, and their columns; faster than ``topk`` where k is small."""
    m = distances.shape[1]
    # As many groups as candidates, if that makes them smaller.
    size = min(thresholds.COLUMNS_FOR_EACH, math.isqrt(m // k))
    width = m // max(1, size)
    if size < 2 or k * size > width:
        values, columns = distances.topk(k, largest=False)
        return values, columns
    # Column c is in group c % width: the k smallest are in the k groups with the smallest minima, or in the remainder.
    whole = size * width
    minima = distances[:, :whole].unflatten(1, (size, width)).amin(dim=1)  # [r, width]
    groups = minima.topk(k, largest=False, sorted=False).indices
    members = groups[:, :, None] + torch.arange(0, whole, width, device=distances.device)  # [r, k, size]
    remainder = torch.arange(whole, m, device=distances.device).expand(len(distances), -1)
    candidates = torch.cat([members.flatten(1), remainder], dim=1)
    values, places = distances.gather(1, candidates).topk(k, largest=False)
    return values, candidates.gather(1, places)


# The bits of non-negative floats order like integers, so that one int64 orders by value first, then by column.
# (-0.0 would come last, but the last term of a distance is a sum of squares, and adding that never gives -0.0.)
def _pack(values: Tensor, columns: Tensor) -> Tensor:
    return values.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(columns)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    return (keys >> 32).int().view(torch.float32), keys & 0xFFFFFFFF


def blocks(x: Tensor) -> tuple[Tensor, ...]:
    """The rows [m, d] in blocks of which a copy is no more memory than a chunk of distances."""
    found: tuple[Tensor, ...] = x.split(max(1, thresholds.DISTANCES // max(1, x.shape[1])))
    return found


def _check_distances_finite(name: str, embeddings: Tensor) -> None:
    # |q - r|^2 <= 2 |q|^2 + 2 |r|^2, and with the shift of the origin four times that.
    bad = ~torch.isfinite(torch.cat([16 * some.square().sum(dim=1) for some in blocks(embeddings)]))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name} has {int(bad.sum())} rows with NaN, infinite or too large values; the first is {row}")


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Switch off whatever lets a float32 matrix product run in fewer bits."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        precision_before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(device.type, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision_before)
        return
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
