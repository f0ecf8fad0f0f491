"""A trained network that is kept: written with all that it takes to use it, and loaded as images -> embeddings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pml_ext.benchmark import checkpoint, environment, files, trunks
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.features import digest
from pml_ext.benchmark.index import Index, Matches
from pml_ext.benchmark.models import Network, evaluating
from pml_ext.benchmark.preprocessing import Preprocessing
from pml_ext.benchmark.progress import tqdm, watched
from pml_ext.benchmark.transforms import test_transform
from pml_ext.datasets.samples import counted
from pml_ext.shown import LONGEST, one_line, preformatted

if TYPE_CHECKING:
    from PIL import Image

WEIGHTS, DESCRIPTION = "weights.pt", "model.json"
TRUNK = "trunk.pt"  # the weights of a trunk that many models have: not in the other file then
VECTORS = "vectors"
BATCH = 64
BAR_AFTER = 2.0  # seconds


@dataclass(frozen=True)
class Description:
    """The description of a model, which is stored beside its weights.

    Args:
        trunk: its name, or "vectors" where the samples are vectors already.
        rebuildable: whether the name is enough to build the trunk.
        image_shape: (channels, height, width) of the input; (d,) of vectors.
        features: dimension of the trunk's features.
        embedding_size: dimension of the embeddings.
        preprocessing: how an image becomes the input; None for vectors.
        classes: names of the classes that it was trained on.
        metrics: what was measured, by name.
        arguments: those of the experiment.
        versions: of Python and the packages.
    """

    trunk: str
    rebuildable: bool
    image_shape: tuple[int, ...]
    features: int
    embedding_size: int
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] = ()
    metrics: Mapping[str, float] | None = None
    arguments: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None


def save(folder: str | Path, network: Network, description: Description, *, trunks_in: Path | None = None) -> None:
    """Write `weights.pt` and `model.json`; the second last, so that a folder with it is complete.

    Args:
        folder: where they are to be; it need not be there.
        network: with the weights.
        description: the description, which is stored beside them.
        trunks_in: a folder in which the weights of the trunk are kept once for all models that have them: each of these
            has a second name of that file, `trunk.pt`, and stays complete if the others are deleted. Default None: they
            are in `weights.pt`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    if trunks_in is None:
        (folder / TRUNK).unlink(missing_ok=True)
    else:
        of_trunk = {name: state.pop(name) for name in list(state) if name.startswith("trunk.")}
        known = trunks_in / f"trunk-{digest(network.trunk)[:12]}.pt"
        if not known.exists():
            checkpoint.write_tensors(known, of_trunk)
        files.link(folder / TRUNK, known)
    checkpoint.write_tensors(folder / WEIGHTS, state)
    values = dict(vars(description))
    values["preprocessing"] = None if description.preprocessing is None else description.preprocessing.to_dict()
    values["versions"] = description.versions or environment.versions()
    files.write_json(folder / DESCRIPTION, {"format": 1, **values})


def load(
    folder: str | Path, *, trunk: str | nn.Module | None = None, device: str | torch.device = "cpu"
) -> EmbeddingModel:
    """Load a model that a run has kept (`runs/x/best`): a module from images to embeddings, in evaluation mode.

    Nothing in the folder is executed. A trunk that only its author's code can build must be given by the caller.

    Args:
        folder: where `model.json` and `weights.pt` are.
        trunk: the trunk, as a module or by name, if it cannot be built from the name in the model. Default None.
        device: device of the model. Default "cpu".

    Raises:
        BenchmarkError: there is no model, it is damaged, or its trunk cannot be built.
    """
    folder = Path(folder)
    description = read_description(folder)
    network = _empty_network(folder, description, trunk)
    cpu = torch.device("cpu")
    state = checkpoint.read_tensors(folder / WEIGHTS, cpu)
    try:
        if (folder / TRUNK).exists():
            state = state | checkpoint.read_tensors(folder / TRUNK, cpu)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise BenchmarkError(f"{folder / WEIGHTS} does not fit the network of {DESCRIPTION}: {reason}") from None
    return EmbeddingModel(network, description).to(device).eval()


def read_description(folder: Path) -> Description:
    """What `model.json` says, checked.

    Raises:
        BenchmarkError: there is none, or it is damaged.
    """
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != 1:
            raise ValueError("its format is newer than this package")
        preprocessing = values["preprocessing"]
        return Description(
            trunk=str(values["trunk"]),
            rebuildable=bool(values["rebuildable"]),
            image_shape=tuple(int(each) for each in values["image_shape"]),
            features=int(values["features"]),
            embedding_size=int(values["embedding_size"]),
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            classes=tuple(str(name) for name in values["classes"]),
            metrics=values.get("metrics"),
            arguments=values.get("arguments"),
            versions=values.get("versions"),
        )
    except OSError as error:
        raise BenchmarkError(f"{folder} has no model that can be read: {DESCRIPTION}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _empty_network(folder: Path, description: Description, trunk: str | nn.Module | None) -> Network:
    name = description.trunk
    if trunk is None:
        if name == VECTORS:
            module: nn.Module = nn.Identity()
        elif not description.rebuildable or not _is_known(name):
            raise BenchmarkError(
                f"the trunk of {folder}, {name!r}, is code that runs only if you name it yourself: "
                f"load(..., trunk={name!r}), or a module of your own"
            )
        else:
            module = trunks.build(name, description.image_shape, trunks.RANDOM).module
    else:
        module = trunks.build(trunk, description.image_shape, trunks.RANDOM).module
    embedder = nn.Linear(description.features, description.embedding_size)
    return Network(module, embedder, description.preprocessing)


def _is_known(name: str) -> bool:
    """Whether building a trunk of that name runs code of this package and of installed libraries only."""
    prefix, colon, rest = name.partition(":")
    return name in trunks.BUILDERS if not colon else prefix in trunks.PREFIXES and ":" not in rest


class EmbeddingModel(nn.Module):
    """A trained network with everything that is needed to use it: from images to embeddings of unit length.

    Args:
        network: the trunk and the embedder.
        description: what it was made of.

    Shape:
        images [n, channels, height, width], prepared, or vectors [n, d] -> embeddings [n, embedding_size]

    Attributes:
        classes: names of the classes that it was trained on.
        metrics: the metrics of the model when it was kept.
        gallery: the default gallery of a query, an `Index` or anything that `index` takes; None: there is none.
    """

    def __init__(self, network: Network, description: Description) -> None:
        super().__init__()
        self.network: Network = network
        self.description: Description = description
        self.classes: tuple[str, ...] = description.classes
        self.metrics: dict[str, float] = dict(description.metrics or {})
        self.gallery: Any = None
        self._index: Index | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [n, embedding_size] of unit length of prepared images."""
        return torch.nn.functional.normalize(self.network(images), dim=1)

    @property
    def prepare(self) -> Callable[[Image.Image], Tensor]:
        """What turns an image into the input [channels, height, width] of the network."""
        if self.description.preprocessing is None:
            raise BenchmarkError("this model takes vectors, not images")
        return Prepare(test_transform(self.description.preprocessing))

    @torch.no_grad()
    def embed(self, images: Any, *, show: bool = False) -> Tensor:
        """Embeddings [n, d] on the CPU of images: files, PIL images, or prepared tensors; one of them, or several."""
        inputs = [images] if _is_one(images) else images
        device = next(self.network.parameters()).device
        with evaluating(self):
            rows = [
                self(torch.stack(batch).to(device)).cpu()
                for batch in _batches(
                    tqdm(
                        map(self._input, inputs),
                        total=_length(inputs),
                        disable=not (show and watched()),
                        delay=BAR_AFTER,
                    )
                )
            ]
        if not rows:
            raise BenchmarkError("there is no image to embed")
        return torch.cat(rows)

    def _input(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            return image
        if self.description.preprocessing is None:
            return torch.as_tensor(image, dtype=torch.float32)
        if isinstance(image, (str, os.PathLike)):
            from pml_ext.datasets.images import ImageFiles

            image = ImageFiles((os.fspath(image),))(0)
        return self.prepare(image)

    def index(self, gallery: Any, *, show: bool = True) -> Index:
        """Embed a gallery.

        The gallery is anything that `pml_ext.datasets.open` reads, such as a folder with a sub-folder per class, or a
        list of image files.
        """
        from pml_ext import datasets

        if not isinstance(gallery, (str, os.PathLike)) and _is_list_of_files(gallery):
            paths = [os.fspath(path) for path in gallery]
            return Index(self.embed(paths, show=show), tuple(paths), model=self.digest)
        samples = datasets.open(gallery)
        inputs: Sequence[Any] = samples.vectors if samples.image is None else _Lazy(samples.image, len(samples))  # type: ignore[assignment]
        labels = tuple(samples.classes[label] for label in samples.labels.tolist())
        return Index(self.embed(inputs, show=show), samples.paths or (), labels, self.digest)

    def query(self, image: Any, gallery: Index | None = None, k: int = 8) -> Matches:
        """The k images of a gallery that are most similar to one image, the nearest first.

        Args:
            image: a file, a PIL image, or a prepared tensor.
            gallery: the result of `index`. Default: the images of the experiment of the model, embedded once.
            k: how many. Default 8.
        """
        return self.queries([image], gallery, k)[0]

    def queries(self, images: Any, gallery: Index | None = None, k: int = 8) -> list[Matches]:
        """The same for several images.

        Raises:
            BenchmarkError: another model has embedded the gallery, or there is none.
        """
        gallery = self._own_gallery() if gallery is None else gallery
        if gallery.model not in ("", self.digest):
            raise BenchmarkError("the index was made by another model: embed the gallery again")
        return gallery.search(self.embed(images), k)

    def _own_gallery(self) -> Index:
        if self._index is None:
            if self.gallery is None:
                raise BenchmarkError("there is no gallery to search: query(image, model.index('photos/'))")
            self._index = self.gallery if isinstance(self.gallery, Index) else self.index(self.gallery)
        return self._index

    def __repr__(self) -> str:
        told = self.description
        shape = " x ".join(map(str, told.image_shape))
        lines = [
            f"{told.trunk}: inputs of {shape} -> embeddings of {told.embedding_size} numbers",
            f"trained on {counted(len(self.classes), 'class')}"
            + (f" with {told.arguments['loss']}" if told.arguments and "loss" in told.arguments else ""),
            ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.metrics.items()),
        ]
        return "\n".join(one_line(line, LONGEST) for line in lines if line)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    @property
    def digest(self) -> str:
        """A digest of the weights."""
        return digest(self.network)


@dataclass(frozen=True)
class Prepare:
    """What a file goes through, for an image that is open already: upright, 8 bits, on white, then the transform."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepare an image."""
        from pml_ext.datasets.images import flat

        return self.transform(flat(image, "the image"))


class _Lazy(Sequence[Any]):
    """Images that are decoded when they are asked for."""

    def __init__(self, image: Callable[[int], Any], n: int) -> None:
        self.image, self.n = image, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.image(i)


def _is_one(images: Any) -> bool:
    if isinstance(images, Tensor):
        return images.ndim in (1, 3)
    return isinstance(images, (str, os.PathLike)) or hasattr(images, "convert")


def _is_list_of_files(gallery: Any) -> bool:
    return isinstance(gallery, (list, tuple)) and all(isinstance(each, (str, os.PathLike)) for each in gallery)


def _length(inputs: Any) -> int | None:
    return len(inputs) if hasattr(inputs, "__len__") else None


def _batches(inputs: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    batch: list[Tensor] = []
    for each in inputs:
        batch.append(each)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
