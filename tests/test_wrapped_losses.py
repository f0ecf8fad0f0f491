"""What a wrapper takes of a loss: which losses it refuses, pairs as masks, views, hyperparameters, half precision."""

import inspect
import math
from typing import Any

import pytest
import torch
from of_pml import CosineSimilarity, LpDistance, SumReducer, regularizers
from of_pml import losses as pml
from of_pml import miners as pml_miners
from torch.nn.functional import normalize

from pml_ext.centers import BatchCenters
from pml_ext.losses import (
    BinomialDevianceLoss,
    CenterLoss,
    ClassCenterMarginLoss,
    HistogramLoss,
    KNNSoftmaxLoss,
    RAWLoss,
)
from pml_ext.masked import not_self
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner, KNearestPositiveMiner
from pml_ext.pairs import PairMasks, label_masks
from pml_ext.wrappers import (
    AnchorWeightedLoss,
    BranchLoss,
    CentersAsReferences,
    MinedLoss,
    RandomSliceLoss,
    SelfSupervisedLoss,
)

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2])


def embeddings(seed, n=9, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KNOWN = {
    "num_classes": 3,
    "embedding_size": 6,
    "descriptors_dim": 6,
    "K": 2,
    "l": 6,
    "margin": 0.5,
    "Tn": 1,
    "n_bins": 5,
    "args": None,
}


def pml_losses():
    """All losses of PML that take labels, each as it is made with the least arguments."""
    made: dict[str, Any] = {}
    for name, cls in inspect.getmembers(pml, inspect.isclass):
        if not issubclass(cls, pml.BaseMetricLossFunction) or name in ("GenericPairLoss", "BaseMetricLossFunction"):
            continue
        parameters = inspect.signature(cls).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty and each.kind < 4]
        if "args" in needed or "kwargs" in needed or name in ("CosFaceLoss", "SubCenterArcFaceLoss"):
            needed = ["num_classes", "embedding_size"]
        made[name] = (cls, {each: KNOWN[each] for each in needed if each in KNOWN})
    for name in ("ManifoldLoss", "VICRegLoss", "BaseProxyLoss"):  # take no labels, and one for others to be made of
        made.pop(name, None)
    return made


PML = pml_losses()


REFUSED = {
    "DynamicSoftMarginLoss",
    "HistogramLoss",
    "P2SGradLoss",
    "PNPLoss",
    "ProxyAnchorLoss",
    "ThresholdConsistentMarginLoss",
}
# They depend on the order of the batch themselves.
ORDERED = {"InstanceLoss", "NPairsLoss"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_metric_learning")
@pytest.mark.parametrize("name", sorted(set(PML) - ORDERED))
def test_an_anchor_is_weighted_wherever_it_stands_in_the_batch(name):
    cls, arguments = PML[name]
    torch.manual_seed(0)
    if name in REFUSED:
        with pytest.raises(TypeError, match=f"{name} does not"):
            AnchorWeightedLoss(cls(**arguments))
        return
    loss = AnchorWeightedLoss(cls(**arguments).double(), alpha=1)
    order = torch.tensor([3, 8, 0, 5, 1, 7, 2, 6, 4])
    # Three samples are as many as there are classes.
    for part in (order, order[[1, 4, 2]]):
        if name == "SmoothAPLoss" and len(part) == 3:
            continue  # its classes are of equal size
        values = []
        for each in (part, part.flip(0)):
            torch.manual_seed(1)
            values.append(loss(embeddings(0)[each], LABELS[each]))
        torch.testing.assert_close(*values, equal_nan=True)


def test_nca_of_proxies_may_leave_samples_out():
    loss = pml.ProxyNCALoss(3, 6, softmax_scale=1e4).double()
    x = loss.proxies.detach()[LABELS]
    x[:2] = -x[:2]
    assert len(loss.compute_loss(x, LABELS, None, x, LABELS)["loss"]["losses"]) < 9
    assert AnchorWeightedLoss(loss)(x, LABELS).isfinite()


@pytest.mark.parametrize(
    "loss",
    [
        lambda: pml.ProxyAnchorLoss(2, 4),
        lambda: ClassCenterMarginLoss(),
        lambda: HistogramLoss(),
        lambda: pml.HistogramLoss(n_bins=5),
        lambda: BranchLoss(RAWLoss(), 2),
        lambda: MinedLoss(RAWLoss(), HardNegativePairMiner()),
    ],
)
def test_losses_of_no_anchor_are_refused(loss):
    with pytest.raises(TypeError, match="loss must give a loss for each anchor"):
        AnchorWeightedLoss(loss())


def test_losses_of_proxies_are_seen_in_a_call():
    class Other(pml.NormalizedSoftmaxLoss):  # type: ignore[misc]
        def compute_loss(self, *batch):
            found = super().compute_loss(*batch)
            found["loss"]["losses"] = self.W.sum(0)
            return found

    with pytest.raises(ValueError, match="Other gives 4 for 9 samples"):
        AnchorWeightedLoss(Other(4, 6).double())(embeddings(0), LABELS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SelfSupervisedLoss(pml.ProxyNCALoss(3, 6)),
        lambda: SelfSupervisedLoss(pml.ProxyAnchorLoss(3, 6)),
        lambda: SelfSupervisedLoss(BranchLoss(pml.ProxyNCALoss(3, 3), 2)),
        lambda: CentersAsReferences(pml.ProxyNCALoss(3, 6), BatchCenters()),
        lambda: CentersAsReferences(pml.FastAPLoss(), BatchCenters()),
        lambda: CentersAsReferences(CenterLoss(3, 6), BatchCenters()),
        lambda: CentersAsReferences(CentersAsReferences(RAWLoss(), BatchCenters()), BatchCenters()),
        lambda: CentersAsReferences(MinedLoss(RAWLoss(), HardNegativePairMiner()), BatchCenters(), leave_one_out=True),
        lambda: MinedLoss(CenterLoss(3, 6), HardNegativePairMiner()),
        lambda: MinedLoss(pml.PNPLoss(), HardNegativePairMiner()),
        lambda: MinedLoss(MinedLoss(RAWLoss(), HardNegativePairMiner()), HardNegativePairMiner()),
        lambda: SelfSupervisedLoss(RAWLoss(), symmetric="no"),
        lambda: BranchLoss(RAWLoss(), 2, normalize="no"),
        lambda: BranchLoss(RAWLoss(), 2, reducer=SumReducer()),
        lambda: BranchLoss(RAWLoss(), 2, distance=LpDistance()),
        lambda: RandomSliceLoss(RAWLoss(), 2, reducer=SumReducer()),
        lambda: MinedLoss(RAWLoss(), HardNegativePairMiner(), reducer=SumReducer()),
        lambda: CentersAsReferences(RAWLoss(), BatchCenters(), reducer=SumReducer()),
        lambda: AnchorWeightedLoss(RAWLoss(), distance=LpDistance()),
    ],
)
def test_what_would_not_be_used_is_refused(make):
    with pytest.raises(TypeError, match=r"does not|must be True or False|is that of its loss"):
        make()


def test_the_reducer_of_weighted_anchors_is_used():
    weighted, summed = (AnchorWeightedLoss(RAWLoss(), reducer=reducer) for reducer in (None, SumReducer()))
    torch.testing.assert_close(9 * weighted(embeddings(0), LABELS), summed(embeddings(0), LABELS))


# --- Pairs as masks. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [pml.ContrastiveLoss, pml.TripletMarginLoss, pml.MultiSimilarityLoss])
@pytest.mark.parametrize(
    "wrap", [lambda loss: BranchLoss(loss, 2), AnchorWeightedLoss, lambda loss: RandomSliceLoss(loss, 2, seed=0)]
)
@pytest.mark.parametrize("with_references", [False, True])
def test_foreign_losses_take_masks(inner, wrap, with_references):
    x, refs = embeddings(0), (embeddings(1), LABELS) if with_references else (None, None)
    pos, neg = label_masks(LABELS, LABELS)
    pos[:, 4:], neg[3:] = False, False
    if not with_references:
        pos &= not_self(0, 9, 9, pos.device)
    masks = PairMasks(pos, neg)
    torch.testing.assert_close(wrap(inner())(x, LABELS, masks, *refs), wrap(inner())(x, LABELS, masks.indices(), *refs))
    with pytest.raises(ValueError, match="must have shape"):
        wrap(inner())(x, LABELS, PairMasks(pos[:4], neg[:4]), *refs)


# --- Views. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("inner", [RAWLoss, pml.NTXentLoss, pml.TripletMarginLoss, lambda: BranchLoss(RAWLoss(), 2)])
def test_more_than_two_views(symmetric, inner):
    views, samples = [embeddings(seed, 5) for seed in range(4)], torch.arange(5)
    value = SelfSupervisedLoss(inner(), symmetric)(*views)
    if symmetric:
        expected = inner()(torch.cat(views), samples.repeat(4))
    else:
        expected = inner()(views[0], samples, None, torch.cat(views[1:]), samples.repeat(3))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("inner", [KNNSoftmaxLoss, lambda: pml.NTXentLoss(temperature=0.5)])
def test_false_negatives_are_no_negatives(symmetric, number, inner):
    n, generator = 5, torch.Generator().manual_seed(0)
    views, false = [embeddings(seed, n) for seed in range(number)], torch.rand(n, n, generator=generator) < 0.4
    value = SelfSupervisedLoss(inner(), symmetric)(*views, false_negatives=false)
    rows = number if symmetric else 1
    a: list[int] = []
    p: list[int] = []
    b: list[int] = []
    q: list[int] = []
    for i in range(rows * n):
        for j in range(n * (number if symmetric else number - 1)):
            if i % n == j % n:
                if not symmetric or i != j:
                    a.append(i), p.append(j)
            elif not false[i % n, j % n]:
                b.append(i), q.append(j)
    pairs = tuple(map(torch.tensor, (a, p, b, q)))
    refs = () if symmetric else (torch.cat(views[1:]), torch.arange(n).repeat(number - 1))
    anchors = torch.cat(views) if symmetric else views[0]
    torch.testing.assert_close(value, inner()(anchors, torch.arange(n).repeat(rows), pairs, *refs))
    nothing = torch.zeros(n, n, dtype=torch.bool)
    loss = SelfSupervisedLoss(inner(), symmetric)
    torch.testing.assert_close(loss(*views, false_negatives=nothing), loss(*views))


def test_mistakes_about_views_are_named():
    x, loss = embeddings(0), SelfSupervisedLoss(RAWLoss())
    with pytest.raises(ValueError, match="view 3 must be another view of each of 9 embeddings, got 8"):
        loss(x, x, x[:8])
    with pytest.raises(ValueError, match=r"false_negatives must be boolean of shape \(9, 9\), got torch.int64"):
        loss(x, x, false_negatives=torch.zeros(9, 9, dtype=torch.long))
    mined = SelfSupervisedLoss(MinedLoss(RAWLoss(), HardNegativePairMiner()))
    with pytest.raises(ValueError, match="false_negatives need a loss that takes pairs, MinedLoss does not"):
        mined(x, x, false_negatives=torch.zeros(9, 9, dtype=torch.bool))


# --- Hyperparameters. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (BranchLoss(RAWLoss(), 2), {"sizes": 2, "normalize": True}),
        (RandomSliceLoss(RAWLoss(), (2, 4), normalize=False), {"sizes": (2, 4), "normalize": False}),
        (AnchorWeightedLoss(RAWLoss(), alpha=3), {"alpha": 3}),
        (CentersAsReferences(RAWLoss(), BatchCenters()), {"leave_one_out": False, "normalize_embeddings": None}),
    ],
)
def test_wrappers_record_their_hyperparameters(loss, expected):
    recorded = loss._record_these  # what PML's record-keeper reads
    assert {name: getattr(loss, name) for name in expected} == expected
    # It stumbles over a tuple.
    assert {name for name in expected if name in recorded} == {k for k, v in expected.items() if type(v) is not tuple}
    assert all(f"{name}={value}" in loss.extra_repr() for name, value in expected.items())


def test_a_steepness_that_is_set_later_is_used_and_checked():
    loss = AnchorWeightedLoss(RAWLoss(), alpha=3)
    loss.alpha = 7
    assert loss(embeddings(0), LABELS) == AnchorWeightedLoss(RAWLoss(), alpha=7)(embeddings(0), LABELS)
    with pytest.raises(ValueError, match="alpha must be above 0, got -1"):
        loss.alpha = -1


# --- Half precision, and vectors without a direction. -----------------------------------------------------------------

SLICED = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]])
PAIRS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrapper", [BranchLoss, RandomSliceLoss])
def test_a_slice_of_zeros_has_no_direction(wrapper, dtype):
    x = SLICED.to(dtype).clone().requires_grad_()
    loss = BranchLoss(BinomialDevianceLoss(), 2)
    value = loss(x, PAIRS)
    # By hand: of the unit slices, softplus(-2 (s - .5)) over positives, softplus(50 (s - .5)) over negatives.
    slices = [normalize(part, dim=1) for part in SLICED.double().split(2, 1)]
    expected = sum(BinomialDevianceLoss(distance=CosineSimilarity())(part, PAIRS) for part in slices) / 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert value.item() == pytest.approx(1.2671, abs=1e-4)
    (gradient,) = torch.autograd.grad(wrapper(BinomialDevianceLoss(), 2)(x, PAIRS), x)
    assert gradient.abs().max() < 100


@pytest.mark.parametrize("inner", [RAWLoss, pml.ContrastiveLoss, lambda: MinedLoss(RAWLoss(), KNearestPositiveMiner())])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: BranchLoss(loss, 2),
        lambda loss: CentersAsReferences(loss, BatchCenters()),
        lambda loss: CentersAsReferences(loss, BatchCenters(detach=True), normalize_embeddings=True),
        lambda loss: RandomSliceLoss(loss, 2, seed=0),
    ],
)
def test_a_zero_vector_has_no_gradient(inner, wrap):
    x = embeddings(0).float()
    x[2] = 0
    x.requires_grad_()
    wrap(inner())(x, LABELS).backward()
    assert x.grad is not None
    assert not x.grad[2].any()
    assert x.grad.abs().max() < 100


@pytest.mark.parametrize(
    "inner",
    [
        RAWLoss,
        HistogramLoss,
        pml.ContrastiveLoss,
        lambda: RAWLoss(embedding_regularizer=regularizers.LpRegularizer()),
        lambda: MinedLoss(RAWLoss(), HardNegativePairMiner(distance=LpDistance(normalize_embeddings=False))),
        lambda: MinedLoss(RAWLoss(), pml_miners.MultiSimilarityMiner()),
        lambda: BranchLoss(RAWLoss(distance=LpDistance(normalize_embeddings=False)), 1, normalize=False),
    ],
)
def test_slices_are_normalized_for_every_part_of_the_loss(inner):
    x = embeddings(0)
    slices = [normalize(part, dim=1) for part in x.split(3, 1)]
    expected = sum(inner()(part, LABELS) for part in slices) / 2
    torch.testing.assert_close(BranchLoss(inner(), 2)(x, LABELS), expected)
    unit = normalize(x, dim=1)
    wrapped = CentersAsReferences(inner(), BatchCenters(), normalize_embeddings=True) if inner is RAWLoss else None
    if wrapped is not None:
        torch.testing.assert_close(wrapped(x, LABELS), wrapped(math.pi * unit, LABELS))


def test_nothing_is_normalized_twice(monkeypatch):
    from pml_ext.wrappers import branch

    monkeypatch.setattr(branch, "unit", lambda _: pytest.fail("the distance normalizes the slices"))
    BranchLoss(RAWLoss(), 2)(embeddings(0), LABELS)
    BranchLoss(MinedLoss(RAWLoss(), KNearestPositiveMiner()), 2)(embeddings(0), LABELS)


# --- Chance. ----------------------------------------------------------------------------------------------------------


def _mined_at_random(seed):
    return MinedLoss(RAWLoss(), InverseDensityMiner(seed=seed))


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("make", [lambda seed: RandomSliceLoss(RAWLoss(), 2, seed=seed), _mined_at_random])
def test_in_eval_mode_a_stream_of_draws_stands_still(make, seed):
    def generator():
        return torch.Generator().manual_seed(5) if seed is None else seed

    x, run, loss = embeddings(0), make(generator()), make(generator())
    expected = [run(x, LABELS) for _ in range(3)]
    found = []
    for _ in range(3):
        loss.eval()
        tried = [loss(x, LABELS) for _ in range(2)]
        found.append(loss.train()(x, LABELS))
        assert tried == [found[-1]] * 2
    assert found == expected
    assert len({value.item() for value in found}) > 1
