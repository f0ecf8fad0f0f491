"""Caltech-UCSD Birds 200-2011."""

from __future__ import annotations

from pathlib import Path

from pml_ext.datasets.collect import collect, place, read_rows
from pml_ext.datasets.images import Mode
from pml_ext.datasets.samples import DataError, Samples

TRAINING = 100  # the classes of Song et al.'s split: the first hundred to train on, the others to test


def cub(root: str | Path, mode: Mode = "RGB") -> Samples:
    """Read CUB-200-2011 as it is unpacked: 11,788 photographs of 200 birds, classes 1 to 100 to train on.

    Args:
        root: the folder `CUB_200_2011` (`images.txt`, `image_class_labels.txt`, `classes.txt`, `images/`), or the one
            that it lies in.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: a file that is missing, or lists that do not fit together.

    Source:
        Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011. The split by
        classes is that of Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016;
        `train_test_split.txt`, a split for classification, is not read.
    """
    hint = "unpack CUB_200_2011.tgz and name the folder CUB_200_2011"
    folder = place("cub", Path(root), ("images.txt", "CUB_200_2011/images.txt"), hint).parent
    names = dict(read_rows(folder / "classes.txt", "class name"))
    classes = dict(read_rows(folder / "image_class_labels.txt", "image class"))
    paths, labels, split = [], [], []
    for image, path in read_rows(folder / "images.txt", "image path"):
        number = classes.get(image)
        if number not in names or not number.isdecimal():
            raise DataError(f"cub: image {image} ({path}) of images.txt has no class that classes.txt names: {number}")
        paths.append(folder / "images" / path)
        labels.append(names[number])
        split.append("train" if int(number) <= TRAINING else "test")
    return collect("CUB", paths, labels, mode=mode, split=split)
