"""The datasets: what they contain, that the test sets never move, and that PML's samplers and loaders take them."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from of_pml import MPerClassSampler
from PIL import Image
from torch.utils.data import DataLoader

import pml_ext
from pml_ext.datasets import DATASETS, Digits, Glyphs, InShop, RandomWarp
from pml_ext.datasets.glyphs import FACES, render
from pml_ext.datasets.warp import _places

# Worker processes: Python 3.12 warns of every fork beside threads, torch of more workers than cores.
WORKERS_ALLOWED = (
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
)
EVERY_SET = [(name, split) for name in DATASETS for split in ("train", "test")]


def images_of(dataset):
    return torch.stack([image for image, _ in dataset.__getitems__(range(len(dataset)))])


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- both in-memory sets ----


@pytest.mark.parametrize(("name", "split"), EVERY_SET)
def test_contract(name, split):
    dataset = DATASETS[name](split)
    image, label = dataset[0]
    assert type(label) is int
    assert label == dataset.labels[0]
    assert image.dtype == torch.float32
    assert tuple(image.shape) == dataset.image_shape
    assert dataset.labels.dtype == torch.int64
    assert dataset.labels.shape == (len(dataset),)
    assert set(dataset.classes) == set(dataset.labels.tolist())
    assert all(isinstance(text, str) for text in dataset.classes.values())
    images = images_of(dataset)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("name", list(DATASETS))
def test_training_labels_start_at_zero_and_test_labels_follow(name):
    train, test = (DATASETS[name](split) for split in ("train", "test"))
    assert sorted(train.classes) == list(range(len(train.classes)))
    assert sorted(test.classes) == list(range(len(train.classes), len(train.classes) + len(test.classes)))
    assert not set(train.classes.values()) & set(test.classes.values())


@pytest.mark.parametrize(("name", "split"), EVERY_SET)
def test_transforms(name, split):
    dataset = DATASETS[name](split, transform=lambda image: image.mean(), target_transform=lambda label: label + 1000)
    plain = DATASETS[name](split)
    torch.manual_seed(1)
    image, label = dataset[3]
    torch.manual_seed(1)
    expected, expected_label = plain[3]
    assert image == expected.mean()
    assert label == expected_label + 1000
    assert torch.equal(dataset.labels, plain.labels)


@pytest.mark.parametrize("name", list(DATASETS))
@pytest.mark.parametrize("split", ["train+test", "validation", ""])
def test_wrong_split_names_the_value_and_the_choices(name, split):
    with pytest.raises(ValueError, match=rf"'train', 'test', got '{split}'".replace("+", r"\+")):
        DATASETS[name](split)


@pytest.mark.parametrize(("name", "split"), EVERY_SET)
def test_indexing(name, split):
    dataset = DATASETS[name](split)
    assert dataset[-1][1] == dataset.labels[-1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert dataset.__getitems__([]) == []


@pytest.mark.parametrize(("name", "split"), EVERY_SET)
def test_writing_into_a_sample_leaves_the_dataset_as_it_is(name, split):
    dataset = DATASETS[name](split)
    before = digest(dataset._images)
    dataset[0][0].fill_(7)
    dataset.__getitems__([0, 1])[1][0].fill_(7)
    assert digest(dataset._images) == before


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=WORKERS_ALLOWED)])
@pytest.mark.parametrize("name", list(DATASETS))
def test_loader_with_pml_sampler(name, workers):
    dataset = DATASETS[name]("train")
    sampler = MPerClassSampler(dataset.labels, m=4, batch_size=20, length_before_new_iter=60)
    batches = list(DataLoader(dataset, batch_size=20, sampler=sampler, num_workers=workers))
    assert len(batches) == 3
    for images, labels in batches:
        assert images.shape == (20, *dataset.image_shape)
        assert labels.dtype == torch.int64
        assert labels.unique(return_counts=True)[1].tolist() == [4] * 5


@pytest.mark.parametrize("name", list(DATASETS))
def test_pickle(name):
    dataset = DATASETS[name]("test")
    assert torch.equal(images_of(pickle.loads(pickle.dumps(dataset))), images_of(dataset))


# ---- glyphs ----


def test_glyphs_sizes():
    # The numbers in the docstring; they hang on matplotlib's fonts alone, not on how they are rendered.
    train, test = Glyphs("train"), Glyphs("test")
    assert (len(train.classes), len(test.classes)) == (250, 251)
    for dataset in (train, test):
        assert (torch.bincount(dataset.labels)[dataset.labels.min() :] == 16).all()


def test_glyphs_are_neither_clipped_nor_blank():
    images, _ = render()
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (images[..., border] == 0).all()
    assert (images.amax((-1, -2)) >= 0.5).all()
    assert (images.sum((-1, -2)) > 5).all()


def test_glyphs_are_centered():
    images, _ = render()
    for side in (-1, -2):
        ink = images.amax(side).squeeze(2) > 0  # [classes, faces, 32]
        before = ink.int().argmax(-1)
        after = ink.flip(-1).int().argmax(-1)
        assert (before - after).abs().max() <= 2


def test_no_glyph_image_is_in_two_classes():
    images, names = render()
    owners = {}
    for name, faces in zip(names, images, strict=True):
        for face in faces:
            assert owners.setdefault(face.numpy().tobytes(), name) == name


def test_glyph_classes_keep_one_of_each_set_of_lookalikes():
    names = set(render()[1])
    assert set("AaZz09") <= names
    assert not set("ΑАаο") & names  # Greek and Cyrillic characters drawn as Latin ones


def test_faces_of_a_glyph_differ():
    # One pair of faces shares one letter: Sans Oblique and Sans Mono Oblique have the same U+01BA.
    images, _ = render()
    assert images.shape[1] == len(FACES) == 16
    for faces in images:
        assert len({face.numpy().tobytes() for face in faces}) >= 15


def test_glyph_test_set_is_the_same_in_every_instance_and_process():
    torch.manual_seed(1)
    first = Glyphs("test")
    torch.manual_seed(2)
    second = Glyphs("test")
    expected = digest(images_of(first))
    assert digest(images_of(first)) == expected
    assert digest(images_of(second)) == expected
    script = (
        "import sys, hashlib, torch\n"
        "from pml_ext.datasets import Glyphs\n"
        "from pml_ext.datasets.glyphs import render\n"
        "print([m for m in ('torchvision', 'matplotlib', 'sklearn') if m in sys.modules])\n"
        "test = Glyphs('test')\n"
        "images = torch.stack([image for image, _ in test])\n"
        "print(hashlib.sha256(render()[0].numpy().tobytes()).hexdigest())  # before they are warped\n"
        "print(hashlib.sha256(images.numpy().tobytes()).hexdigest(), 'torchvision' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert out.splitlines() == ["[]", digest(render()[0]), f"{expected} False"]


def test_building_the_test_set_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    Glyphs("test")
    assert torch.equal(torch.get_rng_state(), before)


def test_glyph_training_images_are_warped_anew_and_reproducibly():
    train = Glyphs("train")
    torch.manual_seed(3)
    first, second = train[5][0], train[5][0]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(train[5][0], first)
    one_batch = train.__getitems__([5, 5])
    assert not torch.equal(one_batch[0][0], one_batch[1][0])


# Worker processes, as above.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_loader_workers_warp_differently():
    loader = DataLoader(Glyphs("train"), batch_size=1, sampler=[0, 0, 0, 0], num_workers=2)
    images = torch.cat([images for images, _ in loader])
    assert len(torch.unique(images.flatten(1), dim=0)) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_glyphs_without_warp_are_the_rendered_ones(split):
    dataset = Glyphs(split, warp=None)
    images, names = render()
    label = dataset.labels[-1].item()
    assert torch.equal(dataset[-1][0], images[label, -1])
    assert dataset.classes[label] == names[label]


def test_glyphs_are_hard_but_not_hopeless_for_raw_pixels():
    # Measured: 12 %. Far from it, the strength of the warp no longer tells one loss from another.
    test = Glyphs("test")
    pixels = torch.nn.functional.normalize(images_of(test).flatten(1))
    nearest = (pixels @ pixels.T).fill_diagonal_(-1).argmax(1)
    precision = (test.labels[nearest] == test.labels).float().mean().item()
    assert 0.09 < precision < 0.15


# ---- the warp ----

STILL = {"rotation": 0.0, "scale": 1.0, "shear": 0.0, "shift": 0.0, "noise": 0.0}


def disc(n, h, w, radius=5.0):
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    return (radius + 0.5 - (x**2 + y**2).sqrt()).clamp(0, 1).expand(n, 1, h, w).contiguous()


def moments(images):
    """Mass, centroid and the three second moments (xx, yy, xy) of each image, in pixels."""
    mass = images.sum((1, 2, 3))
    y, x = torch.meshgrid(*(torch.arange(size, dtype=images.dtype) for size in images.shape[2:]), indexing="ij")
    mean = [(images[:, 0] * axis).sum((1, 2)) / mass for axis in (x, y)]
    dx, dy = (axis - m[:, None, None] for axis, m in zip((x, y), mean, strict=True))
    return mass, mean, [(images[:, 0] * product).sum((1, 2)) / mass for product in (dx * dx, dy * dy, dx * dy)]


def test_warped_places_are_those_of_an_affine_grid():
    generator = torch.Generator().manual_seed(0)
    x, y, origin = (torch.randn(7, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.affine_grid(torch.stack([x, y, origin], dim=2), [7, 1, 5, 9], align_corners=False)
    torch.testing.assert_close(_places(x, y, origin, 5, 9), expected, rtol=1e-14, atol=1e-14)
    rounded = _places(x.float(), y.float(), origin.float(), 5, 9)
    torch.testing.assert_close(rounded, expected.float(), rtol=1e-6, atol=1e-6)
    single = _places(x, y, origin, 1, 1)
    torch.testing.assert_close(single, origin[:, None, None])


def test_warp_of_no_strength_is_the_identity():
    images = torch.rand(3, 2, 8, 12)
    torch.testing.assert_close(RandomWarp(**STILL)(images), images)


def test_rotation_keeps_shapes_even_in_an_oblong_image():
    # A disc stays a disc of the same size at every angle.
    mass, _, (xx, yy, xy) = moments(RandomWarp(**STILL | {"rotation": 180.0})(disc(50, 24, 48)))
    plain_mass, _, (plain_xx, _, _) = moments(disc(1, 24, 48))
    torch.testing.assert_close(mass, plain_mass.expand(50), rtol=0.02, atol=0)
    torch.testing.assert_close(xx, plain_xx.expand(50), rtol=0.03, atol=0)
    torch.testing.assert_close(yy, plain_xx.expand(50), rtol=0.03, atol=0)
    assert xy.abs().max() < 0.03 * plain_xx


def test_rotation_angles_fill_their_range():
    bar = torch.zeros(400, 1, 33, 33)
    bar[:, :, 16, 6:27] = 1
    _, _, (xx, yy, xy) = moments(RandomWarp(**STILL | {"rotation": 30.0})(bar))
    angles = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2)
    assert 29 < angles.max() < 30.5
    assert -30.5 < angles.min() < -29
    assert angles.mean().abs() < 3


def test_shift_is_a_fraction_of_the_side_whatever_the_scale():
    # The shift is the last step: a scale of up to 2 must not stretch it.
    _, (x, y), _ = moments(RandomWarp(**STILL | {"shift": 0.1, "scale": 2.0})(disc(400, 40, 60, radius=4)))
    for center, side in ((x, 60), (y, 40)):
        shift = (center - (side - 1) / 2) / side
        assert 0.09 < shift.max() < 0.102
        assert -0.102 < shift.min() < -0.09


def test_scale_goes_both_ways():
    mass, _, _ = moments(RandomWarp(**STILL | {"scale": 1.5})(disc(400, 48, 48)))
    factor = (mass / disc(1, 48, 48).sum()).sqrt()
    assert 1.45 < factor.max() < 1.52
    assert 1 / 1.52 < factor.min() < 1 / 1.45
    assert factor.log().mean().abs() < 0.05


def test_shear_keeps_the_area_and_the_height():
    mass, _, (xx, yy, xy) = moments(RandomWarp(**STILL | {"shear": 0.5})(disc(400, 48, 48)))
    plain_mass, _, (plain, _, _) = moments(disc(1, 48, 48))
    torch.testing.assert_close(mass, plain_mass.expand(400), rtol=0.02, atol=0)
    torch.testing.assert_close(yy, plain.expand(400), rtol=0.03, atol=0)
    shear = xy / yy
    assert 0.47 < shear.max() < 0.52
    assert -0.52 < shear.min() < -0.47
    assert (xx > 0.97 * plain).all()


def test_noise_has_the_declared_deviation():
    grey = torch.full((10, 1, 32, 32), 0.5)
    assert abs(RandomWarp(**STILL | {"noise": 0.1})(grey).std().item() - 0.1) < 0.005


def test_warp_takes_single_images_other_dtypes_and_a_generator():
    warp = RandomWarp()
    assert warp(torch.rand(3, 8, 8)).shape == (3, 8, 8)
    assert warp(torch.rand(0, 1, 8, 8)).shape == (0, 1, 8, 8)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    before = torch.get_rng_state()
    first, second = (warp(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.float64
    assert torch.equal(first, second)
    for dtype in (torch.float16, torch.bfloat16):
        assert warp(images.to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    "wrong",
    [{"rotation": -1.0}, {"shear": float("nan")}, {"shift": float("inf")}, {"noise": -0.1}, {"scale": 0.9}],
)
def test_wrong_strength(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*{value}"):
        RandomWarp(**wrong)


def test_warp_of_something_else():
    with pytest.raises(ValueError, match=r"got \[8, 8\]"):
        RandomWarp()(torch.rand(8, 8))


def test_warp_is_a_transform_too():
    image, _ = Digits("train", transform=RandomWarp(), warp=None)[0]
    assert image.shape == (1, 8, 8)


# ---- digits ----


def test_digits_sizes():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (901, 896)
    assert test.classes == {digit: str(digit) for digit in range(5, 10)}
    clean = images_of(Digits("train", warp=None))
    assert clean.max() == 1
    assert not torch.equal(images_of(train), clean)


def test_digits_of_the_test_are_warped_once():
    assert torch.equal(images_of(Digits("test")), images_of(Digits("test")))
    assert not torch.equal(images_of(Digits("test")), images_of(Digits("test", warp=None)))


# ---- optional dependencies ----


@pytest.mark.parametrize(("build", "missing"), [(Digits, "sklearn.datasets"), (Glyphs, "matplotlib.ft2font")])
def test_missing_dependency_says_what_to_install(build, missing, monkeypatch):
    render.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "pml_ext\[benchmark\]"'):
        build()


WITHOUT_EXTRAS = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("PIL", "sklearn", "matplotlib", "scipy", "faiss", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import numpy, torch
import pml_ext.datasets as datasets

numpy.savez("a.npz", vectors=numpy.eye(3), labels=["a", "b", "b"])
print(datasets.open("a.npz").describe())
for build in (
    datasets.Digits,
    datasets.Glyphs,
    lambda: datasets.InShop("."),
    lambda: datasets.open("photos"),
    lambda: datasets.open([(torch.zeros(3, 2, 2), "cat")]).image(0),
):
    try:
        print(build())
    except ImportError as error:
        print(error)
"""


def test_without_the_extras_each_set_says_what_to_install(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "a.png").write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": str(Path(pml_ext.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    install = 'pip install "pml_ext[benchmark]"'
    assert done.stdout.splitlines() == [
        "2 classes, 3 vectors of 3 numbers",
        f"Digits needs scikit-learn: {install}",
        f"Glyphs needs matplotlib and Pillow: {install}",
        f"InShop needs Pillow: {install}",
        f"an image file needs Pillow: {install}",
        f"an image needs Pillow: {install}",
    ]


# ---- In-Shop ----

ROWS = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg", "id_00000001", "query"),
    ("img/WOMEN/Blouses_Shirts/id_00000001/02_3_back.jpg", "id_00000001", "gallery"),
    ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "train"),
    ("img/MEN/Denim/id_00000081/01_1_front.jpg", "id_00000081", "gallery"),
    ("img/MEN/Denim/id_00000081/01_7_additional.jpg", "id_00000081", "query"),
]


def write_partition(file, rows, count=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [str(len(rows) if count is None else count), "image_name item_id evaluation_status"]
    lines += [f"{name:<70}{item} {status}" for name, item, status in rows]
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["flat", "as distributed"])
def in_shop_root(tmp_path, request):
    flat = request.param == "flat"
    write_partition(tmp_path / ("" if flat else "Eval") / "list_eval_partition.txt", ROWS)
    for number, (name, _, _) in enumerate(ROWS):
        path = tmp_path / ("" if flat else "Img") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if number == 0 else "RGB", (8, 10), 10 * number).save(path)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "labels", "items"),
    [
        ("train", [0, 0, 1], ["id_00000002", "id_00000080"]),
        ("query", [2, 3], ["id_00000001", "id_00000081"]),
        ("gallery", [2, 3], ["id_00000001", "id_00000081"]),
        ("test", [2, 2, 3, 3], ["id_00000001", "id_00000081"]),
        ("train+test", [0, 0, 2, 2, 1, 3, 3], ["id_00000002", "id_00000080", "id_00000001", "id_00000081"]),
    ],
)
def test_in_shop_splits(in_shop_root, split, labels, items):
    dataset = InShop(in_shop_root, split)
    assert dataset.labels == labels
    assert list(dataset.classes.values()) == items
    assert sorted(dataset.classes) == list(dataset.classes)
    assert len(dataset) == len(labels)
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        assert dataset.classes[label] in path
    for (image, label), expected in zip(dataset, labels, strict=False):
        assert image.mode == "RGB"
        assert image.size == (8, 10)
        assert label == expected


def test_in_shop_in_a_loader(in_shop_root):
    dataset = InShop(
        str(in_shop_root),
        "train",
        transform=lambda image: torch.tensor(image.getpixel((0, 0))),
        target_transform=lambda label: label + 10,
    )
    images, labels = next(iter(DataLoader(dataset, batch_size=3)))
    assert images.shape == (3, 3)
    assert labels.tolist() == [10, 10, 11]
    assert len(list(MPerClassSampler(dataset.labels, m=2, length_before_new_iter=4))) == 4


def test_in_shop_defaults_to_everything_and_ignores_download_when_there(in_shop_root):
    assert len(InShop(in_shop_root, download=True)) == len(ROWS)


def test_in_shop_wrong_split(in_shop_root):
    with pytest.raises(ValueError, match=r"'query', 'gallery', .* got 'val'"):
        InShop(in_shop_root, "val")


@pytest.mark.parametrize("download", [False, True])
def test_in_shop_missing_root_says_where_to_ask(tmp_path, download):
    root = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=r"(?s)list_eval_partition.txt.*nowhere.*DeepFashion.*img\.zip"):
        InShop(root, download=download)
    assert not root.exists()


def test_in_shop_without_images(tmp_path):
    write_partition(tmp_path / "list_eval_partition.txt", ROWS)
    with pytest.raises(FileNotFoundError, match=r"img\.zip"):
        InShop(tmp_path)


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [
        (ROWS, 52712, "announces '52712' images and lists 7"),
        ([*ROWS, ("img/a.jpg", "id_00000003", "val")], None, r"train\|query\|gallery.*val"),
        ([*ROWS, ("img/a.jpg", "", "train")], None, "img/a.jpg"),
        ([*ROWS, ("img/a.jpg", "id_00000001", "train")], None, "'id_00000001' is in train and in query or gallery"),
    ],
)
def test_in_shop_broken_partition(tmp_path, rows, count, message):
    (tmp_path / "img").mkdir()
    write_partition(tmp_path / "list_eval_partition.txt", rows, count)
    with pytest.raises(ValueError, match=message):
        InShop(tmp_path)


@pytest.mark.parametrize(("content", "count"), [("", ""), ("7\n", "7"), ("7", "7")])
def test_in_shop_partition_of_no_rows(tmp_path, content, count):
    (tmp_path / "img").mkdir()
    (tmp_path / "list_eval_partition.txt").write_text(content)
    with pytest.raises(ValueError, match=f"announces '{count}' images and lists 0"):
        InShop(tmp_path)


def test_in_shop_partition_with_a_byte_order_mark(in_shop_root):
    (partition,) = in_shop_root.rglob("list_eval_partition.txt")
    partition.write_bytes(b"\xef\xbb\xbf" + partition.read_bytes())
    assert len(InShop(in_shop_root)) == len(ROWS)


def test_in_shop_names_an_image_that_cannot_be_read(in_shop_root):
    dataset = InShop(in_shop_root, "query")
    path = Path(dataset.paths[1])
    path.write_bytes(path.read_bytes()[:-60])
    assert dataset[0][1] == 2
    with pytest.raises(ValueError, match=rf"{path.name}' (cannot be read|is not a readable image): .*[Tt]runcated"):
        dataset[1]
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name}' cannot be read: No such file"):
        dataset[1]
