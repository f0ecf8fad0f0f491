"""Selection without a sort, noise from integers, draws without replacement, and blocks of rows."""

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pml_ext import _pml, sampling, thresholds
from pml_ext.catalog import all_miners
from pml_ext.masked import informative, kth_largest, largest, nearest, not_self
from pml_ext.miners import (
    AmbiguousNegativeMiner,
    CappedMiner,
    ChainedMiner,
    DistanceWeightedMiner,
    ExponentialPositiveMiner,
    GuidedMiner,
    HardNegativePairMiner,
    InverseDensityMiner,
    KNearestNegativeMiner,
    KNearestPositiveMiner,
    PositiveAwareMiner,
)
from pml_ext.miners.base import PairMiner, in_row_blocks
from pml_ext.pairs import label_masks
from pml_ext.sampling import gumbel_like, sample, top_mask
from pml_ext.testing.sampling import assert_frequencies, subset_probabilities


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 5, 300])
def test_kth_largest_is_that_of_a_sort(dtype, m, monkeypatch):
    monkeypatch.setattr(thresholds, "SORTED_LENGTH", 0)
    generator = torch.Generator().manual_seed(m)
    exponents = torch.randint(-30, 30, (60, 1), generator=generator)
    x = torch.randn(60, m, dtype=dtype, generator=generator) * 10.0**exponents
    x[::3] = x[::3].round()  # equal ones
    x[1], x[2], x[4], x[7, 0] = -torch.inf, 0.0, -x[4].abs(), torch.inf
    k = torch.randint(1, m + 1, (60, 1), generator=generator)
    expected = x.sort(-1, descending=True).values.gather(-1, k - 1)
    assert torch.equal(kth_largest(x, k), expected)


def test_top_mask_has_as_many_as_there_are():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 200, generator=generator)
    mask = torch.rand(40, 200, generator=generator) < torch.linspace(0, 0.1, 40).unsqueeze(1)
    k = torch.randint(0, 20, (40, 1), generator=generator)
    top = top_mask(x, mask, k)
    assert torch.equal(top.sum(-1, keepdim=True), k.minimum(mask.sum(-1, keepdim=True)))
    assert not (top & ~mask).any()
    least = x.masked_fill(~top, torch.inf).amin(-1)
    assert (x.masked_fill(~mask | top, -torch.inf).amax(-1) <= least).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_distribution_of_gumbel(dtype):
    """Its cumulative distribution is exp(-exp(-x)); also far out, where the draws are decided."""
    noise = gumbel_like(torch.empty(1000, 1000, dtype=dtype), torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    for level in (-2.0, -1.0, 0.0, 1.0, 3.0, 6.0, 9.0):
        expected = -torch.expm1(-torch.exp(torch.tensor(-level, dtype=torch.float64))).item()
        found = (noise > level).double().mean().item()
        assert found == pytest.approx(expected, abs=5 * (expected * (1 - expected) / noise.numel()) ** 0.5)


# Draws ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["looking", "not looking"])
def looks(request, monkeypatch):
    """What is drawn from may be looked at, or not."""
    if request.param == "not looking":
        monkeypatch.setattr(sampling, "looks_are_free", lambda numbers: False)


# Few numbers are drawn from by order, more by a search, in many columns by a search in groups of them.
WIDTHS = [6, 40, 600]
PLACES = {6: [0, 1, 2, 4, 5], 40: [0, 7, 8, 30, 39], 600: [0, 23, 24, 300, 599]}


def drawn_sets(weights, k, m, dtype, draws=4000):
    """Sets of k of five items among m columns, whose other columns would outweigh them."""
    # So many numbers at a time stay in the cache.
    blocks, generator = max(1, draws * m // 150_000), torch.Generator().manual_seed(k)
    rows = draws // blocks
    log_weights, mask = torch.full((rows, m), 50.0, dtype=dtype), torch.zeros(rows, m, dtype=torch.bool)
    log_weights[:, PLACES[m]], mask[:, PLACES[m]] = torch.tensor(weights, dtype=dtype).log() - 3, True
    drawn = torch.cat([sample(log_weights, mask, torch.full((rows, 1), k), generator) for _ in range(blocks)])
    assert drawn.shape == (draws, m)
    assert not drawn[:, ~mask[0]].any()
    different, which = drawn[:, PLACES[m]].unique(dim=0, return_inverse=True)
    sets = [frozenset(row.nonzero().flatten().tolist()) for row in different]
    return [sets[i] for i in which.tolist()]


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("weights", [[1, 2, 3, 1, 2], [9, 1, 1, 2, 1]], ids=["even", "one outweighs"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("m", WIDTHS)
def test_draws_are_one_after_another(m, k, weights):
    """One item is likely to be drawn again and again."""
    for dtype in (torch.float32, torch.float64):
        assert_frequencies(drawn_sets(weights, k, m, dtype), subset_probabilities(weights, k))


@pytest.mark.parametrize("m", [40, 512, 600, 1001])
def test_any_column_is_drawn_as_often_as_its_weight_says(m):
    weights = torch.rand(m, generator=torch.Generator().manual_seed(m)).add_(0.3)
    rows = 30 * m
    log_weights, everywhere = weights.log().expand(rows, m), torch.ones(rows, m, dtype=torch.bool)
    drawn = sample(log_weights, everywhere, torch.ones(rows, 1, dtype=torch.long), torch.Generator().manual_seed(1))
    assert (drawn.sum(1) == 1).all()
    expected = (weights / weights.sum()).tolist()
    assert_frequencies(drawn.int().argmax(1).tolist(), dict(enumerate(expected)))


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("m", [20, 200, 700])
@pytest.mark.parametrize("most", [1, 4, 40, 800])
def test_as_many_are_drawn_as_there_are(m, most):
    """Any k and any number of candidates, in one call; also none and all but one; whatever the leading dimensions."""
    generator = torch.Generator().manual_seed(most)
    mask = torch.rand(300, m, generator=generator) < torch.rand(300, 1, generator=generator) ** 3
    there = mask.sum(1, keepdim=True)
    k = torch.randint(0, most + 1, (300, 1), generator=generator)
    k[::5] = (there[::5] - 1).clamp(min=0, max=most)
    log_weights = 3 * torch.randn(300, m, generator=generator)
    drawn = sample(log_weights, mask, k, generator)
    assert not (drawn & ~mask).any()
    assert torch.equal(drawn.sum(1, keepdim=True), k.minimum(there))
    shaped = [x.view(3, 100, -1) for x in (log_weights, mask, k)]
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(sample(*shaped, first).flatten(0, 1), sample(log_weights, mask, k, second))


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("m", [20, 200, 700])
@pytest.mark.parametrize("k", [1, 3, 30])
def test_what_has_no_weight_is_never_drawn(m, k):
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(200, m, generator=generator)
    log_weights[torch.rand(200, m, generator=generator) < torch.linspace(0.5, 1, 200).unsqueeze(1)] = -torch.inf
    log_weights[:3] = -torch.inf
    mask = torch.rand(200, m, generator=generator) < 0.5
    drawn = sample(log_weights, mask, torch.full((200, 1), k), generator)
    possible = mask & (log_weights > -torch.inf)
    assert not (drawn & ~possible).any()
    assert torch.equal(drawn.sum(1), possible.sum(1).clamp(max=k))


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("m", [20, 200, 700])
def test_weights_may_differ_by_any_factor(m):
    """So that each has all of what is left: the draws are the largest in their order."""
    generator = torch.Generator().manual_seed(0)
    log_weights = 500.0 * torch.stack([torch.randperm(m, generator=generator) for _ in range(200)])
    mask = torch.rand(200, m, generator=generator) < 0.5
    for k in (1, 3, 5):
        wanted = torch.full((200, 1), k)
        assert torch.equal(sample(log_weights - 1e5, mask, wanted, generator), top_mask(log_weights, mask, wanted))


def test_nothing_is_drawn_from_nothing():
    for shape in ((0, 40), (3, 0), (0, 0), (2, 0, 40)):
        empty = torch.zeros(shape)
        drawn = sample(empty, empty.bool(), torch.ones(*shape[:-1], 1, dtype=torch.long), None)
        assert drawn.shape == empty.shape


def test_a_sequence_goes_on_with_what_is_left():
    """Of draws with replacement nearly all are the first item; the second still has the odds of the others."""
    sets = drawn_sets([1e6, 1, 2, 3, 4], 2, 40, torch.float32)
    others = [next(iter(drawn - {0})) for drawn in sets]
    assert all(0 in drawn for drawn in sets)
    assert_frequencies(others, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})


def test_draws_need_no_look():
    """What may not be looked at, here because there are no numbers, is drawn by noise and order."""
    with FakeTensorMode():
        mask = torch.zeros(30, 50, dtype=torch.bool)
        drawn = sample(torch.randn(30, 50), mask, torch.full((30, 1), 3), None)
    assert type(drawn) is FakeTensor
    assert drawn.shape == mask.shape


# Masks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("k", [1, 3, 30, 299, 300])
def test_nearest_are_the_largest(k):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(60, 300, generator=generator)
    mask = torch.rand(60, 300, generator=generator) < torch.linspace(0, 1, 60).unsqueeze(1)
    assert torch.equal(nearest(x, mask, k), top_mask(x, mask, torch.full((60, 1), k)))
    equal = nearest(x.round(), mask, k)
    assert torch.equal(equal.sum(1), mask.sum(1).clamp(max=k))
    least = x.round().masked_fill(~equal, torch.inf).amin(1)
    assert (x.round().masked_fill(~mask | equal, -torch.inf).amax(1) <= least).all()


@pytest.mark.parametrize("offset", [0, -(1 << 20), (1 << 24) - 3, 1 << 60])
def test_labels_of_any_size_are_told_apart(offset):
    labels = torch.arange(250).repeat(2) + offset
    for given in (labels, labels.int() if abs(offset) < 1 << 30 else labels, labels.double()):
        pos, neg = label_masks(given[100:], given)
        assert torch.equal(pos, given[100:, None] == given)
        assert torch.equal(neg, ~pos)


def test_not_self_is_the_negated_identity():
    for start, stop, m in ((0, 5, 5), (2, 4, 5), (0, 3, 8), (4, 5, 5), (3, 3, 5)):
        assert torch.equal(not_self(start, stop, m, torch.device("cpu")), ~torch.eye(m, dtype=torch.bool)[start:stop])


# Blocks of rows, and scores ------------------------------------------------------------------------------------------


def batch(n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(0, max(1, n // 5), (n,), generator=generator)
    x = torch.randn(n, 8, generator=generator, dtype=torch.float64) + 2 * torch.eye(8, dtype=torch.float64)[labels % 8]
    return x.to(dtype), labels


DETERMINISTIC = [
    HardNegativePairMiner(epsilon=0.01),
    KNearestNegativeMiner(k=3),
    KNearestPositiveMiner(k=2),
    PositiveAwareMiner(k=3, range_min=1),
]
DRAWING = [AmbiguousNegativeMiner, DistanceWeightedMiner, ExponentialPositiveMiner, InverseDensityMiner]


def test_every_miner_is_here():
    assert {*map(type, DETERMINISTIC), *DRAWING, CappedMiner, ChainedMiner, GuidedMiner} == set(all_miners())


@pytest.mark.parametrize("miner", DETERMINISTIC, ids=lambda miner: type(miner).__name__)
def test_blocks_of_rows_keep_what_all_rows_do(miner, monkeypatch):
    x, labels = batch(90)
    whole = miner.masks(x, labels, x, labels)
    monkeypatch.setattr(thresholds, "SELECTION_BLOCK", 90 * 40)
    for a, b in zip(miner.masks(x, labels, x, labels), whole, strict=True):
        assert torch.equal(a, b)
        assert a.any()


@pytest.mark.parametrize("cls", DRAWING)
def test_blocks_of_rows_draw_from_one_stream(cls, monkeypatch):
    """As many as all rows at once, the same for the same seed, others in equal blocks; a call counts once."""
    x, labels = batch(40)
    x, labels = x.repeat(2, 1), labels.repeat(2)
    whole = cls(seed=1).masks(x, labels, x, labels)
    monkeypatch.setattr(thresholds, "SELECTION_BLOCK", 80 * 20)
    first, second = cls(seed=1), cls(seed=1)
    drawn = [miner.masks(x, labels, x, labels) for miner in (first, second, first)]
    for a, b, again, unblocked in zip(*drawn, whole, strict=True):
        assert torch.equal(a, b)
        for other in (again, unblocked):
            assert torch.equal(a.sum(1), other.sum(1))
    assert not torch.equal(torch.cat(drawn[0]), torch.cat(drawn[2]))
    assert not torch.equal(torch.cat(drawn[0])[:40], torch.cat(drawn[0])[40:80])
    assert first._calls == 2


def test_blocks_have_the_rows_in_their_order(monkeypatch):
    monkeypatch.setattr(thresholds, "SELECTION_BLOCK", 40)
    sizes: list[int] = []

    def select(sim, pos, neg):
        sizes.append(len(sim))
        return pos, sim > 0

    sim = torch.randn(13, 10)
    pos, neg = in_row_blocks(select, sim, sim < -1, sim > 1)
    assert torch.equal(pos, sim < -1)
    assert torch.equal(neg, sim > 0)
    assert sizes == [4, 4, 4, 1]


DISTANCES = [
    CosineSimilarity(),
    DotProductSimilarity(normalize_embeddings=False),
    LpDistance(),
    LpDistance(power=2),
    LpDistance(normalize_embeddings=False),
    LpDistance(power=2, normalize_embeddings=False),
]


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda d: f"{type(d).__name__}{_pml.facts(d)[1:]}")
@pytest.mark.parametrize("n", [7, 600])
def test_scores_are_those_of_the_distance(n, distance):
    """A large batch with itself computes the half of them, here with bands of different heights."""
    miner, sign = KNearestPositiveMiner(distance=distance), _pml.sign(distance)
    x, _ = batch(n, torch.float64)
    x[1] = x[0]
    scores = miner.scores(x, None)
    # Of equal samples the square root makes 1e-8 of what is left by rounding.
    tolerance = {"rtol": 1e-12, "atol": 1e-6 if _pml.facts(distance).power == 1 else 1e-12}
    torch.testing.assert_close(scores, sign * distance(x), **tolerance)
    torch.testing.assert_close(scores, scores.t(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(miner.scores(x[:5], x), scores[:5], rtol=1e-12, atol=1e-12)
    single = miner.scores(x.float(), None)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, scores.float(), rtol=1e-5, atol=2e-3)
    assert miner.scores(x.half(), x.half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(miner.scores(x.float(), None), single)


class BySum(PairMiner):
    """Has scores of its own."""

    def get_default_distance(self):
        return LpDistance()

    def similarity(self, embeddings, ref_emb):
        return embeddings.sum(1, keepdim=True) + (embeddings if ref_emb is None else ref_emb).sum(1)

    def select(self, sim, pos, neg):
        return pos, neg & (sim > 0)


def test_scores_of_ones_own_are_kept():
    x, labels = batch(20)
    sums = x.sum(1)
    mined = BySum(as_masks=True)(x, labels)
    assert torch.equal(mined.neg, (labels[:, None] != labels) & (sums[:, None] + sums > 0))


def test_a_distance_that_is_listened_to_is_called():
    x, labels = batch(20)
    miner, calls = KNearestPositiveMiner(), []
    miner.distance.register_forward_hook(lambda *_: calls.append(1))
    miner(x, labels)
    assert calls == [1]


@pytest.mark.parametrize("m", [1, 7, 8, 9, 63, 257])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_largest_by_groups_are_those_of_a_sort(m, k):
    x = torch.randn(40, m, generator=torch.Generator().manual_seed(m))
    x[0, -1] = 9  # the columns after the last group are of none
    k = min(k, m)
    expected = x.sort(-1, descending=True).values[:, :k]
    assert torch.equal(largest(x, k).sort(-1, descending=True).values, expected)
    more = torch.randn(40, 3, generator=torch.Generator().manual_seed(7))
    both = torch.cat((x, more), -1).sort(-1, descending=True).values[:, :k]
    assert torch.equal(largest(x, k, more).sort(-1, descending=True).values, both)


def test_pairs_on_the_threshold_are_not_informative():
    sim = torch.tensor([[0.75, 0.5, 0.5, 0.25]])
    is_pos = torch.tensor([[True, True, False, False]])
    pos, neg = informative(sim, is_pos, ~is_pos, 0.25)
    assert pos.tolist() == [[False, True, False, False]]
    assert neg.tolist() == [[False, False, True, False]]
