"""Views of samples on several processes: each sample is a class of its own, numbered over all processes."""

from typing import Any

import torch
from torch import Tensor

from pml_ext._pml import losses_named
from pml_ext.pairs import PairMasks, label_masks
from pml_ext.ranks import Group, Ranks
from pml_ext.wrappers.self_supervised import SelfSupervisedLoss

# The losses that are given views instead of labels.
VIEWS = (SelfSupervisedLoss, *losses_named("SelfSupervisedLoss"))


def as_batch(
    group: Group, views: list[Tensor], symmetric: bool, more: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the inner loss of a `SelfSupervisedLoss` is called with: the arguments of PML's losses, and by name."""
    if len(views) < 2 or any(not isinstance(x, Tensor) or x.shape != views[0].shape for x in views):
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in views]
        raise ValueError(f"the views must be two or more of the same samples, got {shapes}")
    number, device = len(views[0]), views[0].device
    ranks = Ranks(group, tuple(group.all_gather(torch.tensor(number, device=device)).tolist()))
    samples = torch.arange(ranks.own.start, ranks.own.stop, device=device)
    rows, refs = (views[0], samples), (torch.cat(views[1:]), samples.repeat(len(views) - 1))
    if symmetric:
        rows = torch.cat(views), samples.repeat(len(views))
    more, pairs = dict(more), None
    false_negatives = more.pop("false_negatives", None)
    if false_negatives is not None:
        pairs = _without(false_negatives, samples, len(views), symmetric, ranks)
    return (*rows, pairs, *((None, None) if symmetric else refs)), more


def _without(false_negatives: Tensor, samples: Tensor, views: int, symmetric: bool, ranks: Ranks) -> PairMasks:
    """The pairs of own views without negatives that are none, which are given for own samples and those of all."""
    number, n, sizes = len(samples), ranks.n, ranks.sizes
    if false_negatives.dtype != torch.bool or false_negatives.shape not in ((number, number), (number, n)):
        raise ValueError(
            f"false_negatives must be boolean of shape {(number, number)}, own samples with own, or {(number, n)}, "
            f"own samples with all, got {false_negatives.dtype} of shape {tuple(false_negatives.shape)}"
        )
    wide = torch.zeros(number, n, dtype=torch.bool, device=samples.device)
    own = ranks.own
    wide[:, slice(None) if false_negatives.shape[1] == n else own] = false_negatives.to(samples.device)
    # Each process has its views one after another.
    columns = []
    for start, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True):
        columns += [torch.arange(start, start + size, device=samples.device)] * (views if symmetric else views - 1)
    of_column, of_row = torch.cat(columns), samples.repeat(views if symmetric else 1)
    pos, neg = label_masks(of_row, of_column)
    return PairMasks(pos, neg & ~wide[of_row - own.start][:, of_column])
