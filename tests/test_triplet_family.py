"""The triplet-like losses and the anchor weight: worked values, oracles with their gradients, PML's own, identities.

The oracles are the formulas for one anchor in plain Python. They take complex numbers and decide by real parts, so that
a step along the imaginary axis gives the derivative to the last digit: f(x + ih) = f(x) + ih f'(x), for tiny h.
"""

import math
from functools import partial
from typing import Any

import pytest
import torch
from of_pml import (
    AvgNonZeroReducer,
    BatchHardMiner,
    CosineSimilarity,
    LpDistance,
    LpRegularizer,
    MeanReducer,
    MultipleReducers,
    SumReducer,
)
from of_pml import losses as pml
from oracles import OF_ANCHORS
from torch import Tensor
from toy import gradient_of, toy
from toy import random_batch as batch

from pml_ext import _pml, engine, thresholds
from pml_ext.catalog import build
from pml_ext.losses import (
    AnchorContrastiveLoss,
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    EasyPositiveTripletLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    LogSumExpPairLoss,
    MultiSimilarityLoss,
    SemiHardTripletLoss,
    SoftTripletLoss,
)
from pml_ext.masked import Counted
from pml_ext.pairs import PairMasks
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import AnchorWeightedLoss

(T6, _), (T9, LABELS) = toy(6), toy(9)
RAW_DISTANCE = LpDistance(normalize_embeddings=False)


def soft(threshold, normalization):
    return SoftTripletLoss(threshold=threshold, normalization=normalization)


GOLDEN = [
    ("ABatchAll", AnchorWeightedLoss(BatchAllTripletLoss()), 0.4000686919, 0.3070017334),
    ("ABatchAll, 4", AnchorWeightedLoss(BatchAllTripletLoss(margin=0.3), alpha=4), 0.5339520533, None),
    ("AHardPair", AnchorWeightedLoss(LogSumExpPairLoss()), 8.4412836068, 7.7110266893),
    ("ATriplet, legacy", AnchorWeightedLoss(soft(0.65, "legacy")), 0.3085223860, 0.2717088797),
    ("ATriplet, anchor", AnchorWeightedLoss(soft(0.65, "anchor")), 0.7713059649, None),
    ("ATriplet, triplet", AnchorWeightedLoss(soft(0.65, "triplet")), 1.6820613923, None),
    ("Triplet, legacy", soft(0.7, "legacy"), 0.7016894989, 0.6759364352),
    ("Triplet, anchor", soft(0.7, "anchor"), 1.7542237473, None),
    ("Triplet, triplet", soft(0.7, "triplet"), 2.0752285052, None),
    ("BatchHard, 1", BatchHardTripletLoss(margin=1), 1.5230762673, None),
    ("BatchHard, 0.2", BatchHardTripletLoss(), 0.7230762673, 0.6954577695),
    ("BatchHard, soft", BatchHardTripletLoss(margin=None), 0.9993036370, None),
    ("BatchHard, sum", BatchHardTripletLoss(margin=1, reducer=SumReducer()), 9.1384576040, 13.3833263212),
    ("Contrastive2018", AnchorContrastiveLoss(), 0.6167541024, 0.5213043345),
    ("LiftedStructure", LiftedStructureLoss(), 3.6472995410, 4.8176550753),
    ("GeneralizedLiftedStructure", GeneralizedLiftedStructureLoss(), 2.6527823637, 3.1158015810),
    ("SemiHard, 1", SemiHardTripletLoss(), 0.5824, None),
    ("SemiHard, 0.2", SemiHardTripletLoss(margin=0.2), 0.1818666667, None),
]


@pytest.mark.parametrize(("name", "loss", "six", "nine"), GOLDEN, ids=[name for name, *_ in GOLDEN])
def test_worked_values(name, loss, six, nine):
    assert loss(T6, LABELS[:6]).item() == pytest.approx(six, abs=1e-10)
    if nine is not None:
        assert loss(T9, LABELS).item() == pytest.approx(nine, abs=1e-10)


RECIPES = {
    "ABatchAll": 0.4000686919,
    "AHardPair": 8.4412836068,
    "ATriplet": 0.7713059649,
    "BatchAll": 0.4868381747,
    "BatchHard": 0.7230762673,
    "Contrastive2018": 0.6167541024,
    "GeneralizedLiftedStructure": 2.6527823637,
    "LiftedStructure": 3.6472995410,
    "MultiSimilarity": 0.8485313298,
    "SemiHard": 0.5824,
    "SoftTriplet": 1.7542237473,
}


@pytest.mark.parametrize(("name", "value"), RECIPES.items(), ids=list(RECIPES))
def test_recipes_have_the_worked_values(name, value):
    assert build(name)(T6, LABELS[:6]).item() == pytest.approx(value, abs=1e-10)


GRADIENTS = [
    (BatchAllTripletLoss(distance=RAW_DISTANCE), 0.4148942379, (0.0603715206, -0.0407430412)),
    (LogSumExpPairLoss(distance=RAW_DISTANCE), 7.3356432002, (1.9830942876, -2.6441041308 - 5e-10)),
    (SoftTripletLoss(normalization="legacy", distance=RAW_DISTANCE), 0.2304011743, None),
]


@pytest.mark.parametrize(("loss", "norm", "first"), GRADIENTS, ids=["ABatchAll", "AHardPair", "ATriplet"])
def test_worked_gradients(loss, norm, first):
    gradient = gradient_of(AnchorWeightedLoss(loss), T6, LABELS[:6])
    assert gradient.norm().item() == pytest.approx(norm, abs=1e-9)
    if first is not None:
        assert gradient[0].tolist() == pytest.approx(first, abs=1e-9)


def test_worked_weights():
    entries = AnchorWeightedLoss(BatchAllTripletLoss()).loss_dict(T6, LABELS[:6], None, T6, LABELS[:6])
    inner = BatchAllTripletLoss().loss_dict(T6, LABELS[:6], None, T6, LABELS[:6])
    weights = entries["loss"]["losses"] / inner["loss"]["losses"]
    assert weights.tolist() == pytest.approx([2.375e-11, 8.445e-07, 1, 1, 0.0522415564, 8.950e-11], rel=1e-4)
    assert weights[4].item() == pytest.approx(0.0522415564, abs=1e-10)
    assert entries["loss"]["divisor"] == 15


@pytest.mark.parametrize("threshold", [0.65, 0.7])
def test_worked_counts(threshold):
    embeddings, labels = T6, LABELS[:6]
    for loss in (BatchAllTripletLoss(), soft(threshold, "triplet")):
        sim = loss.similarity(embeddings, None)
        same = labels[:, None] == labels
        result = loss.per_anchor(sim, same & ~torch.eye(6, dtype=torch.bool), ~same)
        assert isinstance(result, Counted)
        assert result.counts.tolist() == [1, 1, 5, 6, 1, 1]


@pytest.mark.parametrize("cls", [BatchHardTripletLoss, SemiHardTripletLoss, SoftTripletLoss])
def test_equal_scores_have_the_value_of_the_oracle(cls):
    loss: Any = cls()
    hyper = {name: getattr(loss, name) for name in loss._hyperparameter_names}
    generator = torch.Generator().manual_seed(1)
    distances = torch.randint(0, 4, (40, 9), generator=generator).double() / 4
    side = torch.randint(0, 3, (40, 9), generator=generator)
    side[:, 0], side[:, 1] = 1, 2
    result = loss.per_anchor(-distances, side == 1, side == 2)
    losses = result.losses if isinstance(result, Counted) else result
    for i, row in enumerate(distances):
        expected = OF_ANCHORS[cls](row[side[i] == 1].tolist(), row[side[i] == 2].tolist(), **hyper)
        assert losses[i].item() == pytest.approx(expected[0] if isinstance(expected, tuple) else expected, abs=1e-12)


# --- PML's own. -------------------------------------------------------------------------------------------------------

PML = [
    (BatchAllTripletLoss(margin=0.05), pml.TripletMarginLoss(margin=0.05)),
    (MultiSimilarityLoss(), pml.MultiSimilarityLoss()),
    (MultiSimilarityLoss(distance=LpDistance()), pml.MultiSimilarityLoss(distance=LpDistance())),
    (LiftedStructureLoss(), pml.LiftedStructureLoss()),
    (
        LiftedStructureLoss(neg_margin=0.7, pos_margin=0.1, distance=CosineSimilarity()),
        pml.LiftedStructureLoss(neg_margin=0.7, pos_margin=0.1, distance=CosineSimilarity()),
    ),
    (GeneralizedLiftedStructureLoss(), pml.GeneralizedLiftedStructureLoss()),
    (
        GeneralizedLiftedStructureLoss(neg_margin=0.7, pos_margin=0.1, distance=CosineSimilarity()),
        pml.GeneralizedLiftedStructureLoss(neg_margin=0.7, pos_margin=0.1, distance=CosineSimilarity()),
    ),
]


@pytest.mark.parametrize("sizes", [(3, 3, 3), (4, 2, 5), (2, 6)], ids=str)
@pytest.mark.parametrize(("ours", "theirs"), PML, ids=lambda x: type(x).__name__)
def test_equal_to_pml(ours, theirs, sizes):
    embeddings, labels = batch(sizes)
    torch.testing.assert_close(ours(embeddings, labels), theirs(embeddings, labels), rtol=1e-12, atol=1e-12)
    expected = gradient_of(theirs, embeddings, labels)
    torch.testing.assert_close(gradient_of(ours, embeddings, labels), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("ours", "theirs"), PML, ids=lambda x: type(x).__name__)
def test_equal_to_pml_with_a_class_of_one_sample(ours, theirs):
    embeddings, labels = batch((1, 2, 5))
    expected = theirs(embeddings, labels)
    if isinstance(ours, GeneralizedLiftedStructureLoss):
        # PML takes the logarithm of an empty sum for 0: it pushes the one sample from all others.
        alone = theirs.compute_loss(embeddings, labels, None, embeddings, labels)["loss"]["losses"][labels == 0]
        assert alone.item() > 0
        expected = expected - alone.sum() / len(labels)
    torch.testing.assert_close(ours(embeddings, labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (1, 2, 5)], ids=str)
def test_batch_hard_is_pmls_miner_with_its_triplet_loss(sizes):
    embeddings, labels = batch(sizes)
    theirs = pml.TripletMarginLoss(margin=0.2, reducer=MeanReducer())
    mined = BatchHardMiner()(embeddings, labels)
    torch.testing.assert_close(
        BatchHardTripletLoss()(embeddings, labels), theirs(embeddings, labels, mined), rtol=1e-12, atol=1e-12
    )


# --- What the formulas say of each other. -----------------------------------------------------------------------------


def test_the_hardest_negative_may_be_a_duplicate():
    embeddings = torch.tensor([(0, 0), (3, 0), (0, 0), (0, 2)], dtype=torch.float64)
    loss = BatchHardTripletLoss(margin=1, distance=RAW_DISTANCE, reducer=SumReducer())
    assert loss(embeddings, LABELS[[0, 0, 3, 3]]).item() == pytest.approx(9.0)
    assert gradient_of(loss, embeddings, LABELS[[0, 0, 3, 3]]).isfinite().all()


def test_legacy_is_the_anchor_mean_over_the_number_of_triplets():
    embeddings, labels = batch((3, 2, 4))
    anchors, triplets, legacy = (
        soft(0.7, kind).loss_dict(embeddings, labels, None, embeddings, labels)["loss"]
        for kind in ("anchor", "triplet", "legacy")
    )
    assert torch.equal(anchors["losses"], legacy["losses"])
    assert float(triplets["divisor"]) == float(legacy["divisor"])
    value = soft(0.7, "legacy")(embeddings, labels) * triplets["divisor"]
    torch.testing.assert_close(value, anchors["losses"].sum())


def test_log_sum_exp_pairs_are_what_they_are_called_elsewhere():
    embeddings, labels = batch((3, 3, 3))
    bounded = LogSumExpPairLoss(
        alpha=2, beta=50, pos_margin=0.5, neg_margin=0.5, scale=1, bounded=True, distance=CosineSimilarity()
    )
    torch.testing.assert_close(bounded(embeddings, labels), MultiSimilarityLoss()(embeddings, labels))
    unbounded = LogSumExpPairLoss(alpha=1, beta=1, pos_margin=0, neg_margin=1, scale=1)
    values = unbounded.loss_dict(embeddings, labels, None, embeddings, labels)["loss"]["losses"]
    torch.testing.assert_close(values.relu().mean(), GeneralizedLiftedStructureLoss()(embeddings, labels))


def test_soft_triplets_do_not_depend_on_the_blocks(monkeypatch):
    embeddings, labels = batch((3, 2, 4, 1))
    value, gradient = SoftTripletLoss()(embeddings, labels), gradient_of(SoftTripletLoss(), embeddings, labels)
    for numbers in (1, 300):
        monkeypatch.setattr(thresholds, "SOFT_TRIPLETS", numbers)
        torch.testing.assert_close(SoftTripletLoss()(embeddings, labels), value)
        torch.testing.assert_close(gradient_of(SoftTripletLoss(), embeddings, labels), gradient)


def test_soft_triplet_operators_keep_the_rules_of_torch():
    same, other = _masks(batch((3, 2, 4))[1])
    sim = torch.randn(9, 9, dtype=torch.float64, requires_grad=True)
    for operator in (torch.ops.pml_ext.soft_triplet_sums, torch.ops.pml_ext.soft_triplet_slopes):
        kinds = ("test_schema", "test_autograd_registration", "test_faketensor")  # the laws compile the loss
        torch.library.opcheck(operator.default, (sim, same, other, 4.0, 0.65), test_utils=kinds)


@pytest.mark.parametrize("recipe", [*RECIPES, "Triplet"])
def test_no_triplet_is_kept_for_the_backward_pass(recipe: str) -> None:
    embeddings, labels = batch((16,) * 4)
    embeddings.requires_grad_()
    kept = 0

    def pack(x):
        nonlocal kept
        kept += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        build(recipe).loss(embeddings, labels)
    assert 0 < kept < 24 * 64**2


@pytest.mark.parametrize("make", [LiftedStructureLoss, SoftTripletLoss, partial(SoftTripletLoss, chunk_size=2)])
def test_second_derivatives(make, monkeypatch):
    monkeypatch.setattr(thresholds, "SOFT_TRIPLETS", 100)
    loss = make(distance=CosineSimilarity())  # torch has no second derivative of the Euclidean distance
    embeddings, labels = batch((2, 3))
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), embeddings)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), embeddings)


def test_lifted_structure_compares_with_the_negatives_of_both_ends():
    embeddings, labels = batch((3, 3))
    refs, ref_labels = batch((2, 3, 1), seed=1)
    d = LpDistance()(embeddings, refs).tolist()
    terms = []
    for i, a in enumerate(labels.tolist()):
        for j, b in enumerate(ref_labels.tolist()):
            if a == b:
                negatives = [d[i][k] for k, c in enumerate(ref_labels.tolist()) if c != a]
                negatives += [d[k][j] for k, c in enumerate(labels.tolist()) if c != b]
                terms.append(max(0.0, d[i][j] + math.log(sum(math.exp(1 - x) for x in negatives))) ** 2 / 2)
    value = LiftedStructureLoss()(embeddings, labels, None, refs, ref_labels)
    assert value.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)
    copy = embeddings.clone()
    masks = PairMasks(*(x & ~torch.eye(6, dtype=torch.bool) for x in _masks(labels)))
    torch.testing.assert_close(
        LiftedStructureLoss()(embeddings, labels, masks, copy, labels), LiftedStructureLoss()(embeddings, labels)
    )


def _masks(labels):
    same = labels[:, None] == labels
    return same, ~same


# --- The anchor weight. -----------------------------------------------------------------------------------------------


def weights_by_hand(d, pos, neg, alpha):
    weights = []
    for row, p, n in zip(d.tolist(), pos.tolist(), neg.tolist(), strict=True):
        near = sum(math.exp(-alpha * x) for x, is_neg in zip(row, n, strict=True) if is_neg)
        far = sum(math.exp(-alpha * x) for x, is_pos in zip(row, p, strict=True) if is_pos)
        weights.append(near / (near + far) if near and far else 0.0)
    return torch.tensor(weights, dtype=torch.float64)


INNER = [
    AnchorContrastiveLoss(),
    BatchAllTripletLoss(chunk_size=2),
    pml.TripletMarginLoss(margin=0.3),
    pml.ContrastiveLoss(),
    pml.MultiSimilarityLoss(),
    pml.NTXentLoss(),
    pml.CircleLoss(embedding_regularizer=LpRegularizer()),
    pml.MarginLoss(nu=0.5, reducer=MeanReducer()),
]


@pytest.mark.parametrize("inner", INNER, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("given", ["labels", "pairs", "triplets", "references"])
def test_anchor_weight_takes_any_loss(inner, given):
    """Each loss of the dict is multiplied by the weight of its anchor, computed by hand, and the reducer is kept."""
    embeddings, labels = batch((3, 2, 4, 1))
    refs, ref_labels = batch((2, 2, 2, 2), seed=1) if given == "references" else (embeddings, labels)
    pos = labels[:, None] == ref_labels
    neg = ~pos
    if given != "references":
        pos = pos & ~torch.eye(len(labels), dtype=torch.bool)
    indices: Any = None
    if given in ("pairs", "triplets"):
        pos[0], neg[2, 4:] = False, False
        indices = (*pos.nonzero(as_tuple=True), *neg.nonzero(as_tuple=True))
    if given == "triplets":
        pos, neg = pos & neg.any(1, keepdim=True), neg & pos.any(1, keepdim=True)
        indices = (pos[:, :, None] & neg[:, None, :]).nonzero(as_tuple=True)
    loss = AnchorWeightedLoss(inner, alpha=3)
    d = inner.distance(embeddings, refs)
    weights = weights_by_hand(-d if inner.distance.is_inverted else d, pos, neg, 3)
    args = embeddings, labels, indices, refs, ref_labels
    expected = _pml.entries(inner, *args)
    total = 0
    for name, entry in expected.items():
        if isinstance(entry["losses"], Tensor) and entry["reduction_type"] != "already_reduced":
            anchors = entry["indices"] if entry["reduction_type"] == "element" else entry["indices"][0]
            weight = weights[anchors]
            weighted = entry["losses"] * (weight[:, None] if entry["losses"].ndim == 2 else weight)
            reducer = inner.reducer
            if isinstance(reducer, MultipleReducers):
                reducer = dict(reducer.reducers.items())[name]
            if _pml.divides(reducer, name):
                total = total + weighted.sum() / entry["divisor"]
            elif isinstance(reducer, AvgNonZeroReducer):
                total = total + weighted.sum() / (weighted > 0).sum().clamp(min=1)
            else:
                assert isinstance(reducer, MeanReducer)
                total = total + weighted.mean()
        else:
            total = total + entry["losses"]
    if inner.embedding_regularizer is not None:
        total = total + embeddings.norm(dim=1).mean()
    if not _pml.HAS_TERMS:
        assert loss.sub_loss_names() == inner.sub_loss_names()
        assert set(loss.loss_dict(*args)) == set(inner.sub_loss_names())
    value = loss(*args) if given == "references" else loss(*args[:3])
    torch.testing.assert_close(value, total, rtol=1e-10, atol=1e-12)


def test_anchor_weight_is_a_constant():
    embeddings, labels = batch((3, 2, 4))
    loss = AnchorWeightedLoss(LogSumExpPairLoss(), alpha=2)
    d = LpDistance()(embeddings)
    same, other = _masks(labels)
    weights = weights_by_hand(d, same & ~torch.eye(9, dtype=torch.bool), other, 2)
    leaf = embeddings.clone().requires_grad_()
    inner = LogSumExpPairLoss().loss_dict(leaf, labels, None, leaf, labels)["loss"]["losses"]
    (expected,) = torch.autograd.grad((weights * inner).mean(), leaf)
    torch.testing.assert_close(gradient_of(loss, embeddings, labels), expected, rtol=1e-11, atol=1e-11)


def test_flat_anchor_weights_are_the_share_of_negatives():
    value = AnchorWeightedLoss(BatchAllTripletLoss(), alpha=1e-12)(T6, LABELS[:6])
    torch.testing.assert_close(value, 3 / 5 * BatchAllTripletLoss()(T6, LABELS[:6]))


def test_anchor_weight_takes_relations_and_chunks():
    embeddings, labels = batch((3, 2, 4, 1))
    same, other = _masks(labels)
    expected = AnchorWeightedLoss(BatchAllTripletLoss())(embeddings, labels)
    for inner in (BatchAllTripletLoss(), BatchAllTripletLoss(chunk_size=3)):
        loss = AnchorWeightedLoss(inner)
        torch.testing.assert_close(loss(embeddings, labels), expected)
        torch.testing.assert_close(loss(embeddings, None, PairMasks(same, other)), expected)
        expected_gradient = gradient_of(AnchorWeightedLoss(BatchAllTripletLoss()), embeddings, labels)
        torch.testing.assert_close(gradient_of(loss, embeddings, labels), expected_gradient)


def test_anchor_weight_of_pmls_triplet_loss_is_that_of_ours():
    ours = AnchorWeightedLoss(BatchAllTripletLoss())
    theirs = AnchorWeightedLoss(pml.TripletMarginLoss(margin=0.02, reducer=AvgNonZeroReducer()))
    torch.testing.assert_close(ours(T6, LABELS[:6]), theirs(T6, LABELS[:6]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("on", ["inner", "wrapper"])
def test_anchor_weight_keeps_regularizers_whole(on):
    embeddings, labels = batch((3, 2, 4))
    regularizer = {"embedding_regularizer": LpRegularizer(), "embedding_reg_weight": 3}
    inner = BatchAllTripletLoss(**regularizer if on == "inner" else {})
    loss = AnchorWeightedLoss(inner, **regularizer if on == "wrapper" else {})
    plain = AnchorWeightedLoss(BatchAllTripletLoss())
    assert _pml.HAS_TERMS or loss.sub_loss_names() == ["loss", "embedding_reg_loss"]
    expected = plain(embeddings, labels) + 3 * embeddings.norm(dim=1).mean()
    torch.testing.assert_close(loss(embeddings, labels), expected)


def test_anchor_weight_says_what_it_cannot_do():
    embeddings, labels = batch((3, 3))
    with pytest.raises(TypeError, match="in which an anchor can be weighted: LiftedStructureLoss does not"):
        AnchorWeightedLoss(LiftedStructureLoss())(embeddings, labels)
    with pytest.raises(TypeError, match="loss must be a PML loss"):
        AnchorWeightedLoss(LpDistance())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"):
        AnchorWeightedLoss(BatchAllTripletLoss(), alpha=0)
    with pytest.raises(ValueError, match="embedding_regularizer"):
        AnchorWeightedLoss(
            BatchAllTripletLoss(embedding_regularizer=LpRegularizer()), embedding_regularizer=LpRegularizer()
        )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SoftTripletLoss(normalization="mean"), "normalization must be .* got 'mean'"),
        (lambda: SoftTripletLoss(threshold=-1), "threshold must be at least 0, got -1"),
        (lambda: SoftTripletLoss(beta=0), "beta must be above 0, got 0"),
        (lambda: BatchHardTripletLoss(margin=-0.1), "margin must be at least 0, got -0.1"),
        (lambda: LogSumExpPairLoss(bounded=1), "bounded must be True or False, got 1"),
        (lambda: AnchorContrastiveLoss(pos_margin=math.inf), "pos_margin must be finite"),
    ],
)
def test_wrong_hyperparameters_are_named(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make()


@pytest.mark.parametrize("cls", [BatchHardTripletLoss, EasyPositiveTripletLoss])
def test_positives_equally_near_share_the_pull(cls):
    """Of three samples of a class two are at one place: the third is pulled to each by a half."""
    x = torch.randn(15, 4, dtype=torch.float64)
    x[2] = x[1]
    x.requires_grad_()
    loss, labels = cls(margin=2), torch.arange(15) // 3
    (found,) = torch.autograd.grad(loss(x, labels), x)
    with engine.disabled():
        (expected,) = torch.autograd.grad(loss(x, labels), x)
    torch.testing.assert_close(found, expected)


def test_a_triplet_on_the_margin_is_not_counted():
    """The boundary is strict, in the loss and in its closed form."""
    sim = torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64)
    pos, neg = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    loss = BatchAllTripletLoss(margin=0.25, distance=RAW_DISTANCE)
    assert loss.per_anchor(sim, pos, neg).counts.item() == 1
    assert OF_ANCHORS[BatchAllTripletLoss]([-0.5], [-0.25, -0.75], margin=0.25) == (0.5, 1)
    # Each anchor has a triplet on the margin; two have one beside it that violates the margin by a half.
    x, labels = torch.tensor([[0.0], [0.5], [0.75], [1.25]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    with thresholds.replaced(GATHERED_SHARE=0.6):
        for each in (loss, by_autograd(loss)):
            assert each(x, labels).item() == 0.5
