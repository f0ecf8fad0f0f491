"""DeepFashion's In-Shop Clothes Retrieval, the one of the four usual retrieval sets that PML lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pml_ext.datasets.in_memory import check_split

try:
    from PIL import Image
    from pytorch_metric_learning.datasets.base_dataset import BaseDataset
except ImportError as error:
    raise ImportError('InShop needs Pillow: pip install "pml_ext[benchmark]"') from error

STATUSES = {
    "train": ("train",),
    "query": ("query",),
    "gallery": ("gallery",),
    "test": ("query", "gallery"),
    "train+test": ("train", "query", "gallery"),
}


class InShop(BaseDataset):
    """In-Shop Clothes Retrieval: 52,712 photographs of 7,982 garments, half of them to train on.

    The benchmark's own split: 25,882 training images of 3,997 garments; of the other 3,985 garments, 14,218 images to
    query with and a gallery of 12,612 to find them in. Recall@k is query against gallery; in PML's testers,
    `splits_to_eval=[("query", ["gallery"])]`.

    Args:
        root: the folder, laid out as below.
        split: "train", "query", "gallery", "test" (query and gallery) or "train+test". Default "train+test", as in PML.
        transform: applied to each image, a PIL image in RGB. Default: none.
        target_transform: applied to each label. Default: none.
        download: there for the signature of PML's datasets; a licence has to be asked for, so nothing is downloaded.

    Shape:
        a sample is (image, PIL RGB unless transformed; label, int).

    Attributes:
        labels: list of int, the label of each image. One numbering for all splits: first the training garments, from 0,
            in the order of their ids, then the others; a garment has the same label as a query and in the gallery.
        paths: list of str, the file of each image.
        classes: {label: item id}, for the labels of this split.

    Raises:
        ValueError: any other split; a partition file that is cut short or says something else.
        FileNotFoundError: no partition file or no images under `root`.

    Source:
        Liu, Luo, Qiu, Wang and Tang, "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
        Annotations", CVPR 2016. Its files as they are unpacked, or without the capitalised folders:

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
        self._partition = _first(Path(root), "list_eval_partition.txt", "Eval/list_eval_partition.txt")
        self._images = _first(Path(root), "img", "Img/img")
        super().__init__(root, split, transform, target_transform)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        with Image.open(self.paths[index]) as file:
            image: Any = file.convert("RGB")
        label: Any = self.labels[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def get_available_splits(self) -> list[str]:
        """Name the splits."""
        return list(STATUSES)

    def generate_split(self) -> None:
        """Read the partition file; PML's constructor calls this."""
        count, _, *lines = self._partition.read_text(encoding="utf-8").rstrip().splitlines() or ["", ""]
        if count.strip() != str(len(lines)):
            raise ValueError(f"{self._partition} announces {count.strip()!r} images and lists {len(lines)}")
        rows = [_parse(line) for line in lines]
        # Training items sort first, so that their labels are 0, 1, ... as losses with a proxy per class need them.
        items = dict.fromkeys(item for _, item in sorted((status != "train", item) for _, item, status in rows))
        label_of = {item: label for label, item in enumerate(items)}
        mine = [(name, item) for name, item, status in rows if status in STATUSES[self.split]]
        self.paths = [str(self._images.parent / name) for name, _ in mine]
        self.labels = [label_of[item] for _, item in mine]
        self.classes = {label_of[item]: item for _, item in sorted(mine, key=lambda row: label_of[row[1]])}

    def download_and_remove(self) -> NoReturn:
        """Refuse: the licence has to be asked for."""
        raise FileNotFoundError(_where(Path(self.root)))


def _first(root: Path, *places: str) -> Path:
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"neither of {', '.join(places)} is in {str(root)!r}. {_where(root)}")


def _where(root: Path) -> str:
    return (
        "In-Shop Clothes Retrieval cannot be downloaded without a licence: ask for it at "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html, unpack img.zip, and put "
        f"{root / 'list_eval_partition.txt'} beside the folder {root / 'img'}, "
        f"or keep the folders as they come, {root / 'Eval'} and {root / 'Img'}"
    )


def _parse(line: str) -> tuple[str, str, str]:
    match line.split():
        case [name, item, "train" | "query" | "gallery" as status]:
            return name, item, status
    raise ValueError(f"expected '<image name> <item id> train|query|gallery', got {line!r}")
