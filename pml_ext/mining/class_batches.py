"""Batches of classes that a rule selects."""

from typing import Any, final, get_args

import torch

from pml_ext import arguments
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.mining.checks import as_tensor
from pml_ext.mining.decks import Deck, members_of
from pml_ext.mining.draws import stream
from pml_ext.mining.epochs import EpochBatches
from pml_ext.mining.graph import Representative
from pml_ext.mining.rules import Classes, ClassRule, Uniform


@final
class ClassBatchSampler(EpochBatches):
    """Batches of P classes with K samples each, where a rule selects the classes of a batch.

    The samples of a class are taken from a shuffled list, so that a sample is repeated only after all others were used.
    An epoch is a pure function of the seed, its number and the embeddings of the last `refresh`.

    In batches of near classes all negatives are hard, which is not typical of the data: thresholds, statistics of batch
    normalization and proxies of absent classes are affected. `Mixed` adds random classes, `CrossBatchMemory` adds easy
    negatives.

    Args:
        labels: of the data set, [n], numbers or strings. A class with one sample is left out if K is more than 1.
        classes_per_batch: P; None for all.
        samples_per_class: K.
        rule: `Neighbors`, `Greedy`, `Doubles`, `Groups`, `Mixed` or, by default, `Uniform`. Until `refresh` is called,
            rules that use embeddings choose at random.
        batches_per_epoch: for all processes together; None (default) for the number that the rule gives.
        drop_small: whether to leave out classes with fewer than K samples; by default they repeat samples within a
            batch.
        seed: seed of all random choices, the same on every process.
        num_replicas: the number of processes; each has its own batches, the same number for all.
        rank: the number of this process, from 0.

    Attributes:
        dropped: how many classes are left out.

    Raises:
        TypeError, ValueError: arguments of other types; fewer classes than P, or fewer than 2.

    Example:
        >>> from pml_ext.mining import ClassBatchSampler, Neighbors
        >>> angles = torch.tensor([0.0, 0.1, 1.0, 1.1, 2.0, 2.1, 3.0, 3.1])
        >>> sampler = ClassBatchSampler(
        ...     list("aabbccdd"), classes_per_batch=2, samples_per_class=2, rule=Neighbors()
        ... )
        >>> sampler.refresh(torch.stack((angles.cos(), angles.sin()), 1))
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 1, 2, 3], [0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    """

    def __init__(
        self,
        labels: Array,
        *,
        classes_per_batch: int | None,
        samples_per_class: int,
        rule: ClassRule | None = None,
        batches_per_epoch: int | None = None,
        drop_small: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(seed=seed, num_replicas=num_replicas, rank=rank)
        if rule is not None and not isinstance(rule, ClassRule):
            raise TypeError(f"rule must be a ClassRule, got {type(rule).__name__}")
        k = int(arguments.count("samples_per_class", samples_per_class))
        least = k if arguments.flag("drop_small", drop_small) else min(k, 2)
        (ids,) = class_ids(checked_labels("labels", labels, len(labels)))
        self._size = len(ids)
        every = members_of(ids.tolist())
        members = [each for each in every if len(each) >= least]
        self.dropped: int = len(every) - len(members)
        if len(members) < 2:
            raise ValueError(f"labels must have at least 2 classes of {least} samples or more, got {len(members)}")
        p = arguments.count("classes_per_batch", classes_per_batch, optional=True) or len(members)
        if p > len(members):
            raise ValueError(f"classes_per_batch must be at most the number of classes, {len(members)}, got {p}")
        self.classes: Classes = Classes(members, int(p), k)
        self.rule: Uniform | ClassRule = Uniform() if rule is None else rule
        self.rule.check(self.classes)
        given = arguments.count("batches_per_epoch", batches_per_epoch, optional=True)
        self.batches_per_epoch: int = int(given or self.rule.usual(self.classes))

    def __len__(self) -> int:
        """The number of batches of this process in the next pass; computed without drawing any."""
        return max(0, self.batches_per_epoch - self._start) // self.num_replicas

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch for all processes together."""
        chosen = self.rule.choose(self.classes, self.batches_per_epoch, lambda name: stream(self.seed, epoch, name))
        decks = [
            Deck(each, lambda turn, y=y: stream(self.seed, epoch, "samples", y, turn))  # type: ignore[misc]
            for y, each in enumerate(self.classes.members)
        ]
        return [[sample for y in batch for sample in decks[y].hand(self.classes.per_class)] for batch in chosen]

    def refresh(self, embeddings: Array, *, representative: Representative = "mean") -> None:
        """Give the rule new embeddings of the data set, between two epochs.

        With several processes, call it on one and load its `state_dict` on the others, because rounding may differ.

        Args:
            embeddings: [n, d], of all samples in the order of the labels.
            representative: what represents a class, see `class_graph`; random representatives are drawn anew for every
                epoch.

        Raises:
            ValueError: the numbers of embeddings and labels differ, or an embedding is not finite.
        """
        if representative not in get_args(Representative):
            raise ValueError(f"representative must be 'mean', 'random' or 'all', got {representative!r}")
        x = as_tensor(embeddings)
        x = x if x.dtype == torch.float64 else x.float()
        if x.ndim != 2 or len(x) != self._size:
            raise ValueError(f"embeddings must be [{self._size}, d], one for each label, got {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError(f"embeddings must be finite, got {float(x[~x.isfinite()][0])}")
        drawn = stream(self.seed, self.epoch, "refresh").getrandbits(60)
        self.rule.refresh(self.classes, x.cpu(), representative, drawn)
        self._forget()

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """The position in the epoch, and the state of the rule."""
        return super().state_dict(consumed=consumed) | {"rule": self.rule.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.rule.restore(state["rule"])
        super().load_state_dict(state)
