"""Pair weights: closed forms, golden values, the weights of any loss, and losses that are defined by their weights."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from of_pml import LpRegularizer, distances, miners, needs, reducers
from of_pml import losses as pml
from registry import LOSSES, WRAPPERS, exceptions
from torch import nn
from toy import toy

from pml_ext import _pml, catalog, losses, weightings, wrappers
from pml_ext.analysis import NoPairWeightsError, pair_weights
from pml_ext.base import MatrixLoss
from pml_ext.centers import BatchCenters
from pml_ext.losses import PairWeightedLoss
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner
from pml_ext.pairs import PairMasks
from pml_ext.testing import Batch
from pml_ext.testing.cases import all_pairs, as_pairs

COSINE, SUM = distances.CosineSimilarity, reducers.SumReducer
# A weighting, settings of it, and the loss whose sum over the anchors has these weights.
SIX = {
    "contrastive": (
        weightings.contrastive,
        {"neg_margin": 0.5},
        lambda **k: losses.AnchorContrastiveLoss(pos_margin=1, average=False, **k),
    ),
    "triplet": (weightings.triplet, {"margin": 0.2}, losses.BatchAllTripletLoss),
    "lifted structure": (
        weightings.lifted_structure,
        {"neg_margin": 0, "pos_margin": 0.5},
        losses.GeneralizedLiftedStructureLoss,
    ),
    "binomial deviance": (
        weightings.binomial_deviance,
        {"alpha": 2, "beta": 50, "base": 0.5},
        lambda **k: losses.BinomialDevianceLoss(scale=k["alpha"], balance=k["beta"] / k["alpha"], **k),
    ),
    "multi-similarity": (
        weightings.multi_similarity,
        {"alpha": 2, "beta": 50, "base": 0.5},
        losses.MultiSimilarityLoss,
    ),
    "RAW": (weightings.raw, {"alpha": 2, "beta": 50, "gamma": 0.5, "epsilon": 0.1}, losses.RAWLoss),
    "RAW, no margin": (weightings.raw, {"alpha": 0.5, "beta": 0.5, "gamma": 0.5, "epsilon": 0}, losses.RAWLoss),
}
BATCHES = {
    "T6": toy(6),
    "T9": toy(9),
    **{
        str(sizes): (Batch(sizes, 5, seed=seed).embeddings, Batch(sizes, 5, seed=seed).labels)
        for seed, sizes in enumerate(((4, 4, 4), (7, 2, 3), (5, 1, 2), (1, 1, 6), (2, 1), (3,)))
    },
}


def summed(make, hyper, **kwargs):
    return make(**hyper, reducer=SUM(), **({"distance": COSINE()} | kwargs))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SIX)
def test_closed_form_is_the_derivative_of_its_loss(name, batch):
    (embeddings, labels), (weighting, hyper, make) = BATCHES[batch], SIX[name]
    found = pair_weights(summed(make, hyper), embeddings, labels)
    needs = weighting.needs
    defined = {"both": found.pos.any(1) & found.neg.any(1), "either": (found.pos | found.neg).any(1)}[needs]
    closed = weighting(found.similarity, found.pos, found.neg, **hyper)
    closed = torch.where((found.pos | found.neg) & defined.unsqueeze(1), closed, 0.0)
    torch.testing.assert_close(found.weights, closed, rtol=0, atol=1e-10)
    assert (found.derivative[found.pos] <= 0).all()
    assert (found.derivative[found.neg] >= 0).all()
    assert not found.derivative[~(found.pos | found.neg)].any()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SIX)
def test_loss_defined_by_weights_has_the_gradient_of_its_loss(name, batch):
    (embeddings, labels), (weighting, hyper, make) = BATCHES[batch], SIX[name]
    x = embeddings.clone().requires_grad_()
    (expected,) = torch.autograd.grad(summed(make, hyper)(x, labels), x)
    loss = PairWeightedLoss(weighting, **hyper, reducer=SUM())
    (actual,) = torch.autograd.grad(loss(x, labels), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    found = pair_weights(summed(make, hyper), embeddings, labels)
    torch.testing.assert_close(pair_weights(loss, embeddings, labels).derivative, found.derivative, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SIX)
def test_levels_of_a_weighting_follow_the_distance(name):
    weighting, hyper, make = SIX[name]
    embeddings, labels = BATCHES["(7, 2, 3)"]
    x = embeddings.clone().requires_grad_()
    # The first loss has its positives' level at a similarity of 1, where no other distance has it.
    if name == "contrastive":
        hyper, make = {"neg_margin": 1.2}, lambda **k: losses.AnchorContrastiveLoss(pos_margin=0, average=False, **k)
    distance = distances.LpDistance()
    (expected,) = torch.autograd.grad(summed(make, hyper, distance=distance)(x, labels), x)
    assert expected.any()
    loss = PairWeightedLoss(weighting, **hyper, distance=distance, reducer=SUM())
    (actual,) = torch.autograd.grad(loss(x, labels), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


# The worked values of the six losses on T6: the sum over the anchors, and rows of W; None was not worked out.
GOLDEN = {
    "contrastive": (7.9552, {0: [0, 1, 1, 1, 0, 0], 2: [1, 1, 0, 1, 1, 0]}),
    "triplet": (9.376, {0: [0, 0, 1, 1, 0, 0], 2: [3, 3, 0, 2, 2, 2]}),
    "lifted structure": (
        12.5642831483,
        {0: [0, 0.3362613026, 0.6637386974, 0.6125329341, 0.2364183041, 0.1510487619]},
    ),
    "binomial deviance": (42.1776083563, {0: [0, 0.2849578943, 0.6082590307, 16.5551191513, 0, 0]}),
    "multi-similarity": (5.0911879790, {0: [0, 0.1350350688, 0.5261227307, 0.9933071491, 0, 0]}),
    "RAW": (
        6 * 0.8102010029831784,
        {
            0: [0, 0, 0.6082590307, 0.9933071491, 0, 0],
            1: [0, 0, 0.4812088546, 0.9999996941, 0, 0],
            2: [0.4461462390, 0.2665193339, 0, 0.9988874636, 0.0011125360, 2.1e-13],
            3: [0.0000000505, 0.0011125360, 0.9988874132, 0, 0.1996534532, 0.5851002089],
            4: [0, 0, 0.9999996941, 0.3815630288, 0, 0.2070739654],
            5: [0, 0, 0.0006108794, 0.7310585786, 0, 0],
        },
    ),
    "RAW, no margin": (
        6 * 3.7117777000,
        {
            0: [0, 0, 0.5274723043, 0.5124973965, 0, 0],
            1: [0, 0, 0.4953001384, 0.5374298453, 0, 0],
            2: [0.3603624494, 0.3168125674, 0, 0.2869313294, 0.2680685997, 0.2142712888],
            3: [0.2358859442, 0.2606942855, 0.2790381193, 0, 0.3005375473, 0.3932213542],
            4: [0, 0, 0.5374298453, 0.4953001384, 0, 0],
            5: [0, 0, 0.4815084375, 0.5621765009, 0, 0],
        },
    ),
}


@pytest.mark.parametrize("name", SIX)
def test_golden_weights(name):
    _, hyper, make = SIX[name]
    value, rows = GOLDEN[name]
    found = pair_weights(summed(make, hyper), *toy(6))
    # Given to ten decimals, the smallest of binomial deviance ("about 0") to seven.
    assert found.loss.item() == pytest.approx(value, abs=1e-9)
    for i, row in rows.items():
        expected = torch.tensor(row, dtype=torch.float64)
        torch.testing.assert_close(found.weights[i], expected, rtol=0, atol=2e-10 if "RAW" in name else 1e-7)


def reconstructed(found, distance, embeddings, references=None):
    """The gradient by the embeddings that the weights say the loss has."""
    x = embeddings.clone().requires_grad_()
    sim = distance(x, references) * _pml.sign(distance)
    (gradient,) = torch.autograd.grad((found.derivative * sim).sum(), x)
    return gradient + found.beyond


def gradient(loss, embeddings, **call):
    torch.manual_seed(1)
    x = embeddings.clone().requires_grad_()
    return torch.autograd.grad(copy.deepcopy(loss)(x, **call).sum(), x)[0]


NUMBERS = {"num_classes": 4, "embedding_size": 8, "descriptors_dim": 8, "margin": 0.4, "Tn": 2, "K": 4, "l": 8}
# What comes of each loss of PML: "pairs" of the batch, "others" that it compares instead, or why there are no weights.
OF_PML = {
    "AngularLoss": "it takes angles of triplets, and only normalizes with its distance",
    "ArcFaceLoss": "others",
    "CircleLoss": "pairs",
    "ContrastiveLoss": "pairs",
    "CosFaceLoss": "others",
    "DynamicSoftMarginLoss": "pairs",
    "FastAPLoss": "pairs",
    "GeneralizedLiftedStructureLoss": "pairs",
    "HistogramLoss": "pairs",
    "InstanceLoss": "pairs",
    "IntraPairVarianceLoss": "pairs",
    "LargeMarginSoftmaxLoss": "others",
    "LiftedStructureLoss": "pairs",
    "ManifoldLoss": "others",
    "MarginLoss": "pairs",
    "MultiSimilarityLoss": "pairs",
    "NCALoss": "pairs",
    "NPairsLoss": "others",
    "NTXentLoss": "pairs",
    "NormalizedSoftmaxLoss": "others",
    "P2SGradLoss": "it multiplies with its proxies by itself",
    "PNPLoss": "pairs",
    "ProxyAnchorLoss": "others",
    "ProxyNCALoss": "others",
    "RankedListLoss": "pairs",
    "SignalToNoiseRatioContrastiveLoss": "pairs",
    "SmoothAPLoss": "pairs",
    "SoftTripleLoss": "others",
    "SphereFaceLoss": "others",
    "SubCenterArcFaceLoss": "others",
    "SupConLoss": "pairs",
    "ThresholdConsistentMarginLoss": "it takes cosines by itself",
    "TripletMarginLoss": "pairs",
    "TupletMarginLoss": "pairs",
    "VICRegLoss": "it compares sample i with its second view only, by itself",
}
OF_PML = {name: compared for name, compared in OF_PML.items() if hasattr(pml, name)}  # SmoothAPLoss is of PML 2.9
ABSTRACT = {"BaseMetricLossFunction", "GenericPairLoss", "BaseLossWrapper"}
OF_LOSSES = {"CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss"}


def of_pml(name):
    cls = getattr(pml, name)
    required = {
        p.name
        for base in cls.__mro__
        if "__init__" in vars(base)
        for p in inspect.signature(base.__init__).parameters.values()
        if p.default is p.empty
    }
    required |= {"K"} if name == "ManifoldLoss" else set()
    return cls(**{k: v for k, v in NUMBERS.items() if k in required}).double()


@pytest.mark.pml2("its list of losses")
def test_the_list_is_all_of_pml():
    known = {name for name, cls in vars(pml).items() if inspect.isclass(cls) and issubclass(cls, nn.Module)}
    assert known == set(OF_PML) | ABSTRACT | OF_LOSSES


# PML indexes with a list, and some of its losses need an older numpy not to warn.
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # PML's HistogramLoss
@pytest.mark.filterwarnings("ignore:__array_wrap__")  # PML's LargeMarginSoftmaxLoss
@pytest.mark.parametrize("name", OF_PML)
def test_any_loss_of_pml(name):
    needs(name)
    loss, batch = of_pml(name), Batch((3, 3, 3, 3), 8, seed=3)
    x, call = batch.embeddings, {} if name in ("ManifoldLoss", "VICRegLoss") else {"labels": batch.labels}
    if name == "VICRegLoss":
        call["ref_emb"] = x.flip(0)
    if OF_PML[name] not in ("pairs", "others"):
        with pytest.raises(NoPairWeightsError, match=f"{name} never compares embeddings through its distance"):
            pair_weights(loss, x, **call)
        return
    found = pair_weights(loss, x, **call)
    assert found.given == (OF_PML[name] == "pairs")
    assert found.weights.any()
    if found.given:
        pos, neg = all_pairs(batch.labels)
        assert torch.equal(found.pos, pos)
        assert torch.equal(found.neg, neg)
        torch.testing.assert_close(
            reconstructed(found, loss.distance, x), gradient(loss, x, **call), rtol=1e-9, atol=1e-10
        )
    else:
        assert found.weights.shape[0] == (16 if name == "ManifoldLoss" else 4 if name == "NPairsLoss" else 12)
        assert torch.equal(found.pos, found.derivative < 0)
    # SmoothAP takes its positives' similarities past its distance; two scale their scores with the embeddings' norm.
    assert bool(found.beyond.any()) == (name in ("SmoothAPLoss", "LargeMarginSoftmaxLoss", "SphereFaceLoss"))


def test_losses_of_losses_of_pml():
    batch = Batch((3, 3, 3), 8, seed=3)
    x, labels = batch.embeddings, batch.labels
    both = pml.MultipleLosses({"a": pml.ContrastiveLoss(), "b": losses.RAWLoss()}, weights={"a": 1, "b": 0.5})
    found = pair_weights(both, x, labels)
    alone = [pair_weights(loss, x, labels) for loss in (pml.ContrastiveLoss(), losses.RAWLoss())]
    torch.testing.assert_close(found.derivative, torch.stack((alone[0].derivative, 0.5 * alone[1].derivative)))


@pytest.mark.pml2("its wrappers")
def test_losses_of_views_and_memories_of_pml():
    batch = Batch((3, 3, 3), 8, seed=3)
    x, labels = batch.embeddings, batch.labels
    views = pair_weights(pml.SelfSupervisedLoss(pml.NTXentLoss()), x, ref_emb=x.flip(0))
    assert views.weights.shape == (18, 18)
    memory = pml.CrossBatchMemory(pml.ContrastiveLoss(), 8, memory_size=32)
    memory(x, labels)
    assert pair_weights(memory, x, labels).weights.shape == (9, 18)


# Catalog entries that compare no pairs, those that compare other things than samples, and the comparisons of the rest.
NO_PAIRS = {"Center", "ClassCenterMargin"}
OTHERS = {"NPair", "SoftTriple"}
SEVERAL = {"BinBranch": 3, "DevBranch": 3, "BDWNeighbour": 3, "EnsembleDWNeighbour": 3, "JSDivBranch": 4}
CENTERS = {"CenterNCA", "CenterPair", "ClusterNCA", "KmeanNCA", "MCA"}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # PML's HistogramLoss
@pytest.mark.parametrize("name", catalog.recipes)
def test_any_entry_of_the_catalog(name):
    recipe = catalog.build(name, **{each: NUMBERS[each] for each in catalog.required(name)})
    loss, batch = recipe.loss.double(), Batch((3, 3, 3, 3), 8, seed=3)
    x, labels = batch.embeddings, batch.labels
    mined = None if recipe.miner is None else recipe.miner(x, labels)
    if name in NO_PAIRS:
        # Distances to centers pass PML 2's own call of a distance by, and are seen beside PML 3.
        is_seen = _pml.HAS_TERMS and name == "ClassCenterMargin"
        reason = "4 x 4 and 12 x 12" if is_seen else "never compares embeddings through its distance"
        with pytest.raises(NoPairWeightsError, match=reason):
            pair_weights(loss, x, labels, mined)
        return
    torch.manual_seed(1)
    found = pair_weights(loss, x, labels, mined)
    assert found.given == (name not in OTHERS)
    assert found.weights.any()
    comparisons = found.weights.shape[:-2]
    assert comparisons == ((SEVERAL[name],) if name in SEVERAL else comparisons[:1])
    # The law of signs holds for every one of them, and pairs that were not given have no weight.
    if "positives_are_pulled_and_negatives_pushed" not in exceptions(recipe.loss, name):
        assert (found.derivative[found.pos] <= 1e-12).all()
        assert (found.derivative[found.neg] >= -1e-12).all()
    assert not found.derivative[~(found.pos | found.neg)].any()
    assert bool(found.beyond.any()) == (name in ("NPair", "JSDivBranch"))  # they have a regularizer
    if not comparisons and name not in OTHERS | CENTERS | {"XBM"}:
        torch.testing.assert_close(
            reconstructed(found, loss.distance, x),
            gradient(loss, x, labels=labels, indices_tuple=mined),
            rtol=1e-9,
            atol=1e-10,
        )


@pytest.mark.parametrize("name", LOSSES | WRAPPERS)
def test_looking_leaves_no_trace(name):
    loss, batch = (LOSSES | WRAPPERS)[name](), Batch((3, 3, 3), 4, seed=3)
    x, labels = batch.embeddings, batch.labels
    untouched = copy.deepcopy(loss)
    random = torch.get_rng_state()
    try:
        pair_weights(loss, x, labels)
    except NoPairWeightsError:
        assert isinstance(loss, (losses.CenterLoss, losses.ClassCenterMarginLoss))
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loss.modules())
    for _ in range(2):
        torch.manual_seed(0)
        value = loss(x, labels)
        torch.manual_seed(0)
        assert torch.equal(value, untouched(x, labels))


def test_looking_is_what_the_next_call_does():
    loss, batch = wrappers.MinedLoss(pml.ContrastiveLoss(), InverseDensityMiner(seed=5)), Batch((4, 4, 4), 4, seed=3)
    for _ in range(3):
        found = pair_weights(loss, batch.embeddings, batch.labels)
        assert torch.equal(found.loss, loss(batch.embeddings, batch.labels))
    loss = catalog.build("DistanceWeighted")
    drawn = wrappers.MinedLoss(loss.loss, loss.miner)  # draws with torch's generator
    found = pair_weights(drawn, batch.embeddings, batch.labels)
    assert torch.equal(found.loss, drawn(batch.embeddings, batch.labels))


OF_REDUCERS = [
    reducers.MeanReducer(),
    reducers.SumReducer(),
    reducers.AvgNonZeroReducer(),
    reducers.ThresholdReducer(low=0.1),
    reducers.ClassWeightedReducer(torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)),
    reducers.DivisorReducer(),
    reducers.PerAnchorReducer(),
]


@pytest.mark.parametrize("reducer", OF_REDUCERS, ids=lambda reducer: type(reducer).__name__)
@pytest.mark.parametrize("make", [losses.RAWLoss, losses.BatchAllTripletLoss, pml.ContrastiveLoss])
def test_weights_are_exact_through_every_reducer(make, reducer):
    batch = Batch((3, 4, 2), 4, seed=3)
    try:
        loss = make(reducer=reducer)
        expected = gradient(loss, batch.embeddings, labels=batch.labels)
    except KeyError:  # PML's own loss has no divisor
        return
    found = pair_weights(loss, batch.embeddings, batch.labels)
    torch.testing.assert_close(reconstructed(found, loss.distance, batch.embeddings), expected, rtol=1e-9, atol=1e-10)
    if type(reducer) is reducers.MeanReducer and make is losses.RAWLoss:
        whole = pair_weights(losses.RAWLoss(reducer=SUM()), batch.embeddings, batch.labels)
        torch.testing.assert_close(found.derivative * 9, whole.derivative)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_change_nothing(chunk_size):
    batch = Batch((3, 4, 2), 4, seed=3)
    loss = wrappers.AnchorWeightedLoss(losses.RAWLoss(chunk_size=chunk_size))
    found = pair_weights(loss, batch.embeddings, batch.labels)
    whole = pair_weights(wrappers.AnchorWeightedLoss(losses.RAWLoss()), batch.embeddings, batch.labels)
    assert torch.equal(found.derivative, whole.derivative)
    assert loss.loss.chunk_size == chunk_size


@pytest.mark.parametrize("make", [losses.RAWLoss, pml.ContrastiveLoss, PairWeightedLoss])
def test_pairs_can_be_given_in_every_form(make):
    loss = make(weightings.raw) if make is PairWeightedLoss else make()
    batch = Batch((3, 4, 2), 4, seed=3, ref_sizes=(2, 3, 4))
    x, labels, refs, ref_labels = batch.embeddings, batch.labels, batch.ref_emb, batch.ref_labels
    found = pair_weights(loss, x, labels, None, refs, ref_labels)
    assert found.weights.shape == (9, 9)
    assert torch.equal(found.pos, labels[:, None] == ref_labels)
    if not _pml.HAS_TERMS:
        # The batch as its own references is the batch, no pair of a sample with itself; beside PML 3 it is another set.
        itself = pair_weights(loss, x, labels, None, x, labels)
        assert torch.equal(itself.derivative, pair_weights(loss, x, labels).derivative)
    masks = HardNegativePairMiner(as_masks=True)(x, labels)
    pairs = pair_weights(loss, x, labels, masks.indices())
    assert torch.equal(pairs.pos, masks.pos)
    assert torch.equal(pairs.neg, masks.neg)
    assert not pairs.derivative[~(masks.pos | masks.neg)].any()
    if make is not pml.ContrastiveLoss:
        by_masks = pair_weights(loss, x, None, masks)
        torch.testing.assert_close(by_masks.derivative, pairs.derivative)
    triplets = miners.TripletMarginMiner(margin=0.1)(x, labels)
    of_triplets = pair_weights(loss, x, labels, triplets)
    assert of_triplets.pos.sum() == len(torch.stack(triplets[:2]).unique(dim=1).T)


def test_distances_and_similarities_have_weights_of_the_same_sign():
    batch = Batch((3, 4, 2), 4, seed=3)
    for distance in (
        distances.LpDistance(),
        distances.LpDistance(power=2),
        distances.SNRDistance(),
        distances.DotProductSimilarity(normalize_embeddings=True),
    ):
        found = pair_weights(losses.RAWLoss(distance=distance), batch.embeddings, batch.labels)
        expected = distance(batch.embeddings)
        assert torch.equal(found.similarity, _pml.sign(distance) * expected)
        assert (found.derivative[found.pos] <= 0).all()
        assert (found.derivative[found.neg] >= 0).all()


def test_centers_and_memories_are_references():
    batch = Batch((3, 4, 2), 4, seed=3)
    x, labels = batch.embeddings, batch.labels
    centers = wrappers.CentersAsReferences(losses.RAWLoss(), BatchCenters())
    found = pair_weights(centers, x, labels)
    assert found.weights.shape[0] == 9
    assert found.given
    memory = wrappers.CrossBatchMemory(losses.RAWLoss(), embedding_size=4, memory_size=20)
    memory(x, labels)
    found = pair_weights(memory, x, labels)
    assert found.weights.shape == (9, 18)
    assert found.pos.sum() == 2 * (9 + 16 + 4) - 9  # of the batch and the one before, without itself
    assert memory.queue_idx == 9


def test_budgets_are_sums_of_weights():
    found = pair_weights(losses.RAWLoss(reducer=SUM()), *toy(6))
    torch.testing.assert_close(found.pull, (found.weights * found.pos).sum(1))
    torch.testing.assert_close(found.push, (found.weights * found.neg).sum(1))
    assert (found.pull < 1).all()  # RAW's weights of either kind never add up to 1
    assert (found.push < 1).all()


def test_a_regularizer_is_not_a_pair():
    batch = Batch((3, 4, 2), 4, seed=3)
    loss = losses.RAWLoss(embedding_regularizer=LpRegularizer(), embedding_reg_weight=0.1)
    found = pair_weights(loss, batch.embeddings, batch.labels)
    plain = pair_weights(losses.RAWLoss(), batch.embeddings, batch.labels)
    assert torch.equal(found.derivative, plain.derivative)
    expected = 0.1 * nn.functional.normalize(batch.embeddings) / 9
    torch.testing.assert_close(found.beyond, expected)


def test_half_precision_and_a_compiled_loss():
    batch = Batch((3, 4, 2), 4, seed=3)
    single = pair_weights(losses.RAWLoss(), batch.embeddings.half().float(), batch.labels)
    half = pair_weights(losses.RAWLoss(), batch.embeddings.half(), batch.labels)
    assert half.given
    torch.testing.assert_close(half.derivative, single.derivative)
    compiled = pair_weights(torch.compile(losses.RAWLoss(), backend="aot_eager"), batch.embeddings, batch.labels)
    assert compiled.given


@pytest.mark.pml2("its DoNothingReducer")
def test_a_loss_that_is_not_reduced_has_no_weights():
    with pytest.raises(NoPairWeightsError, match="RAWLoss must be reduced to a scalar, its result has type dict"):
        pair_weights(losses.RAWLoss(reducer=reducers.DoNothingReducer()), *toy(6))


def test_errors_name_what_is_wrong():
    x, labels = toy(6)
    with pytest.raises(TypeError, match="loss must be a PML loss, got str"):
        pair_weights("RAW", x, labels)
    with pytest.raises(ValueError, match="labels must be one label for each"):
        pair_weights(losses.RAWLoss(), x, labels[1:])
    memory = wrappers.CrossBatchMemory(losses.RAWLoss(), embedding_size=2, memory_size=20)
    memory(x, labels)
    with pytest.raises(NoPairWeightsError, match="compares sets of different sizes, 6 x 6 and 6 x 12"):
        pair_weights(pml.MultipleLosses({"a": losses.RAWLoss(), "b": memory}), x, labels)


def constant(sim, pos, neg, *, weight):
    return torch.full_like(sim, weight)


@weightings.weighting(levels=("base",), needs="either", positive=("alpha",))
def steps(sim, pos, neg, *, alpha=2.0, base=0.5):
    return torch.where(pos, sim < base, sim > base) * alpha


def test_a_weighting_of_ones_own():
    x, labels = toy(6)
    loss = PairWeightedLoss(constant, weight=0.5, reducer=SUM())
    found = pair_weights(loss, x, labels)
    assert torch.equal(found.weights, 0.5 * (found.pos | found.neg))
    assert loss.needs == "both"
    assert loss.weight == 0.5
    loss = pickle.loads(pickle.dumps(PairWeightedLoss(steps, base=1.0, distance=distances.LpDistance())))
    assert (loss.levels, loss.needs, loss.base, loss.alpha) == (("base",), "either", 1.0, 2.0)
    found = pair_weights(loss, x, labels)
    assert torch.equal(found.weights[found.pos] > 0, found.similarity[found.pos] < -1)
    assert "base" in loss._record_these


def test_errors_of_a_loss_defined_by_weights():
    for wrong, error, text in (
        (lambda: PairWeightedLoss("raw"), TypeError, "weighting must be a function"),
        (lambda: PairWeightedLoss(constant), TypeError, "the weighting needs weight: give weight="),
        (lambda: PairWeightedLoss(steps, gamma=1.0), TypeError, "gamma"),
        (lambda: PairWeightedLoss(steps, alpha=0), ValueError, "alpha must be above 0, got 0"),
        (lambda: PairWeightedLoss(steps, base=float("nan")), ValueError, "base must be finite, got nan"),
        (lambda: PairWeightedLoss(weightings.triplet, margin=-1), ValueError, "margin must be at least 0, got -1"),
        (lambda: PairWeightedLoss(lambda s, p, n, *, levels: s, levels=1), ValueError, "must not be called levels"),
        (lambda: PairWeightedLoss(lambda s, p, n: s[:1])(*toy(6)), ValueError, r"must return \(6, 6\) weights"),
    ):
        with pytest.raises(error, match=text):
            wrong()


def test_triplet_weights_never_form_a_triplet():
    generator = torch.Generator().manual_seed(0)
    sim = torch.rand(700, 700, generator=generator, dtype=torch.float64)
    pos, neg = all_pairs(torch.arange(700) // 7)
    weights = weightings.triplet(sim, pos, neg, margin=0.2)
    for i in (0, 511, 512, 699):  # more rows than are counted at a time
        active = pos[i, :, None] & neg[i] & (sim[i] - sim[i, :, None] + 0.2 > 0)
        assert torch.equal(weights[i], (active.sum(0) + active.sum(1)).double())


def test_masks_without_labels_name_pairs():
    x, labels = toy(6)
    masks = PairMasks(*all_pairs(labels))
    for loss in (losses.MultiSimilarityLoss(), PairWeightedLoss(weightings.multi_similarity)):
        by_pairs = pair_weights(loss, x, None, as_pairs(masks))
        assert torch.equal(by_pairs.derivative, pair_weights(loss, x, labels).derivative)


@pytest.mark.parametrize("name", [name for name in LOSSES if issubclass(type(LOSSES[name]()), MatrixLoss)])
def test_weights_are_the_same_where_no_gradient_is_wanted(name):
    x, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = pair_weights(LOSSES[name](), x, labels)
    for mode, made_inside in itertools.product((torch.no_grad, torch.inference_mode), (False, True)):
        with mode():
            given = (x.clone(), labels.clone()) if made_inside else (x, labels)
            actual = pair_weights(LOSSES[name](), *given)
            pairs = all_pairs(given[1])
            by_pairs = pair_weights(LOSSES[name](), given[0], None, pairs, given[0].clone())
            own = pair_weights(LOSSES[name](), *given, ref_emb=given[0], ref_labels=given[1])
        for weights in (actual, by_pairs) if _pml.HAS_TERMS else (actual, by_pairs, own):
            torch.testing.assert_close(weights.derivative, expected.derivative)
            assert not weights.derivative.is_inference()
        assert torch.equal(actual.beyond, expected.beyond)
