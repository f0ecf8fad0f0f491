"""How a data set is cut: by classes, groups whole, what the source says obeyed, what cannot be refused."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pml_ext.benchmark.splits import Split, cut, remarks
from pml_ext.datasets.samples import DataError, Samples, number


def made(labels, **fields):
    numbers, classes = number(labels)
    return Samples("toy", numbers, classes, vectors=torch.zeros(len(labels), 1), **fields)


def pairs(classes, size=2, **fields):
    return made([i for i in range(classes) for _ in range(size)], **fields)


def classes_of(samples, index):
    return set(samples.labels[index].tolist())


def parts_of(split):
    return (split.train, split.validation, split.test)


def assert_disjoint(samples, split):
    for name in ("labels", "groups"):
        values = getattr(samples, name)
        if values is not None:
            train, validation, test = (set(values[index].tolist()) for index in parts_of(split))
            assert len(train) + len(validation) + len(test) == len(train | validation | test), name
    for index in parts_of(split):
        assert index.dtype == torch.int64
        assert torch.equal(index, index.unique())


# ---- by classes ----


def test_the_line_for_people():
    samples = pairs(20, 8)
    assert cut(samples).describe(samples) == "7 / 3 / 10 classes train / validation / test"
    assert cut(samples, validation=0).describe(samples) == "10 / 10 classes train / test"


@pytest.mark.parametrize(
    ("classes", "validation", "test_fraction", "expected"),
    [
        (20, 0.3, 0.5, (7, 3, 10)),
        (20, 0, 0.25, (15, 0, 5)),
        (100, 0.1, 0.5, (45, 5, 50)),
        (8, 0.01, 0.01, (4, 2, 2)),  # no part has fewer than two classes
        (8, 0.99, 0.3, (2, 4, 2)),
        (8, 0, 0.99, (2, 0, 6)),
    ],
)
def test_fractions_are_of_classes(classes, validation, test_fraction, expected):
    samples = pairs(classes)
    split = cut(samples, validation=validation, test_fraction=test_fraction)
    assert tuple(len(classes_of(samples, index)) for index in parts_of(split)) == expected
    assert sum(map(len, parts_of(split))) == len(samples)


@given(
    st.lists(st.integers(2, 5), min_size=6, max_size=30),
    st.floats(0, 0.9),
    st.floats(0.1, 0.9),
    st.integers(0, 5),
)
def test_no_class_is_in_two_parts_and_none_is_lost(sizes, validation, test_fraction, seed):
    samples = made([i for i, size in enumerate(sizes) for _ in range(size)])
    kept = min(max(round(test_fraction * len(sizes)), 2), len(sizes) - 2)
    assume(validation == 0 or len(sizes) - kept >= 4)
    split = cut(samples, validation=validation, test_fraction=test_fraction, seed=seed)
    assert_disjoint(samples, split)
    assert torch.equal(torch.cat(parts_of(split)).sort().values, torch.arange(len(samples)))
    again = cut(samples, validation=validation, test_fraction=test_fraction, seed=seed)
    assert all(map(torch.equal, parts_of(split), parts_of(again)))


def test_the_split_hangs_on_the_seed_alone():
    samples = pairs(40)
    before = torch.get_rng_state()
    tests = {tuple(cut(samples, seed=seed).test.tolist()) for seed in range(5)}
    assert len(tests) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_of_the_samples_does_not_matter():
    labels = [i % 12 for i in range(48)]
    shuffled = torch.randperm(48).tolist()
    one, other = made(labels), made([labels[i] for i in shuffled])
    for a, b in zip(parts_of(cut(one)), parts_of(cut(other)), strict=True):
        assert classes_of(one, a) == classes_of(other, b)


# ---- folds ----


@given(st.integers(2, 5), st.integers(0, 3), st.integers(0, 15))
def test_folds_are_disjoint_and_cover_the_training_classes(folds, seed, more):
    samples = pairs(4 * folds + more)
    splits = [cut(samples, fold=fold, folds=folds, seed=seed) for fold in range(folds)]
    held = [classes_of(samples, split.validation) for split in splits]
    assert sum(map(len, held)) == len(set.union(*held))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for split in splits:
        assert_disjoint(samples, split)
        assert torch.equal(split.test, splits[0].test)
        assert classes_of(samples, split.train) | classes_of(samples, split.validation) == set.union(*held)


def test_six_images_a_class_make_five_folds_of_classes():
    samples = pairs(20, 6)
    split = cut(samples, fold=4, folds=5)
    assert len(split.validation) == 12


# ---- groups ----


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40)), min_size=40, max_size=60), st.integers(0, 3))
def test_no_group_is_cut(rows, seed):
    labels = [label for label, _ in rows] + [label for label in range(12) for _ in range(2)]
    groups = [group for _, group in rows] + list(range(100, 124))
    samples = made(labels, groups=torch.tensor(groups))
    try:
        split = cut(samples, seed=seed, validation=0)
    except DataError as error:
        assert "groups tie" in str(error)  # noqa: PT017 - an outcome, not the subject
        return
    assert_disjoint(samples, split)


def test_classes_of_one_group_stay_together():
    # Videos: classes 2k and 2k + 1 are filmed in one.
    samples = pairs(24, groups=torch.arange(24).div(2, rounding_mode="floor").repeat_interleave(2))
    for seed in range(5):
        split = cut(samples, seed=seed)
        assert_disjoint(samples, split)
        assert tuple(len(classes_of(samples, index)) for index in parts_of(split)) == (8, 4, 12)
    for fold in range(3):
        assert len(classes_of(samples, cut(samples, fold=fold, folds=3).validation)) == 4


def test_groups_that_cannot_be_kept_whole():
    everything = torch.zeros(16, dtype=torch.int64)
    with pytest.raises(DataError, match="toy: groups tie the 8 classes together: no 2 of them can be the test"):
        cut(pairs(8, groups=everything))
    split = ("train",) * 8 + ("test",) * 8
    with pytest.raises(DataError, match="groups tie the 4 classes together: no 2 folds of at least 2"):
        cut(pairs(8, groups=torch.tensor([0] * 8 + [1] * 8), split=split), fold=0, folds=2)
    with pytest.raises(DataError, match="group 0 is in train and in test: a split must not divide a group"):
        cut(pairs(8, groups=everything, split=split), validation=0)


# ---- what the source says ----


def test_the_split_of_the_source_stands():
    split = ("train",) * 8 + ("validation",) * 4 + ("test",) * 8
    samples = pairs(10, split=split)
    for choice in (None, "kept"):
        found = cut(samples, validation=choice)
        assert [index.tolist() for index in parts_of(found)] == [
            list(range(8)),
            list(range(8, 12)),
            list(range(12, 20)),
        ]
    assert len(cut(samples, validation=0).train) == 12
    found = cut(samples, validation=0.5)
    assert len(classes_of(samples, found.validation)) == 3
    assert classes_of(samples, found.test) == {6, 7, 8, 9}


def test_validation_is_cut_from_the_training_classes():
    samples = pairs(20, split=("train",) * 20 + ("test",) * 20)
    split = cut(samples)
    assert split.test.tolist() == list(range(20, 40))
    assert len(classes_of(samples, split.validation)) == 3
    assert_disjoint(samples, split)


def test_a_source_of_train_and_validation_alone_is_tested_on_the_latter():
    samples = pairs(10, split=("train",) * 12 + ("validation",) * 8)
    split = cut(samples)
    assert split.test.tolist() == list(range(12, 20))
    assert len(classes_of(samples, split.validation)) == 2
    assert split.describe(samples).endswith("; the validation of the source is the test")


def test_queries_and_gallery_are_the_test():
    query, gallery = torch.zeros(20, dtype=torch.bool), torch.zeros(20, dtype=torch.bool)
    query[[14, 16]] = gallery[[15, 17]] = True
    samples = pairs(10, query=query, gallery=gallery)
    split = cut(pairs(10, query=query, gallery=gallery, split=("train",) * 14 + ("test",) * 6))
    assert split.test.tolist() == [14, 15, 16, 17]
    assert split.notes == ("2 test samples neither query nor gallery, left out",)
    assert cut(samples).test.tolist() == [14, 15, 16, 17]


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"split": ("train", "test") * 8}, {}, "8 classes are in train and in test, first '0'"),
        ({"split": ("train",) * 9 + ("test",) * 7}, {}, "a class is in train and in test, first '4'"),
        ({"split": ("train",) * 9 + ("validation",) * 3 + ("test",) * 4}, {}, "a class is in train and in validation"),
        ({"split": ("train",) * 6 + ("validation",) * 3 + ("test",) * 7}, {}, "a class is in validation and in test"),
        ({"split": ("test",) * 16}, {}, "no sample is in train"),
        ({"query": torch.ones(16, dtype=torch.bool), "gallery": torch.ones(16, dtype=torch.bool)}, {}, "none is left"),
        ({}, {"validation": "kept"}, "needs validation samples, but the source has none"),
        ({}, {"validation": "keep"}, "a fraction, 0 or \"kept\", got 'keep'"),
        ({}, {"validation": 1.0}, "below 1, got 1.0"),
        ({}, {"validation": -0.1}, "at least 0 and below 1, got -0.1"),
        ({}, {"test_fraction": 0}, "test_fraction must be above 0"),
        ({}, {"fold": 4}, r"fold must be in 0\.\.3 .* got fold 4 of 4"),
        ({}, {"fold": 0, "folds": 1}, "at least 2 folds"),
        ({}, {"fold": 0, "validation": 0.2}, "a fold or a fraction"),
        ({}, {"fold": 0}, "4 training classes are too few for 4 folds of at least 2"),
        (
            {"split": ("train",) * 6 + ("test",) * 10},
            {},
            "3 classes, but 2 are needed to train on and 2 for validation",
        ),
    ],
)
def test_what_cannot_be_cut(fields, arguments, message):
    with pytest.raises(DataError, match=message) as caught:
        cut(pairs(8, **fields), **arguments)
    assert "\n" not in str(caught.value)


def test_a_part_in_which_nothing_can_be_found_is_refused():
    labels = [*(i for i in range(6) for _ in range(3)), *range(6, 12)]
    for part, end in (("validation", ("validation",) * 2 + ("test",) * 4), ("test", ("test",) * 6)):
        split = ("train",) * 9 + ("test",) * 9 + end if part == "validation" else ("train",) * 18 + end
        with pytest.raises(DataError, match=f"no sample of {part} has another one of its class"):
            cut(made(labels, split=split), validation=None if part == "validation" else 0)
    query = torch.tensor([False] * 6 + [True, False] * 2 + [False] * 6)
    lonely = pairs(8, split=("train",) * 6 + ("test",) * 10, query=query, gallery=query)
    with pytest.raises(DataError, match="no sample of test has another one of its class"):
        cut(lonely, validation=0)


# ---- what is said before training ----


def said(samples, **arguments):
    everything = torch.arange(len(samples))
    none = torch.tensor([], dtype=torch.int64)
    return remarks(samples, Split(everything, none, none), **{"batch_size": 8, "images_per_class": 4} | arguments)


def test_nothing_is_said_where_nothing_is_odd():
    assert said(pairs(8, 4)) == ()


def test_images_that_are_repeated_and_classes_of_one_are_counted():
    assert said(made([0, 1, 1, *[2] * 8, *[3] * 8])) == (
        "2 of 4 training classes have fewer than 4 images: their images are repeated within a batch",
        "1 of 4 training classes has one image: its only positive is itself",
    )


def test_a_batch_larger_than_the_data():
    assert said(pairs(4, 4), batch_size=32) == (
        "a batch of 32 is larger than the 16 training images: a batch size of 16 is enough",
        "a batch of 32 has room for 8 classes, there are 4: 16 images",
    )


def test_classes_of_one_image_in_validation_and_test():
    samples = made([0, 0, 0, 0, 1, 2, 2, 3])
    split = Split(torch.arange(4), torch.tensor([4]), torch.tensor([5, 6, 7]))
    assert remarks(samples, split, batch_size=4, images_per_class=4) == (
        "1 validation class of one image: nothing can be found for it",
        "1 test class of one image: nothing can be found for it",
    )
