"""Batch normalization of several processes, threads in their place, against that of one with all samples."""

import copy

import pytest
import torch
from torch import nn

from pml_ext.testing import run_as_ranks
from pml_ext.trainers.batch_norm import batch_norm_of_all

N = 12
SPLITS = ([0, 5, 12], [0, 4, 4, 12], [0, 11, 12])


def network(shape, **given):
    torch.manual_seed(0)
    first = nn.Linear(5, 4) if len(shape) == 1 else nn.Conv2d(3, 4, 3)
    norm = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(4, **given)
    return nn.Sequential(first, norm, nn.Tanh()).double()


def run(net, x, weights, group=None):
    x = x.clone().requires_grad_()
    for _ in range(2):  # the running statistics move on twice
        y = net(x) if group is None else of_all(net, x, group)
    (y * weights).sum().backward()
    return y.detach(), x.grad, [p.grad for p in net.parameters()], [b.clone() for b in net.buffers()]


def of_all(net, x, group):
    with batch_norm_of_all(net, group):
        return net(x)


@pytest.mark.parametrize("cuts", SPLITS, ids=str)
@pytest.mark.parametrize(
    ("shape", "given"),
    [((5,), {}), ((3, 6, 6), {"momentum": None}), ((5,), {"affine": False}), ((5,), {"track_running_stats": False})],
    ids=str,
)
def test_several_processes_normalize_as_one(cuts, shape, given):
    net = network(shape, **given)
    x = torch.randn(N, *shape, dtype=torch.float64)
    weights = torch.randn(net(x).shape, dtype=torch.float64)
    net = network(shape, **given)
    copies = [copy.deepcopy(net) for _ in cuts[1:]]
    y, grad, of_parameters, state = run(net, x, weights)
    own = [slice(*cuts[r : r + 2]) for r in range(len(copies))]
    found = run_as_ranks(len(copies), lambda g: run(copies[g.rank], x[own[g.rank]], weights[own[g.rank]], g))
    torch.testing.assert_close(torch.cat([part[0] for part in found]), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([part[1] for part in found]), grad, rtol=0, atol=1e-12)
    for mine, expected in zip(zip(*(part[2] for part in found), strict=True), of_parameters, strict=True):
        torch.testing.assert_close(torch.stack(mine).sum(0), expected, rtol=0, atol=1e-11)
    for part in found:
        torch.testing.assert_close(part[3], state, rtol=0, atol=1e-12)


def test_what_is_frozen_and_what_is_evaluated_stays_as_it_is():
    net = network((5,)).eval()
    x = torch.randn(N, 5, dtype=torch.float64)
    copies = [copy.deepcopy(net) for _ in range(2)]
    parts = run_as_ranks(2, lambda group: of_all(copies[group.rank], x, group))
    assert all(torch.equal(part, net(x)) for part in parts)
    assert not any("forward" in vars(each[1]) for each in copies)


def test_one_value_has_no_variance():
    net = network((5,))
    with pytest.raises(ValueError, match="needs more than one value of a channel, got 1"):
        run_as_ranks(2, lambda group: of_all(copy.deepcopy(net), torch.zeros(1 - group.rank, 5).double(), group))
