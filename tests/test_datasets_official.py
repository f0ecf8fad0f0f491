"""The sets of the literature, from tiny copies in the layouts in which they are unpacked."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pml_ext import datasets
from pml_ext.datasets.samples import DataError


def save(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6)).save(path)


def rows(samples):
    """(class, split, file) of each sample."""
    return [
        (samples.classes[label], split, path.rpartition("/")[2])
        for label, split, path in zip(samples.labels.tolist(), samples.split, samples.paths, strict=True)
    ]


# ---- CUB ----


def make_cub(root):
    names = {100: "100.Brown_Pelican", 101: "101.White_Pelican", 1: "001.Black_footed_Albatross"}
    images = [(1, 1, "a.jpg"), (2, 1, "b.jpg"), (3, 100, "c.jpg"), (4, 101, "d.jpg")]
    for _, number, name in images:
        save(root / "images" / names[number] / name)
    (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in names.items()))
    (root / "images.txt").write_text("".join(f"{i} {names[c]}/{name}\n" for i, c, name in images))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {c}\n" for i, c, _ in images))
    return root


@pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
def test_cub(tmp_path, inner):
    make_cub(tmp_path / inner)
    samples = datasets.open(f"cub:{tmp_path}")
    assert samples.name == "CUB"
    assert rows(samples) == [
        ("001.Black_footed_Albatross", "train", "a.jpg"),
        ("001.Black_footed_Albatross", "train", "b.jpg"),
        ("100.Brown_Pelican", "train", "c.jpg"),
        ("101.White_Pelican", "test", "d.jpg"),
    ]
    assert samples.image(0).size == (8, 6)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("image_class_labels.txt", "1 1\n2 1\n3 100\n", r"image 4 \(101.White_Pelican/d.jpg\) .* has no class"),
        ("image_class_labels.txt", "1 1\n2 1\n3 100\n4 7\n", "has no class that classes.txt names: 7"),
        ("images.txt", "1 x/gone.jpg\n", r"gone\.jpg' is not there"),
        ("images.txt", "1\n", r"images\.txt', line 1: expected image path, got '1'"),
        ("images.txt", "\n", r"images\.txt' has no rows"),
    ],
)
def test_cub_that_is_damaged(tmp_path, file, content, message):
    make_cub(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        datasets.open(f"cub:{tmp_path}")


# ---- Cars196 ----

MODELS = {1: "AM General Hummer SUV 2000", 98: "Dodge C/V Van 2009", 99: "Dodge Caliber 2007"}
NAMES = [MODELS.get(number, f"Model {number}") for number in range(1, 197)]
CARS = [("00001.jpg", 1, "train"), ("00002.jpg", 98, "train"), ("00003.jpg", 99, "train"), ("00001.jpg", 1, "test")]
EXPECTED = [(MODELS[number], "train" if number < 99 else "test", name) for name, number, _ in CARS]


def cars_by_class(root):
    (root / "names.csv").write_text("\n".join(NAMES) + "\n")
    for half in ("train", "test"):
        lines = [f"{name},1,2,3,4,{number}\n" for name, number, part in CARS if part == half]
        (root / f"anno_{half}.csv").write_text("".join(lines))
    for name, number, half in CARS:
        save(root / "car_data" / "car_data" / half / MODELS[number].replace("/", "-") / name)


def records(fields, entries):
    """An array of records as MATLAB has them."""
    array = np.empty((1, len(entries)), dtype=[(field, object) for field in fields])
    for i, entry in enumerate(entries):
        array[0, i] = entry
    return array


def cells(texts):
    array = np.empty((1, len(texts)), dtype=object)
    array[0] = texts
    return array


def cars_in_one_archive(root):
    entries = [(f"car_ims/{i:06}.jpg", 1, 2, 3, 4, number, half == "test") for i, (_, number, half) in enumerate(CARS)]
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    savemat(root / "cars_annos.mat", {"annotations": records(fields, entries), "class_names": cells(NAMES)})
    for path, *_ in entries:
        save(root / path)


def cars_in_two_archives(root):
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cells(NAMES)})
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    for half, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        entries = [(1, 2, 3, 4, number, name) for name, number, part in CARS if part == half]
        savemat(root / file, {"annotations": records(fields, entries)})
    for name, _, half in CARS:
        save(root / f"cars_{half}" / name)


@pytest.mark.parametrize("make", [cars_by_class, cars_in_one_archive, cars_in_two_archives])
def test_cars196(tmp_path, make):
    make(tmp_path)
    samples = datasets.open(f"cars196:{tmp_path}")
    assert samples.name == "Cars196"
    assert [row[:2] for row in rows(samples)] == [row[:2] for row in EXPECTED]
    if make is not cars_in_one_archive:
        assert rows(samples) == EXPECTED


def test_cars196_of_the_training_half_alone(tmp_path):
    cars_by_class(tmp_path)
    (tmp_path / "anno_test.csv").write_text("")
    assert rows(datasets.open(f"cars196:{tmp_path}")) == EXPECTED[:3]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("anno_train.csv", "00001.jpg,1,2,3,4,197\n", r"anno_train\.csv', line 1: expected image, box, class 1 to 196"),
        ("anno_train.csv", "00001.jpg,1,2,3,4,x\n", r"line 1: expected"),
        ("anno_train.csv", "00009.jpg,1,2,3,4,1\n", r"00009\.jpg' is not there"),
        ("cars_annos.mat", "no such thing", r"cars_annos\.mat' is not a readable \.mat file"),
    ],
)
def test_cars196_that_is_damaged(tmp_path, file, content, message):
    cars_by_class(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        datasets.open(f"cars196:{tmp_path}")


def test_cars196_whose_test_has_no_labels(tmp_path):
    cars_in_two_archives(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match="the labels of cars_test come in a file of their own"):
        datasets.open(f"cars196:{tmp_path}")


# ---- Stanford Online Products ----


def make_sop(root):
    halves = {"train": [(1, 1, 1, "bicycle_final/a_0.JPG"), (2, 2, 1, "bicycle_final/b_0.JPG")]}
    halves["test"] = [(3, 11319, 12, "coffee_maker_final/c_0.JPG"), (4, 11319, 12, "coffee_maker_final/c_1.JPG")]
    for half, entries in halves.items():
        for *_, path in entries:
            save(root / path.replace("JPG", "png"))
            (root / path.replace("JPG", "png")).rename(root / path)
        lines = ["image_id class_id super_class_id path", *(" ".join(map(str, entry)) for entry in entries)]
        (root / f"Ebay_{half}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("inner", ["", "Stanford_Online_Products"])
def test_sop(tmp_path, inner):
    make_sop(tmp_path / inner)
    samples = datasets.open(f"sop:{tmp_path}")
    assert samples.name == "SOP"
    assert rows(samples) == [
        ("bicycle 1", "train", "a_0.JPG"),
        ("bicycle 2", "train", "b_0.JPG"),
        ("coffee maker 11319", "test", "c_0.JPG"),
        ("coffee maker 11319", "test", "c_1.JPG"),
    ]


def test_sop_with_a_row_cut_short(tmp_path):
    make_sop(tmp_path)
    (tmp_path / "Ebay_test.txt").write_text(
        "image_id class_id super_class_id path\n3 11319 12 coffee_maker_final/c_0.JPG\n4 11"
    )
    with pytest.raises(DataError, match=r"Ebay_test\.txt', line 3: expected image_id .*, got '4 11'"):
        datasets.open(f"sop:{tmp_path}")


# ---- In-Shop ----


@pytest.mark.parametrize("inner", [("Eval", "Img"), ("", "")])
def test_in_shop(tmp_path, inner):
    entries = [
        ("img/MEN/Denim/id_00000080/01_1_front.png", "id_00000080", "query"),
        ("img/MEN/Denim/id_00000080/01_7_side.png", "id_00000080", "gallery"),
        ("img/WOMEN/Dresses/id_00000002/02_1_front.png", "id_00000002", "train"),
    ]
    for name, _, _ in entries:
        save(tmp_path / inner[1] / name)
    lines = [str(len(entries)), "image_name item_id evaluation_status", *map(" ".join, entries)]
    (tmp_path / inner[0]).mkdir(exist_ok=True)
    (tmp_path / inner[0] / "list_eval_partition.txt").write_text("\n".join(lines))
    samples = datasets.open(f"in_shop:{tmp_path}")
    assert rows(samples) == [
        ("id_00000002", "train", "02_1_front.png"),
        ("id_00000080", "test", "01_1_front.png"),
        ("id_00000080", "test", "01_7_side.png"),
    ]
    assert samples.labels.tolist() == [0, 1, 1]
    assert samples.query.tolist() == [False, True, False]
    assert samples.gallery.tolist() == [False, False, True]


# ---- Omniglot ----


def drawings(root, *places):
    for place in places:
        for person in (1, 2):
            save(root / place / f"0001_{person:02}.png", "1")


@pytest.mark.parametrize("inner", ["", "python"])
def test_omniglot(tmp_path, inner):
    drawings(tmp_path / inner, "images_background/Greek/character01", "images_background/Greek/character02")
    drawings(tmp_path / inner, "images_evaluation/Tibetan/character01")
    samples = datasets.open(f"omniglot:{tmp_path}")
    assert rows(samples) == [
        (name, split, f"0001_{person:02}.png")
        for name, split in (
            ("Greek/character01", "train"),
            ("Greek/character02", "train"),
            ("Tibetan/character01", "test"),
        )
        for person in (1, 2)
    ]
    assert samples.describe() == "3 classes, 6 images: 6 gray, converted to RGB"


def test_omniglot_small_sets_share_alphabets(tmp_path):
    drawings(tmp_path, "images_background_small1/Greek/character01", "images_background_small1/Latin/character01")
    drawings(tmp_path, "images_background_small2/Greek/character01", "images_background_small2/Latin/character02")
    samples = datasets.open(f"omniglot:{tmp_path}")
    assert samples.classes == ("Greek/character01", "Latin/character01", "Latin/character02")
    assert len(samples) == 6
    assert samples.split is None


# ---- what is not there ----


@pytest.mark.parametrize("name", ["cub", "cars196", "sop", "in_shop", "omniglot"])
def test_a_folder_without_it_says_what_is_expected(tmp_path, name):
    with pytest.raises(DataError, match=r"unpack") as caught:
        datasets.open(f"{name}:{tmp_path / 'nowhere'}")
    assert str(tmp_path / "nowhere") in str(caught.value)
