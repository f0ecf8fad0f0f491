"""The network that every loss trains."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class EmbeddingNetwork(nn.Module):
    """Blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling, then a linear map.

    In PML's words the blocks are the `trunk` and the linear map is the `embedder`.

    Args:
        image_shape: (channels, height, width) of the images.
        embedding_size: dimension of the embeddings. Default 64.
        widths: channels of each block; few in the first, where the images are large. Default (32, 64, 64, 64).

    Shape:
        images [n, channels, height, width] -> embeddings [n, embedding_size], not normalised.

    Example:
        >>> import torch
        >>> EmbeddingNetwork((1, 32, 32))(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self, image_shape: tuple[int, ...], embedding_size: int = 64, widths: Sequence[int] = (32, 64, 64, 64)
    ) -> None:
        super().__init__()
        channels, *sides = image_shape
        blocks: list[nn.Module] = []
        for width in widths:
            blocks += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            if min(sides) > 1:  # an image of 8 x 8 is one pixel after three blocks
                blocks.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
        self.trunk = nn.Sequential(*blocks, nn.Flatten())
        self.embedder = nn.Linear(channels * math.prod(sides), embedding_size)

    def parts(self) -> dict[str, nn.Module]:
        """The network as PML's trainers and testers take it."""
        return {"trunk": self.trunk, "embedder": self.embedder}

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch of images."""
        embeddings: Tensor = self.embedder(self.trunk(images))
        return embeddings
