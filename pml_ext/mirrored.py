"""A square matrix and its mirror image."""

import torch
from torch import Tensor

from pml_ext import thresholds

# Entries of a column that are a power of two apart push each other out of the cache: so many more keep them apart.
_APART = 16


def plus_mirror_image(matrix: Tensor) -> Tensor:
    """The matrix [n, n] plus its transpose, in its memory.

    A large one on the CPU goes stripe by stripe, of rows with the columns that mirror them, at twice the speed.
    """
    n, size = len(matrix), thresholds.SYMMETRIC_ROWS
    if matrix.device.type != "cpu" or matrix.numel() <= thresholds.MIRRORED:
        return matrix.add_(matrix.t().contiguous())
    across, along = matrix.new_empty(size, n + _APART), matrix.new_empty(n, size + _APART)
    for start in range(0, n, size):
        stop = min(start + size, n)
        rows, columns = matrix[start:stop, start:], matrix[start:, start:stop]
        row_copy, sums = across[: stop - start, : n - start], along[: n - start, : stop - start]
        row_copy.copy_(rows)
        sums.copy_(row_copy.t()).add_(columns)
        columns.copy_(sums)
        rows.copy_(sums.t())
    return matrix


def scaled_plus_mirror_image(matrix: Tensor, scale: Tensor, looks: bool) -> tuple[Tensor, float]:
    """The matrix [n, n] with row i times scale_i [n], plus the transpose of that, up to a factor; and the factor.

    Args:
        matrix: it is left as it is.
        scale: of the rows.
        looks: whether to look at numbers is free.
    """
    if not looks:
        return (matrix.t() * scale).addcmul_(matrix, scale.unsqueeze(1)), 1.0
    # A CPU transposes much faster than it computes with a transposed matrix.
    mirrored = torch.empty_like(matrix).copy_(matrix.t())
    if scale.stride(0) == 0:  # one number, the derivative of a sum
        return mirrored.add_(matrix), scale[0].item()
    return mirrored.mul_(scale).addcmul_(matrix, scale.unsqueeze(1)), 1.0
