"""Omniglot."""

from __future__ import annotations

from pathlib import Path

from pml_ext.datasets.collect import collect, place
from pml_ext.datasets.images import Mode, files_below, folders_in, is_image
from pml_ext.datasets.samples import DataError, Samples


def omniglot(root: str | Path, mode: Mode = "RGB") -> Samples:
    """Read Omniglot as it is unpacked: characters of fifty alphabets, each drawn by twenty people.

    A class is a character: "Greek/character01". The 964 of `images_background` are to train on and the 659 of
    `images_evaluation` to test; if only one of the two exists, or only the smaller background sets, there is no split.
    A file that is in several of the folders is read once.

    Args:
        root: the folder with `images_background`, `images_evaluation`, `images_background_small1` or `_small2`, some or
            all; or the one that `python/` with these is in.
        mode: "RGB", or "L" for gray. Default "RGB".

    Raises:
        DataError: none of the folders, or no images in them.

    Source:
        Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction",
        Science 2015.
    """
    parts = ("images_background", "images_evaluation", "images_background_small1", "images_background_small2")
    places = [f"{inner}{part}" for inner in ("", "python/", "omniglot-py/") for part in parts]
    base = place("omniglot", Path(root), places, "unpack images_background.zip and images_evaluation.zip").parent
    found: dict[tuple[str, str, str], tuple[Path, str]] = {}
    for part in parts:
        if (base / part).is_dir():
            for alphabet in folders_in(base / part):
                for character in folders_in(alphabet):
                    for file in files_below(character):
                        if is_image(file.name):
                            half = "test" if part == "images_evaluation" else "train"
                            found.setdefault((alphabet.name, character.name, file.name), (file, half))
    if not found:
        raise DataError(f"omniglot: no images in {str(base)!r}; expected images_background/Greek/character01/...png")
    split = [half for _, half in found.values()]
    return collect(
        "Omniglot",
        [file for file, _ in found.values()],
        [f"{alphabet}/{character}" for alphabet, character, _ in found],
        mode=mode,
        split=split if len(set(split)) == 2 else None,
    )
