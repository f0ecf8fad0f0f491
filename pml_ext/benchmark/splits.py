"""Which classes are trained on, which choose the model, and which test it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_ext.datasets.samples import DataError, Samples, counted

VALIDATION = 1 / 3  # of the training classes
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of each part, by index, ascending. No class and no group is in two parts.

    Args:
        train: training samples.
        validation: samples on which epoch, model and hyperparameters are chosen; may be empty.
        test: samples on which results are reported, used once.
        notes: remarks on the split, for the user. Default ().

    Shape:
        each [n_part] int64
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, Tensor]:
        """The parts by name, without those that are empty."""
        return {name: getattr(self, name) for name in PARTS if len(getattr(self, name))}

    def describe(self, samples: Samples) -> str:
        """One line for the user: "7 / 3 / 10 classes train / validation / test"."""
        sizes = [f"{len(samples.labels[index].unique()):,}" for index in self.parts().values()]
        return "; ".join([f"{' / '.join(sizes)} classes {' / '.join(self.parts())}", *self.notes])


def cut(
    samples: Samples,
    *,
    validation: float | str | None = None,
    fold: int | None = None,
    folds: int = 4,
    seed: int = 0,
    test_fraction: float = 0.5,
) -> Split:
    """Split a data set by classes: training, validation and test have no class in common.

    A split that the source gives is kept. Otherwise marked queries and gallery are the test set or, if nothing is
    marked, `test_fraction` of the classes. The validation classes are then taken from the training classes. Classes
    that share a group stay together.

    Args:
        samples: the data set.
        validation: the fraction of the training classes that is set aside; "kept" for the validation split of the
            source; 0 for none. Default None: that of the source if it has one, else a third.
        fold: number of the fold that is the validation, 0 to `folds` - 1, instead of a fraction. Default None.
        folds: number of class-disjoint parts of equal size into which the training classes are split. Default 4.
        seed: seed of the draws. Default 0.
        test_fraction: fraction of the classes that is the test set, if the source has none. Default 0.5.

    Raises:
        DataError: a class or a group in two parts of the source's split, too few classes, no validation to keep, a part
            in which no class has two samples.

    Example:
        >>> from pml_ext.datasets import open
        >>> samples = open((torch.eye(40), [i // 2 for i in range(40)]))
        >>> cut(samples).describe(samples)
        '7 / 3 / 10 classes train / validation / test'
    """
    _check(validation, fold, folds, test_fraction)
    notes: list[str] = []
    part = _given(samples, notes)
    _no_class_in_two(samples, part, ("train", "test"), ("validation", "test"))
    if "test" not in part:
        part = _draw(samples, part, "test", test_fraction, seed)
    kept = "validation" in part and fold is None and validation in (None, "kept")
    if kept:
        _no_class_in_two(samples, part, ("train", "validation"))
    elif validation == "kept":
        raise DataError(f'{samples.name}: validation "kept" needs validation samples, but the source has none')
    else:
        part = ["train" if name == "validation" else name for name in part]
        if fold is not None:
            part = _fold(samples, part, fold, folds, seed)
        elif validation != 0:
            fraction = VALIDATION if validation is None else float(validation)
            part = _draw(samples, part, "validation", fraction, seed + 1)
    _no_group_in_two(samples, part)
    train, valid, test = (_where(part, name) for name in PARTS)
    split = Split(train, valid, test, tuple(notes))
    _something_to_find(samples, split)
    return split


def remarks(samples: Samples, split: Split, *, batch_size: int, images_per_class: int) -> tuple[str, ...]:
    """Properties of the training that its author may not expect, one line each, before it starts.

    Args:
        samples: the data set.
        split: how it is cut.
        batch_size: images of a training batch, as asked for.
        images_per_class: images of each class in a batch.

    Example:
        >>> from pml_ext.datasets import open
        >>> samples = open((torch.eye(18), [i // 3 for i in range(18)]))
        >>> for line in remarks(samples, cut(samples, validation=0), batch_size=12, images_per_class=4):
        ...     print(line)
        3 of 3 training classes have fewer than 4 images: their images are repeated within a batch
        a batch of 12 is larger than the 9 training images: a batch size of 9 is enough
    """
    lines = []
    counts = _class_sizes(samples, split.train)
    small, single = int((counts < images_per_class).sum()), int((counts == 1).sum())
    classes = f"{len(counts):,} training classes"
    if small:
        have = "has" if small == 1 else "have"
        what = f"fewer than {images_per_class} images: their images are repeated within a batch"
        lines.append(f"{small:,} of {classes} {have} {what}")
    if single:
        has = "has one image" if single == 1 else "have one image each"
        lines.append(f"{single:,} of {classes} {has}: its only positive is itself")
    if batch_size > len(split.train):
        n = len(split.train)
        lines.append(f"a batch of {batch_size} is larger than the {n:,} training images: a batch size of {n} is enough")
    fitting = batch_size // images_per_class
    if fitting > len(counts):
        drawn = len(counts) * images_per_class
        lines.append(f"a batch of {batch_size} has room for {fitting} classes, there are {len(counts)}: {drawn} images")
    for name in ("validation", "test"):
        alone = int((_class_sizes(samples, getattr(split, name)) == 1).sum())
        if alone and samples.query is None:
            lines.append(f"{counted(alone, f'{name} class')} of one image: nothing can be found for it")
    return tuple(lines)


def _check(validation: float | str | None, fold: int | None, folds: int, test_fraction: float) -> None:
    if isinstance(validation, str) and validation != "kept":
        raise DataError(f'validation must be a fraction, 0 or "kept", got {validation!r}')
    if isinstance(validation, (int, float)) and not 0 <= validation < 1:
        raise DataError(f"validation must be a fraction of at least 0 and below 1, got {validation!r}")
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction must be above 0 and below 1, got {test_fraction!r}")
    if fold is not None and not (folds >= 2 and 0 <= fold < folds):
        raise DataError(f"fold must be in 0..{folds - 1} of at least 2 folds, got fold {fold!r} of {folds}")
    if fold is not None and validation is not None:
        raise DataError(f"validation is a fold or a fraction, got fold {fold!r} and validation {validation!r}")


def _given(samples: Samples, notes: list[str]) -> list[str]:
    """The part that each sample's source puts it in; "train" for what may be cut."""
    marked = None if samples.query is None or samples.gallery is None else samples.query | samples.gallery
    if samples.split is None or not any(samples.split):
        if marked is None:
            return ["train"] * len(samples)
        if marked.all():
            raise DataError(f"{samples.name}: every sample is marked as query or gallery: none is left to train on")
        return ["test" if mark else "train" for mark in marked.tolist()]
    part = [name or "left out" for name in samples.split]
    if "train" not in part:
        raise DataError(f"{samples.name}: no sample is in train")
    if "test" not in part and "validation" in part:
        part = ["test" if name == "validation" else name for name in part]
        notes.append("the validation of the source is the test")
    if marked is not None:
        unmarked = [name == "test" and not mark for name, mark in zip(part, marked.tolist(), strict=True)]
        if any(unmarked):
            notes.append(f"{counted(sum(unmarked), 'test sample')} neither query nor gallery, left out")
        part = ["left out" if alone else name for name, alone in zip(part, unmarked, strict=True)]
    return part


def _no_class_in_two(samples: Samples, part: Sequence[str], *pairs: tuple[str, str]) -> None:
    for one, other in pairs:
        labels = (samples.labels[_where(part, name)] for name in (one, other))
        both = sorted(set.intersection(*(set(index.tolist()) for index in labels)))
        if both:
            some = f"{len(both):,} classes are" if len(both) > 1 else "a class is"
            raise DataError(
                f"{samples.name}: {some} in {one} and in {other}, first {samples.classes[both[0]]!r}: classes of the "
                f"{other} are never trained on; give the samples without this split to cut them by classes"
            )


def _no_group_in_two(samples: Samples, part: Sequence[str]) -> None:
    if samples.groups is None:
        return
    home: dict[int, str] = {}
    for group, name in zip(samples.groups.tolist(), part, strict=True):
        if name != "left out" and home.setdefault(group, name) != name:
            raise DataError(
                f"{samples.name}: group {group} is in {home[group]} and in {name}: a split must not divide a group"
            )


def _draw(samples: Samples, part: list[str], target: str, fraction: float, seed: int) -> list[str]:
    """Move a fraction of the training classes to another part."""
    units = _units(samples, part)
    total = sum(map(len, units))
    if total < 4:
        raise DataError(f"{samples.name}: {counted(total, 'class')}, but 2 are needed to train on and 2 for {target}")
    wanted = min(max(round(fraction * total), 2), total - 2)
    moved: set[int] = set()
    for i in torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(moved) + len(units[i]) <= wanted:
            moved.update(units[i])
    if len(moved) < 2:
        raise DataError(f"{samples.name}: groups tie the {total} classes together: no 2 of them can be the {target}")
    return _moved(samples, part, target, moved)


def _fold(samples: Samples, part: list[str], fold: int, folds: int, seed: int) -> list[str]:
    units = _units(samples, part)
    total = sum(map(len, units))
    if total < 2 * folds:
        raise DataError(f"{samples.name}: {total} training classes are too few for {folds} folds of at least 2")
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    contents: list[list[int]] = [[] for _ in range(folds)]
    for i in sorted(order, key=lambda i: -len(units[i])):  # large ones first, each into the smallest fold
        min(contents, key=len).extend(units[i])
    if min(map(len, contents)) < 2:
        raise DataError(f"{samples.name}: groups tie the {total} classes together: no {folds} folds of at least 2")
    return _moved(samples, part, "validation", set(contents[fold]))


def _moved(samples: Samples, part: list[str], target: str, classes: set[int]) -> list[str]:
    labels = samples.labels.tolist()
    return [target if name == "train" and label in classes else name for name, label in zip(part, labels, strict=True)]


def _units(samples: Samples, part: Sequence[str]) -> list[list[int]]:
    """The classes to train on, in sets that share no group."""
    index = _where(part, "train")
    labels = samples.labels[index].tolist()
    leader = {label: label for label in sorted(set(labels))}

    def find(label: int) -> int:
        while leader[label] != label:
            leader[label] = leader[leader[label]]
            label = leader[label]
        return label

    if samples.groups is not None:
        first: dict[int, int] = {}
        for group, label in zip(samples.groups[index].tolist(), labels, strict=True):
            leader[find(label)] = find(first.setdefault(group, label))
    units: dict[int, list[int]] = {}
    for label in leader:
        units.setdefault(find(label), []).append(label)
    return list(units.values())


def _where(part: Sequence[str], name: str) -> Tensor:
    return torch.tensor([i for i, own in enumerate(part) if own == name], dtype=torch.int64)


def _class_sizes(samples: Samples, index: Tensor) -> Tensor:
    _, counts = samples.labels[index].unique(return_counts=True)
    return torch.as_tensor(counts)


def _something_to_find(samples: Samples, split: Split) -> None:
    for name, index in split.parts().items():
        asks, answers = index, index
        if name == "test" and samples.query is not None and samples.gallery is not None:
            asks, answers = index[samples.query[index]], index[samples.gallery[index]]
        # A query that is in the gallery too is no answer to itself.
        found = torch.bincount(samples.labels[answers], minlength=len(samples.classes))[samples.labels[asks]]
        itself = torch.isin(asks, answers).to(found.dtype)
        if not bool((found > itself).any()):
            raise DataError(f"{samples.name}: no sample of {name} has another one of its class")
