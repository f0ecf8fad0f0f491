"""Scores of all pairs at once, for those who only select pairs: no gradient, and as few products as there can be."""

import torch
from torch import Tensor

from pml_ext.engine import Geometry, _Space, _vectors
from pml_ext.pairs import looks_are_free

# Rows of a band: few, so that bands that begin at the diagonal are hardly more than a triangle; enough for a product
# at full speed.
_BAND = 128


def scores(embeddings: Tensor, references: Tensor | None, geometry: Geometry) -> Tensor:
    """Scores as the engine computes them: embeddings [n, d], references [m, d] or None for the batch -> [n, m].

    Those of a batch with itself are symmetric: a large one computes the upper triangle and copies the lower one.
    """
    space = _Space(geometry, *_vectors(embeddings, references, geometry))
    n = len(embeddings)
    if not space.same or n < 4 * _BAND or not looks_are_free(embeddings):
        return _rectangle(space, 0, n, 0)
    result = space.a.new_empty(n, n)
    for start in range(0, n, _BAND):
        stop = min(start + _BAND, n)
        band = _rectangle(space, start, stop, start)
        result[start:stop, start:] = band
        result[stop:, start:stop] = band[:, stop - start :].t()
    return result


def _rectangle(space: _Space, start: int, stop: int, first: int) -> Tensor:
    """Scores of the rows start..stop with the columns from `first` on."""
    a, r = space.a[start:stop], space.r[first:].t()
    if not space.geometry.euclidean:
        return a @ r
    a_square, r_square, smallest = space.squares
    square = torch.addmm(r_square[:, first:], a, r, alpha=-2).add_(a_square[start:stop])
    if space.geometry.power == 2:
        return square.clamp_min_(0).neg_()
    # As numbers: a product with booleans is six times slower.
    square.mul_(torch.gt(square, smallest[start:stop], out=torch.empty_like(square)))
    return square.sqrt_().neg_()
