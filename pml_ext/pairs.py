"""How pairs are given, parsed once: one object for a call, which says of any block of scores which pairs count.

A loss or a miner asks `Pairs.of` what it was given, and passes the answer down. It is asked for boolean masks, or for
the two sides of a block, of which the positives are gathered to few columns where to look for them waits for nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from pml_ext import arguments, thresholds
from pml_ext.closed_form import ABSENT, Sides, sides_of
from pml_ext.gathered_positives import Gathered, numbered
from pml_ext.masked import is_eager, looks_are_free, not_self
from pml_ext.pair_masks import PairMasks as PairMasks
from pml_ext.pair_masks import both, check_masks, index_masks, without_self
from pml_ext.pair_masks import label_masks as label_masks


class Pairs(ABC):
    """The pairs of one call, between n anchors and m references.

    Attributes:
        complete: whether every anchor is known to have a positive and a negative, once its sides were asked for.
        mirrored: whether they are all pairs of a batch with itself, by its labels.
        private: whether the last n references belong to one anchor each, the last of its scores: [b, m - n + 1].
    """

    complete: bool = False
    mirrored: bool = False
    private: bool = False

    @abstractmethod
    def masks(self, sim: Tensor, start: int) -> PairMasks:
        """Positives and negatives of the rows from a start on, with scores sim [b, m]: masks [b, m].

        Only a selection looks at the scores; to all others any tensor with as many rows will do.
        """

    @abstractmethod
    def sides(self, sim: Tensor, start: int, looks: bool, spare: bool = False) -> Sides:
        """The two sides of the scores [b, m] from a row on; looks: that is free; spare: they may be overwritten."""

    @staticmethod
    def of(
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: "IndicesTuple | Pairs | None",
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> "Pairs":
        """What a loss or a miner was given. Self-pairs are dropped if the references are the batch itself."""
        same, n, m = ref_emb is embeddings, embeddings.shape[0], ref_emb.shape[0]
        if indices_tuple is None:
            if labels is None:
                raise ValueError("labels or an indices_tuple must be given, got None for both")
            if ref_labels is None:
                raise ValueError("ref_emb needs ref_labels or an indices_tuple, got None for both")
            return ByLabels(labels, ref_labels, same=same)
        if isinstance(indices_tuple, Pairs):
            if isinstance(indices_tuple, ByMasks):
                check_masks(indices_tuple.given, (n, m - n + 1 if indices_tuple.private else m))
            return indices_tuple
        if isinstance(indices_tuple, PairMasks):
            check_masks(indices_tuple, (n, m))
            disjoint = both(*indices_tuple).any() == 0
            arguments.holds(disjoint, "PairMasks must be disjoint: a pair is both positive and negative")
            return ByMasks(indices_tuple, same=same)
        pairs = ByIndices(indices_tuple, n, m, embeddings.device, same)
        if n * m > thresholds.INDEXED_MASKS and not torch.compiler.is_compiling():
            return pairs
        return ByMasks(pairs.rows(0, n))


IndicesTuple = PairMasks | tuple[Tensor, ...]


@final
class ByLabels(Pairs):
    """All pairs: references of the anchor's label are positives, all others negatives.

    Args:
        labels: those of the anchors [n].
        ref_labels: those of the references [m].
        same: whether the references are the batch, and reference i is anchor i.
        own: None, or which reference is the anchor itself [n], -1 if none is.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, *, same: bool = False, own: Tensor | None = None) -> None:
        self.labels, self.ref_labels, self.same, self.own = labels, ref_labels, same, own
        self.mirrored = same
        self.versions = versions(labels, ref_labels)
        self.ids: tuple[Tensor, Tensor] | None = None
        self.gathered: Gathered | None = None

    def masks(self, sim: Tensor, start: int) -> PairMasks:
        """By comparing labels."""
        check_versions((self.labels, self.ref_labels), self.versions)
        pos, neg = label_masks(self.labels[start : start + len(sim)], self.ref_labels)
        if self.same:
            return without_self(pos, neg, start)
        if self.own is None:
            return PairMasks(pos, neg)
        other = self.own[start : start + len(sim), None] != torch.arange(pos.shape[1], device=pos.device)
        return PairMasks(pos & other, neg & other)

    def sides(self, sim: Tensor, start: int, looks: bool, spare: bool = False) -> Sides:
        """Without a boolean matrix; labels are looked at once."""
        if looks and self.gathered is None and self.ids is None:
            self.gathered = Gathered.by_labels(self.labels, self.ref_labels, self.same, self.own)
            if self.gathered is None:
                self.ids = numbered(self.labels, None if self.same else self.ref_labels)
            else:
                self.complete = self.gathered.complete
        if self.gathered is not None:
            return self.gathered.sides(sim, start, None, spare)
        return self._in_place(sim, start) if looks else sides_of(sim, *self.masks(sim, start))

    def _in_place(self, sim: Tensor, start: int) -> Sides:
        assert self.ids is not None
        b, m = sim.shape
        ids, ref_ids = self.ids[0][start : start + b].to(sim.dtype), self.ids[1].to(sim.dtype)
        alike = torch.eq(ids, ref_ids, out=torch.empty_like(sim))
        neg = torch.add(sim, alike, alpha=-ABSENT)
        alike_count = alike.sum(1, keepdim=True)
        pos = torch.add(sim, torch.ne(ids, ref_ids, out=alike), alpha=ABSENT)
        pos_count = alike_count
        if self.same:
            pos.diagonal(start).fill_(ABSENT)
            pos_count = alike_count - 1
        elif self.own is not None:
            own = self.own[start : start + b, None]
            pos = torch.where(own == torch.arange(m, device=own.device), ABSENT, pos)
            pos_count = alike_count - (own >= 0).to(sim.dtype)
        return Sides(pos, neg, pos_count, m - alike_count)


@final
class ByMasks(Pairs):
    """The pairs in two disjoint masks.

    Args:
        given: the masks [n, m], or [n, m - n + 1] if private.
        same: whether the references are the batch, and a pair of a sample with itself does not count.
        private: whether the last n references belong to one anchor each, all together in the last column of the masks.
    """

    def __init__(self, given: PairMasks, *, same: bool = False, private: bool = False) -> None:
        self.given = without_self(given.pos.clone(), given.neg.clone(), 0) if same else given
        self.private = private
        self.versions = versions(*self.given)
        self.gathered: Gathered | None = None
        self.was_looked_at = False

    def masks(self, sim: Tensor, start: int) -> PairMasks:
        """The rows of the masks, with a column for every reference if the scores have one."""
        check_versions(self.given, self.versions)
        is_whole = len(sim) == len(self.given.pos)
        pos, neg = self.given if is_whole else (mask[start : start + len(sim)] for mask in self.given)
        if self.private and sim.shape[1] != pos.shape[1]:
            return self._wide(pos, neg, start)
        return PairMasks(pos, neg)

    def sides(self, sim: Tensor, start: int, looks: bool, spare: bool = False) -> Sides:
        """The masks are looked at once."""
        if not self.was_looked_at:
            self.was_looked_at = True
            if looks:
                self.gathered = Gathered.by_masks(*self.given)
            self.complete = self.gathered is not None and self.gathered.complete
        pos, neg = self.masks(sim, start)
        return sides_of(sim, pos, neg) if self.gathered is None else self.gathered.sides(sim, start, neg, spare)

    def wide(self) -> PairMasks:
        """The masks with a column for every reference."""
        return self._wide(*self.given, 0) if self.private else self.given

    def _wide(self, pos: Tensor, neg: Tensor, start: int) -> PairMasks:
        own = ~not_self(start, start + len(pos), len(self.given.pos), pos.device)
        return PairMasks(*(torch.cat((mask[:, :-1], mask[:, -1:] & own), 1) for mask in (pos, neg)))


@final
class ByIndices(Pairs):
    """The pairs that PML's index tensors name, where masks of them all would take too much memory.

    Args:
        given: (a, p, n) or (a1, p, a2, n).
        n: number of anchors.
        m: number of references.
        device: that of the masks.
        same: whether the references are the batch, and a pair of a sample with itself does not count.
    """

    def __init__(self, given: tuple[Tensor, ...], n: int, m: int, device: torch.device, same: bool) -> None:
        arguments.index_tuple(given)
        # An empty index tensor may be of any dtype and on any device, as PML's own are.
        a, p, *rest = (index.to(device=device, dtype=torch.long) for index in given)
        a2, b = rest if len(rest) == 2 else (a, rest[0])
        if not torch.compiler.is_compiling():
            kinds = [("anchor", a, n), ("positive", p, m), ("anchor", a2, n), ("negative", b, m)]
            for name, index, size in kinds if a2 is not a else [*kinds[:2], kinds[3]]:
                least, greatest = index.aminmax() if len(index) else (0, 0)
                if len(index) and not 0 <= int(least) <= int(greatest) < size:
                    raise ValueError(
                        f"indices_tuple has {name} indices {int(least)}..{int(greatest)}, allowed is 0..{size - 1}"
                    )
        self.pos, self.neg, self.n, self.m, self.same = (a, p), (a2, b), n, m, same
        self.versions = versions(a, p, a2, b)

    def masks(self, sim: Tensor, start: int) -> PairMasks:
        """By a search for the pairs of these rows."""
        check_versions((*self.pos, *self.neg), self.versions)
        return self.rows(start, start + len(sim))

    def sides(self, sim: Tensor, start: int, looks: bool, spare: bool = False) -> Sides:
        """By the masks."""
        return sides_of(sim, *self.masks(sim, start))

    def rows(self, start: int, stop: int) -> PairMasks:
        """The masks of a range of rows."""
        is_whole = (start, stop) == (0, self.n)
        looks = is_whole and looks_are_free(self.pos[0])
        pos, neg = (index_masks(*side, start, stop, self.m, is_whole, looks) for side in (self.pos, self.neg))
        overlap = pos.numpy() & neg.numpy() if looks else both(pos, neg)
        if not torch.compiler.is_compiling() and bool(overlap.any()):
            i, j = both(pos, neg).nonzero()[0].tolist()
            cause = (
                ", as PML's MultiSimilarityMiner does with a sample and its copy if ref_labels is the same tensor as "
                "labels: give it ref_labels.clone()"
            )
            raise ValueError(
                f"indices_tuple names the pair ({start + i}, {j}) both as positive and as negative"
                + cause * (start + i == j)
            )
        return without_self(pos, neg, start) if self.same else PairMasks(pos, neg)


@final
class Narrowed(Pairs):
    """Those pairs of others that a selection keeps, for a row loss that makes it among its own scores.

    Args:
        pairs: the others.
        select: scores, positives and negatives of some rows -> the pairs of them to keep, the same in every call.
    """

    def __init__(self, pairs: Pairs, select: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.pairs, self.select, self.private = pairs, select, pairs.private

    def masks(self, sim: Tensor, start: int) -> PairMasks:
        """The selection."""
        pairs = self.pairs.masks(sim, start)
        with torch.no_grad():
            return PairMasks(*self.select(sim.detach(), *pairs))

    def sides(self, sim: Tensor, start: int, looks: bool, spare: bool = False) -> Sides:
        """By the selection, which is looked at."""
        pos, neg = self.masks(sim, start)
        gathered = Gathered.by_masks(pos, neg) if looks else None
        return sides_of(sim, pos, neg) if gathered is None else gathered.sides(sim, 0, neg, spare)


def pairs_from_host(labels: Tensor, device: torch.device) -> Any:
    """All pairs by labels that are still on the host, where to look at them waits for nothing; None if they are not."""
    if labels.device.type != "cpu" or not is_eager():
        return None
    moved = labels.to(device, non_blocking=True)
    pairs, found = ByLabels(moved, moved, same=True), Gathered.by_labels(labels, labels, True, None)
    if found is not None:
        pairs.gathered = found.each(lambda x: x.to(device, non_blocking=True))
        pairs.complete = found.complete
    return pairs


def own_set(
    embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> Tensor | None:
    """The references, not the same tensor as the embeddings unless they are the batch: with the labels of the batch.

    So a sample is compared with itself where it is given again with another label, as in PML.
    """
    return ref_emb.view_as(ref_emb) if ref_emb is embeddings and ref_labels is not labels else ref_emb


def versions(*tensors: Tensor) -> tuple[int, ...]:
    """How often each tensor was written to, as autograd's saved tensors count it; nothing where that is not counted.

    What pairs are made of is looked at again in the backward pass of chunks, and for a second derivative.
    """
    return () if torch.compiler.is_compiling() else tuple(x._version for x in tensors if not x.is_inference())


def check_versions(tensors: Iterable[Tensor], before: tuple[int, ...]) -> None:
    """Raise an error if one of the tensors was written to."""
    if before and versions(*tensors) != before:
        raise RuntimeError("labels or an indices_tuple were modified by an inplace operation before backward")
