"""Random affine warps and pixel noise for batches of images, in plain torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


@dataclass(frozen=True)
class RandomWarp:
    """Rotate, scale, shear and shift every image by its own random amount, then add pixel noise.

    A whole batch is warped by one call of `torch.nn.functional.grid_sample`. What a warp moves into the image from
    outside is 0, and the result is clamped to [0, 1].

    Args:
        rotation: the angle is uniform in [-rotation, rotation], degrees. Default 20.
        scale: the factor is log-uniform in [1 / scale, scale]; 1 switches it off. Default 1.25.
        shear: the horizontal shear, pixels per pixel of height, is uniform in [-shear, shear]. Default 0.3.
        shift: the shift along each axis is uniform in [-shift, shift], a fraction of the image's side. Default 0.1.
        noise: standard deviation of the Gaussian noise of every pixel, black being 0 and white 1. Default 0.2.

    Shape:
        images [c, h, w] or [n, c, h, w], floating point -> the same shape, dtype and device.

    Raises:
        ValueError: a negative or infinite strength, a scale below 1, or images of another rank.

    Example:
        >>> import torch
        >>> RandomWarp()(torch.rand(8, 1, 32, 32)).shape
        torch.Size([8, 1, 32, 32])
    """

    rotation: float = 20.0
    scale: float = 1.25
    shear: float = 0.3
    shift: float = 0.1
    noise: float = 0.2

    def __post_init__(self) -> None:
        for name in ("rotation", "shear", "shift", "noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if not (math.isfinite(self.scale) and self.scale >= 1):
            raise ValueError(f"scale must be a finite number >= 1, got {self.scale}")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Warp `images`; the draws come from `generator`, by default from torch's global one."""
        if images.dim() not in (3, 4):
            raise ValueError(f"images must be [c, h, w] or [n, c, h, w], got {list(images.shape)}")
        if images.numel() == 0:
            return images.clone()
        batch = images if images.dim() == 4 else images.unsqueeze(0)
        grid = _places(*self._draw(batch, generator), *batch.shape[2:])
        warped = grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if self.noise:
            noise = torch.randn(batch.shape, generator=generator, device=batch.device, dtype=batch.dtype)
            warped = warped + self.noise * noise
        return warped.clamp(0, 1).view(images.shape)

    def _draw(self, batch: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        # Where in the original a pixel p of the result comes from: A p - A t; A by its columns, [n, 2] each.
        n, _, h, w = batch.shape
        uniform = torch.rand(n, 5, generator=generator, device=batch.device, dtype=batch.dtype) * 2 - 1
        angle = uniform[:, 0] * math.radians(self.rotation)
        zoom = torch.exp(uniform[:, 1] * math.log(self.scale))
        shear = uniform[:, 2] * self.shear
        shift = uniform[:, 3:] * 2 * self.shift  # grid_sample measures either side from -1 to 1
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        of_x = torch.stack([cos + shear * sin, -sin * (w / h)], dim=1)
        of_y = torch.stack([(sin - shear * cos) * (h / w), cos], dim=1)
        return of_x, of_y, -(of_x * shift[:, :1] + of_y * shift[:, 1:])


def _places(of_x: Tensor, of_y: Tensor, origin: Tensor, h: int, w: int) -> Tensor:
    """Points [n, h, w, 2] of the original, as `affine_grid` gives them, without its product of matrices.

    What a product of BLAS gives in the last digit depends on the instructions of the machine.
    """
    x, y = (torch.linspace(-1, 1, side, device=of_x.device, dtype=of_x.dtype) * ((side - 1) / side) for side in (w, h))
    of_x, of_y, origin = (each[:, None, None] for each in (of_x, of_y, origin))
    return _sum_of_products(of_x * x[:, None], of_y, y[:, None, None]) + origin


def _sum_of_products(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """first + a b, rounded once where that can be had: in float64 on a CPU, since not every device has that."""
    if first.device.type != "cpu":
        return first + a * b
    return (first.double() + a.double() * b.double()).to(first.dtype)
