"""The data of an experiment: training, validation and test classes, and how they are cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pml_ext.benchmark import evaluate, trunks
from pml_ext.benchmark.config import Experiment, flags
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.preprocessing import IMAGENET, Preprocessing
from pml_ext.benchmark.splits import VALIDATION, Split, cut, remarks
from pml_ext.benchmark.transforms import Augmentation, test_transform, train_transform
from pml_ext.benchmark.trunks import Trunk
from pml_ext.datasets import DATASETS
from pml_ext.datasets import open as open_source
from pml_ext.datasets.duplicates import check_files
from pml_ext.datasets.samples import DataError, Samples, counted
from pml_ext.shown import LONGEST, one_line, preformatted

ENOUGH = 6  # training classes, from which on a part of them is kept for validation
CUT_SEED = 0
SMALL = 64  # pixels of a side, for a trunk that does not say what it wants
VECTORS = "vectors"
AUGMENTED = ("crop_scale", "flip")  # flags of what happens to training images at random

Transform = Callable[[Any], Tensor]


class Part(Dataset[tuple[Tensor, int]]):
    """Some images of a data set, transformed.

    Args:
        samples: the data set.
        index: which of its samples.
        transform: from an image to what a network takes.

    Attributes:
        labels: [n], 0 to c - 1.
        classes: the name of each label.
        query, gallery, sequences: of these samples, as in `Samples`; classes to train on, of which some choose the
            epoch, have no queries: each of these samples asks and answers.
    """

    def __init__(self, samples: Samples, index: Tensor, transform: Transform | None) -> None:
        self.samples, self.index, self.transform = samples, index, transform
        found, self.labels = torch.unique(samples.labels[index], return_inverse=True)
        self.classes = [samples.classes[label] for label in found.tolist()]
        self.query, self.gallery, self.sequences = (
            None if each is None else each[index] for each in (samples.query, samples.gallery, samples.sequences)
        )
        if self.query is not None and self.gallery is not None and not (self.query.any() and self.gallery.any()):
            self.query = self.gallery = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        assert self.samples.image is not None
        assert self.transform is not None
        return self.transform(self.samples.image(int(self.index[i]))), int(self.labels[i])

    def __repr__(self) -> str:
        what = "image" if self.samples.vectors is None else "vector"
        words = f"{self.samples.name}: {counted(len(self), what)} of {counted(len(self.classes), 'class')}"
        return one_line(words, LONGEST)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    def image(self, i: int) -> Any:
        """The image itself, for pictures; None of a vector."""
        return None if self.samples.image is None else self.samples.image(int(self.index[i]))


class VectorPart(Part):
    """Some vectors of a data set, or the features of its images; a batch is one look-up."""

    def __init__(self, samples: Samples, index: Tensor, vectors: Tensor) -> None:
        super().__init__(samples, index, None)
        self.vectors = vectors

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.vectors[i].float(), int(self.labels[i])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Several samples at once."""
        index = torch.as_tensor(indices)
        return self.vectors[index].float(), self.labels[index]


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Three sets of samples with disjoint classes. Labels of `train` are 0, 1, ...

    Args:
        name: the name in tables.
        train: samples (image, label) with `labels` and `classes`.
        plain: those of `train`, each always the same; None is `train` itself.
        validation: None if the data are too few.
        test: the unseen classes.
        trunk: what the images were made for, without its weights.
        preprocessing: how an image becomes an input; None for vectors, and for images that are tensors already.
        samples: the whole data set; None for the sets that come with the package, in their own resolution.
        split: how it was cut.
        notes: remarks from reading, for the user.
        head: weights and bias that the embedder starts from; None for random ones.
        frozen: whether the samples are features of the trunk.
    """

    name: str
    train: Any
    validation: Any | None
    test: Any
    trunk: Trunk
    preprocessing: Preprocessing | None = None
    samples: Samples | None = None
    split: Split | None = None
    notes: tuple[str, ...] = ()
    head: dict[str, Tensor] | None = None
    frozen: bool = False
    plain: Any | None = None

    @classmethod
    def of(cls, experiment: Experiment, fold: int | None = None) -> Data:
        """The data of an experiment, or of one of its folds.

        Raises:
            BenchmarkError: data that cannot be read or not be cut, a trunk that cannot be built.
        """
        if isinstance(experiment.data, str) and experiment.data in DATASETS and _as_it_comes(experiment):
            return _built_in(experiment, experiment.data, fold)
        try:
            samples = open_source(experiment.data)
            split = _cut(samples, experiment, fold)
        except DataError as error:
            raise BenchmarkError(str(error)) from error
        parts = {name: index for name, index in split.parts().items() if len(index)}
        made: dict[str, Any]
        if samples.vectors is not None:
            trunk, preprocessing = Trunk(VECTORS, torch.nn.Identity(), None, pretrained=True), None
            made = {name: VectorPart(samples, index, samples.vectors[index]) for name, index in parts.items()}
            plain = None
        else:
            trunk, preprocessing = _trunk(experiment)
            augmentation = Augmentation(
                scale=(experiment.crop_scale, 1.0), flip=experiment.flip, shorter_side=experiment.shorter_side
            )
            train, test = train_transform(preprocessing, augmentation), test_transform(preprocessing)
            made = {name: Part(samples, index, train if name == "train" else test) for name, index in parts.items()}
            plain = Part(samples, parts["train"], test)
        return cls(
            name=samples.name,
            train=made["train"],
            validation=made.get("validation"),
            test=made["test"],
            trunk=trunk,
            preprocessing=preprocessing,
            samples=samples,
            split=split,
            notes=(samples.describe(), *split.notes),
            plain=plain,
        )

    def with_features(self, features: Tensor) -> Data:
        """The same with the features of a frozen trunk [n, f], of all samples, in the place of images."""
        assert self.samples is not None
        assert self.split is not None
        parts = {name: VectorPart(self.samples, index, features[index]) for name, index in self.split.parts().items()}
        return replace(
            self,
            train=parts["train"],
            validation=parts.get("validation"),
            test=parts["test"],
            frozen=True,
            plain=None,
        )

    def __repr__(self) -> str:
        parts = (("train", self.train), ("validation", self.validation), ("test", self.test))
        lines = [
            f"  {name:10} {len(part):6,} samples of {len(torch.unique(part.labels)):,} classes"
            for name, part in parts
            if part is not None
        ]
        return "\n".join([one_line(self.name, LONGEST), *lines, *(f"  {one_line(n, LONGEST)}" for n in self.notes)])

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    @property
    def train_classes(self) -> int:
        """The number of classes to train on."""
        return len(torch.unique(self.train.labels))

    @property
    def test_classes(self) -> int:
        """The number of classes to test on."""
        return len(torch.unique(self.test.labels))

    @property
    def watched(self) -> tuple[str, Any]:
        """The set that is measured after every epoch, and what it is called."""
        return ("test", self.test) if self.validation is None else ("validation", self.validation)

    def describe(self, *, done: bool = False) -> str:
        """One line for the user: the numbers of training, validation and test classes."""
        thing = "vector" if self.samples is not None and self.samples.vectors is not None else "image"
        words = ("trained", "the epoch chosen", "tested") if done else ("training", "choosing the epoch", "testing")

        def size(part: Any, what: str) -> str:
            return f"{len(part.labels.unique()):,} {what} ({counted(len(part), thing)})"

        chosen = "the last epoch counts"
        if self.validation is not None:
            chosen = f"{words[1]} on {size(self.validation, 'others')}"
        return (
            f"{self.name}: {words[0]} on {size(self.train, 'classes')}, {chosen}, "
            f"{words[2]} on {size(self.test, 'other classes')}"
        )

    def chance(self) -> str:
        """One line for the user: the metrics of random embeddings, which are higher with fewer classes."""
        parts = [("validation", self.validation)] if self.validation is not None else []
        return "by chance: " + "; ".join(
            f"{evaluate.by_chance(part)} on the {name} classes" for name, part in [*parts, ("test", self.test)]
        )

    @property
    def pretrained(self) -> bool:
        """Whether the trunk can do something before it is trained here."""
        return self.trunk.pretrained

    def images_per_class(self, experiment: Experiment) -> int:
        """How many images of a class are in a training batch."""
        return max(2, experiment.batch_size // min(experiment.classes_per_batch, self.train_classes))

    def classes_per_batch(self, experiment: Experiment) -> int:
        """How many classes are in a training batch."""
        return min(experiment.batch_size // self.images_per_class(experiment), self.train_classes)

    def batch_size(self, experiment: Experiment) -> int:
        """The size of a training batch: whole classes, so a little below what was asked for where need be."""
        return self.images_per_class(experiment) * self.classes_per_batch(experiment)

    def steps(self, experiment: Experiment) -> int:
        """Training steps per epoch."""
        return experiment.steps or max(1, len(self.train) // self.batch_size(experiment))

    def warnings(self, experiment: Experiment) -> tuple[str, ...]:
        """Properties of the training that its author may not expect, one line each."""
        unheeded = self._unheeded(experiment)
        if self.samples is None or self.split is None:
            return unheeded
        return unheeded + remarks(
            self.samples,
            self.split,
            batch_size=experiment.batch_size,
            images_per_class=self.images_per_class(experiment),
        )

    def _unheeded(self, experiment: Experiment) -> tuple[str, ...]:
        """A line for flags of images and trunks where there are none."""
        names = (*AUGMENTED, "weights") if self.trunk.name == VECTORS else AUGMENTED
        given = [flag.name for flag in flags() if flag.name in names and getattr(experiment, flag.name) != flag.default]
        if not given or (self.preprocessing is not None and not experiment.frozen):
            return ()
        what = f"{self.name} as it comes" if self.trunk.name != VECTORS else "vectors"
        what = "features of a frozen trunk" if experiment.frozen else what
        return (f"{' and '.join(given)}: without effect on {what}",)


def checked(experiment: Experiment) -> tuple[str, list[str]]:
    """Look at every image of an experiment's data: what they are, and a line for each thing that is wrong.

    Raises:
        BenchmarkError: data that cannot be read at all, or not be cut.
    """
    try:
        samples = open_source(experiment.data, strict=False)
        split = _cut(samples, experiment, None)
    except DataError as error:
        raise BenchmarkError(str(error)) from error
    return f"{samples.describe()}; {split.describe(samples)}", list(check_files(samples, split.parts()))


def _cut(samples: Samples, experiment: Experiment, fold: int | None) -> Split:
    if fold is not None and experiment.folds is not None:
        return cut(samples, fold=fold, folds=experiment.folds, seed=CUT_SEED)
    if experiment.validation is None and not (samples.split and "validation" in samples.split):
        without = cut(samples, validation=0, seed=CUT_SEED)
        if len(samples.labels[without.train].unique()) < ENOUGH:
            return without
    return cut(samples, validation=experiment.validation, seed=CUT_SEED)


def _as_it_comes(experiment: Experiment) -> bool:
    """Whether nothing is asked for that the small tensors of a set of the package cannot give."""
    given = (experiment.image_size, experiment.shorter_side, experiment.weights)
    return experiment.trunk == "conv4" and not experiment.frozen and all(each is None for each in given)


def _trunk(experiment: Experiment) -> tuple[Trunk, Preprocessing]:
    """What the trunk is, and how it wants its images."""
    size = experiment.image_size
    shape = None if size is None else (size[0], size[-1])
    guess = (3, *(shape or (SMALL, SMALL)))
    trunk = trunks.build(experiment.trunk, guess, str(experiment.weights or trunks.PRETRAINED))
    wanted = trunk.preprocessing or IMAGENET.at((SMALL, SMALL))
    wanted = wanted if shape is None else wanted.at(shape)
    if experiment.shorter_side is None:
        return trunk, wanted
    try:
        return trunk, wanted.cut_from(experiment.shorter_side)
    except ValueError as error:
        raise BenchmarkError(str(error)) from None


def _built_in(experiment: Experiment, name: str, fold: int | None) -> Data:
    """A set that comes with the package as it is: small tensors, training images bent anew at every access."""
    whole, test = (DATASETS[name](split=split) for split in ("train", "test"))
    trunk = Trunk("conv4", torch.nn.Identity(), None, pretrained=False)
    classes = torch.unique(whole.labels)
    kept = validation_classes(len(classes), experiment.validation, fold, experiment.folds)
    rest = classes[~torch.isin(torch.arange(len(classes)), kept)]
    return Data(
        name,
        whole.part(rest),
        whole.part(classes[kept], split="test") if len(kept) else None,
        test,
        trunk,
        plain=whole.part(rest, split="test"),
    )


def validation_classes(count: int, share: float | None, fold: int | None = None, folds: int | None = None) -> Tensor:
    """The positions of the validation classes among `count` training classes, sorted; the same for every seed.

    Args:
        count: training classes.
        share: of them, for validation; None is a third, or none of fewer than 6.
        fold: which of the `folds`, instead of a share.
        folds: how many parts the classes are cut into.

    Raises:
        BenchmarkError: fewer than two classes would be left for either.

    Example:
        >>> validation_classes(250, None).shape, validation_classes(5, None).shape
        (torch.Size([83]), torch.Size([0]))
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(CUT_SEED))
    if fold is not None and folds is not None:
        chosen = order[fold::folds]
        what = f"folds {folds}"
    else:
        part = (VALIDATION if count >= ENOUGH else 0.0) if share is None else share
        chosen = order[: round(part * count)] if part else order[:0]
        what = f"validation {part:g}"
        if part == 0:
            return chosen
    if len(chosen) < 2 or count - len(chosen) < 2:
        raise BenchmarkError(
            f"{what} of {count} training classes leaves {len(chosen)} for validation and {count - len(chosen)} for "
            "training: at least two of each are needed"
        )
    return chosen.sort().values
