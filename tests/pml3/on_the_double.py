"""The registry on the double of PML 3: run by `test_pml3.py` in a process of its own, in which the double is PML.

Its environment says which answers of the double are the other ones, and how much of the laws to run.
"""

import copy
import json
import os
import sys
from pathlib import Path

import pytest
import pytorch_metric_learning
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.switches import FLIPPED, SWITCHES
from registry import LOSSES, MINERS, RECIPES, STATEFUL, WRAPPERS, exceptions
from test_laws import STATE, Method, dimension_of

from pml_ext import _pml, accelerate, catalog, mine, pair_weights
from pml_ext.analysis import EmbeddingHealth
from pml_ext.analysis.curves import compares_samples
from pml_ext.benchmark import Experiment, plots, run
from pml_ext.benchmark.losses import build
from pml_ext.centers import BatchCenters
from pml_ext.losses import (
    BinomialDevianceLoss,
    HistogramLoss,
    KNNSoftmaxLoss,
    LargeMarginNearestNeighborLoss,
    SoftTripletLoss,
)
from pml_ext.miners import HardNegativePairMiner, KNearestPositiveMiner
from pml_ext.pairs import label_masks
from pml_ext.testing import LOSS_LAWS, MINER_LAWS, check_loss, check_miner
from pml_ext.testing.questions import NOT_ASKED, QUESTIONS
from pml_ext.trainers import NPairTupleMiner
from pml_ext.wrappers import (
    AnchorWeightedLoss,
    BranchDiversityRegularizer,
    BranchLoss,
    CentersAsReferences,
    CrossBatchMemory,
    MinedLoss,
    SelfSupervisedLoss,
)

ALL_LOSSES = LOSSES | WRAPPERS
# A few of every kind: rows, a batch, samples with weights, classes; wrappers with one number and with terms.
FEW = {
    "RAWLoss",
    "HistogramLoss",
    "CenterLoss",
    "ClassCenterMarginLoss",
    "AnchorWeightedLoss",
    "CentersAsReferences",
    "MinedLoss",
    "HardNegativePairMiner",
    "CappedMiner",
    "GuidedMiner",
}
# "few"; "every" law of everything, as shipped; "all", in all regimes too, and what is expected to fail has to.
HOW = os.environ.get("PML3_LAWS", "few")
THOROUGH = HOW != "few"
TRIED = {"examples": 2} if HOW == "all" else {"examples": 2, "regimes": ()}
# What has nothing to do with PML, or takes long.
ELSEWHERE = ("compiles_as_one_graph", "it_learns", "large_batches_agree_with_autograd")
LAWS_OF_FEW = (
    "any_batch_has_a_finite_loss",
    "degenerate_batches_have_a_finite_loss",
    "empty_batch_costs_nothing",
    "no_references_cost_nothing",
    "one_pair_of_each_kind_is_enough",
    "every_distance_is_welcome",
    "all_pairs_equal_labels",
    "pairs_need_no_labels",
    "references_equal_to_the_batch_agree",
    "references_are_a_set",
    "negated_distance_agrees",
    "hand_written_gradients_agree_with_autograd",
    "loss_dict_is_well_formed",
    "reducers_are_obeyed",
    "losses_are_one_per_anchor",
    "copies_are_equal",
    "half_precision_is_close",
    "what_is_no_number_stays_with_its_anchor",
)


def expected(failures):
    """Laws that are known to be broken are left out, or in `all` have to be: that takes many examples."""
    return {"expected_failures": failures} if HOW == "all" else {"skip": failures}


def chosen(names):
    return [name for name in names if THOROUGH or name in FEW]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(12, 8, dtype=torch.float64, requires_grad=True), torch.arange(12) // 3


def test_this_is_the_double():
    assert Path(pytorch_metric_learning.__file__).parent.parent.name == "double"
    assert _pml.HAS_TERMS
    assert not hasattr(losses.BaseMetricLossFunction, "get_default_distance")


@pytest.mark.parametrize("name", chosen(ALL_LOSSES))
def test_loss_keeps_the_laws(name):
    loss = ALL_LOSSES[name]()
    laws = [law for law in LOSS_LAWS if law not in ELSEWHERE and (THOROUGH or law in LAWS_OF_FEW)]
    known = {law: reason for law, reason in exceptions(loss, name).items() if law in laws}
    check_loss(loss, only=laws, **expected(known), **TRIED)


@pytest.mark.parametrize("name", chosen(MINERS))
def test_miner_keeps_the_laws(name):
    miner = MINERS[name]()
    check_miner(miner, only=MINER_LAWS, **expected(exceptions(miner, name)), **TRIED)


@pytest.mark.parametrize("name", STATEFUL)
def test_what_remembers_keeps_the_laws_of_state(name):
    if THOROUGH:
        check_loss(STATEFUL[name](), only=STATE, dimension=4, examples=2)


# What these are made of is PML's own, of which the double has the simplest.
THEIRS = ("DistanceWeighted", "Margin", "DistWeightMargin", "NPair", "SoftTriple", "XBM")


def test_recipes_have_the_values_of_pml_2(batch):
    of_pml_2 = json.loads(os.environ["PML3_EXPECTED"])
    embeddings, labels = batch
    compared = set()
    for name, (value, gradient) in of_pml_2.items():
        found, slope = value_of(name, embeddings, labels)
        if name in THEIRS:
            assert torch.isfinite(torch.tensor(found)), name
            continue
        assert found == pytest.approx(value, rel=1e-9, abs=1e-12), name
        assert slope == pytest.approx(gradient, rel=1e-9, abs=1e-12), name
        compared.add(name)
    assert len(compared) > 40


def value_of(name, embeddings, labels):
    """The value of a recipe on a batch, and the length of its gradient."""
    given = {"num_classes": 4, "embedding_size": 8}
    torch.manual_seed(1)
    method = Method(catalog.build(name, **{each: given[each] for each in catalog.required(name)}))
    value = method(embeddings, labels)
    (gradient,) = torch.autograd.grad(value, embeddings)
    return value.item(), gradient.norm().item()


def test_recipes_run_without_and_with_everything(batch):
    if THOROUGH:
        for name in RECIPES:
            method = Method(RECIPES[name]())
            check_loss(
                method,
                only=["any_batch_has_a_finite_loss", "empty_batch_costs_nothing"],
                skip=exceptions(method.loss, name),
                dimension=dimension_of(name),
                examples=2,
            )


def agree(first, second, embeddings):
    (a,), (b,) = (torch.autograd.grad(value, embeddings, retain_graph=True) for value in (first, second))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(a, b)


def test_references_that_are_given_are_a_set_of_their_own(batch):
    embeddings, labels = batch
    for loss in (BinomialDevianceLoss(), HistogramLoss(), MinedLoss(KNNSoftmaxLoss(), KNearestPositiveMiner())):
        same = loss(embeddings, labels, None, embeddings, labels)
        copies = loss(embeddings, labels, None, embeddings * 1, labels.clone())
        agree(same, copies, embeddings)
        assert not torch.allclose(same, loss(embeddings, labels))


def test_masks_and_index_tuples_say_the_same(batch):
    embeddings, labels = batch
    masks = label_masks(labels, labels)
    pairs = tuple(x for x in masks.indices())
    for loss in (BinomialDevianceLoss(), HistogramLoss(), BranchLoss(BinomialDevianceLoss(), 2)):
        agree(loss(embeddings, None, masks), loss(embeddings, labels), embeddings)
        agree(loss(embeddings, None, pairs), loss(embeddings, labels), embeddings)
        agree(loss(embeddings, labels, tuple(x.int() for x in pairs)), loss(embeddings, labels), embeddings)
        # Without labels, with references.
        others = embeddings.detach() * 0.5 + 1
        agree(loss(embeddings, None, masks, others), loss(embeddings, labels, None, others, labels), embeddings)


def test_what_pml_asks_for_by_itself(batch):
    """`loss_terms` and `objective_terms`, as a wrapper of PML may call them, past our `forward`."""
    embeddings, labels = batch
    for loss in (BinomialDevianceLoss(), HistogramLoss()):
        terms = loss.loss_terms(embeddings, labels)
        agree(loss.reducer._reduce_all(terms, embeddings, labels), loss(embeddings, labels), embeddings)
        others = embeddings.detach() * 0.5 + 1
        terms = loss.objective_terms(embeddings, labels, None, others, labels)
        expected = loss(embeddings, labels, None, others, labels)
        agree(loss.reducer._reduce_all(terms, embeddings, labels), expected, embeddings)


@pytest.mark.parametrize("loss", [BinomialDevianceLoss, HistogramLoss, LargeMarginNearestNeighborLoss])
def test_penalties_are_added_once(loss, batch):
    embeddings, labels = batch
    penalty = 0.25 * embeddings.norm(dim=1).mean()
    given = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.25}
    for make in (
        lambda **kwargs: loss(**kwargs),
        lambda **kwargs: BranchLoss(loss(), 2, **kwargs),
        lambda **kwargs: BranchLoss(loss(**kwargs), 1, normalize=False),
        lambda **kwargs: MinedLoss(loss(), HardNegativePairMiner(), **kwargs),
        lambda **kwargs: CentersAsReferences(loss(), BatchCenters(), **kwargs),
    ):
        agree(make(**given)(embeddings, labels), make()(embeddings, labels) + penalty, embeddings)


def test_penalties_of_what_an_anchor_weight_is_put_on(batch):
    embeddings, labels = batch
    penalty = 0.25 * embeddings.norm(dim=1).mean()
    given = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.25}
    for make in (BinomialDevianceLoss, losses.TripletMarginLoss, losses.ContrastiveLoss):
        expected = AnchorWeightedLoss(make())(embeddings, labels) + penalty
        agree(AnchorWeightedLoss(make(**given))(embeddings, labels), expected, embeddings)
        agree(AnchorWeightedLoss(make(), **given)(embeddings, labels), expected, embeddings)


def test_reducers(batch):
    """A loss that counts for itself: its divisor reaches DivisorReducer, and no other reducer sees it."""
    embeddings, labels = batch
    loss = SoftTripletLoss(normalization="triplet")
    assert _pml.divides(loss.reducer, "loss")
    assert not _pml.divides(reducers.MeanReducer(), "loss")
    value = loss(embeddings, labels)
    total = SoftTripletLoss(normalization="triplet", reducer=reducers.SumReducer())(embeddings, labels)
    count = (total / value).item()
    assert count == pytest.approx(round(count))
    assert 12 < count < 12 * 2 * 9
    for reducer in (reducers.DivisorReducer(), reducers.MultipleReducers({"loss": reducers.DivisorReducer()})):
        given = SoftTripletLoss(normalization="triplet", reducer=reducer)
        agree(given(embeddings, labels), value, embeddings)
    # Of no triplet there is no mean.
    assert loss(embeddings, torch.arange(12)).item() == 0


@pytest.mark.parametrize("inner", [losses.ContrastiveLoss, losses.TripletMarginLoss])
def test_wrappers_around_losses_of_pml(inner, batch):
    embeddings, labels = batch
    for miner in (None, miners.MultiSimilarityMiner(), miners.TripletMarginMiner(), HardNegativePairMiner()):
        pairs = None if miner is None else miner(embeddings, labels)
        memory = CrossBatchMemory(inner(), 8, memory_size=24, miner=miner)
        expected = inner()(embeddings, labels, pairs)
        torch.testing.assert_close(memory(embeddings, labels), expected)
        memory(embeddings * 0.9 + 0.1, labels).backward()
        if miner is not None:
            agree(MinedLoss(inner(), miner)(embeddings, labels), expected, embeddings)
    CentersAsReferences(inner(), BatchCenters())(embeddings, labels).backward()
    views = embeddings[:4], embeddings[4:8], embeddings[8:]
    for symmetric in (True, False):
        SelfSupervisedLoss(inner(), symmetric)(*views).backward()


def test_miners_in_pml(batch):
    """PML calls a miner with candidates, or with references, without names."""
    embeddings, labels = batch
    miner, loss = HardNegativePairMiner(), BinomialDevianceLoss()
    together = losses.MultipleLosses({"loss": loss}, {"loss": miner}, {"loss": 2.0})
    mined = miner(embeddings, labels)
    n_pairs = NPairTupleMiner()
    triplets = losses.MultipleLosses({"loss": losses.TripletMarginLoss()}, {"loss": n_pairs})
    agree(triplets(embeddings, labels), losses.TripletMarginLoss()(embeddings, labels, n_pairs(*batch)), embeddings)
    with pytest.raises(ValueError, match="takes no indices_tuple"):
        n_pairs(embeddings, labels, mined)
    assert type(mined) is _pml.PairIndices
    assert _pml.PairIndices.__module__.startswith("pytorch_metric_learning")
    agree(together(embeddings, labels), 2 * loss(embeddings, labels, mined), embeddings)
    others = embeddings.detach() * 0.5 + 1
    mined = miner(embeddings, labels, ref_emb=others, ref_labels=labels)
    expected = 2 * loss(embeddings, labels, mined, others, labels)
    agree(together(embeddings, labels, None, others, labels), expected, embeddings)


def test_a_regularizer_is_a_number(batch):
    embeddings, labels = batch
    regularizer = BranchDiversityRegularizer(2, beta=4)
    assert isinstance(regularizer, regularizers.BaseRegularizer)
    loss = BinomialDevianceLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.5)
    expected = BinomialDevianceLoss()(embeddings, labels) + 0.5 * regularizer(embeddings)
    agree(loss(embeddings, labels), expected, embeddings)
    # Of one sample there is no diversity, and no gradient.
    one = embeddings.detach()[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(regularizer(one), one)
    assert gradient.eq(0).all()


def test_the_benchmark_trains_losses_of_either_and_methods(tmp_path, monkeypatch):
    """Without trainers, testers and record-keeper."""
    monkeypatch.setitem(sys.modules, "record_keeper", None)
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    every = ("RAW", "TripletMarginLoss", "pml:MarginLoss + pml:MultiSimilarityMiner", "SoftTripleLoss", "HDML-NPair")
    said = []
    small = Experiment(losses=every, data="digits", epochs=1, steps=2, out=str(tmp_path / "out"))
    results = run(small, say=said.append)
    assert [one.loss for one in results] == ["untrained", *every]
    assert not [one.error for one in results if one.error]
    assert sum("record-keeper is not installed" in line for line in said) == 1
    with pytest.raises(ValueError, match="unknown PML loss"):
        build("pml:BaseProxyLoss", classes=4, embedding_size=8)


DISTANCES = [
    distances.LpDistance(),
    distances.LpDistance(p=1, power=2),
    distances.LpDistance(power=0.5, normalize_embeddings=False),
    distances.CosineSimilarity(),
    distances.DotProductSimilarity(),
]


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda each: type(each).__name__)
def test_distances_of_others_are_asked(distance, batch):
    """Those of PML's own losses and of one's own calls, which nothing has been written on."""
    embeddings, labels = batch
    loss = losses.TripletMarginLoss(distance=copy.deepcopy(distance))
    found = pair_weights(loss, embeddings, labels)
    scores = found.similarity
    assert bool((found.derivative[found.pos] <= 0).all()), "positives are pulled"
    assert bool((found.derivative[found.neg] >= 0).all()), "negatives are pushed"
    sign = -1 if distance.margin(1.0, 0.0) > 0 else 1
    torch.testing.assert_close(scores, sign * distance(embeddings))
    found = mine(embeddings.detach(), labels, num_negatives=3, distance=copy.deepcopy(distance))
    masked = scores.masked_fill(labels.unsqueeze(1) == labels, -torch.inf)
    assert torch.equal(found.negatives.sort().values, masked.topk(3).indices.sort().values)
    loss = losses.TripletMarginLoss(distance=copy.deepcopy(distance))
    health = EmbeddingHealth(loss, every=1)
    loss(embeddings, labels).backward()
    assert health.step(0).pull > 0
    assert compares_samples(losses.TripletMarginLoss(distance=copy.deepcopy(distance)))


@pytest.mark.parametrize("make", [losses.ContrastiveLoss, losses.TripletMarginLoss])
def test_the_laws_are_for_losses_of_others_too(make):
    for distance in (None, distances.CosineSimilarity(), distances.LpDistance(power=2, normalize_embeddings=False)):
        # What is not of this package needs no options of it.
        laws = ("rotation_changes_nothing", "length_changes_nothing", "batch_order_is_irrelevant", "it_learns")
        check_loss(lambda: make(distance=copy.deepcopy(distance)), only=laws, examples=2)  # noqa: B023


def test_a_distance_with_another_fact(batch):
    embeddings = batch[0].detach()
    for kind, given in (
        (distances.LpDistance, {"p": 1, "power": 0.5}),
        (distances.LpDistance, {"power": 2, "normalize_embeddings": False}),
        (distances.DotProductSimilarity, {"power": 3}),
    ):
        distance = kind(**given)
        _pml.describe(distance)
        assert {name: getattr(distance, name) for name in given} == given
        plain = _pml.with_facts(distance, power=1)
        torch.testing.assert_close(plain(embeddings), kind(**given | {"power": 1})(embeddings))
        plain = _pml.with_facts(distance, normalize_embeddings=False)
        torch.testing.assert_close(plain(embeddings), kind(**given | {"normalize_embeddings": False})(embeddings))
    cosine = distances.CosineSimilarity(power=2)
    _pml.describe(cosine)
    plain = _pml.with_facts(cosine, normalize_embeddings=False)
    torch.testing.assert_close(plain(embeddings), (embeddings @ embeddings.T) ** 2)
    assert plain.is_inverted
    torch.testing.assert_close(_pml.with_facts(cosine, power=1)(embeddings), distances.CosineSimilarity()(embeddings))


class Weighted(distances.BaseDistance):
    """A distance with weights, which takes vectors of 8 dimensions and no others."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(8, dtype=torch.float64))

    def forward(self, query, ref=None):
        return torch.cdist(query * self.weight, (query if ref is None else ref) * self.weight)


def test_a_distance_with_weights_cannot_be_asked_for_everything(batch):
    distance = Weighted()
    BinomialDevianceLoss(distance=distance)(*batch).backward()
    assert distance.weight.grad.any()
    assert not distance.is_inverted


def test_what_version_3_has_no_more_is_refused():
    with pytest.raises(TypeError, match="no argument 'collect_stats'"):
        BinomialDevianceLoss(collect_stats=True)
    with pytest.raises(TypeError, match=r"CappedMiner\(miner, 3\) keeps so many"):
        HardNegativePairMiner(tuples_per_anchor=3)
    with pytest.raises(ImportError, match="HardnessAwareLoss is the same method"):
        from pml_ext.trainers import HardnessAwareTrainer  # noqa: F401
    with pytest.raises(ValueError, match="those of PML 3 differ"):
        accelerate(losses.ContrastiveLoss())
    for package in ("pml_ext", "pml_ext.trainers", "pml_ext.wrappers", "pml_ext.evaluation"):
        exec(f"from {package} import *", {})


def test_a_loss_that_raises_leaves_no_trace(batch):
    loss = BinomialDevianceLoss(reducer=Raising())
    with pytest.raises(RuntimeError, match="no"):
        loss(*batch)
    assert loss._terms is None


class Raising(reducers.BaseReducer):
    def _reduce_all(self, terms, embeddings, labels):
        raise RuntimeError("no")


def test_the_double_is_asked_as_a_real_one_would_be():
    by_name = {question.name: question for question in QUESTIONS}
    assert by_name.keys() >= SWITCHES.keys()
    for question in QUESTIONS:
        answer = question.answer().split(" (")[0]
        assert answer != NOT_ASKED
        assert answer in question.answers, f"{question.name}: {answer}"
    for name in SWITCHES:
        answer = by_name[name].answer().split(" (")[0]
        assert answer == by_name[name].answers[name in FLIPPED], name
