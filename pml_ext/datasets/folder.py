"""A folder of photographs: one sub-folder a class."""

from __future__ import annotations

import os
from pathlib import Path

from pml_ext.datasets.collect import collect
from pml_ext.datasets.images import Mode, files_below, folders_in, is_image
from pml_ext.datasets.samples import DataError, Samples, counted

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def folder(root: str | Path, mode: Mode = "RGB") -> Samples:
    """Read `root/CLASS/**/image.jpg`, or `root/train/CLASS/...` beside `root/test/CLASS/...`.

    Hidden files and `lost+found` are ignored; files whose names are not those of images are skipped and counted.

    Args:
        root: the folder.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: the folder has no sub-folder with images.

    Example:
        >>> folder("nowhere")
        Traceback (most recent call last):
        ...
        pml_ext.datasets.samples.DataError: 'nowhere' cannot be read: No such file or directory
    """
    root = Path(root)
    tops = folders_in(root)
    divided = bool(tops) and all(top.name.lower() in SPLIT_FOLDERS and folders_in(top) for top in tops)
    paths: list[str] = []
    labels: list[str] = []
    split: list[str] = []
    others = empty = 0
    for top in tops:
        for inner in folders_in(top) if divided else [top]:
            found = [str(file) for file in files_below(inner)]
            images = [path for path in found if is_image(path)]
            others += len(found) - len(images)
            empty += not images
            paths += images
            labels += [class_name(inner.name)] * len(images)
            split += [SPLIT_FOLDERS[top.name.lower()] if divided else ""] * len(images)
    if not paths:
        raise DataError(f"{str(root)!r} has no images in sub-folders: one sub-folder per class is expected")
    notes = [f"{counted(others, 'other file')} passed over"] if others else []
    if empty:
        notes.append(f"{counted(empty, 'folder')} without images")
    name = class_name(root.resolve().name)
    return collect(name, paths, labels, mode=mode, split=split if divided else None, notes=notes)


def class_name(name: str) -> str:
    """The name of a folder as text, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
