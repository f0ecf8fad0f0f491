"""The base of the datasets that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pml_ext.datasets.samples import counted
from pml_ext.datasets.warp import RandomWarp
from pml_ext.shown import preformatted

SEED = 0


class InMemoryDataset(Dataset[tuple[Any, Any]]):
    """A labeled image set held as one tensor; a DataLoader fetches it a batch at a time.

    Args:
        images: [n, c, h, w], in [0, 1].
        labels: [n], int64.
        classes: the name of each label.
        warp: the random distortion of the images; None leaves them as they are.
        split: "train", whose images are warped anew at every access, drawing from torch's global generator; or "test",
            whose images are warped once, from a fixed seed, and are the same in every run.
        transform: applied to each image after that. Default: none.
        target_transform: applied to each label. Default: none.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Mapping[int, str],
        *,
        warp: RandomWarp | None,
        split: str,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        self.split = split
        if split == "test" and warp is not None:
            images, warp = warp(images, torch.Generator().manual_seed(SEED)), None
        self._images = images
        self._warp = warp
        self.labels = labels
        self.classes: dict[int, str] = dict(classes)
        self.image_shape: tuple[int, ...] = tuple(images.shape[1:])
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        count = counted(len(torch.unique(self.labels)), "class")
        return f"{type(self).__name__}: {counted(len(self), 'image')} of {count}, {self.split}"

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    def part(self, classes: Tensor, *, split: str = "train") -> InMemoryDataset:
        """The samples of some classes, whose labels become 0, 1, ... in the order given.

        Args:
            classes: labels, all different.
            split: "test" warps the images once, from a fixed seed, if they are warped at all. Default "train".
        """
        inside = torch.isin(self.labels, classes)
        order = torch.argsort(classes)
        return InMemoryDataset(
            self._images[inside],
            order[torch.searchsorted(classes[order], self.labels[inside])],
            {i: self.classes[label] for i, label in enumerate(classes.tolist())},
            warp=self._warp,
            split=split,
            transform=self.transform,
            target_transform=self.target_transform,
        )

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

    def still(self) -> InMemoryDataset:
        """The same images, all of them warped once, from a fixed seed."""
        return InMemoryDataset(self._images, self.labels, self.classes, warp=self._warp, split="test")


def check_split(split: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `split` is one of `allowed`."""
    if split not in allowed:
        raise ValueError(f"split must be one of {', '.join(map(repr, allowed))}, got {split!r}")
