"""Stanford Online Products."""

from __future__ import annotations

from pathlib import Path

from pml_ext.datasets.collect import collect, place, read_rows
from pml_ext.datasets.images import Mode
from pml_ext.datasets.samples import Samples


def sop(root: str | Path, mode: Mode = "RGB") -> Samples:
    """Read Stanford Online Products as it is unpacked: 120,053 photographs of 22,634 products.

    A class is called after its kind and number: "bicycle 1". The first 11,318 are to train on, the others to test.

    Args:
        root: the folder `Stanford_Online_Products` (`Ebay_train.txt`, `Ebay_test.txt`, `bicycle_final/...`), or the one
            that it lies in.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: a missing file or a malformed row.

    Source:
        Oh Song, Xiang, Jegelka and Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    hint = "unpack Stanford_Online_Products.zip and name the folder Stanford_Online_Products"
    places = ("Ebay_train.txt", "Stanford_Online_Products/Ebay_train.txt")
    folder = place("sop", Path(root), places, hint).parent
    paths, labels, split = [], [], []
    for half in ("train", "test"):
        for _, item, _, path in read_rows(
            folder / f"Ebay_{half}.txt", "image_id class_id super_class_id path", header=1
        ):
            kind = path.partition("/")[0].removesuffix("_final").replace("_", " ")
            paths.append(folder / path)
            labels.append(f"{kind} {item}")
            split.append(half)
    return collect("SOP", paths, labels, mode=mode, sort=False, split=split)
