"""The values of the specification on its two toy batches, computed once by others in numpy."""

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from toy import toy

from pml_ext.catalog import build
from pml_ext.losses import BatchAllTripletLoss, BinomialDevianceLoss, KNNSoftmaxLoss, MultiSimilarityLoss, RAWLoss
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner
from pml_ext.pairs import PairMasks
from pml_ext.testing.cases import all_pairs

EUCLIDEAN = LpDistance(normalize_embeddings=False)


def value_and_gradient(loss, n, miner=None):
    embeddings, labels = toy(n)
    embeddings.requires_grad_()
    value = loss(embeddings, labels, None if miner is None else miner(embeddings, labels))
    return value.item(), torch.autograd.grad(value, embeddings)[0]


def close(value):
    return pytest.approx(value, abs=1e-9)


# (what, loss, miner, number of points, value)
VALUES = [
    ("RAW", RAWLoss(), None, 6, 0.8102010030),
    ("RAW", RAWLoss(), None, 9, 0.7679613006),
    ("RAW", RAWLoss(beta=40), None, 6, 0.8102920980),
    ("RAW", RAWLoss(beta=40), None, 9, 0.7689039235),
    ("RAW", RAWLoss(gamma=1.0), None, 6, 0.9220940652),
    ("RAW", RAWLoss(alpha=0.5, beta=0.5, gamma=0.5, epsilon=0.0), None, 6, 3.7117777000),
    ("RAW", RAWLoss(alpha=0.1, beta=0.1, gamma=0.1, epsilon=0.0), None, 6, 17.7370602539),
    ("RAW", RAWLoss(alpha=0.1, beta=0.1, gamma=0.1, epsilon=0.1), None, 6, 18.3840799926),
    ("MS without its miner", MultiSimilarityLoss(), None, 6, 0.8485313298),
    ("RAW of everything", RAWLoss(epsilon=9.0), None, 6, 0.8485313298),
    ("BatchAll", BatchAllTripletLoss(), None, 6, 0.4868381747),
    ("BatchAll", BatchAllTripletLoss(margin=0.3), None, 6, 0.6972566090),
    ("BatchAll", BatchAllTripletLoss(), None, 9, 0.4516835900),
    ("BinDeviance", BinomialDevianceLoss(), HardNegativePairMiner(), 6, 1.1257412967),
    ("BinDeviance", BinomialDevianceLoss(), HardNegativePairMiner(), 9, 1.0330652086),
    ("NCA", KNNSoftmaxLoss(alpha=16, k=3), None, 6, 4.2921841659),
    ("NCA", KNNSoftmaxLoss(alpha=16, k=3), None, 9, 3.5218514465),
    ("NCA of all neighbours", KNNSoftmaxLoss(alpha=1, k=None), None, 6, 0.7804525854),
    ("GaussianLDA", KNNSoftmaxLoss(alpha=30, k=3, distance=LpDistance()), None, 6, 6.0569928525),
    ("GaussianLDA", KNNSoftmaxLoss(alpha=30, k=3, distance=LpDistance()), None, 9, 4.6277731941),
]


@pytest.mark.parametrize(("what", "loss", "miner", "n", "expected"), VALUES)
def test_value(what, loss, miner, n, expected):
    assert value_and_gradient(loss, n, miner)[0] == close(expected)


# The gradient of BinDeviance and NCA is that by points which nothing normalizes.
@pytest.mark.parametrize(
    ("loss", "miner", "norm"),
    [
        (RAWLoss(), None, 0.5464303610),
        (
            BinomialDevianceLoss(distance=DotProductSimilarity(normalize_embeddings=False)),
            HardNegativePairMiner(),
            1.4492095119,
        ),
        (
            KNNSoftmaxLoss(alpha=16, k=3, distance=LpDistance(normalize_embeddings=False, power=2)),
            None,
            7.1221209656,
        ),
    ],
)
def test_norm_of_the_gradient(loss, miner, norm):
    assert value_and_gradient(loss, 6, miner)[1].norm().item() == close(norm)


def test_raw_gradient_rows():
    gradient = value_and_gradient(RAWLoss(), 6)[1]
    assert gradient[0].tolist() == close([0, -0.0362638832])
    assert gradient[3].tolist() == close([0.3331115822, -0.2498336866])


def raw_weights(loss, n=6):
    """n times the absolute derivatives of the loss by the similarities: the pair weights of the paper."""
    embeddings, labels = toy(n)
    sim = CosineSimilarity()(embeddings).requires_grad_()
    pos, neg = all_pairs(labels)
    (gradient,) = torch.autograd.grad(loss.per_anchor(sim, pos, neg).sum(), sim)
    assert (gradient[pos] <= 0).all()
    assert (gradient[neg] >= 0).all()
    return gradient.abs().tolist()


def test_raw_weights():
    expected = [
        [0, 0, 0.6082590307, 0.9933071491, 0, 0],
        [0, 0, 0.4812088546, 0.9999996941, 0, 0],
        [0.4461462390, 0.2665193339, 0, 0.9988874636, 0.0011125360, 2.1e-13],
        [0.0000000505, 0.0011125360, 0.9988874132, 0, 0.1996534532, 0.5851002089],
        [0, 0, 0.9999996941, 0.3815630288, 0, 0.2070739654],
        [0, 0, 0.0006108794, 0.7310585786, 0, 0],
    ]
    assert [row == close(e) for row, e in zip(raw_weights(RAWLoss()), expected, strict=True)] == [True] * 6


def test_raw_weights_without_epsilon():
    half = [
        {2: 0.5274723043, 3: 0.5124973965},
        {2: 0.4953001384, 3: 0.5374298453},
        {0: 0.3603624494, 1: 0.3168125674, 3: 0.2869313294, 4: 0.2680685997, 5: 0.2142712888},
        {0: 0.2358859442, 1: 0.2606942855, 2: 0.2790381193, 4: 0.3005375473, 5: 0.3932213542},
        {2: 0.5374298453, 3: 0.4953001384},
        {2: 0.4815084375, 3: 0.5621765009},
    ]
    weights = raw_weights(RAWLoss(alpha=0.5, beta=0.5, gamma=0.5, epsilon=0.0))
    assert weights == [close([row.get(j, 0) for j in range(6)]) for row in half]


def test_raw_of_four_identical_rows():
    embeddings = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(4, -1)
    labels = torch.tensor([0, 0, 1, 1])
    expected = math.log1p(math.exp(-1)) / 2 + math.log1p(2 * math.exp(25)) / 50
    assert expected == close(0.6704937874)
    assert RAWLoss()(embeddings, labels).item() == close(expected)
    sim = torch.ones(4, 4, dtype=torch.float64, requires_grad=True)
    pos, neg = all_pairs(labels)
    (gradient,) = torch.autograd.grad(RAWLoss().per_anchor(sim, pos, neg).sum(), sim)
    assert gradient.abs()[pos].tolist() == close([0.2689414214] * 4)
    # 1/(2 + exp(-25)), which the specification rounds to .5.
    assert gradient.abs()[neg].tolist() == close([0.5] * 8)


def test_batch_all_counts_its_triplets():
    embeddings, labels = toy(6)
    counted = BatchAllTripletLoss().per_anchor(-EUCLIDEAN(embeddings), *all_pairs(labels))
    assert counted.counts.tolist() == [1, 1, 5, 6, 1, 1]
    assert counted.losses.sum().item() / 15 == close(0.4868381747)


@pytest.mark.parametrize(
    ("anchor", "probabilities"),
    [
        (0, [0.4870078401, 0.2049459480, 0.3080462119]),
        (2, [0.3444952201, 0.1961033061, 0.4594014738]),
        (3, [0.4092440032, 0.1910909860, 0.3996650107]),
    ],
)
def test_inverse_density_probabilities(anchor, probabilities):
    embeddings, labels = toy(6)
    sim, (_, neg) = -EUCLIDEAN(embeddings), all_pairs(labels)
    weights = _weights(sim, neg)[anchor][neg[anchor]]
    by_distance = weights[sim[anchor][neg[anchor]].argsort(descending=True)]
    assert (by_distance / by_distance.sum()).tolist() == close(probabilities)


def _weights(sim, neg):
    from pml_ext.miners.inverse_density import inverse_density_log_weights

    return inverse_density_log_weights(sim, neg).exp()


def test_dist_weight_bin_deviance_of_the_likeliest_negatives():
    """The draw replaced by its K - 1 most probable negatives, K the size of the classes."""
    recipe, (embeddings, labels) = build("DistWeightBinDeviance"), toy(6)
    assert isinstance(recipe.miner, InverseDensityMiner)
    sim, (pos, neg) = recipe.miner.distance(embeddings), all_pairs(labels)
    weights = torch.where(neg, _weights(sim, neg), 0.0)
    first = weights[0][neg[0]]
    assert (first / first.sum()).tolist() == pytest.approx([0.4692334, 0.1984765, 0.3322901], abs=1e-7)
    likeliest = torch.zeros_like(neg).scatter(1, weights.topk(2).indices, True)
    assert recipe.loss(embeddings, labels, PairMasks(pos, likeliest)).item() == close(0.9963916790)
