"""How evenly vectors lie on the sphere, as a number: the mean Gaussian potential of their pairs."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pml_ext import thresholds


def log_mean_potential(directions: Tensor, t: float) -> float:
    """log mean_{i < j} exp(-t |x_i - x_j|^2) of vectors of unit length [n, d]; 0 for fewer than two."""
    n = len(directions)
    if n < 2:
        return 0.0
    parts = []
    for start, squares in squared_distances(directions, directions):
        above = torch.ones_like(squares, dtype=torch.bool).triu(start + 1)
        parts.append((squares * -t).masked_fill_(~above, -torch.inf).flatten().logsumexp(0).double())
    return float(torch.stack(parts).logsumexp(0)) - math.log(n * (n - 1) / 2)


def squared_distances(x: Tensor, references: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances of vectors of unit length [b, m], in blocks of rows, each with the number of its first."""
    size = max(1, thresholds.DISTANCES // max(1, len(references)))
    for start in range(0, len(x), size):
        yield start, (2 - 2 * (x[start : start + size] @ references.T)).clamp_(min=0)
