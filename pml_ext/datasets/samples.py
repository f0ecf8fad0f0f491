"""A data set as the rest of the package uses it: labeled images or vectors, from any source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pml_ext.shown import LONGEST, one_line, preformatted

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "validation", "test", "")


class DataError(ValueError):
    """Data that cannot be used as they are; the message is one line that names file, row and value."""


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """A labeled collection of images or of vectors.

    Args:
        name: the name in tables.
        labels: class of each sample, the position of its name in `classes`.
        classes: the name of each class, as it was given: untrusted text, escaped where it is shown.
        image: the decoded image of an index, upright and in RGB unless asked otherwise; None for vectors. A worker of a
            data loader gets a pickled copy. Default None.
        vectors: the samples, if they are not images. Default None.
        paths: the file of each image. Default None.
        split: "train", "validation", "test" or "" of each sample, where the source says so. Default None.
        query: which test samples are queries; given together with `gallery`. Default None: all.
        gallery: which test samples are references. Default None: all.
        groups: number of the group of each sample (a video, an object); a split never divides a group. Default None.
        sequences: number of the sequence of each sample; the gallery of a query does not contain its own sequence.
            Default None.
        notes: remarks from reading, for the user: "20 gray, 20 with alpha, converted to RGB". Default ().
        unreadable: a line for each file that is not an image. Default ().
        key: hexadecimal digest that changes with the contents; the key of cached features. Default "".

    Shape:
        labels [n] int64, vectors [n, d] floating point, query and gallery [n] bool, groups and sequences [n] int64.

    Raises:
        DataError: no samples, fields of another length, labels out of range, a class without a sample, both images and
            vectors or neither, vectors that are not finite, query without gallery or gallery without query. DataError
            is a ValueError.

    Example:
        >>> samples = Samples("two", torch.tensor([0, 1, 1]), ("cat", "dog"), vectors=torch.eye(3))
        >>> len(samples), samples.describe()
        (3, '2 classes, 3 vectors of 3 numbers')
    """

    name: str
    labels: Tensor
    classes: tuple[str, ...]
    image: Callable[[int], Image.Image] | None = None
    vectors: Tensor | None = None
    paths: tuple[str, ...] | None = None
    split: tuple[str, ...] | None = None
    query: Tensor | None = None
    gallery: Tensor | None = None
    groups: Tensor | None = None
    sequences: Tensor | None = None
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    key: str = ""

    def __post_init__(self) -> None:
        n = len(self.labels)
        if n == 0:
            raise DataError(f"{self.name}: no samples")
        if (self.image is None) == (self.vectors is None):
            raise DataError(f"{self.name}: a sample is an image or a vector: give either image or vectors")
        if (self.query is None) != (self.gallery is None):
            raise DataError(f"{self.name}: query and gallery must be given together or not at all")
        for field in ("vectors", "paths", "split", "query", "gallery", "groups", "sequences"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise DataError(f"{self.name}: {n} labels, but {field} has {len(value)} entries")
        counts = self._count()
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for i, name in enumerate(self.classes) if name in self.classes[:i])
            raise DataError(f"{self.name}: two classes are called {twice!r}")
        if not counts.all():
            raise DataError(f"{self.name}: class {self.classes[int(counts.argmin())]!r} has no sample")
        self._check_vectors()
        if self.split is not None and not set(self.split) <= set(SPLITS):
            wrong = next(word for word in self.split if word not in SPLITS)
            raise DataError(f"{self.name}: split must be train, validation, test or empty, got {wrong!r}")

    def _count(self) -> Tensor:
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            shape = list(self.labels.shape)
            raise DataError(f"{self.name}: labels must be [n] int64, got {shape} {self.labels.dtype}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            wrong = low if low < 0 else high
            raise DataError(f"{self.name}: labels must be in 0..{len(self.classes) - 1}, got {wrong}")
        return torch.bincount(self.labels, minlength=len(self.classes))

    def _check_vectors(self) -> None:
        if self.vectors is None:
            return
        if self.vectors.ndim != 2 or not self.vectors.is_floating_point():
            shape = list(self.vectors.shape)
            raise DataError(f"{self.name}: vectors must be [n, d] floating point, got {shape} {self.vectors.dtype}")
        finite = self.vectors.isfinite().all(1)
        if not finite.all():
            raise DataError(f"{self.name}: vector {int((~finite).int().argmax())} is not finite")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return one_line(f"{self.name}: {self.describe()}", LONGEST)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    def describe(self) -> str:
        """One line for the user: the numbers of classes and samples, and the remarks from reading."""
        what = counted(len(self), "image" if self.vectors is None else "vector")
        size = "" if self.vectors is None else f" of {self.vectors.shape[1]} numbers"
        line = f"{counted(len(self.classes), 'class')}, {what}{size}"
        return f"{line}: {'; '.join(self.notes)}" if self.notes else line


def counted(count: int, noun: str) -> str:
    """A number of things, in words.

    >>> counted(1, "class"), counted(1200, "class"), counted(2, "query"), counted(3, "image")
    ('1 class', '1,200 classes', '2 queries', '3 images')
    """
    if count == 1:
        return f"1 {noun}"
    plural = noun + "es" if noun.endswith("s") else noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {plural}"


def number(values: Iterable[Any], sort: bool = True) -> tuple[Tensor, tuple[str, ...]]:
    """Number labels of any kind from 0: (number of each value [n] int64, the distinct values as text).

    Values of one kind are sorted (9 before 10); values of several kinds, or with `sort=False`, are in order of
    appearance. Values are the same if their text is: 7 and "7" are one class, "7" and "007" two.

    >>> number(["dog", "cat", "dog"])
    (tensor([1, 0, 1]), ('cat', 'dog'))
    >>> number([10, 9])[1], number(["007", "7"])[1]
    (('9', '10'), ('007', '7'))
    """
    # Items of arrays and tensors are plain Python numbers: a tensor is not equal to another of the same value.
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    for i, value in enumerate(plain):
        if value is None or isinstance(value, (list, dict, set)) or value != value or not str(value).strip():
            raise DataError(f"the label of sample {i} must be a name or a number, got {value!r}")
    distinct = {str(value): value for value in plain}
    ordered = len({type(value) for value in distinct.values()}) == 1 and sort
    names = tuple(sorted(distinct, key=distinct.__getitem__) if ordered else distinct)
    position = {name: i for i, name in enumerate(names)}
    return torch.tensor([position[str(value)] for value in plain], dtype=torch.int64), names
