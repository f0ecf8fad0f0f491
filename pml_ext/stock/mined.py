"""What an accelerated miner returns: a tuple of index tensors, and for an accelerated loss the masks behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pml_ext.stock.incidence import Incidence
from pml_ext.stock.miner_scores import MinerScores

Lists = tuple[Tensor, ...]
Shape = tuple[int, int, torch.dtype, torch.device]


class _Lists:
    """Index tensors that are computed once, shared by a tuple and its items without a reference cycle."""

    def __init__(self, make: Callable[[], Lists]) -> None:
        self.make = make
        self.made: Lists | None = None

    def get(self) -> Lists:
        """The index tensors."""
        if self.made is None:
            self.made = self.make()
        return self.made


class _Item:
    """One index tensor of a `Mined` tuple, for code that reads the memory of the tuple, such as `torch.cat`."""

    def __init__(self, place: int, of: _Lists) -> None:
        self.place, self.of = place, of

    def tensor(self) -> Tensor:
        """The index tensor."""
        return self.of.get()[self.place]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only((_Item, Mined), _real, (args, kwargs or {}))
        return function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __len__(self) -> int:
        return len(self.tensor())


def _real(item: Any) -> Any:
    return item.lists() if isinstance(item, Mined) else item.tensor()


class Mined(tuple[Tensor, ...]):
    """A tuple of three or four index tensors that are computed when they are first read.

    Args:
        size: 3 (triplets) or 4 (pairs).
        shape: numbers of anchors and of references, and the dtype and device of the scores.
        lists: computes the index tensors.
        incidence: computes how often each pair occurs.
        scores: those by which the pairs were chosen, or None.
        chosen: for triplets: the choice among the triplets of the labels, see `Triplets`.
    """

    shape: Shape
    _lists: _Lists
    incidence: Callable[[], Incidence]
    scores: MinerScores | None
    chosen: Any

    def __new__(
        cls,
        size: int,
        shape: Shape,
        lists: Callable[[], Lists],
        incidence: Callable[[], Incidence],
        scores: MinerScores | None = None,
        chosen: Any = None,
    ) -> Mined:
        """The tuple, whose items refer to its index tensors."""
        made = _Lists(lists)
        items: list[Any] = [_Item(place, made) for place in range(size)]
        mined = super().__new__(cls, items)
        mined.shape, mined._lists = shape, made
        mined.incidence, mined.scores, mined.chosen = incidence, scores, chosen
        return mined

    def lists(self) -> Lists:
        """The index tensors."""
        return self._lists.get()

    @property
    def is_made(self) -> bool:
        """Whether the index tensors have been computed."""
        return self._lists.made is not None

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.lists())

    def __getitem__(self, at: Any) -> Any:
        return self.lists()[at]

    def __add__(self, other: Any) -> Any:
        return self.lists() + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + self.lists()

    def __mul__(self, times: Any) -> Any:
        return self.lists() * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return self is other or self.lists() == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self)

    def __contains__(self, item: object) -> bool:
        return item in self.lists()

    def count(self, item: Any) -> int:
        """As `tuple.count`."""
        return self.lists().count(item)

    def index(self, *args: Any) -> int:
        """As `tuple.index`."""
        return self.lists().index(*args)

    def __repr__(self) -> str:
        return repr(self.lists())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return tuple, (list(self.lists()),)
