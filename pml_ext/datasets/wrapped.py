"""Any dataset of Python as a data set of this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from pml_ext.datasets.images import ImageFiles, Mode, flat, require_pillow
from pml_ext.datasets.samples import DataError, Samples, number
from pml_ext.datasets.vector_files import vectors

if TYPE_CHECKING:
    from PIL import Image

LABELS = ("labels", "targets", "y")


def wrap(dataset: Any, name: str | None = None, mode: Mode = "RGB") -> Samples:
    """Make a data set of an object with `len(dataset)` and `dataset[i] == (image or vector, label, ...)`.

    An image is a Pillow image, an array [h, w] or [h, w, c], or a tensor [c, h, w], of 8 bits or floating point in
    0..1. A vector is one-dimensional. The labels are `dataset.labels`, `.targets` or `.y` if one of them exists;
    otherwise every sample is read once. Class names are those of `dataset.classes`, by label.

    Args:
        dataset: such an object; or a pair (vectors [n, d], labels); or a dictionary of either by split, {"train": ...,
            "test": ...}, in which a name means the same class everywhere.
        name: the name in tables. Default None: the name of its type.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: an object of another kind; on access, an image that is not as described above.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> samples = wrap(TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([7, 7, 9, 9])), "four")
        >>> samples.describe(), samples.classes, samples.image(0).size
        ('2 classes, 4 images', ('7', '9'), (8, 8))
    """
    name = name or type(dataset).__name__
    if isinstance(dataset, Samples):
        return dataset
    if isinstance(dataset, Mapping):
        return _joined({split: wrap(part, f"{name}/{split}", mode) for split, part in dataset.items()}, name)
    if isinstance(dataset, (tuple, list)) and len(dataset) == 2 and getattr(dataset[0], "ndim", 0) == 2:
        return vectors(name, *dataset)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(f"{name}: a data set needs len() and [index], got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise DataError(f"{name}: no samples")
    labels, classes = _named(_labels(dataset, name), dataset)
    first = _sample(dataset, 0, name)[0]
    if np.ndim(first) == 1:
        rows = [torch.as_tensor(_sample(dataset, i, name)[0]) for i in range(len(dataset))]
        if len({row.shape for row in rows}) > 1:
            raise DataError(f"{name}: vectors of different lengths")
        return vectors(name, torch.stack(rows), [classes[label] for label in labels.tolist()])
    paths = _paths(dataset)
    return Samples(
        name=name,
        labels=labels,
        classes=classes,
        image=_Images(dataset, name, mode),
        paths=paths,
        key=_key(dataset, paths, mode),
    )


@dataclass(frozen=True)
class _Images:
    dataset: Any
    name: str
    mode: Mode

    def __call__(self, index: int) -> Image.Image:
        return picture(_sample(self.dataset, index, self.name)[0], f"{self.name}: sample {index}", self.mode)


def picture(value: Any, what: str, mode: Mode = "RGB") -> Image.Image:
    """A Pillow image from a Pillow image, an array [h, w] or [h, w, c], or a tensor [c, h, w].

    Raises:
        DataError: another shape or range; the message begins with `what`.
    """
    require_pillow("an image")
    from PIL import Image

    if isinstance(value, Image.Image):
        return flat(value, what, mode)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.movedim(0, -1) if value.ndim == 3 else value).numpy()
    pixels = np.asarray(value)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or 0 in pixels.shape:
        raise DataError(
            f"{what} must be an image [h, w, c] or a tensor [c, h, w] of 1, 3 or 4 channels, got {pixels.shape}"
        )
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not (np.issubdtype(pixels.dtype, np.floating) and low >= 0 and high <= 1):
            hint = "give images of 8 bits, or floating point in 0..1 before any normalization"
            raise DataError(f"{what} is {pixels.dtype} in {low:.4g}..{high:.4g}: {hint}")
        pixels = (pixels * 255).round().astype(np.uint8)
    return flat(Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels), what, mode)


def _sample(dataset: Any, index: int, name: str) -> Any:
    sample = dataset[index]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        raise DataError(f"{name}: sample {index} must be (image or vector, label), got {type(sample).__name__}")
    return sample


def _labels(dataset: Any, name: str) -> list[Any]:
    """The labels of a dataset, without reading its images if it has an attribute for them."""
    if isinstance(dataset, Subset):
        every = _labels(dataset.dataset, name)
        return [every[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in _labels(part, name)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return list(dataset.tensors[1].tolist())
    for attribute in LABELS:
        found = getattr(dataset, attribute, None)
        if found is not None and hasattr(found, "__len__") and len(found) == len(dataset):
            return list(found.tolist() if hasattr(found, "tolist") else found)
    labels = [_sample(dataset, i, name)[1] for i in range(len(dataset))]
    return [label.tolist() if hasattr(label, "tolist") else label for label in labels]


def _named(labels: list[Any], dataset: Any) -> tuple[Tensor, tuple[str, ...]]:
    numbers, classes = number(labels)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping):
        return numbers, classes
    by_text = {str(label): str(name) for label, name in names.items()}
    named = tuple(by_text.get(label, label) for label in classes)
    return numbers, named if len(set(named)) == len(named) else classes


def _joined(parts: Mapping[str, Samples], name: str) -> Samples:
    if not parts:
        raise DataError(f"{name}: no samples")
    if len({part.vectors is None for part in parts.values()}) > 1:
        raise DataError(f"{name}: images and vectors in one data set")
    numbers, classes = number([part.classes[i] for part in parts.values() for i in part.labels.tolist()], sort=False)
    split = [word for word, part in parts.items() for _ in range(len(part))]
    values = [part.vectors for part in parts.values() if part.vectors is not None]
    if len({value.shape[1] for value in values}) > 1:
        raise DataError(f"{name}: vectors of different lengths")
    images = [part.image for part in parts.values() if part.image is not None]
    return Samples(
        name=name,
        labels=numbers,
        classes=classes,
        image=_Chained(tuple(images), tuple(map(len, parts.values()))) if images else None,
        vectors=torch.cat(values) if values else None,
        split=tuple(split),
        key=blake2b("".join(part.key for part in parts.values()).encode(), digest_size=16).hexdigest(),
    )


@dataclass(frozen=True)
class _Chained:
    images: tuple[Callable[[int], Any], ...]
    lengths: tuple[int, ...]

    def __call__(self, index: int) -> Any:
        for images, length in zip(self.images, self.lengths, strict=True):
            if index < length:
                return images(index)
            index -= length
        raise IndexError(index)


def _paths(dataset: Any) -> tuple[str, ...] | None:
    if isinstance(dataset, Subset):
        every = _paths(dataset.dataset)
        return None if every is None else tuple(every[i] for i in dataset.indices)
    for attribute in ("paths", "samples"):  # of PML's and ours; of torchvision's ImageFolder, pairs with the label
        found = getattr(dataset, attribute, None)
        if isinstance(found, (list, tuple)) and len(found) == len(dataset):
            first = [item[0] if isinstance(item, tuple) else item for item in found]
            if all(isinstance(item, (str, os.PathLike)) for item in first):
                return tuple(map(os.fspath, first))
    return None


def _key(dataset: Any, paths: tuple[str, ...] | None, mode: Mode) -> str:
    """Digest of the files, or of the contents of every sample: what an object holds cannot be seen from outside."""
    if paths is not None:
        # The representation of a function holds its address: such a key does not outlive the process.
        how = repr((type(dataset), getattr(dataset, "transform", None), getattr(dataset, "transforms", None)))
        return blake2b(f"{ImageFiles(paths, mode).key()} {how}".encode(), digest_size=16).hexdigest()
    digest = blake2b(mode.encode(), digest_size=16)
    for content in _contents(dataset):
        digest.update(content)
    return digest.hexdigest()


def _contents(dataset: Any) -> Iterator[bytes]:
    for i in range(len(dataset)):
        value = dataset[i][0]
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        yield repr((array.shape, array.dtype.str)).encode() + array.tobytes()
