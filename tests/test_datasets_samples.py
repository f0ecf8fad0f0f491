"""The protocol of a data set: what is refused, and how labels of any kind become numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_ext.datasets.samples import DataError, Samples, number

FOUR = {
    "name": "photos",
    "labels": torch.tensor([0, 0, 1, 1]),
    "classes": ("cat", "dog"),
    "vectors": torch.eye(4),
}


def test_a_collection_says_what_it_is():
    assert Samples(**FOUR).describe() == "2 classes, 4 vectors of 4 numbers"
    pictures = Samples(**FOUR | {"vectors": None, "image": print, "notes": ("1 gray", "2 with alpha")})
    assert pictures.describe() == "2 classes, 4 images: 1 gray; 2 with alpha"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([], dtype=torch.int64)}, "no samples"),
        ({"labels": torch.tensor([0.0, 0, 1, 1])}, r"int64, got \[4\] torch.float32"),
        ({"labels": torch.tensor([0, 0, 1, 2])}, r"labels must be in 0\.\.1, got 2"),
        ({"labels": torch.tensor([0, 0, 1, -1])}, r"labels must be in 0\.\.1, got -1"),
        ({"labels": torch.tensor([0, 0, 0, 0])}, "class 'dog' has no sample"),
        ({"classes": ("cat", "cat")}, "two classes are called 'cat'"),
        ({"vectors": None}, "give either image or vectors"),
        ({"image": print}, "give either image or vectors"),
        ({"vectors": torch.eye(4).long()}, r"floating point, got \[4, 4\] torch.int64"),
        ({"vectors": torch.ones(4)}, r"floating point, got \[4\]"),
        ({"vectors": torch.tensor([[0.0], [1.0], [float("nan")], [2.0]])}, "vector 2 is not finite"),
        ({"vectors": torch.eye(3)}, "4 labels, but vectors has 3 entries"),
        ({"paths": ("a", "b")}, "4 labels, but paths has 2 entries"),
        ({"groups": torch.zeros(5, dtype=torch.int64)}, "groups has 5 entries"),
        ({"query": torch.ones(4, dtype=torch.bool)}, "query and gallery must be given together"),
        ({"split": ("train", "train", "test", "val")}, "got 'val'"),
    ],
)
def test_what_contradicts_itself_is_refused(change, message):
    with pytest.raises(DataError, match=f"^photos: .*{message}") as caught:
        Samples(**FOUR | change)
    assert "\n" not in str(caught.value)


@given(
    st.lists(
        st.one_of(st.text(max_size=3).filter(str.strip), st.integers(-20, 20), st.booleans()), min_size=1, max_size=30
    )
)
def test_numbers_stand_for_the_text_of_the_labels(values):
    labels, classes = number(values)
    assert [classes[label] for label in labels.tolist()] == [str(value) for value in values]
    assert sorted(set(labels.tolist())) == list(range(len(classes)))


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 10], ("9", "10")),
        (["007", "7", "NA", "null"], ("007", "7", "NA", "null")),
        ([7, "7"], ("7",)),
        (torch.tensor([3, 1]), ("1", "3")),
        (torch.tensor([3, 1]).numpy(), ("1", "3")),
        ([torch.tensor(3), torch.tensor(1)], ("1", "3")),
    ],
)
def test_labels_of_any_kind(values, classes):
    assert number(values)[1] == classes


@pytest.mark.parametrize("nothing", [None, float("nan"), "", " ", ["a", "b"]])
def test_a_label_that_is_none_is_refused(nothing):
    with pytest.raises(DataError, match="label of sample 1 must be"):
        number(["a", nothing])
