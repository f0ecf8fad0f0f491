"""What does a model find in photographs? Places in two photographs, each searched for by other crops of it.

The photographs are the two that scikit-learn brings: china.jpg by danielbuechele, and flower.jpg by vultilion, both
CC BY 2.0. A class is a place in one of them, and its images are crops around it: shifted, scaled, darker or lighter.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

import pml_ext

STEP = 56  # pixels from a place to the next
DETAIL = 40.0  # the least standard deviation of the gray levels of a place: no sky


def cut(folder: Path, per_class: int, side: int) -> None:
    """A folder with a sub-folder for each place."""
    draw = np.random.default_rng(0)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        photograph, gray, number = Image.fromarray(pixels), pixels.mean(2), 0
        for y in range(60, photograph.height - 50, STEP):
            for x in range(60, photograph.width - 50, STEP):
                if gray[y - 40 : y + 40, x - 40 : x + 40].std() < DETAIL:
                    continue
                place, number = folder / f"{name} {number}", number + 1
                place.mkdir(parents=True)
                for image in range(per_class):
                    half = int(draw.integers(28, 46))
                    left, top = (int(middle + draw.integers(-12, 13)) - half for middle in (x, y))
                    crop = photograph.crop((left, top, left + 2 * half, top + 2 * half)).resize((side, side))
                    ImageEnhance.Brightness(crop).enhance(draw.uniform(0.7, 1.3)).save(place / f"{image}.png")


def main(out: Path = Path("gallery.jpg"), per_class: int = 8, side: int = 96, **more: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        cut(photos, per_class, side)
        results = pml_ext.Experiment(
            data=photos, image_size=side, losses=["RAW"], out=Path(folder, "run"), **more
        ).run()
        results.gallery().savefig(out, dpi=130)
        recall: float = results.best().metrics["recall_at_1"]
    print(f"recall@1 {recall:.0%} with RAW; drawn in {out}")
    return recall


if __name__ == "__main__":
    main(trunk="efficientnet_lite0", frozen=True)
