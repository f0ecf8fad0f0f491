"""The one door: names, files of vectors, objects of Python, other people's sets."""

import pickle
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from pml_ext import datasets
from pml_ext.datasets import sources
from pml_ext.datasets.samples import DataError


def classes_of(samples):
    return [samples.classes[label] for label in samples.labels.tolist()]


# ---- what a source is ----


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cbu:/data", r"unknown data set 'cbu'; did you mean cub\?"),
        ("nothing:/data", "unknown data set 'nothing'; known: glyphs, digits, cub, cars196, sop, in_shop, omniglot"),
        ("glyfs", r"'glyfs' is neither a file, a folder nor a data set; did you mean glyphs\?"),
        ("cub", "data set 'cub' needs the folder that it was unpacked to: cub:FOLDER"),
        ("sop:", "data set 'sop' needs the folder"),
        ("nowhere/photos", "'nowhere/photos' is neither a file, a folder nor a data set"),
        ("nowhere.csv", r"'nowhere\.csv' cannot be read: No such file"),
        (7, "a data set needs len"),
    ],
)
def test_a_source_that_is_none(source, message):
    with pytest.raises(DataError, match=message):
        datasets.open(source)


def test_a_folder_and_a_list(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "cat" / "a.png")
    (tmp_path / "list.csv").write_text("path,label\nphotos/cat/a.png,7\n")
    assert datasets.open(tmp_path / "photos").classes == ("cat",)
    assert datasets.open(str(tmp_path / "photos"), mode="L").image(0).mode == "L"
    assert datasets.open(tmp_path / "list.csv").classes == ("7",)
    with pytest.raises(DataError, match="labels are given with a file of vectors"):
        datasets.open(tmp_path / "list.csv", labels=["a"])


def test_the_home_folder_is_found_after_a_colon(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "data" / "images_background" / "Greek" / "character01" / "0001_01.png"
    path.parent.mkdir(parents=True)
    Image.new("1", (4, 4)).save(path)
    assert datasets.open("omniglot:~/data").classes == ("Greek/character01",)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cub" / "wren").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "cub" / "wren" / "a.png")
    assert datasets.open("cub").classes == ("wren",)  # a folder that has the name of a layout


@pytest.mark.parametrize(("name", "count", "size"), [("glyphs", 501, (32, 32)), ("digits", 10, (8, 8))])
def test_the_sets_that_need_no_files(name, count, size):
    samples = datasets.open(name)
    train, test = (datasets.DATASETS[name](split) for split in ("train", "test"))
    assert (samples.name, len(samples.classes)) == (name, count)
    assert samples.split == ("train",) * len(train) + ("test",) * len(test)
    assert torch.equal(samples.labels, torch.cat([train.labels, test.labels]))
    assert samples.image(len(train)).size == size
    expected = (test[0][0][0] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(np.asarray(samples.image(len(train)))[..., 2], expected)
    assert samples.key == datasets.open(name).key


def test_check_names_every_unreadable_file(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.effect_noise((64, 64), 50).save(tmp_path / "cat" / name)
    samples = datasets.open(tmp_path)
    assert datasets.check(samples) == []
    for name in ("a.png", "c.png"):
        path = tmp_path / "cat" / name
        path.write_bytes(path.read_bytes()[:500])
    lines = datasets.check(samples)
    assert [("a.png" in line, "c.png" in line) for line in lines] == [(True, False), (False, True)]


# ---- vectors ----

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "labels", [[3, 1, 3, 3], ["b", "a", "b", "b"], np.array(["b", "a", "b", "b"]), torch.tensor([3, 1, 3, 3])]
)
@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "pair.pt", "npy with labels", "text"])
def test_vectors_with_labels(tmp_path, labels, kind):
    given = None
    plain = labels.tolist() if hasattr(labels, "tolist") else labels
    file = tmp_path / f"a.{kind[-3:].strip('.') if kind.endswith('pt') else kind[:3]}"
    if kind == "npz":
        np.savez(file, embeddings=ROWS, y=np.asarray(labels))
    elif kind == "pt":
        torch.save({"features": torch.from_numpy(ROWS), "targets": plain}, file)
    elif kind == "pair.pt":
        torch.save((torch.from_numpy(ROWS), plain), file)
    else:
        file = tmp_path / "a.npy"
        np.save(file, ROWS)
        if kind == "npy":
            np.save(tmp_path / "a_labels.npy", np.asarray(labels))
        elif kind == "text":
            given = tmp_path / "labels.txt"
            given.write_text("".join(f"{label}\n" for label in plain))
        else:
            given = labels
    samples = datasets.open(file, labels=given)
    assert classes_of(samples) == list(map(str, plain))
    assert samples.labels.tolist() == [1, 0, 1, 1]
    np.testing.assert_array_equal(samples.vectors.numpy(), ROWS)
    assert samples.image is None
    assert samples.describe() == "2 classes, 4 vectors of 3 numbers"


def test_vectors_with_everything(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        vectors=ROWS.astype(np.int64),
        labels=["a", "a", "b", "b"],
        split=["train", "train", "test", "test"],
        query=[0, 0, 1, 0],
        gallery=[False, False, True, True],
        groups=["x", "y", "x", "z"],
        sequences=[5, 5, 9, 9],
    )
    samples = datasets.open(tmp_path / "a.npz")
    assert samples.vectors.dtype == torch.float32
    assert samples.split == ("train", "train", "test", "test")
    assert samples.query.tolist() == [False, False, True, False]
    assert samples.gallery.tolist() == [False, False, True, True]
    assert samples.groups.tolist() == [0, 1, 0, 2]
    assert samples.sequences.tolist() == [0, 0, 1, 1]


class Malice:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = np.array([Malice()], dtype=object)
    np.save("object.npy", evil)
    np.savez("object.npz", vectors=ROWS, labels=evil)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Malice()))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Malice()))
    torch.save({"vectors": torch.ones(1, 2), "labels": Malice()}, "object.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Malice()))
    np.save("good.npy", ROWS)
    np.save("good_labels.npy", evil)
    for name in ("object.npy", "object.npz", "pickle.npy", "pickle.npz", "object.pt", "pickle.pt", "good.npy"):
        with pytest.raises(DataError, match="is not a readable") as caught:
            datasets.open(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, ROWS), "expected 'a_labels.npy' beside it, or labels="),
        (lambda path: path.write_bytes(b""), "is not a readable .npy file"),
        (lambda path: None, "cannot be read: No such file"),
    ],
)
def test_a_file_of_vectors_that_is_none(tmp_path, write, message):
    write(tmp_path / "a.npy")
    with pytest.raises(DataError, match=message):
        datasets.open(tmp_path / "a.npy")


def test_a_file_without_vectors(tmp_path):
    np.savez(tmp_path / "a.npz", z=ROWS)
    with pytest.raises(DataError, match=r"must hold vectors or embeddings or features or x, got 'z'"):
        datasets.open(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (ROWS, [1, 2], "2 labels, but vectors has 4 entries"),
        (ROWS[0], [1, 2, 3], r"must be \[n, d\] floating point, got \[3\]"),
        (ROWS * 1j, [1, 1, 2, 2], "floating point, got"),
        (np.where(ROWS == 5, np.nan, ROWS), [1, 1, 2, 2], "vector 1 is not finite"),
        (ROWS, [1, 1, 2, None], "label of sample 3 must be a name or a number, got None"),
    ],
)
def test_vectors_that_do_not_fit(tmp_path, rows, labels, message):
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(DataError, match=message):
        datasets.open(tmp_path / "a.npy", labels=labels)


# ---- objects of Python ----


class Pictures(Dataset):
    """Counts how often it is read."""

    def __init__(self, images, answers, **attributes):
        self.images, self.answers, self.reads = images, answers, 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index], self.answers[index]


RED = np.zeros((4, 6, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RED),
        Image.fromarray(RED).convert("P"),
        RED,
        RED.astype(np.float32) / 255,
        torch.from_numpy(RED).permute(2, 0, 1),
        torch.from_numpy(RED).permute(2, 0, 1).double() / 255,
        np.dstack([RED, np.full((4, 6, 1), 255, np.uint8)]),
    ],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'dtype', '')}",
)
def test_images_of_any_kind(image):
    samples = datasets.open(Pictures([image, image], ["a", "b"]))
    assert samples.name == "Pictures"
    np.testing.assert_array_equal(np.asarray(samples.image(1)), RED)


@pytest.mark.parametrize("image", [np.zeros((4, 6), np.uint8), torch.zeros(1, 4, 6), Image.new("L", (6, 4))])
def test_gray_images(image):
    assert datasets.open(Pictures([image], [0])).image(0).mode == "RGB"
    assert datasets.open(Pictures([image], [0]), mode="L").image(0).getpixel((0, 0)) == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.randn(3, 4, 6), r"sample 0 is float32 in -.*before any normalization"),
        (np.zeros((4, 6, 3), np.int64), "sample 0 is int64"),
        (np.zeros((4, 6, 5)), r"sample 0 must be an image .* got \(4, 6, 5\)"),
        (torch.zeros(2, 3, 4, 6), r"sample 0 must be an image .*got"),
    ],
)
def test_images_that_are_none(image, message):
    torch.manual_seed(0)
    samples = datasets.open(Pictures([image], [0]))
    with pytest.raises(DataError, match=message):
        samples.image(0)


@pytest.mark.parametrize("attribute", ["labels", "targets", "y"])
def test_labels_are_not_read_with_the_images_where_they_are_said(attribute):
    labels = torch.tensor([5, 9, 5])
    data = Pictures([RED] * 3, [None] * 3, **{attribute: labels, "paths": ["a", "b", "c"]})
    with pytest.raises(DataError, match="'a' cannot be read"):  # its key is that of the files
        datasets.open(data)
    assert data.reads == 1
    del data.paths
    assert classes_of(datasets.open(data)) == ["5", "9", "5"]


def test_labels_are_read_where_they_are_not_said():
    assert classes_of(datasets.open(Pictures([RED] * 3, ["x", torch.tensor(3), np.int64(3)]))) == ["x", "3", "3"]
    assert classes_of(datasets.open([(RED, "x"), (RED, "y")])) == ["x", "y"]


@pytest.mark.parametrize("names", [["zero", "one", "two"], {2: "two", 0: "zero"}])
def test_names_of_classes(names):
    data = Pictures([RED] * 3, [None] * 3, targets=[2, 0, 2], classes=names)
    assert classes_of(datasets.open(data)) == ["two", "zero", "two"]
    assert classes_of(datasets.open(Subset(data, [1, 0]))) == ["zero", "two"]
    assert classes_of(datasets.open(ConcatDataset([data, data]))) == ["2", "0", "2"] * 2


def test_vectors_of_a_dataset():
    samples = datasets.open(TensorDataset(torch.eye(3), torch.tensor([1, 1, 2])))
    assert torch.equal(samples.vectors, torch.eye(3))
    samples = datasets.open((ROWS, ["a", "a", "b", "b"]))
    assert torch.equal(samples.vectors, torch.from_numpy(ROWS))
    with pytest.raises(DataError, match="vectors of different lengths"):
        datasets.open([(torch.zeros(2), 0), (torch.zeros(3), 0)])


def test_a_dictionary_by_split():
    train, test = Pictures([RED, RED // 2], ["a", "b"]), Pictures([RED // 4] * 2, ["c", "a"])
    samples = datasets.open({"train": train, "test": test})
    assert samples.split == ("train", "train", "test", "test")
    assert classes_of(samples) == ["a", "b", "c", "a"]
    assert [samples.image(i).getpixel((0, 0))[0] for i in range(4)] == [255, 127, 63, 63]
    assert pickle.loads(pickle.dumps(samples.image))(3).getpixel((0, 0))[0] == 63
    vectors = datasets.open({"train": (ROWS[:2], [0, 1]), "test": (ROWS[2:], [2, 3])})
    assert torch.equal(vectors.vectors, torch.from_numpy(ROWS))
    assert vectors.split == ("train", "train", "test", "test")


class Stream(IterableDataset):
    def __iter__(self):
        yield RED, 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "a data set needs len"),
        ([], "no samples"),
        ({}, "no samples"),
        ([RED], r"sample 0 must be \(image or vector, label\), got ndarray"),
        ({"train": (ROWS, [0] * 4), "test": [(RED, 0)]}, "images and vectors in one data set"),
        ({"trian": [(RED, 0)]}, "got 'trian'"),
    ],
)
def test_objects_that_are_no_data_set(data, message):
    with pytest.raises(DataError, match=message):
        datasets.open(data)


def test_the_key_follows_the_contents():
    keys = {datasets.open(Pictures([image], [0])).key for image in (RED, RED // 2, RED[:2])}
    keys |= {datasets.open((ROWS * factor, [0] * 4)).key for factor in (1, 2)}
    assert len(keys) == 5
    assert datasets.open(Pictures([RED], [0])).key in keys


# ---- other people's sets ----


def plugins(monkeypatch, **factories):
    """Entry points, as if packages that declare them were installed."""
    module = SimpleNamespace(**factories)
    monkeypatch.setitem(__import__("sys").modules, "others_sets", module)
    declared = [EntryPoint(name, f"others_sets:{name}", "pml_ext.datasets") for name in factories]

    def entry_points(*, group):
        assert group == "pml_ext.datasets"
        return declared

    monkeypatch.setattr(sources, "entry_points", entry_points)


def test_an_entry_point_is_called_with_what_stands_after_the_colon(monkeypatch):
    said = []

    def flickr(argument):
        said.append(argument)
        return Pictures([RED, RED], ["a", "b"])

    plugins(monkeypatch, flickr=flickr, ready=lambda argument: datasets.open((ROWS, [0, 0, 1, 1])))
    assert datasets.open("flickr:/data/flickr").classes == ("a", "b")
    assert datasets.open("flickr").name == "flickr"
    assert said == ["/data/flickr", ""]
    assert datasets.open("ready").vectors.shape == (4, 3)
    with pytest.raises(DataError, match="did you mean flickr"):
        datasets.open("flicker:/data")


def test_an_entry_point_that_fails_is_one_line(monkeypatch):
    def flickr(argument):
        raise KeyError("no\nsuch")

    plugins(monkeypatch, flickr=flickr)
    with pytest.raises(DataError, match=r"data set 'flickr' of .*KeyError: ") as caught:
        datasets.open("flickr:x")
    assert "\n" not in str(caught.value)
