"""Random affine warps and pixel noise for batches of images, in plain torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


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
        grid = affine_grid(self._draw(batch, generator), list(batch.shape), align_corners=False)
        warped = grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if self.noise:
            noise = torch.randn(batch.shape, generator=generator, device=batch.device, dtype=batch.dtype)
            warped = warped + self.noise * noise
        return warped.clamp(0, 1).view(images.shape)

    def _draw(self, batch: Tensor, generator: torch.Generator | None) -> Tensor:
        # affine_grid wants, for every image, where in the original a pixel of the result comes from: p -> A (p - t).
        n, _, h, w = batch.shape
        uniform = torch.rand(n, 5, generator=generator, device=batch.device, dtype=batch.dtype) * 2 - 1
        angle = uniform[:, 0] * math.radians(self.rotation)
        zoom = torch.exp(uniform[:, 1] * math.log(self.scale))
        shear = uniform[:, 2] * self.shear
        shift = uniform[:, 3:, None] * 2 * self.shift  # [n, 2, 1]; affine_grid measures either side from -1 to 1
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        x = torch.stack([cos + shear * sin, (sin - shear * cos) * (h / w)], dim=1)
        y = torch.stack([-sin * (w / h), cos], dim=1)
        matrix = torch.stack([x, y], dim=1)  # [n, 2, 2]
        return torch.cat([matrix, -matrix @ shift], dim=2)
