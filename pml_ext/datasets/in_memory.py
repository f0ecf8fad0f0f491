"""The base of the datasets that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class InMemoryDataset(Dataset[tuple[Any, Any]]):
    """A labelled image set held as one tensor; a DataLoader fetches it a batch at a time.

    Args:
        images: [n, c, h, w], in [0, 1].
        labels: [n], int64.
        classes: the name of each label.
        warp: applied to the fetched images, all at once, at every access. Default: none.
        transform: applied to each image after that. Default: none.
        target_transform: applied to each label. Default: none.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Mapping[int, str],
        *,
        warp: Callable[[Tensor], Tensor] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        self._images = images
        self._warp = warp
        self.labels = labels
        self.classes = dict(classes)
        self.image_shape: tuple[int, ...] = tuple(images.shape[1:])
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Fetch several samples at once, as DataLoader does: one warp for the whole batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self._images[index]  # a copy, so that a caller who writes into it leaves the dataset as it is
        if self._warp is not None:
            images = self._warp(images)
        samples: list[tuple[Any, Any]] = list(zip(images, self.labels[index].tolist(), strict=True))
        if self.transform is not None:
            samples = [(self.transform(image), label) for image, label in samples]
        if self.target_transform is not None:
            samples = [(image, self.target_transform(label)) for image, label in samples]
        return samples


def check_split(split: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `split` is one of `allowed`."""
    if split not in allowed:
        raise ValueError(f"split must be one of {', '.join(map(repr, allowed))}, got {split!r}")
