"""DeepFashion's In-Shop Clothes Retrieval, the one of the four usual retrieval sets that PML lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset

from pml_ext.datasets.collect import collect, read_text
from pml_ext.datasets.images import ImageFiles, Mode, require_pillow
from pml_ext.datasets.in_memory import check_split
from pml_ext.datasets.samples import DataError, Samples, counted

if TYPE_CHECKING:
    from PIL import Image

STATUSES = {
    "train": ("train",),
    "query": ("query",),
    "gallery": ("gallery",),
    "test": ("query", "gallery"),
    "train+test": ("train", "query", "gallery"),
}


class InShop(Dataset[tuple[Any, Any]]):
    """In-Shop Clothes Retrieval: 52,712 photographs of 7,982 garments, half of them to train on.

    The benchmark's own split: 25,882 training images of 3,997 garments; of the other 3,985 garments, 14,218 images to
    query with and a gallery of 12,612 to find them in. Recall@k is query against gallery; in PML's testers,
    `splits_to_eval=[("query", ["gallery"])]`.

    Args:
        root: the folder, laid out as below.
        split: "train", "query", "gallery", "test" (query and gallery) or "train+test". Default "train+test", as in PML.
        transform: applied to each image, a PIL image in RGB. Default: none.
        target_transform: applied to each label. Default: none.
        download: has no effect and exists for the signature of PML's datasets; the license must be requested, so
            nothing is downloaded.

    Shape:
        a sample is (image, PIL RGB unless transformed; label, int).

    Attributes:
        labels: list of int, the label of each image. One numbering for all splits: first the training garments, from 0,
            in the order of their ids, then the others; a garment has the same label as a query and in the gallery.
        paths: list of str, the file of each image.
        classes: {label: item id}, for the labels of this split.

    Raises:
        ValueError: an unknown split; a partition file that is truncated or malformed, or has a garment in training and
            test. On access to an image: one that cannot be read, with the name of its file.
        FileNotFoundError: no partition file or no images under `root`.
        ImportError: without Pillow.

    Source:
        Liu, Luo, Qiu, Wang and Tang, "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
        Annotations", CVPR 2016. Its files as they are unpacked, or without the capitalized folders:

            root/Eval/list_eval_partition.txt    or    root/list_eval_partition.txt
            root/Img/img/WOMEN/Dresses/...       or    root/img/WOMEN/Dresses/...
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train+test",
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        download: bool = False,
    ) -> None:
        check_split(split, tuple(STATUSES))
        require_pillow("InShop")
        self.root: str | Path = root
        self.split: str = split
        self.transform: Callable[[Image.Image], Any] | None = transform
        self.target_transform: Callable[[int], Any] | None = target_transform
        rows = _rows(Path(root))
        label_of = {item: label for label, item in enumerate(_items(rows))}
        mine = [row for row in rows if row.status in STATUSES[split]]
        self.paths: list[str] = [row.path for row in mine]
        self.labels: list[int] = [label_of[row.item] for row in mine]
        self.classes: dict[int, str] = {label_of[item]: item for item in _items(mine)}
        self._images = ImageFiles(tuple(self.paths))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image: Any = self._images(index)
        label: Any = self.labels[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def get_available_splits(self) -> list[str]:
        """Name the splits."""
        return list(STATUSES)


def in_shop(root: str | Path, mode: Mode = "RGB") -> Samples:
    """Read In-Shop as it is unpacked, see `InShop`: training garments, and queries and gallery of the others.

    Args:
        root: the folder.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: where `InShop` raises ValueError or FileNotFoundError.
    """
    try:
        rows = _rows(Path(root))
    except FileNotFoundError as error:
        raise DataError(str(error)) from error
    rows.sort(key=lambda row: row.status != "train")  # the training garments have the first labels
    return collect(
        "In-Shop",
        [row.path for row in rows],
        [row.item for row in rows],
        mode=mode,
        sort=False,
        split=["train" if row.status == "train" else "test" for row in rows],
        query=torch.tensor([row.status == "query" for row in rows]),
        gallery=torch.tensor([row.status == "gallery" for row in rows]),
    )


class _Row(NamedTuple):
    path: str
    item: str
    status: str


def _rows(root: Path) -> list[_Row]:
    partition = _first(root, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    images = _first(root, "img", "Img/img")
    count, *lines = read_text(partition).rstrip().splitlines() or [""]
    lines = lines[1:]  # the names of the columns
    if count.strip() != str(len(lines)):
        raise DataError(f"{partition} announces {count.strip()!r} images and lists {len(lines)}")
    rows = [_parse(line, images.parent) for line in lines]
    tested = {row.item for row in rows if row.status != "train"}
    both = dict.fromkeys(row.item for row in rows if row.status == "train" and row.item in tested)
    if both:
        more = f" (and {counted(len(both) - 1, 'other item')})" if len(both) > 1 else ""
        raise DataError(f"{partition}: {next(iter(both))!r}{more} is in train and in query or gallery")
    return rows


def _items(rows: list[_Row]) -> list[str]:
    # Training items sort first, so that their labels are 0, 1, ... as losses with a proxy per class need them.
    return list(dict.fromkeys(item for _, item in sorted((row.status != "train", row.item) for row in rows)))


def _first(root: Path, *places: str) -> Path:
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"neither of {', '.join(places)} is in {str(root)!r}. {_where(root)}")


def _where(root: Path) -> str:
    return (
        "In-Shop Clothes Retrieval cannot be downloaded without a license: ask for it at "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html, unpack img.zip, and put "
        f"{root / 'list_eval_partition.txt'} beside the folder {root / 'img'}, "
        f"or keep the folders as they come, {root / 'Eval'} and {root / 'Img'}"
    )


def _parse(line: str, images: Path) -> _Row:
    match line.split():
        case [name, item, "train" | "query" | "gallery" as status]:
            return _Row(str(images / name), item, status)
    raise DataError(f"expected '<image name> <item id> train|query|gallery', got {line!r}")
