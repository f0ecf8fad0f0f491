"""Vectors brought to unit length, and distances where products of vectors lose them.

A vector shorter than `SHORTEST` has no direction. It is divided by that number, as `torch.nn.functional.normalize`
does, but its gradient is 0, not the gradient of the others times 1e12.

A squared distance is D^2 = |a|^2 + |r|^2 - 2 <a, r>, off by a few roundings of |a|^2 + |r|^2. So vectors are taken
about an origin in their midst, which no single one of them can move, and pairs whose D^2 is still not much larger than
its error (`thresholds.NEAR_ROUNDINGS`) are found by looking at the numbers, and computed again by the differences of
their vectors. Where to look would wait for the device, and in a graph, they stay as they are, down to `NOTHING`
roundings: that is no more than an error, and 0.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import FAR, looks_are_free

# The epsilon of torch's own normalize. In half precision it would be 0, so that is never used here.
SHORTEST = 1e-12
_SHORTER = math.nextafter(SHORTEST, 0)
# A squared distance of so many roundings of |a|^2 + |r|^2 is no distance.
NOTHING = 8
# Scores beyond this would come near those of absent pairs. They are not a number, as those that overflow.
LARGEST = FAR / 10


def at_least_single(x: Tensor) -> Tensor:
    """The same numbers in at least single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_full(embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both sets of vectors in the precision in which they are computed, that of the embeddings but at least float32."""
    full = at_least_single(embeddings)
    return full, full if ref_emb is embeddings else None if ref_emb is None else ref_emb.to(full.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Where operations on the device of x compute in the precision of their arguments."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def with_direction(x: Tensor, p: float = 2) -> Tensor:
    """The vectors [n, d], those too short to have a direction as constants: whoever normalizes them gives them none."""
    return torch.where(_length(x.detach(), p) < SHORTEST, x.detach(), x)


def normalize(x: Tensor, p: float = 2) -> Tensor:
    """The vectors [n, d] at length 1 in the p-norm, by autograd, at least in single precision."""
    x = with_direction(at_least_single(x), p)
    return x / _length(x, p).clamp_min(SHORTEST)


def unit_vectors(x: Tensor) -> Tensor:
    """The vectors [n, d] at unit length: `normalize`, at a fifth of the time that autograd takes for it."""
    unit: Tensor = _UnitVectors.apply(at_least_single(x))
    return unit


def _length(x: Tensor, p: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, p, dim=1, keepdim=True)
    return length


class _UnitVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        vectors = Vectors.of(x, normalize=True)
        ctx.save_for_backward(x, *vectors)
        return vectors.points

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, *vectors = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            again: Tensor = torch.autograd.grad(normalize(x), x, grad, create_graph=True)[0]
            return again
        with torch.autocast(x.device.type, enabled=False):
            return Vectors(*vectors).back(grad.clone())


class Vectors(NamedTuple):
    """Vectors as they are multiplied, and the way back from there to those that were given.

    Args:
        points: [n, d], normalized or not, about an origin.
        base: the same about 0.
        norm: what those that were given are divided by [n, 1] if they are normalized, else None; infinity for those
            that are divided by `SHORTEST`, whose gradient is 0.
    """

    points: Tensor
    base: Tensor
    norm: Tensor | None

    @staticmethod
    def of(x: Tensor, normalize: bool) -> "Vectors":
        """Vectors as they are given."""
        if not normalize:
            return Vectors(x, x, None)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        unit = x / norm.clamp_min(SHORTEST)
        return Vectors(unit, unit, torch.threshold_(norm, _SHORTER, torch.inf))

    def bounded(self) -> "Vectors":
        """The same, not a number where they are too long for their inner products."""
        return self._replace(points=_bounded(self.points))

    def about(self, origin: Tensor) -> "Vectors":
        """The same about an origin."""
        return self._replace(points=self.points - origin)

    def known(self) -> "Vectors":
        """The same with 0 for what is no number, and with a gradient of 0 there."""
        points = self.points.nan_to_num(0.0, 0.0, 0.0)
        base = points if self.base is self.points else self.base.nan_to_num(0.0, 0.0, 0.0)
        return Vectors(points, base, None if self.norm is None else self.norm.nan_to_num(torch.inf, torch.inf))

    def back(self, grad: Tensor) -> Tensor:
        """The gradient by the vectors that were given from that by the points; overwrites it."""
        if self.norm is None:
            return grad
        radial = (grad * self.base).sum(1, keepdim=True)
        return grad.addcmul_(self.base, radial, value=-1).div_(self.norm)


def _bounded(points: Tensor) -> Tensor:
    squares = squared_lengths(points, 2)
    if looks_are_free(squares) and not bool(squares.sum().isnan()):
        return points
    return torch.where(squares.isnan().unsqueeze(1), torch.nan, points)


def origin_of(points: Tensor) -> Tensor:
    """A point amid those of [m, d], m at least 1, without a gradient: medians of three of medians of three of 9.

    Distances do not change with the origin, but their rounding errors do: of a batch that has all but collapsed, far
    from 0, nothing else would be left. The mean would go along with a single vector that is far away.
    """
    x = points.detach()
    n, d = x.shape
    if n >= 9:
        x = _median(*x[: 9 * (n // 9) : n // 9].view(3, 3, d).unbind())
    elif n >= 3:
        x = x[: 3 * (n // 3) : n // 3]
    return (_median(*x.unbind()) if n >= 3 else x[0]).nan_to_num(0.0, 0.0, 0.0)


def _median(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    # What is not a number is passed over.
    return torch.fmax(torch.fmin(a, b), torch.fmin(torch.fmax(a, b), c))


def squared_lengths(points: Tensor, power: int | None) -> Tensor:
    """The squared lengths [n]; not a number where a score of that power, if any, might be beyond `LARGEST`."""
    # Without the squares in between, an [n, d] of its own.
    squares: Tensor = torch.linalg.vector_norm(points, dim=1).square_()
    if power is None:
        return squares
    largest = LARGEST / 4 if power == 2 else LARGEST**2 / 4
    return squares.masked_fill_(squares >= min(largest, torch.finfo(squares.dtype).max), torch.nan)


def differences(a: Tensor, r: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The distances of some pairs by the differences of their vectors: rows [t] of a, columns [t] of r -> [t]."""
    size = max(1, thresholds.BLOCK_CPU // max(a.shape[1], 1))
    pairs = zip(rows.split(size), columns.split(size), strict=True)
    return torch.cat([torch.linalg.vector_norm(a[i] - r[j], dim=1) for i, j in pairs])
