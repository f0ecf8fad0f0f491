"""The batch of all processes as one of them sees it: its own rows, what they are compared with, and their pairs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_ext.pairs import PairMasks, Pairs, label_masks
from pml_ext.ranks import Ranks, gather_same


class AllPairs(tuple[Tensor, ...]):
    """PML's index tuple of the batch of all processes, the same on each."""

    __slots__ = ()


class OwnPairs(NamedTuple):
    """The pairs of own rows with what they are compared with, as two disjoint boolean matrices [n_r, m]."""

    pos: Tensor
    neg: Tensor


# None for all pairs, by labels.
GivenPairs = AllPairs | OwnPairs | Pairs | None


class Set(NamedTuple):
    """Vectors of all processes in the order of the ranks.

    Args:
        ranks: who has how many.
        given: own vectors [n_r, d], with the factor of their gradient.
        rows: those of all [n, d], each process contributing a part of their gradient.
        labels: of all [n], or None.
    """

    ranks: Ranks
    given: Tensor
    rows: Tensor
    labels: Tensor | None

    @property
    def own_labels(self) -> Tensor | None:
        """The labels of own rows."""
        return None if self.labels is None else self.labels[self.ranks.own]

    def same(self) -> Tensor:
        """The vectors of all for what every process computes alike."""
        return gather_same(self.given, self.ranks, self.rows)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Set":
        """The same set with another vector for each vector."""
        return self._replace(given=function(self.given), rows=function(self.rows))


class Shard(NamedTuple):
    """The anchors and the references of a call on one process.

    Args:
        anchors: the embeddings of all.
        own: own embeddings [n_r, d], which are the anchors whose losses are computed here.
        references: what they are compared with, a set of its own; None if that is the batch.
        more: what else the loss is called with, of all processes.
    """

    anchors: Set
    own: Tensor
    references: Set | None
    more: dict[str, Any]

    @property
    def ranks(self) -> Ranks:
        """Who has how many anchors."""
        return self.anchors.ranks

    @property
    def labels(self) -> Tensor | None:
        """The labels of own rows."""
        return self.anchors.own_labels

    @property
    def refs(self) -> Tensor:
        """The references [m, d]."""
        return self.anchors.rows if self.references is None else self.references.rows

    @property
    def ref_labels(self) -> Tensor | None:
        """Their labels [m]."""
        return self.anchors.labels if self.references is None else self.references.labels

    @property
    def offset(self) -> int | None:
        """Which reference the first own row is; None if they are a set of their own."""
        return self.ranks.offset if self.references is None else None

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Shard":
        """The same with another vector for each vector."""
        return self._replace(
            anchors=self.anchors.mapped(function),
            own=function(self.own),
            references=None if self.references is None else self.references.mapped(function),
        )

    def against(self, points: Tensor, labels: Tensor | None) -> "Shard":
        """The same anchors and other references, those which every process has, or to whose gradient it contributes."""
        ranks = Ranks(self.ranks.group, (len(points), *[0] * (self.ranks.group.size - 1)))
        return self._replace(references=Set(ranks, points, points, labels))


def own_pairs(shard: Shard, pairs: AllPairs | OwnPairs | None) -> PairMasks:
    """The pairs of own rows as masks [n_r, m], without those of a sample with itself."""
    n, m, device = len(shard.own), len(shard.refs), shard.own.device
    if isinstance(pairs, OwnPairs):
        pos, neg = pairs
    elif pairs is not None:
        pos, neg = torch.zeros(2, n, m, dtype=torch.bool, device=device)
        a, p, b, q = own_indices(shard, pairs, as_pairs=True)
        pos[a, p], neg[b, q] = True, True
    elif shard.labels is None or shard.ref_labels is None:
        raise ValueError("labels or an indices_tuple must be given, got None for both")
    else:
        pos, neg = label_masks(shard.labels, shard.ref_labels)
    if shard.offset is None:
        return PairMasks(pos, neg)
    other = torch.arange(m, device=device) != torch.arange(shard.offset, shard.offset + n, device=device).unsqueeze(1)
    return PairMasks(pos & other, neg & other)


def own_indices(shard: Shard, pairs: AllPairs, *, as_pairs: bool = False) -> tuple[Tensor, ...]:
    """Of the pairs or triplets of all those with own anchors, which are numbered from 0; four tensors if `as_pairs`."""
    start, stop = shard.ranks.own.start, shard.ranks.own.stop
    pairs = AllPairs(each.to(shard.own.device, torch.long) for each in pairs)

    def part(anchors: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        mine = (anchors >= start) & (anchors < stop)
        return (anchors[mine] - start, *(other[mine] for other in others))

    if len(pairs) == 3:
        a, p, n = part(*pairs)
        return (a, p, a, n) if as_pairs else (a, p, n)
    return (*part(*pairs[:2]), *part(*pairs[2:]))


def all_masks(shard: Shard, pairs: OwnPairs) -> PairMasks:
    """The masks of all processes [n, m]."""
    return PairMasks(*(shard.ranks.all_rows(mask) for mask in pairs))


def of_all(shard: Shard, given: Any) -> GivenPairs:
    """What a process calls a loss with as pairs, as pairs of the batch of all.

    Indices and square masks are those of own samples with own samples; wide masks, [n_r, m], those with all references.
    """
    if given is None or isinstance(given, (AllPairs, OwnPairs)):
        return given
    anchors, refs = shard.anchors.ranks, (shard.anchors if shard.references is None else shard.references).ranks
    n, m = len(shard.own), refs.sizes[refs.group.rank]
    if isinstance(given, PairMasks):
        return OwnPairs(*(_wide(mask, n, m, refs) for mask in given))
    firsts = (anchors.offset, *[refs.offset] * 2) if len(given) == 3 else (anchors.offset, refs.offset) * 2
    device = shard.own.device
    moved = [x.to(device, torch.long) + first for x, first in zip(given, firsts, strict=True)]
    lengths = anchors.group.all_gather(torch.tensor([len(x) for x in moved], device=device))
    return AllPairs(
        Ranks(anchors.group, tuple(size)).all_rows(x) for x, size in zip(moved, lengths.T.tolist(), strict=True)
    )


def _wide(mask: Tensor, n: int, m: int, refs: Ranks) -> Tensor:
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((n, m), (n, refs.n)):
        raise ValueError(
            f"PairMasks must be boolean of shape {(n, m)}, own samples with own, or {(n, refs.n)}, own samples with "
            f"those of all processes, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if mask.shape[1] == refs.n:
        return mask
    wide = torch.zeros(n, refs.n, dtype=torch.bool, device=mask.device)
    wide[:, refs.own] = mask
    return wide
