"""The network that turns embeddings back into features."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pml_ext import arguments


@final
class FeatureGenerator(nn.Module):
    r"""Two fully connected layers from an embedding to a feature of the trunk.

        i(z) = W_2 BatchNorm(ReLU(W_1 z + b_1)) + b_2

    Args:
        embedding_size: dimension of the embeddings.
        feature_size: dimension of the trunk's output.
        hidden_size: outputs of the first layer. Default 512.

    Shape:
        [n, embedding_size] -> [n, feature_size]; in training n must be above 1.

    Source:
        Zheng et al., "Hardness-Aware Deep Metric Learning", CVPR 2019, arXiv 1903.05503: 512 and 1024 outputs. The
        batch normalization, after the ReLU, is in the reference code only.

    Raises:
        TypeError, ValueError: a size that is not an integer or below 1.

    Example:
        >>> FeatureGenerator(64, 256)(torch.zeros(2, 64)).shape
        torch.Size([2, 256])
    """

    def __init__(self, embedding_size: int, feature_size: int, hidden_size: int = 512) -> None:
        super().__init__()
        arguments.count("embedding_size", embedding_size)
        arguments.count("feature_size", feature_size)
        arguments.count("hidden_size", hidden_size)
        self.layers: nn.Sequential = nn.Sequential(
            nn.Linear(embedding_size, hidden_size),
            nn.ReLU(),
            nn.BatchNorm1d(hidden_size),
            nn.Linear(hidden_size, feature_size),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Generate one feature for each embedding."""
        features: Tensor = self.layers(embeddings)
        return features


@torch.no_grad()
def output_size(network: nn.Module, batch: Tensor) -> tuple[int, Tensor]:
    """The dimension of a network's outputs [n, d], and the outputs; its training modes and statistics stay as they are.

    Raises:
        ValueError: outputs of another shape.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        outputs: Tensor = network(batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if outputs.ndim != 2:
        raise ValueError(f"{type(network).__name__} must return one vector per sample, got {tuple(outputs.shape)}")
    return outputs.shape[1], outputs
