"""The NCA family and the losses over all pairs of a batch: worked values, PML's own, identities."""

import math
from fractions import Fraction

import pytest
import torch
from of_pml import BatchEasyHardMiner, CosineSimilarity, DotProductSimilarity, LpDistance, MeanReducer
from of_pml import losses as pml
from toy import gradient_of, random_batch, toy

from pml_ext.catalog import build
from pml_ext.closed_form import ABSENT, Sides
from pml_ext.losses import (
    DecoupledNCALoss,
    EasyPositiveTripletLoss,
    HistogramLoss,
    KNNSoftmaxLoss,
    LargeMarginNearestNeighborLoss,
    MeanGapLoss,
)
from pml_ext.losses.mean_gap import mean_gap_weights
from pml_ext.masked import nearest
from pml_ext.pairs import PairMasks

(T6, _), (T9, LABELS) = toy(6), toy(9)


def plain(power=1):
    return LpDistance(normalize_embeddings=False, power=power)


# --- Worked values. ---------------------------------------------------------------------------------------------------

GOLDEN = [
    ("SoftmaxNeig", build("SoftmaxNeig").loss, 9.8360669284, 7.4623647152),
    ("GradNCA", DecoupledNCALoss(k=3), 8.0260719095, 6.1355910447),
    ("GradNCA, 0", DecoupledNCALoss(k=3, beta=0), 21.7782569891, None),
    ("Neighbour", LargeMarginNearestNeighborLoss(), 0.1712573070, 0.1449220641),
    ("Neighbour, 2", LargeMarginNearestNeighborLoss(k=2, margin=0.05), 0.1741436420, None),
    ("NeighbourHard", EasyPositiveTripletLoss(), 0.2179647820, 0.1705048253),
    ("GaussianMetric", MeanGapLoss(), 0.0, 0.2022291236),
    ("Histogram, 5", HistogramLoss(n_bins=4), 0.4819541333, 0.2948530884),
    ("Histogram, 9", HistogramLoss(n_bins=8), 0.4296725333, None),
    ("Histogram, 11", HistogramLoss(n_bins=10), 0.4192948148, None),
    ("Histogram, 17", HistogramLoss(n_bins=16), 0.3933688889, None),
    ("Histogram, 51", HistogramLoss(n_bins=50), 0.3592592593, 0.2246386831),
    ("Histogram, 129", HistogramLoss(n_bins=128), 0.3518518519, None),
]


@pytest.mark.parametrize(("name", "loss", "six", "nine"), GOLDEN, ids=[name for name, *_ in GOLDEN])
def test_worked_values(name, loss, six, nine):
    assert loss(T6, LABELS[:6]).item() == pytest.approx(six, abs=1e-10)
    if nine is not None:
        assert loss(T9, LABELS).item() == pytest.approx(nine, abs=1e-10)


def test_worked_gradient():
    grad_nca = DecoupledNCALoss(k=3, distance=plain())
    assert gradient_of(grad_nca, T6, LABELS[:6]).norm().item() == pytest.approx(13.5611323333, abs=1e-9)


def test_n_pair_has_the_worked_value_of_the_paper():
    embeddings = torch.tensor([(1, 0), (0.8, 0.6), (0, 1), (-0.6, 0.8)], dtype=torch.float64)
    assert build("NPair")(embeddings, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0.4107781397, abs=1e-10)


# --- PML's own. -------------------------------------------------------------------------------------------------------


def test_nca_on_all_neighbours_is_that_of_pml():
    embeddings, labels = random_batch((4, 4, 4), 0)
    expected = pml.NCALoss(softmax_scale=2, distance=plain(2))(embeddings, labels)
    actual = KNNSoftmaxLoss(alpha=2, k=None, distance=plain(2))(embeddings, labels)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_easy_positive_is_that_of_pml():
    embeddings, labels = random_batch((4, 4, 2, 2), 1)
    triplets = BatchEasyHardMiner(pos_strategy="easy", neg_strategy="hard")(embeddings, labels)
    expected = pml.TripletMarginLoss(margin=0.3, reducer=MeanReducer())(embeddings, labels, triplets)
    torch.testing.assert_close(EasyPositiveTripletLoss(margin=0.3)(embeddings, labels), expected, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # PML's HistogramLoss
@pytest.mark.parametrize("n_bins", [4, 25, 32, 100, 128])
def test_histogram_is_that_of_pml(n_bins):
    embeddings, labels = random_batch((4, 4, 4, 8), n_bins)
    # PML rounds its nodes to float32 in float64 too: they are exact for powers of two only.
    tolerance = 1e-12 if n_bins in (4, 32, 128) else 1e-6
    expected = pml.HistogramLoss(n_bins=n_bins)(embeddings, labels)
    torch.testing.assert_close(HistogramLoss(n_bins=n_bins)(embeddings, labels), expected, atol=tolerance, rtol=0)
    gradient = gradient_of(pml.HistogramLoss(n_bins=n_bins), embeddings, labels)
    actual = gradient_of(HistogramLoss(n_bins=n_bins), embeddings, labels)
    torch.testing.assert_close(actual, gradient, atol=100 * tolerance, rtol=0)


def test_n_pair_and_soft_triple_are_those_of_pml():
    embeddings, labels = random_batch((2, 2, 2), 3)
    recipe = build("NPair", embedding_reg_weight=0.0)
    expected = pml.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))(embeddings, labels)
    torch.testing.assert_close(recipe(embeddings, labels), expected)
    soft_triple = build("SoftTriple", num_classes=3, embedding_size=3).loss
    assert type(soft_triple) is pml.SoftTripleLoss
    assert [each.numel() for each in soft_triple.parameters()] == [3 * 30]


# --- Identities. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 5, None])
def test_decoupled_nca_with_equal_steepness_has_the_gradient_of_the_softmax(k):
    embeddings, labels = random_batch((3, 5, 1, 4), 4)
    softmax = gradient_of(KNNSoftmaxLoss(alpha=7, k=k, distance=plain()), embeddings, labels)
    decoupled = gradient_of(DecoupledNCALoss(alpha=7, beta=7, k=k, distance=plain()), embeddings, labels)
    torch.testing.assert_close(decoupled, softmax, atol=1e-13, rtol=1e-12)


def test_pull_spreads_as_beta_falls():
    sim = torch.tensor([[-0.2, -1.0, -0.5]], dtype=torch.float64)
    pos, neg = torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]])
    shares = []
    for beta in (8.0, 4.0, 1e-6, 0.0):
        score = sim.clone().requires_grad_()
        DecoupledNCALoss(alpha=8, beta=beta, k=None).per_anchor(score, pos, neg).sum().backward()
        assert score.grad is not None
        shares.append((score.grad[0, 1] / score.grad[0, :2].sum()).item())
    assert shares == sorted(shares)
    assert shares[-2:] == pytest.approx([0.5, 0.5], abs=1e-5)


def test_a_weight_of_the_negatives_is_as_many_copies_of_them():
    embeddings, _ = random_batch((6,), 5)
    refs, ref_labels = embeddings[[1, 2, 3]], torch.tensor([0, 1, 2])
    twice, twice_labels = embeddings[[1, 2, 3, 2, 3]], torch.tensor([0, 1, 2, 1, 2])
    anchor, label = embeddings[:1], torch.tensor([0])
    one = KNNSoftmaxLoss(k=None, negative_weight=2)(anchor, label, None, refs, ref_labels)
    two = KNNSoftmaxLoss(k=None)(anchor, label, None, twice, twice_labels)
    torch.testing.assert_close(one, two)


def test_nearest_is_never_more_than_k_among_equals():
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, False], [True, False, False, False, False]])
    assert nearest(x, mask, 2).sum(-1).tolist() == [2, 1]
    assert not (nearest(x, mask, 2) & ~mask).any()
    assert nearest(x, mask, 9).equal(mask)


def test_histogram_is_a_probability():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sim = torch.rand(6, 7, generator=generator, dtype=torch.float64) * 2 - 1
        pos = torch.rand(6, 7, generator=generator) < 0.4
        assert 0 <= HistogramLoss(n_bins=9).per_batch(sim, pos, ~pos) <= 1
    apart = torch.tensor([[0.7, 0.9, -0.1, 0.39]], dtype=torch.float64)
    pos = torch.tensor([[True, True, False, False]])
    assert HistogramLoss(n_bins=10).per_batch(apart, pos, ~pos) == 0
    assert HistogramLoss(n_bins=10).per_batch(apart, ~pos, pos).item() == pytest.approx(1)


@pytest.mark.parametrize("n_bins", [3, 100, 101])
def test_histogram_in_float32_loses_no_pair(n_bins):
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(64, 16, generator=generator)
    labels = torch.arange(64) % 8
    loss = HistogramLoss(n_bins=n_bins)
    torch.testing.assert_close(loss(embeddings, labels).double(), loss(embeddings.double(), labels), atol=2e-6, rtol=0)


def test_histogram_takes_equal_opposite_and_distant_embeddings():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert HistogramLoss()(embeddings, torch.tensor([0, 0, 1, 1])) == 0
    assert HistogramLoss()(embeddings, torch.tensor([0, 1, 1, 1])).item() == pytest.approx(7 / 9)
    by_distance = HistogramLoss(n_bins=4, distance=LpDistance(), center=1)
    assert by_distance(embeddings, torch.tensor([0, 1, 1, 1])).item() == pytest.approx(7 / 9)


@pytest.mark.parametrize("one_in", [3, 5, 7, 10])
def test_mean_gap_keeps_the_exact_share(one_in):
    sim = torch.arange(120.0, dtype=torch.float64).view(1, 120)  # far positives above all negatives are not kept
    for count in range(1, 60):
        pos = (torch.arange(120) >= 60) & (torch.arange(120) < 60 + count)
        neg = torch.arange(120) < 60
        loss = MeanGapLoss(fraction=1 / one_in).per_batch(-sim, pos[None], neg[None])
        r = count // one_in
        expected = 0 if r == 0 else 60 + (r - 1) / 2 - (r - 1) / 2
        assert loss.item() == pytest.approx(expected), count


def test_mean_gap_is_exact_where_a_distance_equals_the_mean():
    """Thirds, whose mean is one of them up to rounding: as in fractions, by autograd and in closed form."""
    generator, met = torch.Generator().manual_seed(2), 0
    pos, six = (torch.arange(12) < 6).view(1, 12), torch.full((1, 1), 6.0, dtype=torch.float64)
    for _ in range(60):
        thirds = torch.randint(1, 8, (12,), generator=generator)
        p, n = ([Fraction(x, 3) for x in side.tolist()] for side in thirds.split(6))
        mean_p, mean_n = sum(p) / 6, sum(n) / 6
        met += mean_n in p or mean_p in n
        pull, push = [x for x in p if x > mean_n], [x for x in n if x < mean_p]
        expected = float((sum(pull) / len(pull) if pull else 0) - (sum(push) / len(push) if push else 0))
        sim = -(thirds.double() / 3).view(1, 12)
        assert MeanGapLoss(fraction=1).per_batch(sim, pos, ~pos).item() == pytest.approx(expected, abs=1e-12)
        sides = Sides(torch.where(pos, sim, ABSENT), torch.where(pos, -ABSENT, sim), six, six)
        assert mean_gap_weights(sides, fraction=1).losses.item() == pytest.approx(expected, abs=1e-12)
    assert met > 10


# --- What is given, and what is wrong. --------------------------------------------------------------------------------


def test_neighbourless_anchors_have_no_loss():
    angle = torch.tensor([0, 0.1, 0.25, 2, 2.1, 2.25], dtype=torch.float64)
    embeddings, labels = torch.stack((angle.cos(), angle.sin()), dim=1), LABELS[:6]
    for loss in (DecoupledNCALoss(k=1), KNNSoftmaxLoss(k=1)):
        assert loss(embeddings, labels) == 0
        assert (gradient_of(loss, embeddings, labels) == 0).all()


def test_relation_may_be_given():
    masks = PairMasks(torch.eye(6, dtype=torch.bool).roll(1, 1), torch.eye(6, dtype=torch.bool).roll(2, 1))
    for loss in (DecoupledNCALoss(), EasyPositiveTripletLoss(), HistogramLoss(), KNNSoftmaxLoss(), MeanGapLoss()):
        pairs = loss(T6, None, masks.indices())
        torch.testing.assert_close(pairs, loss(T6, None, masks))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KNNSoftmaxLoss(negative_weight=0), "negative_weight must be above 0, got 0"),
        (lambda: DecoupledNCALoss(beta=-1), "beta must be at least 0, got -1"),
        (lambda: LargeMarginNearestNeighborLoss(k=0), "k must be at least 1, got 0"),
        (lambda: EasyPositiveTripletLoss(margin=math.inf), "margin must be finite, got inf"),
        (lambda: MeanGapLoss(fraction=1.5), "fraction must be at most 1, got 1.5"),
        (lambda: HistogramLoss(n_bins=0), "n_bins must be at least 1, got 0"),
        (lambda: build("SoftTriple", num_classes=3), "SoftTriple needs embedding_size"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_distances_of_recipes():
    assert isinstance(build("DistWeight").loss.distance, CosineSimilarity)
    assert build("SoftmaxNeig").loss.distance.power == 1
