"""Training batches of m images of each of several classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ClassBatches:
    """Batches of `classes` different classes with `per_class` images each.

    Classes, and the images of a class, are taken from shuffled lists, so that within an epoch all classes occur equally
    often, and an image is repeated only after all others of its class were used. A class with fewer than `per_class`
    images repeats some within a batch.

    Args:
        labels: labels of the training images, [n].
        classes: number of classes in a batch.
        per_class: number of images of each class in a batch.
        steps: number of batches in an epoch.
        seed: seed of the shuffling; the same seed gives the same batches.

    Raises:
        ValueError: `classes` is above the number of classes.

    Example:
        >>> batches = ClassBatches(torch.tensor([0, 0, 0, 1, 1, 2, 2]), classes=2, per_class=2, steps=3, seed=0)
        >>> [len(batch) for batch in batches.epoch()]
        [4, 4, 4]
    """

    def __init__(self, labels: Tensor, *, classes: int, per_class: int, steps: int, seed: int) -> None:
        order = torch.argsort(labels, stable=True)
        counts = torch.unique_consecutive(labels[order], return_counts=True)[1]
        self._members: list[list[int]] = [part.tolist() for part in order.split(counts.tolist())]
        if classes > len(self._members):
            raise ValueError(f"classes must be at most the number of classes, {len(self._members)}, got {classes}")
        self.classes, self.per_class, self.steps = classes, per_class, steps
        self._generator = torch.Generator().manual_seed(seed)

    def epoch(self) -> list[list[int]]:
        """The batches of the next epoch, as indices of images."""
        images = [_Deck(each, self._generator) for each in self._members]
        classes = _Deck(list(range(len(images))), self._generator)
        return [
            [image for each in classes.hand(self.classes) for image in images[each].hand(self.per_class)]
            for _ in range(self.steps)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The state of the shuffling, between two epochs."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the epoch that was next when the state was saved."""
        self._generator.set_state(state["generator"].cpu())


class _Deck:
    """Cards that are shuffled again when all are dealt. Within a hand, none comes twice before all have come."""

    def __init__(self, cards: list[int], generator: torch.Generator) -> None:
        self.cards, self.generator = cards, generator
        self.left: list[int] = []

    def hand(self, count: int) -> list[int]:
        hand: list[int] = []
        while len(hand) < count:
            if not self.left:
                order = torch.randperm(len(self.cards), generator=self.generator).tolist()
                held = set(hand[len(hand) - len(hand) % len(self.cards) :])
                # Dealt from the end: what the hand holds already comes last.
                self.left = sorted((self.cards[i] for i in order), key=lambda card: card not in held)
            hand.append(self.left.pop())
        return hand
