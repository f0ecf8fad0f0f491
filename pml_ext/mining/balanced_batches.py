"""Batches of K samples of P classes that cover every sample, for any number of processes."""

from random import Random
from typing import Any, final

from pml_ext import arguments
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.mining.decks import Deck, members_of
from pml_ext.mining.draws import stream
from pml_ext.mining.epochs import EpochBatches


@final
class BalancedBatchSampler(EpochBatches):
    """Batches of P classes with K samples each; an epoch has every sample, and a step has none twice.

    A step is one batch for each of the W processes: P W different classes, P for each process. The samples of a class
    are shuffled and cut into groups of K, the last group filled up with the first samples. The groups of all classes,
    in random order, are distributed over the steps in turn, so that a class occurs at most once in a step. Free places
    are filled with further groups of classes that are not in the step. A class with fewer than K samples gives all of
    them.

    Args:
        labels: of the data set, [n], numbers or strings.
        classes_per_batch: P, for each process.
        samples_per_class: K.
        seed: seed of the order, the same on every process.
        num_replicas: the number of processes, W.
        rank: the number of this process, from 0.

    Raises:
        TypeError, ValueError: arguments of other types; fewer classes than P W.

    Source:
        Ours. PML's `MPerClassSampler` leaves out a third of the samples and repeats others, and draws from numpy's
        global generator.

    Example:
        >>> sampler = BalancedBatchSampler(list("aaabbbbc"), classes_per_batch=2, samples_per_class=2)
        >>> [len(batch) for batch in sampler]
        [4, 3, 3]
        >>> sorted(set(sum(sampler, [])))
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self,
        labels: Array,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(seed=seed, num_replicas=num_replicas, rank=rank)
        self.classes_per_batch: int = int(arguments.count("classes_per_batch", classes_per_batch))
        self.samples_per_class: int = int(arguments.count("samples_per_class", samples_per_class))
        (ids,) = class_ids(checked_labels("labels", labels, len(labels)))
        self._members = members_of(ids.tolist())
        if self._classes_per_step > len(self._members):
            raise ValueError(
                f"classes_per_batch times num_replicas must be at most the {len(self._members)} classes, "
                f"got {self.classes_per_batch} times {self.num_replicas}"
            )

    @property
    def _classes_per_step(self) -> int:
        return self.classes_per_batch * self.num_replicas

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch for all processes together, in the order of the steps."""
        rng = stream(self.seed, epoch, "balanced")
        hands = [self._hands(members, rng) for members in self._members]
        order = list(range(len(hands)))
        rng.shuffle(order)
        most = max(map(len, hands))
        steps = max(most, -(-sum(map(len, hands)) // self._classes_per_step))
        dealt: list[dict[int, list[int]]] = [{} for _ in range(steps)]
        turn = 0
        for each in order:
            # No more hands than steps, so in different steps.
            for hand in hands[each]:
                dealt[turn % steps][each] = hand
                turn += 1
        rng.shuffle(dealt)
        deck = Deck(order, lambda turn: stream(self.seed, epoch, "further", turn))
        further = dict.fromkeys(order, 0)
        batches = []
        for step in dealt:
            while len(step) < self._classes_per_step:
                (each,) = deck.hand(1)
                if each not in step:
                    step[each] = hands[each][further[each] % len(hands[each])]
                    further[each] += 1
            dealt_classes = list(step)
            rng.shuffle(dealt_classes)
            size = self.classes_per_batch
            batches += [
                [sample for each in dealt_classes[start : start + size] for sample in step[each]]
                for start in range(0, len(dealt_classes), size)
            ]
        return batches

    def _hands(self, members: list[int], rng: Random) -> list[list[int]]:
        """All samples of a class in groups of K different ones."""
        k = min(self.samples_per_class, len(members))
        samples = list(members)
        rng.shuffle(samples)
        count = -(-len(samples) // k)
        samples += samples[: count * k - len(samples)]
        return [samples[start : start + k] for start in range(0, count * k, k)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, with any number of processes if a step has as many classes as before."""
        if int(state["classes_per_step"]) != self._classes_per_step:
            raise ValueError(
                f"the state is of {state['classes_per_step']} classes in a step of all processes, "
                f"this sampler has {self._classes_per_step}"
            )
        steps = int(state["consumed"]) // int(state["num_replicas"])
        super().load_state_dict(state | {"consumed": steps * self.num_replicas})

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """The position in the epoch, and the number of classes in a step."""
        return super().state_dict(consumed=consumed) | {"classes_per_step": self._classes_per_step}
