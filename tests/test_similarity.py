"""Vectors at unit length, where they have no direction, and distances where products of vectors lose them."""

import copy

import pytest
import torch
from pytorch_metric_learning.distances import BaseDistance, LpDistance, SNRDistance

from pml_ext import _pml, engine, losses, miners, thresholds
from pml_ext.analysis.pair_weights import pair_weights
from pml_ext.centers import BatchCenters
from pml_ext.similarity import Similarity, normalized, scores_by
from pml_ext.testing.law import by_autograd
from pml_ext.vectors import normalize, origin_of, unit_vectors
from pml_ext.wrappers import BranchLoss, CentersAsReferences

HALF = (torch.float16, torch.bfloat16)


def described(distance):
    """A distance as a loss has it, which says of itself what PML 2's say."""
    _pml.describe(distance)
    return distance


def gradient(loss, embeddings, labels, **options):
    x = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(x, labels), x, **options)[0].detach()


@pytest.mark.parametrize("unit", [unit_vectors, normalize])
def test_unit_vectors_are_normalized_ones_with_all_their_derivatives(unit):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit(x), torch.nn.functional.normalize(x))
    assert torch.autograd.gradcheck(unit, x)
    assert torch.autograd.gradgradcheck(unit, x)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_vectors_are_normalized_in_the_norm_of_the_distance(p):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(normalize(x, p), torch.nn.functional.normalize(x, p=p))
    distance = described(LpDistance(p=p))
    assert torch.autograd.gradcheck(lambda x: normalized(distance, x), x)


@pytest.mark.parametrize("unit", [unit_vectors, normalize, lambda x: normalize(x, 1)], ids=["fast", "plain", "p=1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("length", [0.0, 5e-13])
def test_vectors_without_a_direction_have_no_gradient(unit, dtype, length):
    if dtype == torch.float16 and length:
        pytest.skip("that is 0 in float16")
    x = torch.tensor([[0.0, length], [3.0, 4.0]]).to(dtype).requires_grad_()
    y = unit(x)
    assert y.dtype == torch.float32 if dtype in HALF else dtype
    torch.testing.assert_close(y[0, 1].item(), length / 1e-12, rtol=1e-2, atol=0)
    (first,) = torch.autograd.grad((y[:, 0] * y[:, 1]).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    for found in (first, second):
        assert found.isfinite().all()
        assert not found[0].any()
        assert found[1].any()


def one_zero_vector(dtype):
    x = torch.randn(12, 4)
    x[5] = 0
    x[6, 2:] = 0  # the second slice of two
    return x.to(dtype)


NORMALIZING = {
    "cosine": losses.MultiSimilarityLoss(),
    "distance": losses.BatchAllTripletLoss(),
    "square": losses.RAWLoss(distance=LpDistance(power=2)),
    "p=1": losses.RAWLoss(distance=LpDistance(p=1)),
    "classes": losses.ClassCenterMarginLoss(),
    "batch": losses.LiftedStructureLoss(),
    "slices": BranchLoss(losses.BinomialDevianceLoss(), 2),
    "centers": CentersAsReferences(losses.MultiSimilarityLoss(), BatchCenters()),
}


@pytest.mark.parametrize("name", NORMALIZING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("path", ["engine", "plain", "again"])
def test_one_zero_vector_does_not_drown_the_others(name, dtype, path):
    x, labels = one_zero_vector(dtype), torch.arange(12) // 3
    loss = by_autograd(NORMALIZING[name]) if path == "plain" else NORMALIZING[name]
    if path == "again" and (name in ("distance", "p=1") or "classes" in name):
        pytest.skip("of torch.cdist there is no second derivative")
    found = gradient(loss, x, labels, create_graph=path == "again")
    assert found.isfinite().all()
    assert found.abs().max() < 100
    if name not in ("slices", "centers"):
        assert not found[5].any()
    elif name == "slices":
        assert not found[6, 2:].any()


def exact(loss, embeddings, labels, ref=None, ref_labels=None):
    """Value and gradient in double precision, from distances by differences, by autograd throughout."""
    x = embeddings.double().requires_grad_()
    with engine.disabled():
        other = copy.deepcopy(loss)
        assert not loss.distance.normalize_embeddings
        other.distance = ByDifferences(loss.distance.power)
        value = other(x, labels, None, None if ref is None else ref.double(), ref_labels)
        return value.detach(), torch.autograd.grad(value, x)[0]


class ByDifferences(BaseDistance):
    """The Euclidean distance of vectors that are not normalized as it is defined, in both versions of PML."""

    def __init__(self, power=1):
        super().__init__(normalize_embeddings=False, power=power)
        self.normalize_embeddings, self.power = False, power

    def forward(self, query_emb, ref_emb=None):
        return self.compute_mat(query_emb, query_emb if ref_emb is None else ref_emb) ** self.power

    def compute_mat(self, query_emb, ref_emb):
        squares = (query_emb.unsqueeze(1) - ref_emb).square().sum(-1)
        return torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def far_clusters(apart, width, per_cluster=10, d=3):
    """Classes of four in two clusters."""
    x = width * normal(2 * per_cluster, d)
    x[per_cluster:] += apart
    return x, torch.arange(2 * per_cluster) // 4


def with_one_long(length, n=64, d=8):
    x = torch.nn.functional.normalize(normal(n, d))
    x[11] *= length
    return x, torch.arange(n) // 4


LAYOUTS = {
    "one long embedding": with_one_long(1e3),
    "one longer embedding": with_one_long(1e5),
    "two far clusters": far_clusters(100.0, 0.05),
    "two clusters far from 0": far_clusters(3e4, 3.0),
    "many in two far clusters": far_clusters(1e3, 0.1, 200),
    "all but collapsed": (10 + 1e-3 * normal(40, 6), torch.arange(40) // 4),
    "random": (normal(40, 6), torch.arange(40) // 4),
}
UNNORMALIZED = {
    "all triplets": losses.BatchAllTripletLoss(margin=0.2, distance=LpDistance(normalize_embeddings=False)),
    "hardest": losses.BatchHardTripletLoss(margin=0.2, distance=LpDistance(normalize_embeddings=False)),
    "contrastive": losses.AnchorContrastiveLoss(
        pos_margin=0, neg_margin=1, distance=LpDistance(normalize_embeddings=False)
    ),
    "softmax": losses.KNNSoftmaxLoss(alpha=1, distance=LpDistance(normalize_embeddings=False)),
    "square": losses.BatchAllTripletLoss(margin=0.2, distance=LpDistance(normalize_embeddings=False, power=2)),
    "square, soft": losses.BatchHardTripletLoss(margin=None, distance=LpDistance(normalize_embeddings=False, power=2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNNORMALIZED)
def test_distances_in_single_precision_are_those_of_the_numbers(layout, name):
    loss = copy.deepcopy(UNNORMALIZED[name])
    x, labels = LAYOUTS[layout]
    leaf = x.clone().requires_grad_()
    for refs in ((None, None), (x + 0.01, labels)):
        value, wanted = exact(loss, x, labels, *refs)
        for way in ("whole", "chunks", "again") if refs[0] is None else ("references",):
            loss.chunk_size = 7 if way == "chunks" else None
            found = loss(leaf, labels, None, *refs)
            torch.testing.assert_close(found.double(), value, rtol=1e-3, atol=1e-6)
            (found,) = torch.autograd.grad(found, leaf, create_graph=way == "again")
            error = (found.double() - wanted).abs().amax() / wanted.abs().amax().clamp(min=1e-9)
            assert error < 5e-3, f"{way}: {error:.1e}"


def test_one_long_embedding_silences_nobody():
    x, labels = torch.tensor([[0.0], [1], [2], [3], [1e4], [1e4 + 1]]), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = losses.BatchAllTripletLoss(margin=0.2, distance=LpDistance(normalize_embeddings=False))
    expected = exact(loss, x, labels)[1]
    torch.testing.assert_close(gradient(loss, x, labels).double(), expected, rtol=1e-3, atol=1e-3)
    assert expected.flatten().tolist() == pytest.approx([-0.5, 1.5, -1.5, 0.5, 0, 0])


def test_small_distances_between_far_clusters_stay():
    x, labels = torch.tensor([[0.0], [0.05], [100], [100.05]]), torch.tensor([0, 0, 1, 1])
    loss = losses.AnchorContrastiveLoss(pos_margin=0, neg_margin=1, distance=LpDistance(normalize_embeddings=False))
    assert loss(x, labels).item() == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_miners_and_pair_weights_see_the_same_distances(layout):
    x, labels = LAYOUTS[layout]
    distance = LpDistance(normalize_embeddings=False)
    exactly = ByDifferences()
    miner = miners.KNearestNegativeMiner(k=1, distance=distance)
    truth = miners.KNearestNegativeMiner(k=1, distance=exactly)
    for found, wanted in zip(miner(x, labels), truth(x.double(), labels), strict=True):
        assert torch.equal(found, wanted)
    # Softmax of scores of 1e5 that single precision tells apart by 0.008 only: with alpha=1 no worse than that.
    weights = pair_weights(losses.KNNSoftmaxLoss(alpha=1, distance=distance), x, labels)
    truth = pair_weights(losses.KNNSoftmaxLoss(alpha=1, distance=exactly), x.double(), labels)
    others = ~torch.eye(len(x), dtype=torch.bool)
    found, wanted = weights.similarity.double()[others], truth.similarity[others]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(weights.weights.double(), truth.weights, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 17, 18, 64, 100])
def test_the_origin_is_a_median_of_medians(n):
    x = torch.randn(n, 4)
    if n >= 9:
        groups = [[x[n // 9 * (3 * group + i)] for group in range(3)] for i in range(3)]
        points = [torch.stack(group).median(dim=0).values for group in groups]
    else:
        points = [x[n // 3 * i] for i in range(3)] if n >= 3 else [x[0]]
    assert torch.equal(origin_of(x), torch.stack(points).median(dim=0).values)
    assert torch.equal(origin_of(x.T.contiguous().T), origin_of(x))


def test_an_outlier_does_not_move_the_origin():
    x = torch.randn(100, 5, dtype=torch.float64)
    before = origin_of(x)
    for i in range(0, 100, 7):
        y = x.clone()
        y[i] = 1e9
        assert (origin_of(y) - before).norm() < 3
        y[i] = torch.nan
        assert origin_of(y).isfinite().all()
    for n in (1, 2, 3, 5, 26, 27, 28):
        assert origin_of(x[:n]).shape == (5,)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 30])
def test_the_origin_of_unit_vectors_is_no_longer_than_one_and_a_half(n):
    """By which `Space` knows how long vectors about it can be. In a third of the cases all are axes."""
    longest = 0.0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        axes = torch.eye(6)[torch.randint(6, (n,), generator=generator)]
        x = torch.rand(n, 6, generator=generator) if seed % 3 else axes
        x = torch.where(torch.rand(n, 6, generator=generator) < seed % 5 / 6, 0.0, x) + 1e-9
        longest = max(longest, float(origin_of(torch.nn.functional.normalize(x)).norm()))
    assert 0 < longest < 1.5


@pytest.mark.parametrize("spread", [3e-3, 1e-2, 3e-2, 1e-1])
def test_distances_of_unit_vectors_about_the_least_that_is_far_without_a_look(spread):
    noise = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.normalize(1 + spread * noise)
    similarity = Similarity.of(described(LpDistance()))
    found, wanted = (engine.all_scores(each, None, similarity).double() for each in (x, x.double()))
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=0)
    assert torch.equal(found.diagonal(), torch.zeros(24, dtype=torch.float64))


@pytest.mark.parametrize("length", [1e18, 1e19, 1.5e19, 1e20])
def test_a_distance_that_overflows_is_not_a_number_in_the_loss(length):
    """Neither where a distance is infinite, nor where the square of one is."""
    x, labels = length * torch.eye(4, 6), torch.tensor([0, 0, 1, 1])
    x[3] = -x[0]
    x.requires_grad_()
    loss = losses.BatchHardTripletLoss(distance=LpDistance(normalize_embeddings=False))(x, labels)
    loss.backward()
    assert loss.isfinite() == x.grad.isfinite().all()
    assert loss.isfinite() == (length < 1e19)


def test_the_slice_of_a_half_precision_embedding_that_is_zero():
    x = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]])
    for dtype in (torch.float32, *HALF):
        found = BranchLoss(losses.BinomialDevianceLoss(), 2)(x.to(dtype), torch.tensor([0, 0, 1, 1]))
        torch.testing.assert_close(found.float(), torch.tensor(1.2671), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_power_below_1_has_the_gradient_of_its_distinct_pairs(p):
    """The power of a distance has no derivative at 0, where every sample is from itself."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    distance = described(LpDistance(p=p, power=0.5, normalize_embeddings=False))
    leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    scores_by(distance, leaf, None).sum().backward()
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    sum(-(((again[i] - again[j]).abs() ** p).sum() ** (0.5 / p)) for i, j in pairs).backward()
    torch.testing.assert_close(leaf.grad, again.grad)
    loss = losses.AnchorContrastiveLoss(pos_margin=0, neg_margin=1, distance=LpDistance(p=p, power=0.5))
    assert gradient(loss, x, torch.tensor([0, 0, 1, 1, 2, 2])).isfinite().all()


def test_a_vector_without_variance_has_no_ratio_of_signal_to_noise():
    loss, x = losses.BatchHardTripletLoss(distance=SNRDistance()), torch.randn(6, 3)
    x[4] = 0
    with pytest.raises(ValueError, match="SNRDistance divides by the variance of an embedding, and embedding 4 has"):
        loss(x, torch.tensor([0, 0, 1, 1, 2, 2]))


def test_equal_vectors_have_no_distance_where_nobody_may_look():
    # Their squared distance by lengths and product is a rounding error, whose root is no distance.
    similarity = Similarity.of(described(LpDistance(normalize_embeddings=False)))
    with thresholds.as_on_a_device():
        for seed in range(20):
            x = 30 * torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
            x[1] = x[0]
            scores = engine.all_scores(x, x.clone(), similarity)
            assert scores[0, 1] == scores[1, 0] == 0
            assert (scores[2:, 0] < 0).all()
