"""Letters and digits in sixteen typefaces: a zero-shot retrieval set that needs no download."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pml_ext.datasets.in_memory import SEED, InMemoryDataset, check_split
from pml_ext.datasets.warp import RandomWarp

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
SIDE = 32  # pixels
EM = 21  # font size, pixels: the largest at which the widest glyph keeps a black border around it
OVERSAMPLING = 4  # without it, hinting moves the strokes to whole pixels
WARP = RandomWarp()


class Glyphs(InMemoryDataset):
    """Letters and digits rendered from matplotlib's fonts: 501 classes of 16 images; test classes are never trained on.

    A class is a character; its images are sixteen faces of DejaVu Sans, Sans Mono and Serif and of STIX General,
    32 x 32 gray, white on black, centered, all at one font size. A character that some face draws exactly like an
    earlier one (the Greek Alpha, after the Latin A) is left out. The split of the classes is random but fixed, 250 to
    train and 251 to test: zero-shot retrieval, like CUB or Stanford Online Products. Training images are warped anew at
    every access, with torch's global random numbers (`torch.manual_seed`, or a DataLoader's seed for its workers); test
    images are warped once, from a fixed seed, and are the same in every run.

    Args:
        split: "train" (4000 images, labels 0 to 249) or "test" (4016 images, labels 250 to 500). Default "train".
        transform: applied to each image, [1, 32, 32], after the warp. Default: none.
        target_transform: applied to each label. Default: none.
        warp: the random distortion of the images of either split; None for clean images. Default `RandomWarp()`.

    Shape:
        a sample is (image [1, 32, 32], float32 in [0, 1]; label, int).

    Attributes:
        labels: [n], int64, the label of each image.
        classes: {label: character}, for the labels of this split.
        image_shape: (1, 32, 32).

    Raises:
        ValueError: an unknown split.
        ImportError: without matplotlib or Pillow.

    Source:
        The characters of Unicode's categories Ll, Lu, Nd and Lo that all sixteen faces have, in matplotlib's copies of
        DejaVu 2.35 and STIX 1.0; other releases of these fonts may have more or fewer.

    Example:
        >>> train, test = Glyphs("train"), Glyphs("test")
        >>> image, label = test[0]
        >>> image.shape, label, test.classes[label] in train.classes.values()
        (torch.Size([1, 32, 32]), 250, False)
    """

    def __init__(
        self,
        split: str = "train",
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        *,
        warp: RandomWarp | None = WARP,
    ) -> None:
        check_split(split, ("train", "test"))
        images, names = render()
        half = len(names) // 2
        labels = range(half) if split == "train" else range(half, len(names))
        super().__init__(
            images[labels.start : labels.stop].flatten(0, 1),
            torch.tensor(labels).repeat_interleave(len(FACES)),
            {label: names[label] for label in labels},
            warp=warp,
            split=split,
            transform=transform,
            target_transform=target_transform,
        )


@lru_cache(maxsize=1)
def render() -> tuple[Tensor, list[str]]:
    """Render every class, clean: (images [classes, faces, 1, 32, 32], their characters), in the order of the labels."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError('Glyphs needs matplotlib and Pillow: pip install "pml_ext[benchmark]"') from error
    import numpy as np

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [str(folder / f"{face}.ttf") for face in FACES]
    covered = set.intersection(*(set(FT2Font(path).get_charmap()) for path in paths))
    characters = [c for c in map(chr, sorted(covered)) if unicodedata.category(c) in ("Ll", "Lu", "Nd", "Lo")]
    fonts = [ImageFont.truetype(path, EM * OVERSAMPLING, layout_engine=ImageFont.Layout.BASIC) for path in paths]

    cell = SIDE * OVERSAMPLING
    names: list[str] = []
    kept = []
    seen: set[bytes] = set()
    for character in characters:
        faces = []
        for font in fonts:
            page = Image.new("L", (2 * cell, 2 * cell))
            ImageDraw.Draw(page).text((cell // 2, cell // 2), character, fill=255, font=font)
            # The box of the ink: the one that the font declares has white space in it. No letter is blank.
            left, top, right, bottom = page.getbbox() or (0, 0, 0, 0)
            x, y = (left + right - cell) // 2, (top + bottom - cell) // 2
            faces.append(np.asarray(page.crop((x, y, x + cell, y + cell)).reduce(OVERSAMPLING)))
        keys = {face.tobytes() for face in faces}
        if seen.isdisjoint(keys):
            seen |= keys
            names.append(character)
            kept.append(np.stack(faces))

    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SEED))
    images = torch.from_numpy(np.stack(kept))[order].unsqueeze(2).float() / 255
    return images, [names[i] for i in order.tolist()]
