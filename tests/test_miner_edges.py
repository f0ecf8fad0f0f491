"""Miners at the edges: autocast, what is no number, draws among log-weights that are large, compilation."""

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from registry import ARGUMENTS, MINERS, RECIPES
from torch import nn

from pml_ext import catalog, sampling
from pml_ext.centers import KMeansCenters
from pml_ext.losses import BinomialDevianceLoss, RAWLoss
from pml_ext.miners import DistanceWeightedMiner, InverseDensityMiner
from pml_ext.miners.base import PairMiner
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import MinedLoss

OF_SCORES = [name for name, make in MINERS.items() if isinstance(make(), PairMiner)]


def batch(n=24, d=8, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(n) // 4


def pairs_of(mined):
    a, p, b, n = mined
    return set(zip(a.tolist(), p.tolist(), strict=True)), set(zip(b.tolist(), n.tolist(), strict=True))


@pytest.mark.parametrize("name", OF_SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_miner_mines_under_autocast_what_it_mines_without(name, dtype, normalize):
    x, labels = batch()
    miners = []
    for _ in range(2):
        miner = MINERS[name]()
        miner.distance = LpDistance(normalize_embeddings=normalize)
        miners.append(miner)
    torch.manual_seed(3)
    expected = miners[0](x, labels)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=dtype):
        actual = miners[1](x, labels)
    assert pairs_of(actual) == pairs_of(expected)


def test_a_density_far_from_the_mean_is_drawn_from_under_autocast():
    x, labels = batch(48, 512)
    miner = InverseDensityMiner(distance=LpDistance(normalize_embeddings=False), seed=1, per_positive=2)
    with torch.autocast("cpu", dtype=torch.float16):
        negatives = miner(100 * x, labels)[3]
    assert len(negatives) == 2 * 3 * 48


@pytest.mark.parametrize("name", OF_SCORES)
@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_a_sample_that_is_no_number_keeps_all_its_pairs(name, what):
    """Else nobody would see it: no comparison with it is true."""
    x, labels = batch()
    x[5, 2] = what
    mined_pos, mined_neg = pairs_of(MINERS[name]()(x, labels))
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i] if i == 5 else [5]
        for j in others:
            assert (i, j) in (mined_pos if labels[i] == labels[j] else mined_neg)


@pytest.mark.parametrize("name", OF_SCORES)
def test_a_mined_loss_shows_what_is_no_number(name):
    x, labels = batch()
    x[5] = torch.nan
    for loss in (BinomialDevianceLoss(), RAWLoss(), RAWLoss(chunk_size=5)):
        mined = MinedLoss(loss, MINERS[name]())
        assert not mined(x, labels).isfinite()
        # Among the same scores, by the engine and without.
        mined.miner.distance = loss.distance
        assert not mined(x, labels).isfinite()
        assert not by_autograd(mined)(x, labels).isfinite()


@pytest.mark.parametrize("name", [name for name, make in RECIPES.items() if isinstance(make().miner, PairMiner)])
def test_a_recipe_shows_what_is_no_number(name):
    recipe = RECIPES[name]()
    x, labels = batch(d=4)
    x[5] = torch.nan
    assert not recipe.loss(x, labels, recipe.miner(x, labels)).isfinite()


# Draws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 300.0, -3000.0])
@pytest.mark.parametrize("looks", [True, False])
def test_never_more_are_drawn_than_wanted(level, looks, monkeypatch):
    if not looks:
        monkeypatch.setattr(sampling, "looks_are_free", lambda numbers: False)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(640, 4096, dtype=torch.bool)
    k = torch.full((640, 1), 100)
    drawn = sampling.sample(torch.full((640, 4096), level), mask, k, generator)
    assert (drawn.sum(1) == 100).all()


@pytest.mark.parametrize("looks", [True, False])
def test_equal_keys_are_as_many_as_wanted(looks, monkeypatch):
    monkeypatch.setattr(sampling, "gumbel_like", lambda x, generator: torch.zeros_like(x))
    if not looks:
        monkeypatch.setattr(sampling, "looks_are_free", lambda numbers: False)
    log_weights = torch.tensor([[0.0, 1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False, True], [True, False, True, True, True]])
    drawn = sampling.sample(log_weights, mask, torch.tensor([[3], [2]]), None)
    assert drawn.sum(1).tolist() == [3, 2]
    assert not (drawn & ~mask).any()
    assert drawn[0, [1, 4]].all()


@pytest.mark.parametrize("looks", [True, False])
def test_draws_do_not_depend_on_a_common_factor_of_the_weights(looks, monkeypatch):
    if not looks:
        monkeypatch.setattr(sampling, "looks_are_free", lambda numbers: False)
    log_weights = torch.randint(-8, 8, (50, 40), generator=torch.Generator().manual_seed(2)) / 4
    mask = torch.rand(50, 40, generator=torch.Generator().manual_seed(3)) < 0.6
    draws = [
        sampling.sample(log_weights + level, mask, torch.full((50, 1), 5), torch.Generator().manual_seed(4))
        for level in (0.0, 4096.0)
    ]
    assert torch.equal(*draws)


def test_many_dimensions_draw_as_many_negatives_as_positives():
    x = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1024) // 64
    pos, neg = DistanceWeightedMiner(seed=0, nonzero_loss_cutoff=None, as_masks=True)(x, labels)
    assert torch.equal(pos.sum(1), neg.sum(1))


# Compilation ---------------------------------------------------------------------------------------------------------


class Method(nn.Module):
    """A recipe as one module."""

    def __init__(self, name):
        super().__init__()
        recipe = catalog.build(name, **{each: ARGUMENTS[each]() for each in catalog.required(name)})
        self.loss, self.miner = recipe.loss, recipe.miner

    def forward(self, embeddings, labels):
        mined = None if self.miner is None else self.miner(embeddings, labels)
        return self.loss(embeddings, labels, mined)


# Their loss or their miner is PML's own, which looks at numbers, or is given indices, as many as there are pairs.
NOT_AS_ONE_GRAPH = (
    "Margin",
    "DistanceWeighted",
    "Binomial2020Mined",
    "HardMining2020",
    "Lifted2020Mined",
    "NPair",
    "XBM",
)
FOUND_BY_THEMSELVES = [
    name
    for name in catalog.recipes
    if (Method(name).miner is not None or any(isinstance(part, KMeansCenters) for part in Method(name).modules()))
    and name not in NOT_AS_ONE_GRAPH
]


@pytest.mark.parametrize("name", FOUND_BY_THEMSELVES)
def test_a_method_is_captured_with_its_miner(name):
    method, (x, labels) = Method(name), batch(9, 4)
    x.requires_grad_()
    torch._dynamo.reset()
    value = torch.compile(method, fullgraph=True, backend="eager")(x, labels)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if not any(getattr(part, "is_random", False) for part in method.modules()):
        expected = method(x, labels)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("per_class", [True, False])
def test_clusters_are_the_same_when_compiled(per_class):
    source, (x, labels) = KMeansCenters(n_clusters=2, per_class=per_class), batch()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: source(x, y).points, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, labels), source(x, labels).points)


def test_what_looks_like_the_clusters_is_the_operation():
    x, labels = batch()
    how = (3, 0.5, False, 0, 10)
    torch.library.opcheck(torch.ops.pml_ext.clusters, (x, labels, *how))
