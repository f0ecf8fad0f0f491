"""The network that every loss trains: a trunk that sees, and an embedder, one linear map, after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pml_ext.benchmark import trunks
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.preprocessing import Preprocessing


class Network(nn.Module):
    """A trunk and a linear embedder after it. In PML's words they are the `trunk` and the `embedder`.

    Args:
        trunk: images -> features [n, features], or maps [n, features, ..], which are averaged.
        embedder: features -> embeddings.
        preprocessing: what the trunk wants its images to be.
        freeze_batch_norm: keep the running averages of the trunk's batch normalizations as they are, also while
            training. Default False.

    Shape:
        images [n, channels, height, width] -> embeddings [n, embedding_size], not normalized.
    """

    def __init__(
        self,
        trunk: nn.Module,
        embedder: nn.Module,
        preprocessing: Preprocessing | None = None,
        *,
        freeze_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.trunk: FeatureTrunk = FeatureTrunk(trunk, freeze_batch_norm=freeze_batch_norm)
        self.embedder = embedder
        self.preprocessing = preprocessing

    def parts(self) -> dict[str, nn.Module]:
        """The network as PML's trainers and testers take it."""
        return {"trunk": self.trunk, "embedder": self.embedder}

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch of images."""
        embeddings: Tensor = self.embedder(self.trunk(images))
        return embeddings


class FeatureTrunk(nn.Module):
    """A trunk whose output is one vector an image, and whose batch normalization can be frozen for good.

    Args:
        network: images -> features [n, features], or maps [n, features, ..], which are averaged.
        freeze_batch_norm: whether `train()` leaves the batch normalizations in evaluation mode. Default False.
    """

    def __init__(self, network: nn.Module, *, freeze_batch_norm: bool = False) -> None:
        super().__init__()
        # Convolutions of channels that lie together take two thirds of the time, forward and backward.
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.freeze_batch_norm = freeze_batch_norm
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, features] of a batch of images."""
        out: Tensor = self.network(images)
        return out.flatten(2).mean(2) if out.ndim > 2 else out

    def train(self, mode: bool = True) -> FeatureTrunk:
        """As every module, but frozen batch normalizations stay in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def build(
    trunk: str | nn.Module,
    images: Tensor,
    embedding_size: int,
    *,
    weights: str = trunks.PRETRAINED,
    freeze_batch_norm: bool | None = None,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Build the network; the number of features is found by passing two images.

    Args:
        trunk: a name that `pml_ext.benchmark.trunks` knows, or a module.
        images: two images as the network will get them, [2, channels, height, width].
        embedding_size: dimension of the embeddings.
        weights: of the trunk: "pretrained", "random" or a file. Default "pretrained".
        freeze_batch_norm: default: if weights were loaded.
        preprocessing: default: that of the trunk.

    Raises:
        BenchmarkError: a trunk that cannot be built, or not be run on such images.
    """
    built = trunks.build(trunk, tuple(images.shape[1:]), weights)
    freeze = built.pretrained if freeze_batch_norm is None else freeze_batch_norm
    network = Network(built.module, nn.Identity(), preprocessing or built.preprocessing, freeze_batch_norm=freeze)
    network.embedder = nn.Linear(feature_size(network.trunk, images, built.name), embedding_size)
    return network


def feature_size(trunk: nn.Module, images: Tensor, name: str = "the trunk") -> int:
    """Dimension of the features of a trunk, from two images; it leaves the trunk as it was."""
    with evaluating(trunk), torch.no_grad():
        try:
            features = trunk(images)
        except Exception as error:
            shape = " x ".join(map(str, images.shape[1:]))
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BenchmarkError(f"{name} cannot be run on images of {shape}: {reason}") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise BenchmarkError(f"{name} must give one vector of features an image, got {got} for {len(images)} images")
    return features.shape[1]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode for a while."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
