"""The same picture on both sides of a split is found, whatever was done to its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pml_ext import datasets
from pml_ext.datasets.duplicates import check_files, near_duplicates, thumbnails


def photograph(seed):
    """Something smooth of many colors."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((240, 180), Image.Resampling.BICUBIC)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def twins(tmp_path):
    """Four photographs to train on, and the same changed a little, and four others, to test on."""
    for seed in range(4):
        save(tmp_path / "train" / f"class {seed // 2}" / f"{seed}.png", photograph(seed))
        save(tmp_path / "test" / f"class {2 + seed // 2}" / f"other {seed}.png", photograph(10 + seed))
    save(tmp_path / "test" / "class 2" / "copy.png", photograph(0))
    save(tmp_path / "test" / "class 2" / "small.jpg", photograph(1).resize((160, 120)), quality=75)
    save(tmp_path / "test" / "class 3" / "bright.jpg", photograph(2).point(lambda value: 40 + value * 0.8), quality=90)
    save(tmp_path / "test" / "class 3" / "same part.png", photograph(10))
    return datasets.open(tmp_path)


def parts_of(samples):
    return {name: torch.tensor([i for i, own in enumerate(samples.split) if own == name]) for name in ("train", "test")}


def test_copies_are_found_and_nothing_else(twins):
    copies, unreadable = thumbnails(twins)
    assert copies.shape == (12, 768)
    assert unreadable == []
    names = [path.rpartition("/")[2] for path in twins.paths]
    found = [(names[i], names[j]) for i, j in near_duplicates(copies, parts_of(twins))]
    pairs = [["0.png", "copy.png"], ["1.png", "small.jpg"], ["2.png", "bright.jpg"]]
    assert sorted(sorted(pair) for pair in found) == pairs


def test_blocks_change_nothing(twins, monkeypatch):
    copies, _ = thumbnails(twins)
    expected = near_duplicates(copies, parts_of(twins))
    monkeypatch.setattr("pml_ext.datasets.duplicates.ROWS", 3)
    assert near_duplicates(copies, parts_of(twins)) == expected


def test_pictures_of_one_color_are_not_taken_for_each_other(tmp_path):
    for name, color in (("train/a/0.png", "red"), ("train/a/1.png", "blue"), ("test/b/2.png", "red")):
        save(tmp_path / name, Image.new("RGB", (8, 8), color))
    samples = datasets.open(tmp_path)
    assert near_duplicates(thumbnails(samples)[0], parts_of(samples)) == []


def test_everything_that_is_wrong_is_said_at_once(twins):
    path = twins.paths[-1]
    with Path(path).open("r+b") as file:
        file.truncate(300)
    lines = list(check_files(twins, parts_of(twins), most=2))
    assert repr(path) in lines[0]
    assert lines[1] == "3 near duplicates across the split"
    assert len(lines) == 5
    assert lines[2].count(" (class ") == 2
    assert "train '" in lines[2]
    assert "test '" in lines[2]
    assert lines[-1] == "and 1 more"


def test_names_are_shown_on_one_line():
    rows = torch.eye(3)[[0, 1, 1]]
    samples = datasets.open((rows, ["a\nb", "x" * 200, "x" * 200]))
    *_, line = check_files(samples, {"train": torch.tensor([1]), "test": torch.tensor([2])})
    assert "\n" not in line
    assert len(line) < 200
