"""The dataset of an experiment, and how it is cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pml_ext.benchmark.experiment import Experiment
from pml_ext.datasets import DATASETS


@dataclass(frozen=True)
class Data:
    """The two halves of a dataset, with disjoint classes."""

    train: Any
    test: Any

    @classmethod
    def load(cls, name: str) -> Data:
        """Load a dataset of `pml_ext.datasets`."""
        return cls(train=DATASETS[name](split="train"), test=DATASETS[name](split="test"))

    @property
    def train_classes(self) -> int:
        """The number of classes to train on."""
        return len(torch.unique(self.train.labels))

    @property
    def test_classes(self) -> int:
        """The number of classes to test on."""
        return len(torch.unique(self.test.labels))

    def images_per_class(self, experiment: Experiment) -> int:
        """How many images of a class are in a training batch."""
        return max(2, experiment.batch_size // min(experiment.classes_per_batch, self.train_classes))

    def batch_size(self, experiment: Experiment) -> int:
        """The size of a training batch: whole classes, so a little below what was asked for where need be."""
        per_class = self.images_per_class(experiment)
        return per_class * min(experiment.batch_size // per_class, self.train_classes)

    def steps(self, experiment: Experiment) -> int:
        """Training steps per epoch."""
        return experiment.steps or max(1, len(self.train) // self.batch_size(experiment))
