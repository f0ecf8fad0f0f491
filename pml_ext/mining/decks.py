"""Cards dealt from shuffled decks: each comes again only when all others have come."""

from collections.abc import Callable
from random import Random


class Deck:
    """Cards that are shuffled again when all are dealt. Within a hand none comes twice before all have come.

    Args:
        cards: of any kind.
        shuffler: gives the generator of round r = 0, 1, ..
    """

    def __init__(self, cards: list[int], shuffler: Callable[[int], Random]) -> None:
        self._cards, self._shuffler = cards, shuffler
        self._round = 0
        self._left: list[int] = []

    def hand(self, count: int) -> list[int]:
        """The next cards."""
        hand: list[int] = []
        while len(hand) < count:
            if not self._left:
                cards = list(self._cards)
                self._shuffler(self._round).shuffle(cards)
                self._round += 1
                held = set(hand[len(hand) - len(hand) % len(cards) :])
                # Dealt from the end: what the hand holds already comes last.
                self._left = sorted(cards, key=lambda card: card not in held) if held else cards
            hand.append(self._left.pop())
        return hand


def members_of(ids: list[int]) -> list[list[int]]:
    """The samples of each class 0, 1, ... in the order of their indices."""
    members: list[list[int]] = [[] for _ in range(max(ids, default=-1) + 1)]
    for sample, each in enumerate(ids):
        members[each].append(sample)
    return members
