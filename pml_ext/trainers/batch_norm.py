"""Batch normalization of several processes: statistics of the batch of all, wherever their samples are."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pml_ext.ranks import Group, total
from pml_ext.vectors import at_least_single


@contextmanager
def batch_norm_of_all(network: nn.Module, group: Group) -> Iterator[None]:
    """A context in which batch normalization in training uses the mean and variance of the samples of all processes.

    Outputs, gradients and running statistics of the network are those of one process with the whole batch. Unlike
    `torch.nn.SyncBatchNorm` it runs on a CPU too, and no module of the network is replaced.

    Args:
        network: any module.
        group: the processes, each of which runs the network once, on its own samples.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_of_all, norm, group)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _of_all(norm: _BatchNorm, group: Group, x: Tensor) -> Tensor:
    if not norm.training:
        plain: Tensor = type(norm).forward(norm, x)
        return plain
    rest, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    wide = at_least_single(x)
    number = wide.new_tensor([x.numel() // max(x.shape[1], 1)])
    sums = total(torch.cat((wide.sum(rest), number)), group)
    n, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
    if n < 2:
        raise ValueError(f"batch normalization in training needs more than one value of a channel, got {int(n)}")
    centered = wide - mean.view(shape)
    variance = total(centered.square().sum(rest), group) / n
    _follow(norm, mean.detach(), variance.detach() * n / (n - 1))
    y = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics on."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
