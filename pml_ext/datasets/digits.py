"""Handwritten digits, 8 x 8: the smallest zero-shot retrieval set, for tests and examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_ext.datasets.in_memory import InMemoryDataset, check_split
from pml_ext.datasets.warp import RandomWarp

WARP = RandomWarp()


class Digits(InMemoryDataset):
    """Scikit-learn's handwritten digits, 8 x 8 gray: train on the digits 0 to 4, test on the unseen 5 to 9.

    Training images are warped anew at every access; test images are warped once, from a fixed seed. Without a warp,
    `warp=None`, the set is too easy: the nearest neighbor by an untrained network is correct for 93 % of the images,
    and training on five classes can only make it worse.

    Args:
        split: "train" (901 images, labels 0 to 4) or "test" (896 images, labels 5 to 9). Default "train".
        transform: applied to each image, [1, 8, 8], after the warp. Default: none.
        target_transform: applied to each label. Default: none.
        warp: the random distortion of the images of either split; None for the images as they are. Default
            `RandomWarp()`.

    Shape:
        a sample is (image [1, 8, 8], float32 in [0, 1]; label, int).

    Attributes:
        labels: [n], int64, the label of each image; a label is the digit itself.
        classes: {label: name}, for the labels of this split.
        image_shape: (1, 8, 8).

    Raises:
        ValueError: an unknown split.
        ImportError: without scikit-learn.

    Source:
        `sklearn.datasets.load_digits`, which ships with scikit-learn: 1797 images of the UCI set
        "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).

    Example:
        >>> image, label = Digits("test")[0]
        >>> image.shape, label
        (torch.Size([1, 8, 8]), 5)
    """

    def __init__(
        self,
        split: str = "train",
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        *,
        warp: RandomWarp | None = WARP,
    ) -> None:
        check_split(split, ("train", "test"))
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('Digits needs scikit-learn: pip install "pml_ext[benchmark]"') from error
        data = load_digits()
        labels = torch.as_tensor(data.target, dtype=torch.int64)
        mine = labels < 5 if split == "train" else labels >= 5
        images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16  # its gray levels are 0 to 16
        super().__init__(
            images[mine],
            labels[mine],
            {digit: str(digit) for digit in (range(5) if split == "train" else range(5, 10))},
            warp=warp,
            split=split,
            transform=transform,
            target_transform=target_transform,
        )
