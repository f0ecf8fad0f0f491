"""What a search may change: every value of every range makes a recipe that trains, and reaches the part it names."""

import math

import pytest
import torch

from pml_ext import catalog, spaces
from pml_ext.catalog import build, recipes, space
from pml_ext.spaces import SPACES, Range, ranges

KNOWN = {"num_classes": 6, "embedding_size": 16}


def made(name, **overrides):
    return build(name, **{argument: KNOWN[argument] for argument in catalog.required(name)}, **overrides)


def held(recipe, keyword):
    """The values of an argument in all parts of a recipe that are at that place."""
    place, _, argument = keyword.rpartition(".")
    modules = recipe.miner.modules() if place == "miner" and recipe.miner is not None else recipe.loss.modules()
    values = [getattr(module, argument) for module in modules if hasattr(module, argument)]
    return [float(value) for value in values if isinstance(value, (int, float))]


# What PML's losses keep under another name, or as a tensor.
ELSEWHERE = {
    ("NPair", "embedding_reg_weight"),
    ("Margin", "beta"),
    ("DistanceWeighted", "beta"),
    ("SoftTriple", "gamma"),
    ("SoftTriple", "centers_per_class"),
}


@pytest.mark.parametrize("name", recipes)
def test_every_recipe_has_a_space_around_what_it_is(name):
    found = space(name)
    assert found
    plain = made(name)
    for keyword, values in found.items():
        if (name, keyword) not in ELSEWHERE:
            assert values.default in held(plain, keyword), keyword


@pytest.mark.parametrize("name", recipes)
def test_an_override_reaches_the_part_that_it_names(name):
    plain = made(name)
    for keyword, values in space(name).items():
        if (name, keyword) in ELSEWHERE:
            continue
        other = values.at(0.3) if values.at(0.3) != values.default else values.at(0.8)
        before, after = held(plain, keyword), held(made(name, **{keyword: other}), keyword)
        changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert set(changed) == {(values.default, other)}, keyword


@pytest.mark.parametrize(("name", "keyword"), sorted(ELSEWHERE))
def test_an_override_is_felt(name, keyword):
    def loss(**overrides):
        torch.manual_seed(0)
        recipe = made(name, **overrides)
        torch.manual_seed(1)
        return recipe(torch.randn(24, 16), torch.arange(6).repeat_interleave(4)).item()

    assert loss() != loss(**{keyword: space(name)[keyword].at(0.3)})


@pytest.mark.parametrize("name", recipes)
def test_every_corner_of_a_space_trains(name):
    labels = torch.arange(6).repeat_interleave(4)
    for share in (0.0, 0.37, 1.0):
        recipe = made(name, **{keyword: values.at(share) for keyword, values in space(name).items()})
        for _ in range(2):
            embeddings = torch.randn(24, 16, requires_grad=True)
            loss = recipe(embeddings, labels)
            assert loss.isfinite(), share
            if loss.requires_grad:
                loss.backward()
                assert embeddings.grad is None or embeddings.grad.isfinite().all(), share


def test_the_paths_of_nested_parts():
    recipe = build("AHardPair", alpha=7, **{"loss.alpha": 11})
    assert (recipe.loss.alpha, recipe.loss.loss.alpha) == (7, 11)
    assert build("BinBranch", **{"miner.epsilon": 0.2}).loss.loss.miner.epsilon == 0.2
    assert build("DistWeightNeighbour", **{"miner.k": 2, "miner.epsilon": 0.2, "miner.num_negatives": 3})
    assert build("ClusterNCA", **{"centers.n_clusters": 9}).loss.centers.n_clusters == 9
    assert build("CenterNCA", **{"loss.alpha": 3}).loss.loss.alpha == 3


def test_an_override_leaves_the_next_recipe_as_it_was():
    build("BinDeviance2018", alpha=7, **{"miner.epsilon": 0.2})
    assert build("BinDeviance2018").miner.epsilon == 0.05
    assert build("BinDeviance2018").loss.alpha == 2


@pytest.mark.parametrize("keyword", ["miner.epsilonn", "centers.k", "loss.alpha", "a.b.c"])
def test_a_place_that_is_not_there(keyword):
    message = rf"BinDeviance2018 has no part that takes {keyword}; its search space is alpha, .*miner\.epsilon"
    with pytest.raises(TypeError, match=message):
        build("BinDeviance2018", **{keyword: 1})


def test_an_unknown_recipe_has_no_space():
    with pytest.raises(ValueError, match="no recipe is called 'RAV': did you mean RAW"):
        space("RAV")


# ---- ranges ----


@pytest.mark.parametrize(
    ("arguments", "flags", "message"),
    [
        ((1, 2, 3), {}, "low <= default <= high must hold, got 1, 3, 2"),
        ((0, 2, 1), {"log": True}, "low must be above 0 where log, got 0"),
        ((0, math.inf, 1), {}, "must hold"),
    ],
)
def test_wrong_ranges(arguments, flags, message):
    with pytest.raises(ValueError, match=message):
        Range(*arguments, **flags)


def test_shares_of_a_range():
    assert [Range(-1, 1, 0).at(share) for share in (0, 0.25, 1)] == [-1, -0.5, 1]
    assert Range(1, 100, 10, log=True).at(0.25) == pytest.approx(10**0.5)
    whole = Range(1, 9, 3, log=True, whole=True)
    assert {whole.at(share / 100) for share in range(101)} == set(range(1, 10))
    assert all(isinstance(whole.at(share / 10), int) for share in range(11))
    assert (whole.kind, Range(0, 1, 0).kind) == (int, float)


def test_arguments_that_a_recipe_leaves_out_are_not_searched():
    from pml_ext.losses import KNNSoftmaxLoss, MeanGapLoss
    from pml_ext.miners import InverseDensityMiner

    assert "k" not in ranges(KNNSoftmaxLoss, {"k": None})
    assert ranges(KNNSoftmaxLoss, {"k": 5})["k"] == Range(1, 20, 5, log=True, whole=True)
    assert "negative_weight" not in ranges(KNNSoftmaxLoss, {"negative_weight": 0})
    assert ranges(InverseDensityMiner, {}) == {}
    assert ranges(MeanGapLoss, {"fraction": 0.02})["fraction"] == Range(0.02, 1, 0.02)
    assert ranges(dict, {}) == {}


@pytest.mark.parametrize("name", SPACES)
def test_every_argument_of_the_table_exists(name):
    import pytorch_metric_learning.losses as pml_losses
    import pytorch_metric_learning.miners as pml_miners

    from pml_ext import _pml, centers, losses, miners, wrappers

    homes = (losses, miners, wrappers, centers, pml_losses, pml_miners)
    found = [getattr(home, name) for home in homes if hasattr(home, name)]
    if not found and _pml.HAS_TERMS:
        pytest.skip(f"about PML's own {name}, which is not there")
    assert found, "no class of that name"
    for argument in SPACES[name]:
        assert argument in spaces.arguments(found[0])
