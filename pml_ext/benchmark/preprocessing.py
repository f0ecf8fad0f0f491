"""What a network wants its images to be: size, scale of the pixels, crop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network: (pixel / 255 - mean) / std of a crop of `image_size`.

    Args:
        image_size: (height, width) of the input.
        mean: of each channel, pixels in [0, 1].
        std: of each channel.
        interpolation: "bilinear", "bicubic", "nearest", "lanczos", "box" or "hamming".
        crop: the share of the shorter side that the center crop of a test image keeps; 1 keeps all of it.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> Preprocessing((224, 224)).resized
        (256, 256)
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop: float = 0.875

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.image_size) != 2 or any(not isinstance(side, int) or side < 1 for side in self.image_size):
            raise ValueError(f"image_size must be two whole numbers of at least 1, got {self.image_size}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have one number for each channel, got {self.mean} and {self.std}")
        if any(not value > 0 for value in self.std):
            raise ValueError(f"std must be above 0, got {self.std}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    @property
    def channels(self) -> int:
        """Channels of the input: 3 for color, 1 for gray."""
        return len(self.mean)

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) to which an image is scaled before its center is cut out."""
        height, width = self.image_size
        return round(height / self.crop), round(width / self.crop)

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """The same for another size."""
        return replace(self, image_size=image_size)

    def cut_from(self, shorter_side: int) -> Preprocessing:
        """The same cut from an image whose shorter side has so many pixels.

        Raises:
            ValueError: it has fewer than what is cut out.

        Example:
            >>> Preprocessing((227, 227)).cut_from(256).resized
            (256, 256)
        """
        least = min(self.image_size)
        if shorter_side < least:
            raise ValueError(f"shorter_side must be at least {least}, that of the image size, got {shorter_side}")
        return replace(self, crop=least / shorter_side)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """From what `to_dict` returned, or JSON made of it."""
        return cls(**values)


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

# ImageNet's statistics, with which almost all pretrained networks were trained.
IMAGENET = Preprocessing()
# (pixel - 127) / 128.
EFFICIENTNET_LITE = Preprocessing((224, 224), (127 / 255,) * 3, (128 / 255,) * 3, "bicubic", 0.875)
