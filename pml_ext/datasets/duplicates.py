"""Images that are in a data set twice: found by small copies of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pml_ext.datasets.samples import DataError, Samples

SIDE = 16  # pixels of a small copy
# Correlation of two small copies. Measured on photographs: the same one, two thirds the size and saved again as JPEG of
# quality 60, has .98 to .999; of different ones of birds, or drawings of a character, no pair reaches .97.
ALIKE = 0.98
ROWS = 4096  # compared at a time


def thumbnails(samples: Samples) -> tuple[Tensor, list[str]]:
    """Small copies of all images, minus their means and of length 1, and a line for each file that cannot be read.

    Args:
        samples: the data set; vectors are their own small copies.

    Shape:
        [n, 3 * SIDE * SIDE]; zeros for an image that cannot be read or is of one color.

    Example:
        >>> thumbnails(Samples("two", torch.tensor([0, 1]), ("cat", "dog"), vectors=torch.eye(2)))[0]
        tensor([[ 0.7071, -0.7071],
                [-0.7071,  0.7071]])
    """
    if samples.vectors is not None:
        rows, unreadable = samples.vectors.float() - samples.vectors.float().mean(1, keepdim=True), []
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda i: _small(samples, i), range(len(samples))))
        unreadable = [line for line in found if isinstance(line, str)]
        blank = torch.zeros(3 * SIDE * SIDE)
        rows = torch.stack([blank if isinstance(row, str) else row for row in found])
    return normalize(rows, eps=1e-4), unreadable


def near_duplicates(copies: Tensor, parts: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Pairs of samples in different parts whose small copies are nearly equal, by index.

    Args:
        copies: of all samples, from `thumbnails`.
        parts: the samples of each part.

    Example:
        >>> near_duplicates(torch.eye(3)[[0, 1, 2, 1]], {"train": torch.tensor([0, 1]), "test": torch.tensor([2, 3])})
        [(1, 3)]
    """
    pairs: list[tuple[int, int]] = []
    for one, other in combinations(parts.values(), 2):
        for block in one.split(ROWS):
            for against in other.split(ROWS):
                alike = (copies[block] @ copies[against].T >= ALIKE).nonzero()
                pairs += zip(block[alike[:, 0]].tolist(), against[alike[:, 1]].tolist(), strict=True)
    return sorted(pairs)


def check_files(samples: Samples, parts: Mapping[str, Tensor], most: int = 20) -> Iterator[str]:
    r"""Check every image: a line for each that cannot be read, then near duplicates across the parts.

    Args:
        samples: the data set.
        parts: the samples of each part, by name.
        most: the largest number of pairs that are listed. Default 20.

    Example:
        >>> parts = {"train": torch.tensor([0, 1]), "test": torch.tensor([2])}
        >>> rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        >>> samples = Samples("three", torch.tensor([0, 0, 1]), ("cat", "dog"), vectors=rows)
        >>> print(*check_files(samples, parts), sep="\n")
        1 near duplicate across the split
        train sample 1 (cat) and test sample 2 (dog)
    """
    copies, unreadable = thumbnails(samples)
    yield from unreadable
    pairs = near_duplicates(copies, parts)
    if pairs:
        yield f"{len(pairs):,} near duplicate{'s' * (len(pairs) > 1)} across the split"
    home = {i: name for name, index in parts.items() for i in index.tolist()}
    for pair in pairs[:most]:
        yield " and ".join(f"{home[i]} {_called(samples, i)}" for i in pair)
    if len(pairs) > most:
        yield f"and {len(pairs) - most:,} more"


def _called(samples: Samples, index: int) -> str:
    name = samples.classes[int(samples.labels[index])]
    shown = name if name.isprintable() and len(name) <= 60 else repr(name[:60] + "…" * (len(name) > 60))
    return f"{'sample ' + str(index) if samples.paths is None else repr(samples.paths[index])} ({shown})"


def _small(samples: Samples, index: int) -> Any:
    """The pixels of a small copy, or the line that says why there is none."""
    import numpy as np
    from PIL.Image import Resampling

    assert samples.image is not None
    try:
        image = samples.image(index)
    except DataError as error:
        return str(error)
    small = image.convert("RGB").resize((SIDE, SIDE), Resampling.BOX, reducing_gap=2.0)
    pixels = torch.from_numpy(np.array(small)).float()
    return (pixels - pixels.mean((0, 1))).flatten()  # each color by itself: one of one color is like nothing
