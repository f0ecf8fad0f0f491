"""From losses, miners and containers of PML to the same ones without tuples."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, overload

import pytorch_metric_learning.losses as stock_losses
from torch import nn

from pml_ext import _pml
from pml_ext.arguments import count, flag
from pml_ext.stock.coverage import PASSED_THROUGH, REFUSED
from pml_ext.stock.forms import FORMS
from pml_ext.stock.loss import AcceleratedLoss, NotAcceleratedError, accelerated_loss
from pml_ext.stock.memory import AcceleratedMemory, accelerated_memory
from pml_ext.stock.miners import MINERS, AcceleratedMiner, accelerated_miner

# Containers of losses and miners, and the attributes that hold these.
_CONTAINERS: dict[type, tuple[str, ...]] = {
    stock_losses.CrossBatchMemory: ("loss", "miner"),
    stock_losses.MultipleLosses: ("losses", "miners"),
    stock_losses.SelfSupervisedLoss: ("loss",),
    _pml.DistributedLossWrapper: ("loss",),
    _pml.DistributedMinerWrapper: ("miner",),
    nn.ModuleDict: (),
    nn.ModuleList: (),
}


@overload
def accelerate(item: Any, /, *, chunk_size: int | None = None, strict: bool = False) -> Any: ...
@overload
def accelerate(
    item: Any, another: Any, /, *others: Any, chunk_size: int | None = None, strict: bool = False
) -> tuple[Any, ...]: ...
def accelerate(*items: Any, chunk_size: int | None = None, strict: bool = False) -> Any:
    """Stock losses and miners of pytorch-metric-learning that compute without tuples.

    The value and the gradient are those of PML, up to rounding; interface, parameters, names in `state_dict` and class
    are the same. No list of pairs or triplets is formed: the cost is that of the matrix of scores. A miner returns the
    same pairs or triplets as before, and passes its masks to an accelerated loss.

    Args:
        items: losses, miners, containers of PML that hold them (CrossBatchMemory, MultipleLosses, SelfSupervisedLoss,
            the distributed wrappers), dictionaries, lists. What has no form without tuples is returned as it is.
        chunk_size: how many rows of the matrix of scores are in memory at once; a miner then chooses again for each
            chunk of its loss. Default None: all rows.
        strict: raise an error where PML's own code would run. Default False: a warning says why it runs.

    Returns:
        One object for one item, a tuple for several. They share the parameters and modules of the items.

    Raises:
        NotAcceleratedError: with `strict`, here for a class that has no form without tuples, or later for an input.
        TypeError: no item, or `strict` is not a bool.
        ValueError: `chunk_size` is not a positive integer.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning.losses import NTXentLoss
        >>> from pytorch_metric_learning.miners import MultiSimilarityMiner
        >>> loss, miner = accelerate(NTXentLoss(temperature=.1), MultiSimilarityMiner())
        >>> embeddings, labels = torch.eye(4)[[0, 1, 0, 2]], torch.tensor([0, 0, 1, 1])
        >>> round(float(loss(embeddings, labels, miner(embeddings, labels))), 3)
        5.549
    """
    if not items:
        raise TypeError("accelerate needs a loss, a miner or a container of them, got nothing")
    count("chunk_size", chunk_size, optional=True)
    flag("strict", strict)
    made = tuple(_accelerated(item, chunk_size, strict) for item in items)
    return made[0] if len(made) == 1 else made


def _accelerated(item: Any, chunk_size: int | None, strict: bool) -> Any:
    kind = type(item)
    if item is None:
        return None
    if kind in FORMS or isinstance(item, AcceleratedLoss):
        return accelerated_loss(item, chunk_size=chunk_size, strict=strict)
    if kind in MINERS or isinstance(item, AcceleratedMiner):
        return accelerated_miner(item, chunk_size=chunk_size)
    if kind in _CONTAINERS or isinstance(item, AcceleratedMemory):
        return _container(item, chunk_size, strict)
    if isinstance(item, Mapping) and not isinstance(item, nn.Module):
        return {name: _accelerated(each, chunk_size, strict) for name, each in item.items()}
    if isinstance(item, list | tuple):
        return kind(_accelerated(each, chunk_size, strict) for each in item)
    base = next((each for each in (*FORMS, *MINERS) if isinstance(item, each)), None)
    reason = REFUSED.get(kind) or PASSED_THROUGH.get(kind) or f"{kind.__name__} has no form without tuples"
    if base is not None:
        reason = f"{kind.__name__} is a subclass of {base.__name__}, which may compute something else"
    if strict:
        raise NotAcceleratedError(f"{kind.__name__} cannot be accelerated: {reason}")
    if base is not None or kind in REFUSED:
        warnings.warn(f"{kind.__name__} stays as it is: {reason}", stacklevel=4)
    return item


def _container(container: Any, chunk_size: int | None, strict: bool) -> Any:
    """A copy whose losses and miners are accelerated, and which shares everything else."""
    names: tuple[str, ...]
    if isinstance(container, stock_losses.CrossBatchMemory):
        made, names = accelerated_memory(container), ("loss", "miner")
    else:
        made = copy.copy(container)
        made.__dict__["_modules"] = dict(container._modules)
        names = _CONTAINERS[type(container)] or tuple(container._modules)
    for name in names:
        held = container._modules.get(name)
        if held is not None:
            made._modules[name] = _accelerated(held, chunk_size, strict)
    return made
