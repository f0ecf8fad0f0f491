"""The data of an experiment: classes to train on, to choose by and to test on, and how they are cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.datasets import DATASETS

SHARE = 0.2  # of the training classes, for validation
ENOUGH = 20  # training classes, from which on a part of them is kept for validation
CUT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Three sets of images with disjoint classes. Labels of `train` are 0, 1, ...

    Args:
        name: what tables call it.
        train: samples (image, label) with `labels` and `classes`.
        validation: None if the data are too few.
        test: the unseen classes.
        notes: what was found while reading.
    """

    name: str
    train: Any
    validation: Any | None
    test: Any
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, experiment: Experiment, fold: int | None = None) -> Data:
        """The data of an experiment, or of one of its folds."""
        if not isinstance(experiment.data, str) or experiment.data not in DATASETS:
            raise BenchmarkError(f"data {experiment.data!r} cannot be read")
        kind = DATASETS[experiment.data]
        whole, test = kind(split="train"), kind(split="test")
        classes = torch.unique(whole.labels)
        kept = validation_classes(len(classes), experiment.validation, fold, experiment.folds)
        if len(kept) == 0:
            return cls(experiment.data, whole.part(classes), None, test)
        rest = classes[~torch.isin(torch.arange(len(classes)), kept)]
        return cls(experiment.data, whole.part(rest), whole.part(classes[kept], split="test"), test)

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

    def warnings(self, experiment: Experiment) -> list[str]:
        """What a batch will be that nobody may have meant, a line each."""
        counts = torch.bincount(self.train.labels)
        per_class, size = self.images_per_class(experiment), self.batch_size(experiment)
        said = []
        few = int((counts < per_class).sum())
        if few:
            said.append(
                f"{few} of {len(counts)} training classes have fewer than {per_class} images: "
                "a batch repeats some of theirs"
            )
        alone = int((counts < 2).sum())
        if alone:
            said.append(f"{alone} training classes have one image: its positives are copies of it")
        if size < 0.75 * experiment.batch_size:
            said.append(
                f"a batch has {size} images, not {experiment.batch_size}: "
                f"{self.classes_per_batch(experiment)} classes of {per_class}"
            )
        if len(self.train) < size:
            said.append(f"a batch has {size} images, the training set {len(self.train)}")
        return said


def validation_classes(count: int, share: float | None, fold: int | None = None, folds: int | None = None) -> Tensor:
    """The positions of the validation classes among `count` training classes, sorted; the same for every seed.

    Args:
        count: training classes.
        share: of them, for validation; None is a fifth, or none of fewer than 20.
        fold: which of the `folds`, instead of a share.
        folds: how many parts the classes are cut into.

    Raises:
        BenchmarkError: fewer than two classes would be left for either.

    Example:
        >>> validation_classes(250, None).shape, validation_classes(5, None).shape
        (torch.Size([50]), torch.Size([0]))
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(CUT_SEED))
    if fold is not None and folds is not None:
        chosen = order[fold::folds]
        what = f"folds {folds}"
    else:
        part = (SHARE if count >= ENOUGH else 0.0) if share is None else share
        chosen = order[: round(part * count)] if part else order[:0]
        what = f"validation {part:g}"
        if part == 0:
            return chosen
    if len(chosen) < 2 or count - len(chosen) < 2:
        raise BenchmarkError(
            f"{what} of {count} training classes leaves {len(chosen)} to choose by and {count - len(chosen)} to train "
            "on: there must be two of each"
        )
    return chosen.sort().values
