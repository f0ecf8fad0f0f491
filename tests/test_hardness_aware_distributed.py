"""Hardness-aware learning by several processes, threads in their place, is that of one with the batch of all."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from torch import nn

from pml_ext.miners import HardNegativePairMiner
from pml_ext.testing import run_as_ranks
from pml_ext.trainers import FeatureGenerator, HardnessAwareLoss, NPairTupleLoss, NPairTupleMiner, RandomTupleMiner
from pml_ext.trainers.batch_norm import batch_norm_of_all

N, CLASSES, FEATURES, DIMENSION, STEPS = 12, 4, 10, 4, 3
LABELS = torch.arange(N) // 3
VARIANTS = {
    "triplet": (TripletMarginLoss, lambda: RandomTupleMiner(seed=7), {"alpha": 1.0}),
    "n_pair": (NPairTupleLoss, NPairTupleMiner, {"alpha": 1.0, "separate_anchors": True}),
    "a row miner": (TripletMarginLoss, lambda: HardNegativePairMiner(epsilon=0), {}),
    "all triplets": (TripletMarginLoss, lambda: None, {}),
    "real tuples": (TripletMarginLoss, lambda: RandomTupleMiner(seed=7), {"synthesis": False}),
}


def method(variant, **more):
    torch.manual_seed(0)
    metric_loss, miner, given = VARIANTS[variant]
    trunk = nn.Sequential(nn.Linear(8, FEATURES), nn.BatchNorm1d(FEATURES), nn.Tanh())
    embedder, classifier = nn.Linear(FEATURES, DIMENSION), nn.Linear(FEATURES, CLASSES)
    generator = FeatureGenerator(DIMENSION, FEATURES, 12)
    loss = HardnessAwareLoss(
        embedder, generator, classifier, metric_loss(), miner=miner(), beta=20, period=1, soft_factor=1, **given, **more
    )
    return trunk.double(), loss.double()


def train(trunk, loss, own, group=None):
    parameters = [*trunk.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.02)
    values = []
    for step in range(STEPS):
        x = torch.randn(N, 8, generator=torch.Generator().manual_seed(step)).double()[own]
        optimizer.zero_grad()
        with nullcontext() if group is None else batch_norm_of_all(trunk, group):
            features = trunk(x)
        terms = loss(features, loss.embedder(features), LABELS[own])
        terms.total.backward()
        for p in parameters:
            if group is not None and p.grad is not None:
                p.grad.copy_(group.all_reduce(p.grad) / group.size)
        optimizer.step()
        values.append(torch.stack([value.detach().double() for value in terms.records().values()]))
    buffers = [b.double() for b in (*trunk.buffers(), *loss.buffers())]
    return torch.stack(values), [p.detach() for p in parameters], buffers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cuts", [(0, 7, 12), (0, 3, 3, 12)], ids=str)
def test_several_processes_learn_what_one_does(variant, cuts):
    values, parameters, buffers = train(*method(variant), slice(0, N))
    parts = [slice(start, stop) for start, stop in pairwise(cuts)]

    def of_rank(group):
        trunk, loss = models[group.rank]
        loss.distributed = group
        found = train(trunk, loss, parts[group.rank], group)
        return found, group.calls

    trunk, loss = method(variant)
    models = [copy.deepcopy((trunk, loss)) for _ in parts]
    found = run_as_ranks(len(parts), of_rank)
    assert len({tuple(calls) for _, calls in found}) == 1, "the processes exchange different things"
    for (mine, of_mine, state), _ in found:
        torch.testing.assert_close(mine, values, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(of_mine, parameters, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, buffers, rtol=1e-10, atol=1e-10)
    is_mixed = bool((values[-1, 6:8] < 1).all())  # lambda and w
    assert is_mixed or variant == "real tuples"


def test_pairs_of_own_samples_are_refused():
    def of_rank(group):
        trunk, loss = method("triplet", distributed=group)
        features = trunk.eval()(torch.zeros(6, 8).double())
        return loss(features, loss.embedder(features), LABELS[:6], NPairTupleMiner()(features, LABELS[:6]))

    with pytest.raises(ValueError, match="indices_tuple must be None where the batch is that of several processes"):
        run_as_ranks(2, of_rank)


def test_one_process_is_one():
    trunk, loss = method("n_pair")
    other_trunk, other = method("n_pair", distributed=True)
    for mine, expected in zip(train(other_trunk, other, slice(0, N)), train(trunk, loss, slice(0, N)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)
