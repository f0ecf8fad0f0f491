"""Between the shell and the engine: which blocks of scores a loss is asked for, and what it makes of them.

A loss with a closed form gets the two sides of a block, by labels without a boolean matrix; any other loss is
differentiated by autograd on the block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from torch import Tensor

from pml_ext.engine import Geometry, Sparse, Weighed
from pml_ext.pairs import Counted, Needs, PairMasks
from pml_ext.sides import ABSENT, Sides, SideWeights

ClosedForm = Callable[..., SideWeights | None]
# Positives are gathered to few columns if they are at most this share of all columns.
GATHERED_SHARE = 0.25


def geometry_of(distance: Any) -> Geometry | None:
    """How the engine computes the scores of a PML distance, or None for a distance that it does not know.

    A distance that somebody listens to (a hook, statistics) is called as PML calls it.
    """
    if distance._forward_hooks or distance._forward_pre_hooks or distance.collect_stats or distance.p != 2:
        return None
    kind = type(distance)
    if kind in (CosineSimilarity, DotProductSimilarity) and distance.power == 1:
        return Geometry(distance.normalize_embeddings, euclidean=False, power=1)
    if kind is LpDistance and distance.power in (1, 2):
        return Geometry(distance.normalize_embeddings, euclidean=True, power=distance.power)
    return None


def engine_runs() -> bool:
    """Whether a hand-written gradient can be used here: not while tracing, nor under a function transform."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def looks_are_free(numbers: Tensor) -> bool:
    """Whether to look at the numbers of a tensor waits for nothing: on the CPU, and neither traced nor fake."""
    return engine_runs() and type(numbers) is Tensor and numbers.device.type == "cpu"


class LabelSides(NamedTuple):
    """The two sides of any block, from labels: no boolean matrix, no index matrix but that of the positives.

    Args:
        ids: dense class numbers of the anchors as floating point [n, 1].
        ref_ids: those of the references [1, m].
        own: columns of each anchor's positives [n, k], itself where it has fewer; None to keep them in place.
        same: whether the references are the batch.
    """

    ids: Tensor
    ref_ids: Tensor
    own: Tensor | None
    same: bool

    @staticmethod
    def of(labels: Tensor, ref_labels: Tensor, same: bool, dtype: torch.dtype) -> "LabelSides":
        """Number the classes densely, so that floating point holds them, and list their members where that is cheap."""
        n = len(labels)
        both = labels if same else torch.cat((labels, ref_labels))
        ordered, order = both.sort(stable=True)
        rank = torch.zeros_like(order)
        rank[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
        ids = torch.empty_like(rank).scatter_(0, order, rank)
        own = _members(ids, order, rank) if same and looks_are_free(ids) else None
        numbers = ids.to(dtype)
        return LabelSides(numbers[:n, None], (numbers if same else numbers[n:])[None, :], own, same)

    def __call__(self, sim: Tensor, start: int) -> Sides:
        """The sides of the block of scores [b, m] that begins at a row."""
        b, m = sim.shape
        ids = self.ids[start : start + b]
        alike = torch.eq(ids, self.ref_ids, out=torch.empty_like(sim))
        neg = torch.add(sim, alike, alpha=-ABSENT)
        alike_count = alike.sum(1, keepdim=True)
        if self.own is not None:
            columns = self.own[start : start + b]
            pos = sim.gather(1, columns)
            pos.masked_fill_(columns == torch.arange(start, start + b, device=sim.device)[:, None], ABSENT)
        else:
            pos = torch.add(sim, torch.ne(ids, self.ref_ids, out=alike), alpha=ABSENT)
            if self.same:
                pos.diagonal(start).fill_(ABSENT)
        return Sides(pos, neg, alike_count - int(self.same), m - alike_count, self.own is not None)

    def columns(self, start: int, stop: int) -> Tensor | None:
        """The columns to which the positives of some rows have been gathered."""
        return None if self.own is None else self.own[start:stop]


def _members(ids: Tensor, order: Tensor, rank: Tensor) -> Tensor | None:
    """Columns of the other members of each sample's class, [n, largest class - 1], itself where there are fewer."""
    n = len(ids)
    sizes = torch.zeros_like(rank).scatter_add_(0, rank, torch.ones_like(rank))
    # Through numpy: on the CPU that waits for nothing, and the width of the result has to be a Python number.
    largest = int(sizes.numpy().max())
    if largest - 1 > GATHERED_SHARE * n:
        return None
    first = sizes.cumsum(0) - sizes
    place = torch.arange(max(largest - 1, 1))
    # The class in its order without the sample itself, whose own place is taken by what follows.
    own = torch.empty_like(order).scatter_(0, order, torch.arange(n)) - first[ids]
    place = place + (place >= own.unsqueeze(1))
    members = order[(first[ids].unsqueeze(1) + place).clamp_max_(n - 1)]
    return torch.where(place < sizes[ids].unsqueeze(1), members, torch.arange(n).unsqueeze(1))


class MaskSides:
    """The two sides of any block, from boolean masks."""

    def __init__(self, masks: Callable[[int, int], PairMasks]) -> None:
        self.masks = masks

    def __call__(self, sim: Tensor, start: int) -> Sides:
        """The sides of the block of scores [b, m] that begins at a row."""
        pos, neg = self.masks(start, start + sim.shape[0])
        return Sides(
            sim.masked_fill(~pos, ABSENT),
            sim.masked_fill(~neg, -ABSENT),
            pos.sum(1, keepdim=True).to(sim.dtype),
            neg.sum(1, keepdim=True).to(sim.dtype),
            False,
        )

    def columns(self, start: int, stop: int) -> Tensor | None:
        """Positives stay where they are."""
        return None


class LossRows:
    """A loss as the engine sees it.

    Args:
        masks: boolean masks of a range of rows.
        sides: the two sides of a block, or None if the loss has no closed form.
        closed_form: losses and pair weights from the two sides.
        per_anchor: losses and counts of rows from scores and masks, by operations that autograd follows.
        plain: all losses from embeddings and references (None: the batch), by ordinary autograd.
        needs: which pairs define an anchor.
    """

    def __init__(
        self,
        masks: Callable[[int, int], PairMasks],
        sides: LabelSides | MaskSides | None,
        closed_form: Callable[[Sides], SideWeights | None] | None,
        per_anchor: Callable[[Tensor, Tensor, Tensor], Counted],
        plain: Callable[[Tensor, Tensor | None], Tensor],
        needs: Needs,
    ) -> None:
        self.masks, self.sides, self.closed_form = masks, sides, closed_form
        self.per_anchor, self.plain, self.needs = per_anchor, plain, needs

    def weigh(self, sim: Tensor, start: int) -> Weighed:
        """Losses and pair weights of the rows start, start + 1, ... with scores sim [b, m]."""
        if self.closed_form is None or self.sides is None:
            return self._differentiated(sim, start)
        sides = self.sides(sim, start)
        found = self.closed_form(sides)
        if found is None:
            return self._differentiated(sim, start)
        columns = self.sides.columns(start, start + sim.shape[0])
        defined = _defined(sides, self.needs)
        losses = torch.where(defined.squeeze(1), found.losses, 0.0)
        counts = defined.squeeze(1).long() if found.counts is None else torch.where(defined.squeeze(1), found.counts, 0)
        if found.neg_column is not None and columns is not None:
            few = torch.cat((columns, found.neg_column), 1), torch.cat((found.pos, found.neg), 1)
            return Weighed(losses, Sparse(few[0], torch.where(defined, few[1], 0.0)), counts)
        weights = found.neg
        if found.neg_column is not None:
            weights = torch.zeros_like(sides.neg).scatter_add_(1, found.neg_column, found.neg)
        if columns is None:
            weights = weights.add_(found.pos)
        else:
            weights.scatter_(1, columns, found.pos)
        if self.needs != "either":
            weights.mul_(defined)
        return Weighed(losses, weights, counts)

    def _differentiated(self, sim: Tensor, start: int) -> Weighed:
        with torch.enable_grad():
            leaf = sim.detach().requires_grad_()
            losses, counts = self.per_anchor(leaf, *self.masks(start, start + sim.shape[0]))
            total = losses.sum()
        if not total.requires_grad:
            return Weighed(losses, torch.zeros_like(sim), counts)
        (weights,) = torch.autograd.grad(total, leaf)
        return Weighed(losses.detach(), weights, counts)


def _defined(sides: Sides, needs: Needs) -> Tensor:
    """Which rows have the pairs that the loss needs, [b, 1] as booleans."""
    has_pos, has_neg = sides.pos_count > 0, sides.neg_count > 0
    match needs:
        case "both":
            return has_pos & has_neg
        case "positives":
            return has_pos
        case "negatives":
            return has_neg
        case "either":
            return has_pos | has_neg
