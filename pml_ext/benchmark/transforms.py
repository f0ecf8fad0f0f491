"""From an image of Pillow to the input of a network: crop, scale, flip, numbers.

By torchvision where it can be imported, else by Pillow alone, with the same arguments, the same random numbers and the
same values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pml_ext.benchmark.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Transform = Callable[["Image.Image"], Tensor]

ATTEMPTS = 10  # of a random crop to fit, as in torchvision
# An image more than twice this many times too large is first reduced by whole pixels: faster, and it looks the same.
REDUCING_GAP = 3.0


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through.

    Args:
        scale: least and greatest area of the random crop, as a share of the image. Default (0.16, 1).
        ratio: least and greatest width / height of the random crop, as a multiple of that of the network's input, to
            which it is scaled: an image is stretched by no more than that, and on average not at all, whatever the
            shape of the input; of a square one it is the crop's own width / height. Default (3 / 4, 4 / 3).
        flip: probability of a mirrored image. Default 0.5.
        shorter_side: to how many pixels the shorter side is scaled before the crop. Default None: not at all.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> Augmentation(scale=(0, 1))
        Traceback (most recent call last):
        ...
        ValueError: scale must be 0 < least <= greatest <= 1, got (0, 1)
    """

    scale: tuple[float, float] = (0.16, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    shorter_side: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < least <= greatest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio must be 0 < least <= greatest, got {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be in 0..1, got {self.flip}")
        if self.shorter_side is not None and self.shorter_side < 1:
            raise ValueError(f"shorter_side must be at least 1, got {self.shorter_side}")

    def ratio_of(self, image_size: tuple[int, int]) -> tuple[float, float]:
        """Least and greatest width / height of the crop for an input of (height, width).

        Example:
            >>> Augmentation(ratio=(0.5, 2)).ratio_of((100, 150))
            (0.75, 3.0)
        """
        height, width = image_size
        return self.ratio[0] * (width / height), self.ratio[1] * (width / height)


AUGMENTATION = Augmentation()


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation = AUGMENTATION) -> Transform:
    """Random resized crop, flip, numbers; random numbers from torch's global generator, in every worker its own.

    Args:
        preprocessing: what the network wants.
        augmentation: how much is cropped, and how often flipped.

    Shape:
        image -> [channels, *image_size] float32.

    Example:
        >>> from PIL import Image
        >>> train_transform(Preprocessing((32, 48)))(Image.new("RGB", (100, 80))).shape
        torch.Size([3, 32, 48])
    """
    vision = torchvision_transforms()
    if vision is None:
        return TrainTransform(preprocessing, augmentation)
    mode = vision.InterpolationMode(preprocessing.interpolation)
    first = [] if augmentation.shorter_side is None else [vision.Resize(augmentation.shorter_side, mode)]
    ratio = augmentation.ratio_of(preprocessing.image_size)
    crop = vision.RandomResizedCrop(preprocessing.image_size, augmentation.scale, ratio, mode)
    chain: Transform = vision.Compose(
        [
            ToMode(preprocessing.channels),
            *first,
            crop,
            vision.RandomHorizontalFlip(augmentation.flip),
            vision.ToTensor(),
            vision.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    return chain


def test_transform(preprocessing: Preprocessing) -> Transform:
    """Scale until the image covers `preprocessing.resized`, cut out the center, numbers.

    Args:
        preprocessing: what the network wants.

    Shape:
        image -> [channels, *image_size] float32.

    Example:
        >>> from PIL import Image
        >>> test_transform(Preprocessing((32, 32)))(Image.new("RGB", (100, 80))).shape
        torch.Size([3, 32, 32])
    """
    vision = torchvision_transforms()
    height, width = preprocessing.resized
    if vision is None or height != width:  # torchvision scales the shorter side, whatever the target's shape
        return TestTransform(preprocessing)
    chain: Transform = vision.Compose(
        [
            ToMode(preprocessing.channels),
            vision.Resize(height, vision.InterpolationMode(preprocessing.interpolation)),
            vision.CenterCrop(preprocessing.image_size),
            vision.ToTensor(),
            vision.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    return chain


test_transform.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test's


@lru_cache(maxsize=1)
def torchvision_transforms() -> Any | None:
    """`torchvision.transforms`, or None where it is not installed or does not fit the installed torch."""
    try:
        return import_module("torchvision.transforms")
    except Exception:  # built for another torch it raises RuntimeError, OSError, AttributeError, ...
        return None


@dataclass(frozen=True)
class ToMode:
    """An image in RGB for three channels, in gray for one."""

    channels: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert an image."""
        mode = {1: "L", 3: "RGB"}[self.channels]
        return image if image.mode == mode else image.convert(mode)


@dataclass(frozen=True)
class TrainTransform:
    """`train_transform` without torchvision."""

    preprocessing: Preprocessing
    augmentation: Augmentation = AUGMENTATION

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform an image."""
        image = ToMode(self.preprocessing.channels)(image)
        if self.augmentation.shorter_side is not None:
            size = covering(image.size, (self.augmentation.shorter_side,) * 2)
            image = _scaled(image, size, self.preprocessing.interpolation)
        height, width = self.preprocessing.image_size
        box = random_box(image.size, self.augmentation.scale, self.augmentation.ratio_of((height, width)))
        # Cropped first: given the box, Pillow's filters would see the pixels around it too.
        image = _scaled(image.crop(box), (width, height), self.preprocessing.interpolation)
        if float(torch.rand(1)) < self.augmentation.flip:
            from PIL.Image import Transpose

            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return numbers(image, self.preprocessing)


@dataclass(frozen=True)
class TestTransform:
    """`test_transform` without torchvision."""

    __test__ = False

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform an image."""
        image = ToMode(self.preprocessing.channels)(image)
        height, width = self.preprocessing.image_size
        size = covering(image.size, self.preprocessing.resized[::-1])
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        image = _scaled(image, size, self.preprocessing.interpolation)
        return numbers(image.crop((left, top, left + width, top + height)), self.preprocessing)


def covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) at which an image just covers a target; what is over is cut off, as in torchvision.

    >>> covering((100, 80), (40, 40)), covering((100, 80), (40, 20))
    ((50, 40), (40, 32))
    """
    (width, height), (wide, high) = size, target
    if width * high <= height * wide:
        return wide, int(wide * height / width)
    return int(high * width / height), high


def random_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom) of a random resized crop, from the numbers that torchvision draws."""
    width, height = size
    low, high = torch.log(torch.tensor(ratio)).tolist()  # in single precision, as there
    for _ in range(ATTEMPTS):
        area = width * height * float(torch.empty(1).uniform_(*scale))
        shape = float(torch.empty(1).uniform_(low, high).exp())
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, size=(1,)))
            left = int(torch.randint(0, width - w + 1, size=(1,)))
            return left, top, left + w, top + h
    # Nothing fitted: the largest center of an allowed shape.
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def numbers(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """The pixels as (pixel / 255 - mean) / std."""
    import numpy as np

    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return pixels.contiguous().float().div(255).sub_(mean).div_(std)


def _scaled(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    from PIL.Image import Resampling

    return image.resize(size, Resampling[interpolation.upper()], reducing_gap=REDUCING_GAP)
