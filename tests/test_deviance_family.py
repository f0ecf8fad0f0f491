"""The deviance losses, the sampling and selecting miners, and the methods of DM18 and DM20 made of them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from of_pml import CosineSimilarity, DotProductSimilarity, LpDistance
from of_pml import DistanceWeightedMiner as PMLDistanceWeightedMiner
from of_pml import distance_weighted_miner as pml_module
from oracles import OF_ANCHORS, lse, mean, sp
from torch import Tensor
from toy import toy

from pml_ext import masked, pairs, sampling
from pml_ext.catalog import build
from pml_ext.losses import (
    AdaptiveBinomialDevianceLoss,
    AnchorContrastiveLoss,
    BinomialDevianceLoss,
    LinearPullDevianceLoss,
    LogSumExpPairLoss,
    RankedPullDevianceLoss,
)
from pml_ext.miners import (
    ChainedMiner,
    DistanceWeightedMiner,
    ExponentialPositiveMiner,
    HardNegativePairMiner,
    InverseDensityMiner,
    KNearestPositiveMiner,
)
from pml_ext.miners.distance_weighted import distance_weighted_log_weights
from pml_ext.pairs import PairMasks
from pml_ext.testing.sampling import assert_frequencies, subset_probabilities

SIZES = {"balanced": (4, 4, 4, 4), "unbalanced": (6, 3, 2, 1, 1), "pairs": (2, 2)}

(T6, _), (T9, LABELS) = toy(6), toy(9)


@pytest.fixture
def largest_weights(monkeypatch):
    """Every draw without replacement takes the largest weights, and of equal ones the first."""
    monkeypatch.setattr(sampling, "gumbel_like", lambda x, generator: -1e-9 * torch.arange(x.shape[-1]).expand_as(x))


def batch(sizes, dimension=3):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(sizes)))
    generator = torch.Generator().manual_seed(sum(sizes))
    embeddings = torch.randn(len(labels), dimension, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(embeddings + 0.5)[order], labels[order]


# Worked values -------------------------------------------------------------------------------------------------------

GOLDEN: list[tuple[str, dict[str, Any], float, float | None]] = [
    ("MarginDeviance", {}, 0.6973470207, 0.7154933682),
    ("MarginPositive", {}, 0.5466402442, 0.5858182289),
    ("DistWeightContrastive", {}, 0.5857450750, None),
    ("DistWeight", {}, 0.0985777778, 0.0874518519),
    ("DistWeightNeighbour", {}, 0.5894469713, 0.5892608358),
    ("DistWeightBinDeviance", {}, 0.9963916790, None),
    ("Binomial2020", {"balance": 20}, 5.7688810392, 2.7120508049),
    # The oracle of the method, below, has these digits too; 1.2082020135 for T9 is a wrong ninth digit.
    ("Binomial2020Mined", {}, 1.2782513576, 1.2082020146),
    ("Contrastive2020", {"step": 0.5}, 1.9925333333, 2.0540444444),
    ("HardMining2020", {}, 1.3068444444, 1.1856296296),
    ("Lifted2020", {}, 1.2548834643, 1.2585196655),
    ("Lifted2020Mined", {}, 1.1289198215, 1.2026040862),
]


@pytest.mark.usefixtures("largest_weights")
@pytest.mark.parametrize(("name", "overrides", "six", "nine"), GOLDEN, ids=[f"{x[0]}{x[1] or ''}" for x in GOLDEN])
def test_worked_values(name, overrides, six, nine):
    recipe = build(name, **overrides)
    assert recipe(T6, LABELS[:6]).item() == pytest.approx(six, abs=1e-10)
    if nine is not None:
        assert recipe(T9, LABELS).item() == pytest.approx(nine, abs=1e-10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("BinDeviance2018", 1.4492095119), ("MarginDeviance", 1.6490239757), ("MarginPositive", 1.6191873583)],
)
def test_worked_gradients(name, expected):
    """Of the inner product, as the worked values are."""
    recipe = build(name, distance=DotProductSimilarity(normalize_embeddings=False))
    embeddings = T6.clone().requires_grad_()
    recipe(embeddings, LABELS[:6]).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.norm().item() == pytest.approx(expected, abs=1e-9)


def test_worked_levels():
    sim = T6 @ T6.T
    pos, neg = pairs.label_masks(LABELS[:6], LABELS[:6])
    pos = pos & ~torch.eye(6, dtype=torch.bool)
    levels = 0.8 * masked.crossing(sim, pos, neg) + 0.1
    expected = [0.3592638282, 0.5474989465, 0.5052663354, 0.5845635055, 0.5448001570, 0.1559317659]
    assert levels.flatten().tolist() == pytest.approx(expected, abs=1e-10)


# Oracles of methods: the selection too, with the largest weights in place of a draw -----------------------------------


def hard(p, n, epsilon):
    return [x for x in n if x > min(p) - epsilon]


def lifted(p, n):
    return lse([-2 * x for x in p]) + 0.05 * lse([40 * x for x in n]) if p and n else 0.0


def inverse_density_of(values):
    mu = sum(values) / len(values)
    variance = sum((x - mu) ** 2 for x in values) / len(values)
    return [math.exp((x - mu) ** 2 / (2 * variance)) if variance > 0 else 1.0 for x in values]


def drawn(values, k):
    """The k values of the largest weights, and of equal ones the first."""
    weights = inverse_density_of(values)
    order = sorted(range(len(values)), key=lambda j: -round(weights[j], 7))
    return [values[j] for j in order[:k]]


def mined(p, n):
    return [x for x in p if x < max(n) + 0.1], [x for x in n if x > min(p) - 0.1]


def hard_mining_2020(p, n):
    p, n = mined(p, n)
    return mean([1 - x for x in p]) + mean(n)


def binomial_2020_mined(p, n):
    p, n = mined(p, n)
    return mean([sp(-2 * (x - 0.5)) for x in p]) + 0.05 * mean([sp(40 * (x - 0.5)) for x in n])


def lifted_2020_mined(p, n):
    return lifted(*mined(p, n))


def bin_deviance_2018(p, n):
    near = hard(p, n, 0.05)
    pull = mean([sp(-2 * (x - 0.5)) for x in p])
    return pull + 0.04 * mean([sp(50 * (x - 0.5)) for x in near]) if near else 0.0


def dist_weight_bin_deviance(p, n):
    push = mean([sp(50 * (x - 0.5)) for x in drawn(n, len(p))])
    return mean([sp(-2 * (x - 0.5)) for x in p]) + 0.04 * push


def dist_weight(p, n):
    near = [x for x in n if x > max(p) - 0.01]
    return mean(near) - max(p) + 0.01 if near else 0.0


def dist_weight_contrastive(p, n):
    push = mean([max(1.2 - x, 0) for x in drawn(n, len(p))])
    return mean([max(x - 0.7, 0) for x in p]) + push


def dist_weight_neighbour(p, n):
    three = sorted(p)[:3]
    near = [x for x in drawn(n, len(p)) if x < three[-1] + 0.05]
    pull = 0.5 * mean([sp(2 * (x - 1)) for x in three])
    return pull + 0.05 * mean([sp(20 * (1 - x)) for x in near]) if near else 0.0


def distance_match(p, n):
    near = [x for x in drawn(n, 3 * (len(p) + 1)) if x < sorted(p)[:3][-1] + 0.05]
    ranked = {name: getattr(RankedPullDevianceLoss(), name) for name in RankedPullDevianceLoss()._hyperparameter_names}
    return OF_ANCHORS[RankedPullDevianceLoss](p, near, **ranked) if near else 0.0


METHODS: dict[str, Callable[[list[float], list[float]], float]] = {
    "BinDeviance2018": bin_deviance_2018,
    "Binomial2020Mined": binomial_2020_mined,
    "DistWeight": dist_weight,
    "DistWeightBinDeviance": dist_weight_bin_deviance,
    "DistWeightContrastive": dist_weight_contrastive,
    "DistWeightNeighbour": dist_weight_neighbour,
    "DistanceMatch": distance_match,
    "HardMining2020": hard_mining_2020,
    "Lifted2020Mined": lifted_2020_mined,
}


@pytest.mark.usefixtures("largest_weights")
@pytest.mark.parametrize("sizes", [*SIZES, "T6", "T9"])
@pytest.mark.parametrize("name", METHODS)
def test_method(name, sizes):
    recipe, oracle = build(name), METHODS[name]
    embeddings, labels = {"T6": (T6, LABELS[:6]), "T9": (T9, LABELS)}.get(sizes) or batch(SIZES[sizes])
    matrix, n, total = recipe.loss.distance(embeddings).tolist(), len(labels), 0.0
    for i in range(n):
        p = [matrix[i][j] for j in range(n) if j != i and labels[j] == labels[i]]
        q = [matrix[i][j] for j in range(n) if labels[j] != labels[i]]
        total += oracle(p, q) if p and q else 0.0
    assert recipe(embeddings, labels).item() == pytest.approx(total / n, abs=1e-12, rel=1e-12)


@pytest.mark.usefixtures("largest_weights")
def test_distance_match_draws_three_for_each_sample_of_the_class():
    """In classes of two among eighteen negatives: 6 of them, or all where there are fewer."""
    embeddings, labels = batch((2,) * 10)
    chain = build("DistanceMatch").miner
    masks = ChainedMiner(miners=list(chain.miners)[:1], as_masks=True)(embeddings, labels)
    assert masks.neg.sum(-1).tolist() == [6] * 20
    assert build("DistanceMatch").miner.miners[1].k == 3


# Identities ----------------------------------------------------------------------------------------------------------


def test_pair_weights_of_binomial_deviance():
    """The closed forms of general pair weighting, for factors of 1 on both terms."""
    sim = (T6 @ T6.T).requires_grad_()
    pos, neg = pairs.label_masks(LABELS[:6], LABELS[:6])
    pos = pos & ~torch.eye(6, dtype=torch.bool)
    total = BinomialDevianceLoss(balance=25).per_anchor(sim, pos, neg).sum()
    total.backward()
    assert total.item() == pytest.approx(42.1776083563, abs=1e-9)
    assert sim.grad is not None
    expected = [0, -0.2849578943, -0.6082590307, 16.5551191513, 0, 0]
    assert sim.grad[0].tolist() == pytest.approx(expected, abs=1e-10)


def test_pair_weights_of_contrastive_2020():
    """1 for every positive, 1 for every negative beyond the margin; a step changes the value alone."""
    sim = T6 @ T6.T
    pos, neg = pairs.label_masks(LABELS[:6], LABELS[:6])
    pos = pos & ~torch.eye(6, dtype=torch.bool)
    for step in (0, 0.5):
        leaf = sim.clone().requires_grad_()
        total = build("Contrastive2020", step=step).loss.per_anchor(leaf, pos, neg).sum()
        total.backward()
        torch.testing.assert_close(leaf.grad, (neg & (sim > 0.5)).double() - (pos & (sim < 1)).double())
        assert total.item() == pytest.approx(7.9552 + step * int((neg & (sim > 0.5)).sum()), abs=1e-10)


def test_level_of_few_pairs():
    """One of each kind: halfway. One positive and several negatives: the positive."""
    sim = torch.tensor([[0.9, 0.3, 0.1]], dtype=torch.float64)
    pos, neg = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    assert masked.crossing(sim, pos, neg).item() == pytest.approx(0.9)
    assert masked.crossing(sim, pos, neg & (sim > 0.2)).item() == pytest.approx(0.6)
    single = torch.tensor([[0.3, 0.3, 0.3, 0.1, 0.1, 0.1]]) + torch.tensor([[0, 3e-8, 0, 0, 1e-8, 0]])
    side = torch.tensor([[True, True, True, False, False, False]])
    assert masked.crossing(single, side, ~side).item() == pytest.approx(0.2, abs=1e-6)


def test_adaptivity_of_zero_is_binomial_deviance():
    embeddings, labels = batch(SIZES["unbalanced"])
    adaptive = AdaptiveBinomialDevianceLoss(alpha=2, beta=50, adaptivity=0)
    assert adaptive(embeddings, labels).item() == pytest.approx(build("BinDeviance2018")(embeddings, labels).item())


def test_bounded_log_sum_exp_of_one_pair_is_binomial_deviance():
    sim, pos = torch.tensor([[0.4, 0.7]], dtype=torch.float64), torch.tensor([[True, False]])
    bounded_loss = LogSumExpPairLoss(alpha=3, beta=9, pos_margin=0.5, neg_margin=0.5, scale=2, bounded=True)
    bounded_loss.distance = CosineSimilarity()
    expected = BinomialDevianceLoss(alpha=3, beta=9).per_anchor(sim, pos, ~pos)
    torch.testing.assert_close(bounded_loss.per_anchor(sim, pos, ~pos), expected)


# Draws ---------------------------------------------------------------------------------------------------------------


def normalized(log_weights):
    weights = [math.exp(x - max(log_weights)) for x in log_weights]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [(4, [0.5011662003, 0.2642942885, 0.1400802115, 0.0944592997]), (128, [1, 0, 0, 0])],
)
def test_weights_of_distance_weighted(dimension, expected):
    dist = torch.tensor([[0.4, 0.7, 1, 1.3, 1.45]], dtype=torch.float64)
    log_weights, allowed = distance_weighted_log_weights(
        dist, torch.ones_like(dist, dtype=torch.bool), dimension=dimension, cutoff=0.5, nonzero_loss_cutoff=1.4
    )
    assert allowed.tolist() == [[True, True, True, True, False]]
    assert normalized(log_weights[allowed].tolist()) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("dimension", [2, 3, 4, 16])
def test_weights_of_distance_weighted_are_those_of_pml(dimension, monkeypatch):
    given: dict[str, Tensor] = {}
    monkeypatch.setattr(pml_module.lmu, "get_random_triplet_indices", lambda *_, weights, **__: given.update(w=weights))
    embeddings, labels = batch((5, 4, 3), dimension)
    embeddings = embeddings - 0.3
    mine = PMLDistanceWeightedMiner()
    mine.mine(embeddings, labels, embeddings, labels)
    dist, neg = LpDistance()(embeddings), labels[:, None] != labels
    log_weights, allowed = distance_weighted_log_weights(
        dist, neg, dimension=dimension, cutoff=0.5, nonzero_loss_cutoff=1.4
    )
    ours = log_weights.masked_fill(~allowed, -torch.inf).softmax(-1)
    rows = (neg & (dist < 1.4)).any(-1)
    assert rows.any()
    torch.testing.assert_close(ours[rows], given["w"][rows], atol=1e-12, rtol=1e-12)


def test_distance_weighted_where_no_negative_is_near():
    """Uniform over them, also for points opposite to each other."""
    embeddings = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [-0.8, 0.6, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    log_weights, allowed = distance_weighted_log_weights(
        LpDistance()(embeddings), labels[:, None] != labels, dimension=128, cutoff=0.5, nonzero_loss_cutoff=1.4
    )
    assert log_weights.isfinite().all()
    assert allowed[0].tolist() == [False, False, True, True]
    assert log_weights[0, 2] == log_weights[0, 3]
    masks = DistanceWeightedMiner(as_masks=True, nonzero_loss_cutoff=None, dimension=512)(embeddings, labels)
    assert masks.neg.sum(-1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "distance", [CosineSimilarity(), DotProductSimilarity(normalize_embeddings=True), LpDistance(power=2)]
)
def test_distance_weighted_of_any_distance(distance):
    embeddings, labels = batch((5, 4, 3), 8)
    expected = DistanceWeightedMiner(seed=1)(embeddings, labels)
    actual = DistanceWeightedMiner(seed=1, distance=distance)(embeddings, labels)
    for a, b in zip(actual, expected, strict=True):
        assert a.tolist() == b.tolist()


def test_an_inner_product_of_any_vectors_is_no_distance():
    with pytest.raises(ValueError, match="distance must bring embeddings to the unit sphere"):
        DistanceWeightedMiner(distance=DotProductSimilarity(normalize_embeddings=False))


DRAWS = 4000


def draw(miner, embeddings, labels):
    """Many independent draws for sample 0: the anchors are copies of it."""
    anchors = embeddings[:1].expand(DRAWS, -1).contiguous()
    miner.as_masks = True
    mined: PairMasks = miner(anchors, labels[:1].expand(DRAWS).contiguous(), embeddings[1:], labels[1:])
    return mined


def columns(mask):
    return [frozenset(row.nonzero().flatten().tolist()) for row in mask]


@pytest.mark.parametrize("anchor", [0, 2, 3])
def test_draws_of_inverse_density(anchor):
    """One negative with the worked probabilities, and sets of the two that an anchor with two positives gets."""
    expected = {
        0: [0.4870078401, 0.2049459480, 0.3080462119],
        2: [0.3444952201, 0.1961033061, 0.4594014738],
        3: [0.4092440032, 0.1910909860, 0.3996650107],
    }[anchor]
    order = [anchor, *(j for j in range(6) if j != anchor)]
    embeddings, labels = T6[order], LABELS[:6][order]
    others = [j - 1 for j in range(1, 6) if labels[j] != labels[0]]
    dist = LpDistance()(embeddings)[0, 1:][others].tolist()
    weights = inverse_density_of(dist)
    assert sorted(w / sum(weights) for w in weights) == pytest.approx(sorted(expected), abs=1e-9)
    one = draw(InverseDensityMiner(num_negatives=1, seed=anchor), embeddings, labels)
    assert_frequencies(
        columns(one.neg), {frozenset([j]): w / sum(weights) for j, w in zip(others, weights, strict=True)}
    )
    two = draw(InverseDensityMiner(seed=anchor), embeddings, labels)
    subsets = subset_probabilities(weights, 2)
    assert_frequencies(columns(two.neg), {frozenset(others[j] for j in subset): p for subset, p in subsets.items()})


def test_draws_of_inverse_density_of_similarities():
    mined = draw(InverseDensityMiner(num_negatives=1, seed=0, distance=CosineSimilarity()), T6, LABELS[:6])
    expected = {frozenset([2]): 0.4692334, frozenset([3]): 0.1984765, frozenset([4]): 0.3322901}
    assert_frequencies(columns(mined.neg), expected)


def test_draws_of_exponential_positive():
    """The worked probabilities of anchor 0, whose positives have similarities of 0.96 and 0.28."""
    mined = draw(ExponentialPositiveMiner(seed=0), T6, LABELS[:6])
    assert_frequencies(columns(mined.pos), {frozenset([0]): 0.96770454, frozenset([1]): 0.03229546})
    assert mined.neg.all(0).tolist() == [False, False, True, True, True]
    both = draw(ExponentialPositiveMiner(num_positives=2, seed=0), T6, LABELS[:6])
    assert both.pos.all(0).tolist() == [True, True, False, False, False]


def test_draws_of_distance_weighted():
    """One positive, so one negative, with the declared weights in four dimensions."""
    dist = [0.4, 0.7, 1, 1.3, 1.45]
    cosines = [1 - d * d / 2 for d in dist]
    rest = torch.eye(4, dtype=torch.float64)[1:].repeat(2, 1)
    near = [c * torch.eye(4, dtype=torch.float64)[0] + math.sqrt(1 - c * c) * rest[j] for j, c in enumerate(cosines)]
    embeddings = torch.stack([torch.eye(4, dtype=torch.float64)[0]] * 2 + near)
    mined = draw(DistanceWeightedMiner(seed=0), embeddings, torch.tensor([0, 0, 1, 1, 1, 1, 1]))
    expected = [0.5011662003, 0.2642942885, 0.1400802115, 0.0944592997]
    assert_frequencies(columns(mined.neg), {frozenset([j + 1]): p for j, p in enumerate(expected)})


def test_numbers_of_negatives():
    embeddings, labels = batch((4, 3, 1))
    others = torch.tensor([3 if label == 0 else 2 if label == 1 else 0 for label in labels.tolist()])
    available = 8 - others - 1
    for arguments, expected in (
        ({}, others),
        ({"num_negatives": 2}, torch.full_like(others, 2)),
        ({"per_positive": 2}, 2 * others),
        ({"num_negatives": 1, "per_positive": 1}, 1 + others),
    ):
        masks = InverseDensityMiner(as_masks=True, **arguments)(embeddings, labels)
        assert masks.neg.sum(-1).tolist() == expected.minimum(available).tolist()


# Chains --------------------------------------------------------------------------------------------------------------


def test_chain_narrows_in_order():
    """Three negatives are drawn for three positives, of which one is then kept."""
    embeddings, labels = batch((4, 4, 4))
    masks = ChainedMiner(miners=[InverseDensityMiner(), KNearestPositiveMiner(k=1)], as_masks=True)(embeddings, labels)
    assert masks.pos.sum(-1).tolist() == [1] * 12
    assert masks.neg.sum(-1).tolist() == [3] * 12
    masks = ChainedMiner(miners=[KNearestPositiveMiner(k=1), InverseDensityMiner()], as_masks=True)(embeddings, labels)
    assert masks.neg.sum(-1).tolist() == [1] * 12


def test_chain_of_one_is_the_miner():
    embeddings, labels = batch((4, 3, 2), 5)
    for make in (KNearestPositiveMiner, lambda: DistanceWeightedMiner(seed=3)):
        for a, b in zip(ChainedMiner(miners=[make()])(embeddings, labels), make()(embeddings, labels), strict=True):
            assert a.tolist() == b.tolist()


def test_chain_resumes_its_streams():
    embeddings, labels = batch((6, 6, 6))

    def chain():
        return ChainedMiner(miners=[InverseDensityMiner(seed=3, num_negatives=2)], as_masks=True)

    first = chain()
    first(embeddings, labels)
    resumed = chain()
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed(embeddings, labels).neg, first(embeddings, labels).neg)
    assert first.is_random
    assert not ChainedMiner(miners=[KNearestPositiveMiner()]).is_random


def test_chain_has_one_distance():
    with pytest.raises(ValueError, match="HardNegativePairMiner has CosineSimilarity"):
        ChainedMiner(miners=[HardNegativePairMiner()])
    with pytest.raises(TypeError, match="PairMiner"):
        ChainedMiner(miners=[PMLDistanceWeightedMiner()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a sequence of miners, got KNearestPositiveMiner"):
        ChainedMiner(miners=KNearestPositiveMiner())  # type: ignore[arg-type]
    ChainedMiner(miners=[HardNegativePairMiner()], distance=CosineSimilarity())


def test_recipes_are_made_anew():
    first, second = build("DistanceMatch").miner, build("DistanceMatch").miner
    assert all(a is not b for a, b in zip(first.miners, second.miners, strict=True))


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: AdaptiveBinomialDevianceLoss(adaptivity=1.5), ValueError, "adaptivity must be in 0..1, got 1.5"),
        (lambda: LinearPullDevianceLoss(balance=0), ValueError, "balance must be above 0, got 0"),
        (lambda: RankedPullDevianceLoss(margins=(1, 2)), ValueError, "equally long"),
        (lambda: RankedPullDevianceLoss(sharp=1), TypeError, "sharp must be True or False"),
        (lambda: AnchorContrastiveLoss(average=0), TypeError, "average must be True or False"),
        (lambda: DistanceWeightedMiner(cutoff=2), ValueError, "cutoff must be below 2"),
        (lambda: DistanceWeightedMiner(dimension=0), ValueError, "dimension must be at least 1"),
        (lambda: InverseDensityMiner(per_positive=0), ValueError, "per_positive must be at least 1"),
        (lambda: ExponentialPositiveMiner(scale=math.inf), ValueError, "scale must be finite"),
        (lambda: KNearestPositiveMiner(k=1.5), TypeError, "k must be an integer"),
    ],
)
def test_wrong_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()
