"""Recipes of one's own, the catalog as a table, and what every recipe says of itself."""

import inspect
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from torch import nn

import pml_ext
from pml_ext import catalog, spaces
from pml_ext.analysis.explain import explain
from pml_ext.catalog import Entry, build, described, recipe, recipes, registry, required, space
from pml_ext.losses import BatchAllTripletLoss, KNNSoftmaxLoss, RAWLoss
from pml_ext.miners import KNearestNegativeMiner
from pml_ext.spaces import Range


@pytest.fixture(autouse=True)
def own_recipes(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "entries", registry.entries.copy())


def test_a_recipe_of_ones_own_is_one_function():
    @recipe("Mine", source="nowhere")
    def mine(
        num_classes: int,
        *,
        alpha: float = 8,
        gamma: Annotated[float, Range(0.1, 0.9, 0.4)] = 0.4,
        miner_k: int = 5,
        **kwargs: Any,
    ) -> tuple[RAWLoss, KNearestNegativeMiner]:
        assert num_classes
        return RAWLoss(alpha=alpha, gamma=gamma, **kwargs), KNearestNegativeMiner(k=miner_k)

    assert mine(3)[0].alpha == 8, "what it decorates stays a function"
    assert required("Mine") == ("num_classes",)
    assert space("Mine") == {
        "alpha": Range(1.6, 40, 8, log=True),
        "beta": Range(12.5, 200, 50, log=True),
        "gamma": Range(0.1, 0.9, 0.4),
        "epsilon": Range(0.02, 0.5, 0.1, log=True),
        "miner.k": Range(1, 20, 5, log=True, whole=True),
    }
    made = build("Mine", num_classes=4, beta=30, chunk_size=2, **{"miner.k": 2})
    assert (made.loss.alpha, made.loss.beta, made.loss.chunk_size, made.miner.k) == (8, 30, 2, 2)
    assert build("Mine", num_classes=4, miner_k=2).miner.k == 2
    assert "Mine" in recipes
    assert "Mine" in repr(recipes)


def test_an_argument_given_under_two_names_is_refused():
    with pytest.raises(TypeError, match=r"BinDeviance2018 was given miner_epsilon twice, once as miner\.epsilon"):
        build("BinDeviance2018", miner_epsilon=0.1, **{"miner.epsilon": 0.2})
    with pytest.raises(TypeError, match=r"CenterNCA was given alpha twice"):
        build("CenterNCA", alpha=1, **{"loss.alpha": 2})


def test_a_name_is_taken_by_one_function_only():
    def other():
        return RAWLoss()

    with pytest.raises(ValueError, match=r"the name 'RAW' is taken, by pml_ext\.losses\.raw\.RAWLoss"):
        recipe("RAW", source="nowhere")(other)
    recipe("RAW", source="the same again")(RAWLoss)  # a cell of a notebook that is run again
    assert recipes["RAW"].source == "the same again"


def test_a_recipe_that_needs_more_than_sizes_is_built_and_searched_by_its_annotations():
    @recipe("Weighted", source="nowhere")
    def weighted(loss: nn.Module, *, alpha: Annotated[float, Range(1, 9, 3)] = 3) -> nn.Module:
        assert alpha
        return loss

    assert space("Weighted") == {"alpha": Range(1, 9, 3)}
    assert isinstance(build("Weighted", loss=RAWLoss()).loss, RAWLoss)
    assert "weighted" in repr(recipes)


def test_looking_at_a_recipe_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _ = Entry("MCA", recipes["MCA"].make, "").space
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", recipes)
def test_an_override_that_changes_nothing_makes_the_same(name):
    """What a recipe repeats of its parts' defaults is what it says: a default given again is no difference."""
    known = dict.fromkeys(required(name), 4)
    entry = recipes[name]
    given = {key: p.default for key, p in entry.parameters.items() if p.default is not p.empty}
    again, plain = build(name, **known, **given), build(name, **known)
    assert described(again.loss) == described(plain.loss)
    assert repr(again.miner) == repr(plain.miner)


@pytest.mark.parametrize("name", [each for each in recipes if not inspect.isclass(recipes[each].make)])
def test_every_parameter_of_a_recipe_arrives(name):
    """Each that has a target is the argument of that part; the others make a part, or decide between parts."""
    entry = recipes[name]
    missed = set(entry.parameters) - set(entry.targets.values()) - {"kwargs"}
    known = {"detach", "distance", "centers", "num_classes", "embedding_size", "pos_margin", "neg_margin"}
    assert missed <= {*known, "rank_weight", "calibration_weight"}
    for keyword in space(name):
        assert entry.parameter(keyword) in {*entry.parameters, *spaces.arguments(type(entry.default.loss))}


def test_the_table_of_recipes():
    lines = repr(recipes).splitlines()
    assert len(lines) == len(recipes) + 1
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("BinDeviance2018 ") and "BinomialDevianceLoss + HardNeg" in line for line in lines)


def test_the_table_in_a_notebook_is_escaped():
    recipe("<b>Mine</b>", source="<script>")(BatchAllTripletLoss)
    page = recipes._repr_html_()
    assert "&lt;b&gt;Mine" in page
    assert "<script>" not in page


def test_the_table_in_a_notebook_has_formulas():
    page = recipes._repr_html_()
    assert page.count("<tr>") == len(recipes) + 1
    assert len(re.findall(r'scope="row">\w+</th><td class="words">L(?:_.)? +=', page)) > 50, "a formula of most"
    assert 'scope="row">CenterPair</th><td class="words">L_i = log sum_{N_i} exp(-min(D_in, neg_margin))' in page


def test_short_names_of_sources_are_told():
    shown = [path.read_text(encoding="utf-8") for path in Path(pml_ext.__file__).parent.rglob("*.py")]
    used = {key for text in shown for key in re.findall(r"\bDM\d\d\b", text)}
    assert used == set(catalog.KEYS)
    assert not [text for text in shown if re.search(r"\bzoo'?s?\b", text)], "what zoo is not said anywhere"
    page = explain(build("Contrastive2018"))
    assert all(f"{key} is {meaning}." in page for key, meaning in catalog.KEYS.items())
    assert "DM20 is" not in explain(build("RAW"))
    assert all(f"{key} is {meaning}" in catalog.tables() for key, meaning in catalog.KEYS.items())


def test_only_public_names_are_listed():
    assert dir(catalog) == sorted(catalog.__all__)
    assert all(getattr(catalog, name) is not None for name in catalog.__all__)


def test_what_differs_from_the_defaults_is_described():
    assert described(KNNSoftmaxLoss()) == "KNNSoftmaxLoss()"
    assert described(KNNSoftmaxLoss(k=None, distance=LpDistance())) == ("KNNSoftmaxLoss(k=None, distance=LpDistance())")
    assert described(build("EnsembleDWNeighbour").loss).startswith("RandomSliceLoss(loss=MinedLoss(loss=Binomial")


def test_the_former_name_of_required_says_the_new_one():
    with pytest.warns(DeprecationWarning, match="needs is called required now: from pml_ext.catalog import required"):
        assert catalog.needs is catalog.required
    with pytest.raises(AttributeError, match="has no attribute 'neds'"):
        _ = catalog.neds
