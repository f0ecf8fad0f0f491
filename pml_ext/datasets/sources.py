"""One function that reads every kind of data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pml_ext.datasets.cars196 import cars196
from pml_ext.datasets.cub import cub
from pml_ext.datasets.digits import Digits
from pml_ext.datasets.folder import folder
from pml_ext.datasets.glyphs import Glyphs
from pml_ext.datasets.images import ImageFiles, Mode, unreadable
from pml_ext.datasets.in_shop import in_shop
from pml_ext.datasets.lists import image_list
from pml_ext.datasets.omniglot import omniglot
from pml_ext.datasets.samples import DataError, Samples
from pml_ext.datasets.sop import sop
from pml_ext.datasets.vector_files import vector_file
from pml_ext.datasets.wrapped import wrap
from pml_ext.spelling import hint

GROUP = "pml_ext.datasets"

DATASETS: dict[str, type[Glyphs] | type[Digits]] = {"glyphs": Glyphs, "digits": Digits}
"""The sets that need no files, by name: `DATASETS["glyphs"]("train")`."""

OFFICIAL: Mapping[str, Callable[[str, Mode], Samples]] = MappingProxyType(
    {"cub": cub, "cars196": cars196, "sop": sop, "in_shop": in_shop, "omniglot": omniglot}
)
"""The sets of the literature, read from a folder as they are unpacked."""


def open(source: Any, *, mode: Mode = "RGB", labels: Any = None, strict: bool = True) -> Samples:
    """Read a data set from any source.

    | source | what it is |
    |---|---|
    | `"glyphs"`, `"digits"` | the sets that need no files |
    | `"photos/"` | a folder with one sub-folder per class, see `folder` |
    | `"list.csv"` | a list with one image per row, see `image_list` |
    | `"cub:/data/CUB_200_2011"` | a set of the literature as it is unpacked |
    | `"a.npy"`, `"a.npz"`, `"a.pt"` | vectors with labels, see `vector_file` |
    | `"NAME:/data"`, `"NAME"` | a set of another package, see below |
    | an object | any Python dataset, see `wrap` |

    The sets of the literature are `cub:`, `cars196:`, `sop:`, `in_shop:` and `omniglot:`, each with its folder. A set
    of another package is its entry point NAME in the group `pml_ext.datasets`, called with the text after the colon.

    Args:
        source: as above.
        mode: "RGB", or "L" for gray. Default "RGB".
        labels: the labels of a file of vectors, or a file of them. Default None: those in the file or beside it.
        strict: whether to refuse files that are not images; False lists them in `Samples.unreadable`. Default True.

    Raises:
        DataError: in one line, a source that does not exist or cannot be used.

    Example:
        >>> open("cbu:/data/CUB_200_2011")
        Traceback (most recent call last):
        ...
        pml_ext.datasets.samples.DataError: unknown data set 'cbu'; did you mean cub?
    """
    samples = _read(source, mode, labels)
    if samples.unreadable and strict:
        count = len(samples.unreadable) - 1
        raise DataError(samples.unreadable[0] + (f" (and {count:,} more; --check lists all)" if count else ""))
    return samples


def _read(source: Any, mode: Mode, labels: Any) -> Samples:
    if labels is not None and not _is_vector_file(source):
        raise DataError(f"labels are given with a file of vectors (.npy, .npz, .pt) only, got {source!r}")
    if not isinstance(source, (str, Path)):
        return wrap(source, mode=mode)
    text = str(source)
    if text in DATASETS:
        return built_in(text, mode)
    name, colon, argument = text.partition(":")
    if name in OFFICIAL and (colon or not Path(text).exists()):
        if not argument:
            raise DataError(f"data set {name!r} needs the folder that it was unpacked to: {name}:FOLDER")
        return OFFICIAL[name](str(Path(argument).expanduser()), mode)  # no shell expands ~ after a colon
    plugins = _plugins()
    if name in plugins:
        return _plugin(plugins[name], argument, mode)
    path = Path(text).expanduser()
    if _is_vector_file(text):
        return vector_file(path, labels)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return image_list(path, mode)
    if path.exists():
        return folder(path, mode)
    raise DataError(_unknown(text, [*DATASETS, *OFFICIAL, *plugins]))


def built_in(name: str, mode: Mode = "RGB") -> Samples:
    """One of the sets that need no files, with every image distorted once, from a fixed seed."""
    parts = {split: DATASETS[name](split).still() for split in ("train", "test")}
    return wrap(parts, name, mode)


def check(samples: Samples) -> list[str]:
    """Decode every image; one line for each file that cannot be read.

    Args:
        samples: a data set.

    Example:
        >>> import torch
        >>> check(Samples("two", torch.tensor([0, 1]), ("cat", "dog"), vectors=torch.eye(2)))
        []
    """
    return unreadable(samples.image) if isinstance(samples.image, ImageFiles) else []


def _is_vector_file(source: Any) -> bool:
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in (".npy", ".npz", ".pt")


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _plugin(entry: EntryPoint, argument: str, mode: Mode) -> Samples:
    try:
        found = entry.load()(argument)
    except DataError:
        raise
    except Exception as error:  # other people's code: its package is named, its traceback is the cause
        where = f"{entry.name!r} of {entry.dist.name if entry.dist else entry.value}"
        raise DataError(f"data set {where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return wrap(found, entry.name, mode)


def _unknown(text: str, known: list[str]) -> str:
    name, colon, _ = text.partition(":")
    what = f"unknown data set {name!r}" if colon else f"{text!r} is neither a file, a folder nor a data set"
    return f"{what}; {hint(name, known, most=1)}"
