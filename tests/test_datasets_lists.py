"""Folders and lists of photographs: what is read, what is refused and how it is named."""

import csv

import pytest
from PIL import Image

from pml_ext import datasets
from pml_ext.datasets.folder import folder
from pml_ext.datasets.lists import image_list
from pml_ext.datasets.samples import DataError


def save(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6)).save(path)
    return path


def names(samples):
    """(class, last part of the path) of each sample."""
    return [
        (samples.classes[label], path.rpartition("/")[2])
        for label, path in zip(samples.labels.tolist(), samples.paths, strict=True)
    ]


# ---- a folder ----


def test_one_sub_folder_a_class(tmp_path):
    for name in ("dog/b.png", "dog/a.JPG", "cat/kittens/c.webp", "cat/a.png"):
        save(tmp_path / "photos" / name, "L" if name == "cat/a.png" else "RGB")
    samples = folder(tmp_path / "photos")
    assert samples.name == "photos"
    assert samples.classes == ("cat", "dog")
    assert names(samples) == [("cat", "a.png"), ("cat", "c.webp"), ("dog", "a.JPG"), ("dog", "b.png")]
    assert samples.split is None
    assert samples.describe() == "2 classes, 4 images: 1 gray, converted to RGB"
    assert samples.image(0).mode == "RGB"
    assert folder(tmp_path / "photos", "L").image(1).mode == "L"


def test_strangers_are_passed_over(tmp_path):
    save(tmp_path / "cat" / "a.png")
    for name in ("cat/._a.png", "cat/.DS_Store", ".git/a.png", "lost+found/a.png", "__MACOSX/cat/._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert folder(tmp_path).describe() == "1 class, 1 image"
    (tmp_path / "cat" / "read me.txt").write_text("x")
    (tmp_path / "list.csv").write_text("x")
    (tmp_path / "empty").mkdir()
    assert folder(tmp_path).notes == ("1 other file passed over", "1 folder without images")


def test_a_page_saved_as_an_image_is_named(tmp_path):
    save(tmp_path / "cat" / "a.png")
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "cat" / name).write_text("<html>")
    with pytest.raises(DataError, match=r"cat/b\.jpg' is not a readable image.*\(and 1 more; --check lists all\)"):
        datasets.open(tmp_path)
    assert len(datasets.open(tmp_path, strict=False).unreadable) == 2


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Val"])
def test_folders_named_as_splits_are_splits(tmp_path, word):
    for name in ("train/cat/a.png", "train/dog/a.png", f"{word}/owl/a.png", "test/emu/a.png"):
        save(tmp_path / name)
    samples = folder(tmp_path)
    assert dict(zip((name for name, _ in names(samples)), samples.split, strict=True)) == {
        "cat": "train",
        "dog": "train",
        "owl": "validation",
        "emu": "test",
    }


def test_a_class_called_test_beside_others_is_a_class(tmp_path):
    for name in ("test/a.png", "train/a.png", "cat/a.png"):
        save(tmp_path / name)
    assert folder(tmp_path).classes == ("cat", "test", "train")
    save(tmp_path / "two" / "test" / "a.png")
    save(tmp_path / "two" / "train" / "a.png")
    assert folder(tmp_path / "two").classes == ("test", "train")


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: save(path / "a.png"), lambda path: (path / "x").mkdir()]
)
def test_a_folder_without_classes(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match="has no images in sub-folders: one sub-folder per class is expected"):
        folder(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        folder(save(tmp_path / "a.png"))


def test_linked_folders_are_followed_once(tmp_path):
    save(tmp_path / "far" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "photos")
    assert folder(tmp_path / "photos").describe() == "1 class, 1 image"


ODD = ["<b>&\"'", "two\nlines", "x" * 120, "птица", "鳥", "007", "7", "NA", "null", "1e5", "true"]


def test_names_are_text_whatever_they_look_like(tmp_path):
    for name in ODD:
        save(tmp_path / name / "a.png")
    (tmp_path / b"\xff".decode("utf-8", "surrogateescape")).mkdir()
    save(tmp_path / b"\xff".decode("utf-8", "surrogateescape") / "a.png")
    assert set(folder(tmp_path).classes) == {*ODD, r"\xff"}


# ---- a list ----


def listed(folder, header, *rows, separator=",", encoding="utf-8"):
    """Write a list, and every image that it names."""
    with (folder / "list.csv").open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header.split(","))
        writer.writerows(row.split("|") for row in rows)
    for row in rows:
        name = row.split("|")[header.split(",").index("path")] if "path" in header.split(",") else ""
        if name and not name.startswith("gone"):
            save(folder / name)
    return folder / "list.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_path_and_label(tmp_path, separator, encoding):
    rows = ("in/a.png|007", "in/b.png|7", "c.png|NA", "d.png|null", "e.png|птица, большая")
    file = listed(tmp_path, "path,label", *rows, separator=separator, encoding=encoding)
    samples = image_list(file)
    assert names(samples) == [
        ("007", "a.png"),
        ("7", "b.png"),
        ("NA", "c.png"),
        ("null", "d.png"),
        ("птица, большая", "e.png"),
    ]
    assert samples.name == "list"
    assert samples.paths[0] == str(tmp_path / "in" / "a.png")
    assert samples.split is samples.query is samples.groups is samples.sequences is None


def test_absolute_paths_blank_lines_and_other_columns(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "list.csv"
    file.write_text(f"Label, PATH ,camera\n\ncat,{tmp_path}/a.png,1\n , ,\n dog ,../b.png,2\n")
    save(tmp_path / "b.png")
    samples = image_list(file)
    assert names(samples) == [("cat", "a.png"), ("dog", "b.png")]
    assert samples.notes == ("1 column not used: camera",)


def test_a_split_column(tmp_path):
    file = listed(tmp_path, "path,label,split", "a.png|x|train", "b.png|y|VAL", "c.png|z|test", "d.png|u|validation")
    assert image_list(file).split == ("train", "validation", "test", "validation")
    assert image_list(listed(tmp_path, "path,label,split", "a.png|x|", "b.png|y|")).split is None


@pytest.mark.parametrize(("query", "gallery"), [("is_query", "is_gallery"), ("query", "gallery")])
def test_the_lists_of_oml(tmp_path, query, gallery):
    file = listed(
        tmp_path,
        f"path,label,split,{query},{gallery},category,sequence,x_1,y_1,x_2,y_2",
        "a.png|1|train|||shoes|||||",
        "a.png|2|train|||shoes||0|0|4|6",
        "b.png|3|validation|True|False|shoes|s1||||",
        "c.png|3|validation|0|1.0|shoes|s1|1|1|8|6",
        "d.png|3|validation|1|1|shoes|s2|1.0|1|3|2",
        "e.png|3|validation|true|true|shoes|||||",
    )
    samples = image_list(file)
    assert samples.split == ("train", "train", "test", "test", "test", "test")
    assert samples.query.tolist() == [False, False, True, False, True, True]
    assert samples.gallery.tolist() == [False, False, False, True, True, True]
    sequences = samples.sequences.tolist()
    assert sequences[2] == sequences[3]
    assert len(set(sequences)) == 5  # who has none has one of his own
    assert [samples.image(i).size for i in range(6)] == [(8, 6), (4, 6), (8, 6), (7, 5), (2, 1), (8, 6)]
    assert samples.notes == ("its validation rows are the test", "1 column not used: category")


def test_groups_are_numbered(tmp_path):
    file = listed(tmp_path, "path,label,group", "a.png|x|1", "b.png|x|01", "c.png|y|", "d.png|y|1", "e.png|y|")
    groups = image_list(file).groups.tolist()
    assert groups[0] == groups[3]
    assert len(set(groups)) == 4


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,lable", ["a.png|x"], "must name the columns path and label, got 'path', 'lable'"),
        ("a.png,cat", ["b.png|x"], "must name the columns path and label, got 'a.png', 'cat'"),
        ("path,label,is_query,query", ["a.png|x|1|1"], "two columns are called 'query'"),
        ("path,label", [], "no rows below"),
        ("path,label", ["a.png|x|y"], "line 2: 3 cells, but 2 columns"),
        ("path,label", ["a.png|x", "b.png|"], "line 3: label is empty"),
        ("path,label", ["a.png|x", "|x"], "line 3: path is empty"),
        ("path,label", ["a.png|x", "gone.png|x"], "line 3: path 'gone.png' is not there"),
        (
            "path,label",
            ["gone.png|x", "a.png|x", "gone2.png|x"],
            r"'gone.png' is not there \(and 1 more, the next in line 4\)",
        ),
        ("path,label", ["a.png|x", "b.png|x", "a.png|y"], "line 4: 'a.png' has the label 'y', but 'x' in line 2"),
        ("path,label", ["a.png|x", "./a.png|x"], "line 3: './a.png' is listed twice, first in line 2"),
        ("path,label,split", ["a.png|x|trian"], "line 2: split 'trian' must be train, validation, test or empty"),
        ("path,label,split", ["a.png|x|train", "b.png|x|"], "line 3: split is empty, but other rows have one"),
        ("path,label,query", ["a.png|x|1"], "given together, got query alone"),
        ("path,label,query,gallery", ["a.png|x|maybe|1"], "line 2: query 'maybe' must be 1, true, 0, false or empty"),
        ("path,label,query,gallery", ["a.png|x|0|1"], "no row is marked as query"),
        ("path,label,query,gallery", ["a.png|x|1|0"], "no row is marked as gallery"),
        (
            "path,label,split,query,gallery",
            ["a.png|x|train|1|1"],
            "line 2: split 'train' is marked as query or gallery",
        ),
        ("path,label,x_1,y_1,x_2", ["a.png|x|1|1|2"], "y_2 is missing"),
        ("path,label,x_1,y_1,x_2,y_2", ["a.png|x|3|1|2|4"], r"line 2: a box must be .* got 3, 1, 2, 4"),
        ("path,label,x_1,y_1,x_2,y_2", ["a.png|x|3|1||4"], r"line 2: a box must be .* got 3, 1, , 4"),
        ("path,label,x_1,y_1,x_2,y_2", ["a.png|x|nan|1|2|4"], r"line 2: a box must be .* got nan"),
    ],
)
def test_a_list_that_is_wrong_is_one_line_with_the_row(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=rf"list\.csv'.*{message}") as caught:
        image_list(listed(tmp_path, header, *rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\n\n", "an empty file"),
        ("path,label\nä.png,x\n".encode("latin-1"), "is not UTF-8 text: byte 11 is 0xe4"),
        (b'path,label\n"a.png,x\n', "line 2: unexpected end of data"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"list\.csv'.*{message}"):
        image_list(tmp_path / "list.csv")


def test_a_cell_may_span_lines(tmp_path):
    file = listed(tmp_path, "path,label", "a.png|two\nlines", "gone.png|x")
    with pytest.raises(DataError, match=r"line 4: path 'gone\.png'"):
        image_list(file)
    save(tmp_path / "gone.png")
    assert image_list(file).classes == ("two\nlines", "x")
