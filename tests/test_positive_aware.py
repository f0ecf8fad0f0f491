"""Positive-aware and ambiguous mining: worked values, and the law that says when they do harm."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import MultiSimilarityMiner
from toy import toy

from pml_ext.losses import RAWLoss
from pml_ext.miners import AmbiguousNegativeMiner, CappedMiner, HardNegativePairMiner, PositiveAwareMiner
from pml_ext.miners.positive_aware import reference_score
from pml_ext.mining import mine
from pml_ext.testing.cases import all_pairs
from pml_ext.wrappers import MinedLoss


def negatives(miner, n=6):
    """The negatives that each anchor keeps."""
    _, kept = masks_of(miner, *toy(n))
    return [row.nonzero().flatten().tolist() for row in kept]


def masks_of(miner, x, labels):
    miner.as_masks = True
    return miner(x, labels)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("max", [0.96, 0.96, 0.5376, 0.5376, 0.8432, 0.8432]),
        ("min", [0.28, 0.5376, 0.28, 0, 0.5376, 0]),
        ("mean", [0.62, 0.7488, 0.4088, 0.2688, 0.6904, 0.4216]),
    ],
)
def test_worked_reference_scores(reference, expected):
    x, labels = toy(6)
    pos, _ = all_pairs(labels)
    assert reference_score(x @ x.T, pos, reference).flatten().tolist() == pytest.approx(expected, abs=1e-12)


TO_ALL = [[3, 4, 5], [3, 4, 5], [5], [], [0, 1, 2], [0, 1, 2]]
TO_THE_FARTHEST = [[4, 5], [4, 5], [], [], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, TO_ALL),
        ({"reference": "min"}, TO_THE_FARTHEST),
        ({"relative_margin": None, "absolute_margin": 0.05}, [*TO_ALL[:4], [0, 1], [0, 1, 2]]),
        ({"relative_margin": None, "absolute_margin": 0.1, "reference": "min"}, TO_THE_FARTHEST),
        ({"k": 1}, [[3], [3], [5], [], [2], [2]]),
        ({"k": 2}, [[3, 4], [3, 4], [5], [], [1, 2], [1, 2]]),
        ({"relative_margin": None, "max_score": 0.7}, [[3, 4, 5], [4, 5], [5], [0], [0, 1], [0, 1, 2]]),
    ],
)
def test_worked_values(settings, expected):
    assert negatives(PositiveAwareMiner(**settings)) == expected


def test_worked_values_of_a_window():
    first, *others = negatives(PositiveAwareMiner(k=1), 9)
    assert others == [[3], [5], [7], [2], [8], [0], [0], [4]]
    # Ranks before the filters; after them, as in the reference code, it would be 7, 7, 7, 6, 8, 2, 1, 1, 2.
    second, *others = negatives(PositiveAwareMiner(k=1, range_min=1), 9)
    assert others == [[7], [5], [7], [8], [2], [1], [1], [4]]
    # These two are equally near, but for rounding.
    assert sorted([first, second]) == [[3], [7]]


def test_an_anchor_without_negatives_has_no_positives():
    kept_pos, kept_neg = masks_of(PositiveAwareMiner(), *toy(6))
    assert kept_pos.any(1).tolist() == kept_neg.any(1).tolist() == [True, True, True, False, True, True]


@st.composite
def batches(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    n = draw(st.integers(2, 14))
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.randint(4, (n,), generator=generator)


@given(batches(), st.sampled_from([0.0, 0.1, 0.4]))
def test_it_is_the_complement_of_multi_similarity_mining(batch, margin):
    x, labels = batch
    settings = {"absolute_margin": margin, "relative_margin": None, "reference": "min"}
    pos, neg = all_pairs(labels)
    aware = masks_of(PositiveAwareMiner(**settings), x, labels).neg
    hard = masks_of(HardNegativePairMiner(epsilon=margin), x, labels).neg
    assert not (aware & hard).any()
    assert torch.equal(aware | hard, neg & pos.any(1, keepdim=True))
    # And of PML's, which gives indices.
    _, _, anchors, others = MultiSimilarityMiner(epsilon=margin)(x, labels)
    assert not aware[anchors, others].any()


@given(batches())
def test_more_positives_to_compare_with_keep_more(batch):
    for margin in ({"absolute_margin": 0.1, "relative_margin": None}, {"relative_margin": 0.05}):
        least, middle, most = (
            masks_of(PositiveAwareMiner(reference=each, **margin), *batch).neg for each in ("min", "mean", "max")
        )
        assert not (least & ~middle).any()
        assert not (middle & ~most).any()
        strict = {name: value and 2 * value for name, value in margin.items()}
        assert not (masks_of(PositiveAwareMiner(**strict), *batch).neg & ~most).any()


def selected(sim, pos, neg, **margin):
    """The negatives that pass a margin alone."""
    settings = {"absolute_margin": None, "relative_margin": None, "reference": "mean"} | margin
    return PositiveAwareMiner(**settings).select(sim, pos, neg)[1]


@given(batches(), st.sampled_from([0.05, 0.3, 2.0]))
def test_a_relative_margin_is_an_absolute_one_of_each_anchor(batch, share):
    x, labels = batch
    sim, (pos, neg) = x @ x.T, all_pairs(labels)
    found = selected(sim, pos, neg, relative_margin=share)
    for i, level in enumerate(reference_score(sim, pos, "mean").abs().flatten().tolist()):
        row = [each[i : i + 1] for each in (sim, pos, neg)]
        if pos[i].any():
            assert torch.equal(found[i : i + 1], selected(*row, absolute_margin=share * level))


@given(batches(), st.sampled_from([0.25, 4.0]))
def test_an_absolute_margin_stays_with_a_constant_and_a_relative_one_with_a_factor(batch, number):
    x, labels = batch
    sim, (pos, neg) = x @ x.T, all_pairs(labels)
    for margin, changed in (({"absolute_margin": 0.1371}, sim + number), ({"relative_margin": 0.0531}, sim * number)):
        assert torch.equal(selected(changed, pos, neg, **margin), selected(sim, pos, neg, **margin))


@given(batches(), st.integers(1, 4))
def test_a_batch_is_a_small_data_set(batch, k):
    x, labels = batch
    settings = {"relative_margin": 0.1, "range_min": 1, "range_max": 8, "reference": "mean"}
    kept = masks_of(PositiveAwareMiner(k=k, **settings), x, labels)
    mined = mine(x, labels, num_negatives=k, positives="all", **settings)
    a, p, b, n = mined.pairs()
    assert set(zip(a.tolist(), p.tolist(), strict=True)) == set(map(tuple, kept.pos.nonzero().tolist()))
    assert set(zip(b.tolist(), n.tolist(), strict=True)) == set(map(tuple, kept.neg.nonzero().tolist()))


def test_levels_are_in_the_units_of_the_distance():
    x, labels = toy(6)
    distances = torch.cdist(x, x)
    miner = PositiveAwareMiner(relative_margin=None, max_score=0.7, min_score=1.5, distance=LpDistance())
    _, neg = all_pairs(labels)
    expected = neg & (distances > 0.7) & (distances <= 1.5)
    assert torch.equal(masks_of(miner, x, labels).neg, expected)
    assert expected.any()


@pytest.mark.pml2("it collects statistics")
def test_the_share_that_is_dropped():
    miner = PositiveAwareMiner(collect_stats=True)
    miner(*toy(6))
    # Of 18 negatives 5 are too near.
    assert miner.share_dropped == pytest.approx(5 / 18)
    assert miner.num_neg_pairs == 13
    MinedLoss(RAWLoss(), miner)(*toy(9))
    assert miner.share_dropped == pytest.approx(1 - sum(map(len, negatives(PositiveAwareMiner(), 9))) / 54)


def test_some_of_those_that_pass():
    miner = CappedMiner(PositiveAwareMiner(), 1, seed=0)
    for _ in range(5):
        _, _, anchors, others = miner(*toy(6))
        assert anchors.tolist() == [0, 1, 2, 4, 5]
        assert all(j in TO_ALL[i] for i, j in zip(anchors.tolist(), others.tolist(), strict=True))


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        (1, {0: [0.7968277998, 0.1622104547, 0.0409617455], 3: [0.3579525003, 0.3354390588, 0.3066084410]}),
        (10, {0: [0.9999998778, 1.2222e-7, 1.2887e-13], 3: [0.5764132980, 0.3010345176, 0.1225521844]}),
    ],
)
def test_worked_ambiguous_sampling(a, expected):
    x, labels = toy(6)
    draws, tries = 300, 20
    miner = AmbiguousNegativeMiner(a=a, seed=0, as_masks=True)
    pos, neg = all_pairs(labels)
    scores = x @ x.T
    for row, probabilities in expected.items():
        counts = torch.zeros(6)
        for _ in range(tries):
            _, kept = miner.select(*(y[row].expand(draws, -1) for y in (scores, pos, neg)))
            assert (kept.sum(1) == 1).all()
            counts += kept.sum(0)
        for frequency, p in zip((counts[neg[row]] / draws / tries).tolist(), probabilities, strict=True):
            assert frequency == pytest.approx(p, abs=5 * (p * (1 - p) / draws / tries) ** 0.5 + 1e-9)


def test_an_anchor_without_positives_has_no_ambiguous_negatives():
    x, _ = toy(6)
    anchors, _, others, _ = AmbiguousNegativeMiner(k=2, seed=1)(x, torch.tensor([0, 0, 1, 2, 3, 4]))
    assert anchors.tolist() == [0, 1]
    assert others.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("cls", "settings", "error", "message"),
    [
        (PositiveAwareMiner, {"relative_margin": -1}, ValueError, "relative_margin must be at least 0, got -1"),
        (PositiveAwareMiner, {"absolute_margin": "x"}, TypeError, "absolute_margin must be a number, got 'x'"),
        (PositiveAwareMiner, {"max_score": float("inf")}, ValueError, "max_score must be finite, got inf"),
        (PositiveAwareMiner, {"k": 0}, ValueError, "k must be at least 1, got 0"),
        (
            PositiveAwareMiner,
            {"range_min": 2, "range_max": 2},
            ValueError,
            "range_max must be above range_min = 2, got 2",
        ),
        (PositiveAwareMiner, {"reference": "median"}, ValueError, "reference must be .*, got 'median'"),
        (AmbiguousNegativeMiner, {"reference": "median"}, ValueError, "reference must be .*, got 'median'"),
        (AmbiguousNegativeMiner, {"a": -1}, ValueError, "a must be at least 0, got -1"),
    ],
)
def test_errors_name_argument_and_value(cls, settings, error, message):
    with pytest.raises(error, match=message):
        cls(**settings)
