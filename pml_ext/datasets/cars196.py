"""Stanford Cars."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pml_ext.datasets.collect import collect, place, read_text
from pml_ext.datasets.images import Mode
from pml_ext.datasets.samples import DataError, Samples

TRAINING = 98  # classes: the first half of 196


def cars196(root: str | Path, mode: Mode = "RGB") -> Samples:
    """Read Cars196 as it is unpacked: 16,185 photographs of 196 models of cars, classes 1 to 98 to train on.

    In any of the three layouts in which it is distributed:

        cars_annos.mat, car_ims/000001.jpg                                     the archive of all images
        devkit/cars_{train,test}_annos*.mat, cars_{train,test}/00001.jpg       the archives of the two halves
        names.csv, anno_{train,test}.csv, car_data/car_data/train/NAME/...     by class, as PML reads it

    The parts named train and test are a split for classification: both are read, and split anew by classes.

    Args:
        root: the folder.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: a file that is missing, or lists that do not fit together.
        ImportError: a .mat file without SciPy.

    Source:
        Krause, Stark, Deng and Fei-Fei, "3D Object Representations for Fine-Grained Categorization", 2013. The split by
        classes is that of Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    root = Path(root)
    hint = "unpack car_ims.tgz beside cars_annos.mat, or the devkit beside cars_train and cars_test"
    kinds = ("cars_annos.mat", "devkit/cars_train_annos.mat", "names.csv")
    rows, names = {
        "cars_annos.mat": _one_archive,
        "cars_train_annos.mat": _two_archives,
        "names.csv": _by_class,
    }[place("cars196", root, kinds, hint).name](root)
    for path, number in rows:
        if not 1 <= number <= len(names):
            raise DataError(f"cars196: {path!r} has the class {number}, but there are {len(names)}")
    paths = [root / path for path, _ in rows]
    split = ["train" if number <= TRAINING else "test" for _, number in rows]
    return collect("Cars196", paths, [names[number - 1] for _, number in rows], mode=mode, split=split)


Rows = list[tuple[str, int]]


def _one_archive(root: Path) -> tuple[Rows, list[str]]:
    content = _matlab(root / "cars_annos.mat")
    rows = [(_text(row["relative_im_path"]), int(row["class"].item())) for row in content["annotations"].flat]
    return rows, [_text(name) for name in content["class_names"].flat]


def _two_archives(root: Path) -> tuple[Rows, list[str]]:
    names = [_text(name) for name in _matlab(root / "devkit" / "cars_meta.mat")["class_names"].flat]
    labeled = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
    hint = "the labels of cars_test come in a file of their own"
    halves = {
        "cars_train": root / "devkit" / "cars_train_annos.mat",
        "cars_test": place("cars196", root, labeled, hint),
    }
    rows = [
        (f"{folder}/{_text(row['fname'])}", int(row["class"].item()))
        for folder, file in halves.items()
        for row in _matlab(file)["annotations"].flat
    ]
    return rows, names


def _by_class(root: Path) -> tuple[Rows, list[str]]:
    names = [line.strip() for line in read_text(root / "names.csv").splitlines() if line.strip()]
    rows = []
    for half in ("train", "test"):
        file = root / f"anno_{half}.csv"
        for number, row in enumerate(csv.reader(read_text(file).splitlines()), start=1):
            if len(row) < 2 or not row[-1].strip().isdecimal() or not 1 <= int(row[-1]) <= len(names):
                raise DataError(
                    f"{str(file)!r}, line {number}: expected image, box, class 1 to {len(names)}, got {row}"
                )
            label = int(row[-1])
            rows.append((f"car_data/car_data/{half}/{names[label - 1].replace('/', '-')}/{row[0]}", label))
    return rows, names


def _matlab(path: Path) -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('the .mat files of cars196 need SciPy: pip install "pml_ext[benchmark]"') from error
    try:
        return loadmat(str(path))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # scipy raises whatever its reader met
        raise DataError(f"{str(path)!r} is not a readable .mat file: {' '.join(str(error).split())}") from error


def _text(cell: Any) -> str:
    return str(cell.item() if hasattr(cell, "item") else cell)
