"""Training batches that look at the embeddings: near classes, or mined tuples, refreshed between epochs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pml_ext.benchmark.batches import ClassBatches
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.mining import (
    ClassBatchSampler,
    ClassRule,
    Doubles,
    Greedy,
    Groups,
    MinedBatchSampler,
    Mixed,
    Neighbors,
    mine,
)


class Batches(Protocol):
    """What gives the batches of the next epoch, and can go on where it stood."""

    def epoch(self) -> list[list[int]]:
        """The batches of the next epoch, as indices of images."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, between two epochs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state stood."""


class RefreshedBatches:
    """Batches by a rule that uses embeddings of the training set; until it gets any, classes are selected at random.

    An epoch is a function of the seed, its number and the last embeddings that were given.

    Args:
        labels: of the training images, [n].
        rule: how classes come together; None for batches of mined tuples, which are anchors with a random positive,
            their hardest negative and a positive of that.
        classes: classes in a batch.
        per_class: images of each class in a batch; of mined tuples batches have classes * per_class images.
        steps: batches in an epoch.
        seed: of all that is drawn.

    Raises:
        ValueError: what the rule cannot do with these classes.
    """

    def __init__(
        self, labels: Tensor, rule: ClassRule | None, *, classes: int, per_class: int, steps: int, seed: int
    ) -> None:
        self.labels, self.size, self.steps, self.seed = labels, classes * per_class, steps, seed
        kept = int((torch.bincount(labels) >= min(per_class, 2)).sum())
        self.by_class = ClassBatchSampler(
            labels,
            classes_per_batch=min(classes, kept),
            samples_per_class=per_class,
            rule=rule,
            batches_per_epoch=steps,
            seed=seed,
        )
        self.mines = rule is None
        self.mined: MinedBatchSampler | None = None
        self.passed = 0

    def refresh(self, embeddings: Tensor) -> None:
        """Use embeddings [n, d] of the training set, before the next epoch."""
        if not self.mines:
            self.by_class.set_epoch(self.passed)
            self.by_class.refresh(embeddings)
            return
        drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + self.passed)
        found = mine(embeddings, self.labels, num_negatives=1, positives="random", generator=drawn)
        self.mined = _of_tuples(self.size, self.seed)
        self.mined.refresh(found)

    def epoch(self) -> list[list[int]]:
        """The batches of the next epoch, as indices of images."""
        chosen: list[list[int]] = []
        if self.mined is not None:
            # A pass over all tuples may be shorter or longer than an epoch.
            while len(chosen) < self.steps:
                batches = self.mined.batches(self.passed * self.steps + len(chosen))
                if not batches:
                    break
                chosen += batches
        chosen = chosen[: self.steps] or self.by_class.batches(self.passed)
        self.passed += 1
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Its state, between two epochs."""
        mined = None if self.mined is None else self.mined.state_dict()
        return {"passed": self.passed, "rule": self.by_class.rule.state(), "mined": mined}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state stood."""
        self.passed = int(state["passed"])
        self.by_class.rule.restore(state["rule"])
        self.mined = None
        if state["mined"] is not None:
            self.mined = _of_tuples(self.size, self.seed)
            self.mined.load_state_dict(state["mined"])


def _of_tuples(size: int, seed: int) -> MinedBatchSampler:
    """A sampler that waits for tuples."""
    nothing = mine(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), num_negatives=1)
    return MinedBatchSampler(nothing, size, partners=True, fill=True, seed=seed)


def batches_of(experiment: Experiment, data: Data, steps: int, seed: int) -> Batches:
    """What cuts the training set of an experiment into batches.

    Raises:
        BenchmarkError: a sampler that these data do not fit.
    """
    labels = data.train.labels
    sizes = {"classes": data.classes_per_batch(experiment), "per_class": data.images_per_class(experiment)}
    if experiment.sampler == "classes":
        return ClassBatches(labels, **sizes, steps=steps, seed=seed)
    try:
        rule = _rule(experiment.sampler, data)
        return RefreshedBatches(labels, rule, **sizes, steps=steps, seed=seed)
    except ValueError as error:
        raise BenchmarkError(f"sampler {experiment.sampler}: {error}") from error


def _rule(name: str, data: Data) -> ClassRule | None:
    match name:
        case "neighbors":
            return Neighbors()
        case "greedy":
            return Greedy()
        case "doubles":
            return Doubles()
        case "mixed":
            return Mixed(Neighbors())
        case "groups":
            groups = None if data.samples is None else data.samples.groups
            if groups is None:
                raise ValueError("the data have no groups, a column that says which super-class a class is of")
            return Groups(groups[data.train.index])
        case _:
            return None
