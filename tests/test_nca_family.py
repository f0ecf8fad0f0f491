"""The NCA family and the losses over all pairs of a batch: worked values, oracles with their gradients, identities.

The oracles are the formulas in plain Python. They take complex numbers and decide by real parts, so that a step along
the imaginary axis gives the derivative to the last digit, f(x + ih) = f(x) + ih f'(x) for tiny h, and a real part is
what is held constant in the backward pass.
"""

import cmath
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.miners import BatchEasyHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from pml_ext.catalog import build
from pml_ext.losses import (
    DecoupledNCALoss,
    EasyPositiveTripletLoss,
    HistogramLoss,
    KNNSoftmaxLoss,
    LargeMarginNearestNeighborLoss,
    MeanGapLoss,
)
from pml_ext.masked import nearest
from pml_ext.pairs import PairMasks

T6 = torch.tensor([(1, 0), (0.96, 0.28), (0.28, 0.96), (0.6, 0.8), (-0.352, 0.936), (-0.8, 0.6)], dtype=torch.float64)
T9 = torch.cat((T6, torch.tensor([(0, -1), (0.6, -0.8), (-0.936, -0.352)], dtype=torch.float64)))
LABELS = torch.arange(9) // 3


def plain(power: int = 1) -> LpDistance:
    return LpDistance(normalize_embeddings=False, power=power)


# --- Worked values. ---------------------------------------------------------------------------------------------------

GOLDEN = [
    ("NCA", KNNSoftmaxLoss(alpha=16, k=3), 4.2921841659, 3.5218514465),
    ("GaussianLDA", KNNSoftmaxLoss(alpha=30, k=3, distance=LpDistance()), 6.0569928525, 4.6277731941),
    ("NCA, all", KNNSoftmaxLoss(alpha=1, k=None), 0.7804525854, None),
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
def test_worked_values(name: str, loss: Any, six: float, nine: float | None) -> None:
    assert loss(T6, LABELS[:6]).item() == pytest.approx(six, abs=1e-10)
    if nine is not None:
        assert loss(T9, LABELS).item() == pytest.approx(nine, abs=1e-10)


def test_worked_gradients() -> None:
    nca = KNNSoftmaxLoss(alpha=16, k=3, distance=plain(2))
    assert gradient_of(nca, T6, LABELS[:6]).norm().item() == pytest.approx(7.1221209656, abs=1e-9)
    grad_nca = DecoupledNCALoss(k=3, distance=plain())
    assert gradient_of(grad_nca, T6, LABELS[:6]).norm().item() == pytest.approx(13.5611323333, abs=1e-9)


def test_n_pair_has_the_worked_value_of_the_paper() -> None:
    embeddings = torch.tensor([(1, 0), (0.8, 0.6), (0, 1), (-0.6, 0.8)], dtype=torch.float64)
    assert build("NPair")(embeddings, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0.4107781397, abs=1e-10)


# --- Oracles: of one anchor, d its distances; or of a batch, d those of its pairs. p and n are places in d. -----------

Row = Sequence[complex]
Places = Sequence[int]
Oracle = Callable[[Row, Places, Places], complex]


def hinge(x: complex) -> complex:
    return x if x.real > 0 else 0j


def lse(xs: Sequence[complex]) -> complex:
    top = max(x.real for x in xs)
    return top + cmath.log(sum(cmath.exp(x - top) for x in xs))


def mean(xs: Sequence[complex]) -> complex:
    return sum(xs) / len(xs)


def real(x: complex) -> float:
    return x.real


def near_places(d: Row, p: Places, n: Places, k: int | None) -> tuple[Places, Places]:
    ordered = sorted(d[j].real for j in (*p, *n))
    limit = math.inf if k is None or k >= len(ordered) else ordered[k]
    nearest_pos = min(p, key=lambda j: d[j].real)
    return [j for j in p if d[j].real < limit] or [nearest_pos], [j for j in n if d[j].real < limit]


def knn_oracle(alpha: float, k: int | None, weight: float = 1) -> Oracle:
    def oracle(d: Row, p: Places, n: Places) -> complex:
        p, n = near_places(d, p, n, k)
        pull = lse([-alpha * d[j] for j in p])
        every = [-alpha * d[j] for j in p] + [-alpha * d[j] + math.log(weight) for j in n]
        return lse(every) - pull

    return oracle


def decoupled_oracle(alpha: float, beta: float, k: int | None) -> Oracle:
    def oracle(d: Row, p: Places, n: Places) -> complex:
        p, n = near_places(d, p, n, k)
        if not n:
            return 0j
        far = lse([alpha * (1 - d[j]) for j in n])
        weight = 1 / (1 + math.exp((lse([alpha * (1 - d[j]) for j in p]) - far).real))
        if beta == 0:
            return weight * (alpha * mean([d[j] for j in p]) + far)
        return weight * (far - alpha / beta * lse([beta * (1 - d[j]) for j in p]))

    return oracle


def neighbour_oracle(k: int, margin: float) -> Oracle:
    def oracle(d: Row, p: Places, n: Places) -> complex:
        targets = sorted((d[j] for j in p), key=real)[:k]
        impostors = [d[j] for j in n if d[j].real < targets[-1].real + margin]
        return mean(targets) - mean(impostors) + margin if impostors else 0j

    return oracle


def easy_positive_oracle(margin: float) -> Oracle:
    def oracle(d: Row, p: Places, n: Places) -> complex:
        return hinge(min((d[j] for j in p), key=real) - min((d[j] for j in n), key=real) + margin)

    return oracle


def mean_gap_oracle(one_in: int) -> Oracle:
    def oracle(d: Row, p: Places, n: Places) -> complex:
        r = len(p) // one_in
        pos, neg = (sorted((d[j] for j in places), key=real)[:r] for places in (p, n))
        if not pos or not neg:
            return 0j
        pull = [x for x in pos if x.real > mean(neg).real]
        push = [x for x in neg if x.real < mean(pos).real]
        return (mean(pull) if pull else 0j) - (mean(push) if push else 0j)

    return oracle


def histogram_oracle(n_bins: int) -> Oracle:
    def height(values: Row, node: float) -> complex:
        tents = [1 - (s - node if s.real > node else node - s) * n_bins / 2 for s in values]
        return sum((hinge(x) for x in tents), 0j) / len(values)

    def oracle(d: Row, p: Places, n: Places) -> complex:
        pos, neg = ([-d[j] for j in places] for places in (p, n))
        nodes = [-1 + 2 * r / n_bins for r in range(n_bins + 1)]
        heights = [height(pos, node) for node in nodes]
        return sum((height(neg, node) * sum(heights[: r + 1]) for r, node in enumerate(nodes)), 0j)

    return oracle


def lp(power: int) -> Callable[[Row, Row], complex]:
    return lambda a, b: cmath.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) ** power


def minus_cosine(a: Row, b: Row) -> complex:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return -dot / cmath.sqrt(sum(x * x for x in a)) / cmath.sqrt(sum(x * x for x in b))


def row_loss(oracle: Oracle, distance: Any, rows: Sequence[Row], labels: Sequence[int]) -> complex:
    total = 0j
    for i, a in enumerate(rows):
        d = [distance(a, b) if j != i else 0j for j, b in enumerate(rows)]
        p = [j for j, y in enumerate(labels) if y == labels[i] and j != i]
        n = [j for j, y in enumerate(labels) if y != labels[i]]
        total += oracle(d, p, n) if p and n else 0j
    return total / len(rows)


def batch_loss(oracle: Oracle, distance: Any, rows: Sequence[Row], labels: Sequence[int]) -> complex:
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    d = [distance(rows[i], rows[j]) for i, j in pairs]
    p = [t for t, (i, j) in enumerate(pairs) if labels[i] == labels[j]]
    n = [t for t, (i, j) in enumerate(pairs) if labels[i] != labels[j]]
    return oracle(d, p, n) if p and n else 0j


EUCLIDEAN = {"distance": plain()}
SQUARED = {"distance": plain(2)}

ORACLES = [
    ("NCA", KNNSoftmaxLoss(alpha=5, k=4, **SQUARED), row_loss, lp(2), knn_oracle(5, 4)),
    ("NCA, all", KNNSoftmaxLoss(alpha=2, k=None, **EUCLIDEAN), row_loss, lp(1), knn_oracle(2, None)),
    (
        "SoftmaxNeig",
        KNNSoftmaxLoss(alpha=6, k=None, negative_weight=0.5, **EUCLIDEAN),
        row_loss,
        lp(1),
        knn_oracle(6, None, 0.5),
    ),
    ("GradNCA", DecoupledNCALoss(alpha=4, beta=1.5, k=5, **EUCLIDEAN), row_loss, lp(1), decoupled_oracle(4, 1.5, 5)),
    ("GradNCA, 0", DecoupledNCALoss(alpha=4, beta=0, k=5, **EUCLIDEAN), row_loss, lp(1), decoupled_oracle(4, 0, 5)),
    ("GradNCA, all", DecoupledNCALoss(alpha=4, k=None, **EUCLIDEAN), row_loss, lp(1), decoupled_oracle(4, 10, None)),
    ("Neighbour", LargeMarginNearestNeighborLoss(**EUCLIDEAN), row_loss, lp(1), neighbour_oracle(1, 0.1)),
    ("Neighbour, 2", LargeMarginNearestNeighborLoss(k=2, **EUCLIDEAN), row_loss, lp(1), neighbour_oracle(2, 0.1)),
    ("Neighbour, cosine", build("DistWeight").loss, row_loss, minus_cosine, neighbour_oracle(1, 0.01)),
    ("NeighbourHard", EasyPositiveTripletLoss(**EUCLIDEAN), row_loss, lp(1), easy_positive_oracle(0.05)),
    ("GaussianMetric", MeanGapLoss(**EUCLIDEAN), batch_loss, lp(1), mean_gap_oracle(5)),
    ("GaussianMetric, 1/2", MeanGapLoss(fraction=0.5, **EUCLIDEAN), batch_loss, lp(1), mean_gap_oracle(2)),
    ("Histogram, 7", HistogramLoss(n_bins=7), batch_loss, minus_cosine, histogram_oracle(7)),
    ("Histogram, 100", HistogramLoss(), batch_loss, minus_cosine, histogram_oracle(100)),
]

SIZES = [(3, 3, 3), (1, 5, 2, 3), (2, 6), (1, 1, 4)]


def random_batch(sizes: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return torch.randn(len(labels), 3, generator=generator, dtype=torch.float64), labels


def gradient_of(loss: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
    embeddings = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(embeddings, labels), embeddings)[0]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("name", "loss", "whole", "distance", "oracle"), ORACLES, ids=[name for name, *_ in ORACLES])
def test_oracles(name: str, loss: Any, whole: Any, distance: Any, oracle: Oracle, sizes: Sequence[int]) -> None:
    embeddings, labels = random_batch(sizes, seed=len(sizes))
    rows, step = embeddings.tolist(), 1e-40
    expected = whole(oracle, distance, rows, labels.tolist())
    assert loss(embeddings, labels).item() == pytest.approx(expected.real, abs=1e-10)
    gradient = gradient_of(loss, embeddings, labels)
    for i, j in ((i, j) for i in range(len(rows)) for j in range(3)):
        moved = [[x + 1j * step * (r == i and c == j) for c, x in enumerate(row)] for r, row in enumerate(rows)]
        slope = whole(oracle, distance, moved, labels.tolist()).imag / step
        assert gradient[i, j].item() == pytest.approx(slope, abs=1e-10), (i, j)


# --- PML's own. -------------------------------------------------------------------------------------------------------


def test_nca_on_all_neighbours_is_that_of_pml() -> None:
    embeddings, labels = random_batch((4, 4, 4), 0)
    expected = pml.NCALoss(softmax_scale=2, distance=plain(2))(embeddings, labels)
    actual = KNNSoftmaxLoss(alpha=2, k=None, distance=plain(2))(embeddings, labels)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_easy_positive_is_that_of_pml() -> None:
    embeddings, labels = random_batch((4, 4, 2, 2), 1)
    triplets = BatchEasyHardMiner(pos_strategy="easy", neg_strategy="hard")(embeddings, labels)
    expected = pml.TripletMarginLoss(margin=0.3, reducer=MeanReducer())(embeddings, labels, triplets)
    torch.testing.assert_close(EasyPositiveTripletLoss(margin=0.3)(embeddings, labels), expected, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("n_bins", [4, 25, 32, 100, 128])
def test_histogram_is_that_of_pml(n_bins: int) -> None:
    embeddings, labels = random_batch((4, 4, 4, 8), n_bins)
    # PML rounds its nodes to float32 in float64 too: they are exact for powers of two only.
    tolerance = 1e-12 if n_bins in (4, 32, 128) else 1e-6
    expected = pml.HistogramLoss(n_bins=n_bins)(embeddings, labels)
    torch.testing.assert_close(HistogramLoss(n_bins=n_bins)(embeddings, labels), expected, atol=tolerance, rtol=0)
    gradient = gradient_of(pml.HistogramLoss(n_bins=n_bins), embeddings, labels)
    actual = gradient_of(HistogramLoss(n_bins=n_bins), embeddings, labels)
    torch.testing.assert_close(actual, gradient, atol=100 * tolerance, rtol=0)


def test_n_pair_and_soft_triple_are_those_of_pml() -> None:
    embeddings, labels = random_batch((2, 2, 2), 3)
    recipe = build("NPair", embedding_reg_weight=0.0)
    expected = pml.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))(embeddings, labels)
    torch.testing.assert_close(recipe(embeddings, labels), expected)
    soft_triple = build("SoftTriple", num_classes=3, embedding_size=3).loss
    assert type(soft_triple) is pml.SoftTripleLoss
    assert soft_triple.fc.shape == (3, 30)


# --- Identities. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 5, None])
def test_decoupled_nca_with_equal_steepness_has_the_gradient_of_the_softmax(k: int | None) -> None:
    embeddings, labels = random_batch((3, 5, 1, 4), 4)
    softmax = gradient_of(KNNSoftmaxLoss(alpha=7, k=k, distance=plain()), embeddings, labels)
    decoupled = gradient_of(DecoupledNCALoss(alpha=7, beta=7, k=k, distance=plain()), embeddings, labels)
    torch.testing.assert_close(decoupled, softmax, atol=1e-13, rtol=1e-12)


def test_pull_spreads_as_beta_falls() -> None:
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


def test_a_weight_of_the_negatives_is_as_many_copies_of_them() -> None:
    embeddings, _ = random_batch((6,), 5)
    refs, ref_labels = embeddings[[1, 2, 3]], torch.tensor([0, 1, 2])
    twice, twice_labels = embeddings[[1, 2, 3, 2, 3]], torch.tensor([0, 1, 2, 1, 2])
    anchor, label = embeddings[:1], torch.tensor([0])
    one = KNNSoftmaxLoss(k=None, negative_weight=2)(anchor, label, None, refs, ref_labels)
    two = KNNSoftmaxLoss(k=None)(anchor, label, None, twice, twice_labels)
    torch.testing.assert_close(one, two)


def test_nearest_is_never_more_than_k_among_equals() -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, False], [True, False, False, False, False]])
    assert nearest(x, mask, 2).sum(-1).tolist() == [2, 1]
    assert not (nearest(x, mask, 2) & ~mask).any()
    assert nearest(x, mask, 9).equal(mask)


def test_histogram_is_a_probability() -> None:
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
def test_histogram_in_float32_loses_no_pair(n_bins: int) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(64, 16, generator=generator)
    labels = torch.arange(64) % 8
    loss = HistogramLoss(n_bins=n_bins)
    torch.testing.assert_close(loss(embeddings, labels).double(), loss(embeddings.double(), labels), atol=2e-6, rtol=0)


def test_histogram_takes_equal_opposite_and_distant_embeddings() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert HistogramLoss()(embeddings, torch.tensor([0, 0, 1, 1])) == 0
    assert HistogramLoss()(embeddings, torch.tensor([0, 1, 1, 1])).item() == pytest.approx(7 / 9)
    by_distance = HistogramLoss(n_bins=4, distance=LpDistance(), center=1)
    assert by_distance(embeddings, torch.tensor([0, 1, 1, 1])).item() == pytest.approx(7 / 9)


@pytest.mark.parametrize("one_in", [3, 5, 7, 10])
def test_mean_gap_keeps_the_exact_share(one_in: int) -> None:
    sim = torch.arange(120.0, dtype=torch.float64).view(1, 120)  # far positives above all negatives are not kept
    for count in range(1, 60):
        pos = (torch.arange(120) >= 60) & (torch.arange(120) < 60 + count)
        neg = torch.arange(120) < 60
        loss = MeanGapLoss(fraction=1 / one_in).per_batch(-sim, pos[None], neg[None])
        r = count // one_in
        expected = 0 if r == 0 else 60 + (r - 1) / 2 - (r - 1) / 2
        assert loss.item() == pytest.approx(expected), count


# --- Signs, and batches in which little or nothing is defined. --------------------------------------------------------

LOSSES = {name: loss for name, loss, *_ in ORACLES}


@pytest.mark.parametrize("name", LOSSES)
def test_positives_are_pulled_and_negatives_pushed(name: str) -> None:
    loss: Any = LOSSES[name]
    generator = torch.Generator().manual_seed(6)
    sim = -torch.rand(8, 9, generator=generator, dtype=torch.float64).requires_grad_()
    sim.retain_grad()
    pos = torch.rand(8, 9, generator=generator) < 0.4
    formula = loss.per_batch if hasattr(loss, "per_batch") else loss.per_anchor
    formula(sim, pos, ~pos).sum().backward()
    assert (sim.grad[pos] <= 0).all()
    assert (sim.grad[~pos] >= 0).all()
    assert sim.grad.abs().sum() > 0


DEGENERATE = {
    "one sample": (torch.ones(1, 3), torch.tensor([0])),
    "no sample": (torch.ones(0, 3), torch.zeros(0, dtype=torch.long)),
    "one class": (torch.randn(5, 3, generator=torch.Generator().manual_seed(7)), torch.zeros(5, dtype=torch.long)),
    "all different": (torch.randn(5, 3, generator=torch.Generator().manual_seed(8)), torch.arange(5)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("embeddings", "labels"), DEGENERATE.values(), ids=list(DEGENERATE))
def test_nothing_to_learn_costs_nothing(name: str, embeddings: Tensor, labels: Tensor) -> None:
    embeddings = embeddings.clone().requires_grad_()
    value = LOSSES[name](embeddings, labels)
    value.backward()
    assert value == 0
    assert embeddings.grad is not None
    assert (embeddings.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_and_huge_embeddings_stay_finite(name: str) -> None:
    labels = torch.arange(6) // 2
    for embeddings in (torch.ones(6, 3), torch.ones(6, 3).mul_(1e4 * (torch.arange(6)[:, None] % 3))):
        gradient = gradient_of(LOSSES[name], embeddings, labels)
        assert gradient.isfinite().all()


def test_neighbourless_anchors_have_no_loss() -> None:
    angle = torch.tensor([0, 0.1, 0.25, 2, 2.1, 2.25], dtype=torch.float64)
    embeddings, labels = torch.stack((angle.cos(), angle.sin()), dim=1), LABELS[:6]
    for loss in (DecoupledNCALoss(k=1), KNNSoftmaxLoss(k=1)):
        assert loss(embeddings, labels) == 0
        assert (gradient_of(loss, embeddings, labels) == 0).all()


def test_relation_may_be_given() -> None:
    masks = PairMasks(torch.eye(6, dtype=torch.bool).roll(1, 1), torch.eye(6, dtype=torch.bool).roll(2, 1))
    for loss in LOSSES.values():
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
def test_wrong_arguments_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_distances_of_recipes() -> None:
    assert isinstance(build("DistWeight").loss.distance, CosineSimilarity)
    assert build("SoftmaxNeig").loss.distance.power == 1
