"""Coding rate, alignment, uniformity and threshold consistency: worked values, bounds and other ways to them."""

import math

import pytest
import torch
from of_pml import CosineSimilarity
from of_pml import losses as pml_losses
from toy import toy

from pml_ext import thresholds
from pml_ext.analysis import diagnose
from pml_ext.analysis.health import measure
from pml_ext.evaluation import alignment, threshold_consistency, uniformity
from pml_ext.losses import RAWLoss
from pml_ext.wrappers import CodingRateRegularizer
from pml_ext.wrappers.coding_rate import coding_rate, largest_coding_rate


def close(value):
    return pytest.approx(value, abs=5e-10)


WIDE = torch.cat((toy(6)[0], toy(6)[0][[3, 0, 4, 1, 5, 2]]), 1) / 2**0.5


# ---- coding rate ----


@pytest.mark.parametrize(
    ("n", "rate", "finer", "reg"),
    [(6, 1.0971615573, 1.6073475233, 0.0013205126), (9, 1.0983607273, 1.6090756240, 0.0002289810)],
)
def test_coding_rate(n, rate, finer, reg):
    embeddings, _ = toy(n)
    assert coding_rate(embeddings, distortion=0.5).item() == close(rate)
    assert coding_rate(embeddings, distortion=0.25).item() == close(finer)
    assert CodingRateRegularizer()(embeddings).item() == close(reg)
    assert largest_coding_rate(n, 2, distortion=0.5) == close(1.0986122887)
    assert coding_rate(embeddings[:1].expand(6, -1), distortion=0.5).item() == close(0.8047189562)


def test_coding_rate_in_four_dimensions():
    x = WIDE.clone().requires_grad_()
    rate = coding_rate(x, distortion=0.5)
    assert rate.item() == close(1.9243903062)
    assert coding_rate(WIDE, distortion=0.25).item() == close(2.7961330568)
    assert largest_coding_rate(6, 4, distortion=0.5) == close(2.1972245773)
    assert CodingRateRegularizer()(WIDE).item() == close(0.1241722280)
    (gradient,) = torch.autograd.grad(rate, x)
    assert gradient.norm().item() == close(1.0303983614)
    assert gradient[0].tolist() == close([0.2735185943, -0.1891366765, 0.0496470402, 0.3381773884])
    means = torch.nn.functional.normalize(torch.stack([WIDE[:3].mean(0), WIDE[3:].mean(0)]))
    assert coding_rate(means, distortion=0.5).item() == close(1.5103330996)
    assert coding_rate(means, distortion=0.5 * 4**2 / 2**2).item() == close(0.6567353692)


def test_gradient_of_the_coding_rate():
    embeddings, _ = toy(6)
    scores = (embeddings @ embeddings.T).requires_grad_()
    embeddings.requires_grad_()
    (gradient,) = torch.autograd.grad(coding_rate(embeddings, distortion=0.5), embeddings)
    assert gradient.norm().item() == close(0.5443287561)
    assert gradient[0].tolist() == close([0.2167314330, -0.0103077902])
    c = 2 / (6 * 0.5)
    rate = torch.logdet(torch.eye(6, dtype=torch.float64) + c * scores) / 2
    assert rate.item() == close(1.0971615573)
    expected = [0.2610895223, -0.0683919981, -0.0169297742, -0.0405975425, 0.0286458520, 0.0598566068]
    assert torch.autograd.grad(rate, scores)[0][0].tolist() == close(expected)
    nine = toy(9)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(coding_rate(nine, distortion=0.5), nine)
    assert (gradient.norm().item(), *gradient[0].tolist()) == close((0.4444443882, 0.1512969523, -0.0012648337))


def test_coding_rate_of_proxies_with_the_ratio_of_the_public_code():
    for n, true, inverted in ((6, 1.0821269394, 1.0821269394), (9, 1.0403373880, 1.6141650322)):
        embeddings, labels = toy(n)
        means = torch.stack([embeddings[labels == k].mean(0) for k in labels.unique()])
        means = torch.nn.functional.normalize(means)
        k, d = means.shape
        assert coding_rate(means, distortion=0.5).item() == close(true)
        # c = k / (d distortion) in place of d / (k distortion)
        assert coding_rate(means, distortion=0.5 * d**2 / k**2).item() == close(inverted)


def test_both_determinants_are_equal_and_signs_and_copies_are_irrelevant():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64))
    d, c = 5, 5 / (7 * 0.3)
    rates = [
        torch.logdet(torch.eye(len(gram), dtype=torch.float64) + c * gram).item() / 2 for gram in (x @ x.T, x.T @ x)
    ]
    assert rates == close([coding_rate(x, distortion=0.3).item()] * 2)
    flipped = x * torch.tensor([1, -1, 1, 1, -1, 1, -1]).unsqueeze(1)
    assert coding_rate(flipped, distortion=0.3).item() == close(rates[0])
    assert coding_rate(x.repeat(3, 1), distortion=0.3).item() == close(rates[0])
    values = torch.linalg.eigvalsh(x @ x.T)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(coding_rate(leaf, distortion=0.3), leaf)
    assert (gradient * x).sum().item() == close((c * values / (1 + c * values)).sum().item())
    assert math.log(1 + d / 0.3) / 2 <= rates[0] <= largest_coding_rate(7, 5, distortion=0.3)


def test_the_regularizer_is_between_orthogonal_and_equal():
    regularizer = CodingRateRegularizer()
    assert regularizer(torch.eye(4, dtype=torch.float64)).item() == close(0)
    torch.manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.float64)
    assert 0 < regularizer(x).item() < regularizer(torch.ones(8, 4)).item() < 1
    assert regularizer(3 * x).item() == close(regularizer(x).item())
    for few in (x[:0], x[:1], torch.zeros(3, 4, dtype=torch.float64)):
        leaf = few.clone().requires_grad_()
        value = regularizer(leaf)
        assert value.isfinite()
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        assert gradient.isfinite().all()
        assert len(few) != 1 or (value.item() == close(0) and gradient.norm() < 1e-12)
    half = regularizer(x.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(regularizer(x).item(), abs=0.01)


def test_any_loss_takes_the_regularizer():
    torch.manual_seed(0)
    x, labels = torch.randn(12, 4), torch.arange(12) // 3
    regularizer = CodingRateRegularizer()
    for make in (RAWLoss, pml_losses.TripletMarginLoss):
        loss = make(embedding_regularizer=regularizer, embedding_reg_weight=0.1)
        assert loss(x, labels).item() == pytest.approx(make()(x, labels).item() + 0.1 * regularizer(x).item(), abs=1e-6)


# ---- alignment and uniformity ----


@pytest.mark.parametrize(
    ("n", "aligned", "aligned_1", "uniform", "uniform_5", "bound"),
    [
        (6, 0.9472000000, 0.8967311199, -1.3875597396, -2.1674507541, -4.8),
        (9, 1.1043555556, 0.9723624677, -2.0218375454, -2.9502983719, -4.5),
    ],
)
def test_alignment_and_uniformity(n, aligned, aligned_1, uniform, uniform_5, bound):
    embeddings, labels = toy(n)
    found = (alignment(embeddings, labels), alignment(embeddings, labels, alpha=1))
    assert found == close((aligned, aligned_1))
    assert (uniformity(embeddings), uniformity(embeddings, t=5)) == close((uniform, uniform_5))
    assert bound <= uniformity(embeddings) <= 0
    # Lengths do not matter, nor how many rows are compared at a time.
    with thresholds.replaced(DISTANCES=5):
        assert uniformity(embeddings * torch.arange(1, n + 1).unsqueeze(1)) == close(uniform)
        assert alignment(embeddings, labels) == close(aligned)


def test_alignment_and_uniformity_of_little():
    assert math.isnan(alignment(torch.eye(3), [0, 1, 2]))
    assert alignment(torch.eye(3)[[0, 0, 1, 1]], ["a", "a", "b", "b"]) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(3)[:1]) == 0
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="t must be above 0, got 0"):
        uniformity(torch.eye(3), t=0)


def test_health_measures_uniformity():
    torch.manual_seed(0)
    x, labels = torch.randn(32, 8), torch.arange(32) // 4
    assert measure(RAWLoss(), x, labels).uniformity == pytest.approx(uniformity(x), abs=1e-5)
    assert measure(RAWLoss(), torch.ones(32, 8), labels).uniformity == pytest.approx(0, abs=1e-5)
    assert diagnose(x, labels)


# ---- threshold consistency ----


@pytest.mark.parametrize(
    ("n", "opis", "gap", "exact"),
    [(6, 0.0038578748, 0.0154314990, 0.0038867143), (9, 0.0096625740, 0.0439847698, 0.0094101236)],
)
def test_threshold_consistency(n, opis, gap, exact):
    embeddings, labels = toy(n)
    found = threshold_consistency(embeddings, labels, limits=(0.5, 1.5))
    assert (found.opis, found.gap) == close((opis, gap))
    assert (found.classes, found.left_out) == (n // 3, 0)
    finer = threshold_consistency(embeddings, labels, limits=(0.5, 1.5), steps=100_001)
    assert finer.opis == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (6, [(0.4848484848, 0.6060606061, 0.5), (0, 0.6060606061, 0.5)]),
        (
            9,
            [
                (0.4927536232, 0.6933333333, 0.6666666667),
                (0, 0.6933333333, 0.7142857143),
                (0, 0.4848484848, 0.6933333333),
            ],
        ),
    ],
)
def test_utilities(n, expected):
    found = threshold_consistency(*toy(n), limits=(0.5, 1.5), steps=3).utilities
    assert [row == close(list(values)) for row, values in zip(found.tolist(), expected, strict=True)] == [True] * (
        n // 3
    )


def test_thresholds_of_false_accepts():
    found = threshold_consistency(*toy(6), steps=1)
    assert (found.low, found.high, found.opis) == close((0.3577708764, 0.3577708764, 0.0587695133))
    found = threshold_consistency(*toy(9), steps=200_001)
    assert (found.low, found.high) == close((0.3577708764, 0.6324555320))
    assert found.opis == pytest.approx(0.0539569185, abs=1e-5)


def test_blocks_and_references_agree():
    torch.manual_seed(0)
    x, labels = torch.randn(40, 6, dtype=torch.float64), torch.randint(0, 5, (40,))
    expected = threshold_consistency(x, labels)
    with thresholds.replaced(DISTANCES=100):
        assert threshold_consistency(x, labels).opis == close(expected.opis)
    names = [f"class {k}" for k in labels.tolist()]
    assert threshold_consistency(x, names).opis == close(expected.opis)
    # Twice the set as references: each sample also meets itself.
    both = threshold_consistency(x, labels, torch.cat((x, x)), torch.cat((labels, labels)), limits=(0.5, 1.5))
    once = threshold_consistency(x, labels, x, labels, limits=(0.5, 1.5))
    assert both.opis == close(once.opis)


def test_classes_that_are_alike_and_classes_without_pairs():
    angles = [k * math.tau / 3 + a for k in range(3) for a in (0, 0.4, 0.9)]
    x = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)
    labels = torch.arange(9) // 3
    # Up to rounding of the cosines, which are not those of one triangle turned.
    assert threshold_consistency(x, labels, limits=(0.45, 1.6), steps=37).opis == pytest.approx(0, abs=1e-4)
    lonely = threshold_consistency(torch.eye(4), [0, 0, 1, 2])
    assert (lonely.classes, lonely.left_out, lonely.opis) == (1, 2, 0)
    nothing = threshold_consistency(torch.eye(3), [0, 1, 2])
    assert math.isnan(nothing.opis)
    assert nothing.left_out == 3
    assert math.isnan(threshold_consistency(torch.eye(3), [0, 0, 0]).opis)
    apart = torch.tensor([[1, 0.0], [1, 0.1], [0, 1], [0.1, 1]])
    between = threshold_consistency(apart, [0, 0, 1, 1], limits=(0.2, 1), steps=5)
    assert between.utilities.tolist() == [[1.0] * 5] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"far": (0.2, 0.1)}, "far must be the lesser and the greater number"),
        ({"far": (0.2, 2)}, "far must be in 0..1, got 2"),
        ({"limits": (1, 0.5)}, "limits must be the lesser and the greater"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"share": 0}, "share must be above 0, got 0"),
        ({"references": torch.eye(3)}, "references and reference_labels belong together"),
        ({"references": torch.eye(2), "reference_labels": [0, 1]}, "references must have 3 dimensions"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        threshold_consistency(torch.eye(3), [0, 0, 1], **arguments)


# ---- the threshold-consistent margin loss is PML's contrastive loss ----


def test_tcm_is_a_contrastive_loss():
    for n, value, weighted in ((6, 0.7443200000, 1.0626400000), (9, 0.7284666667, 1.1385333333)):
        embeddings, labels = toy(n)
        theirs = pml_losses.ThresholdConsistentMarginLoss()(embeddings, labels).item()

        def contrastive(pos_margin, neg_margin, embeddings=embeddings, labels=labels):
            loss = pml_losses.ContrastiveLoss(pos_margin, neg_margin, distance=CosineSimilarity())
            return loss(embeddings, labels).item()

        assert (contrastive(0.9, 0.5), theirs) == close((value, value))
        assert 2 * contrastive(0.9, 2) + 0.5 * contrastive(-2, 0.5) == close(weighted)
