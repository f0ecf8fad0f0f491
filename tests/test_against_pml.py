"""PML's own implementation, wherever it has one, and life together with PML's losses and miners."""

import pytest
import torch
from of_pml import AvgNonZeroReducer, CosineSimilarity, LpDistance
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners
from registry import LOSSES, MINERS

from pml_ext.base import SampleLoss
from pml_ext.losses import BatchAllTripletLoss, KNNSoftmaxLoss, RAWLoss
from pml_ext.testing import Batch
from pml_ext.testing.cases import all_pairs, as_triplets

BATCHES = [
    Batch(sizes, 5, scale=scale, seed=seed)
    for seed, (sizes, scale) in enumerate(
        (((4, 4, 4), 1.0), ((5, 1, 3), 1.0), ((2, 6), 1.0), ((7, 2, 3), 10.0), ((1, 1, 2), 0.1))
    )
]
PAIR_LOSSES = [name for name in LOSSES if not isinstance(LOSSES[name](), SampleLoss)]


def value_and_gradient(loss, batch, indices_tuple=None):
    embeddings = batch.embeddings.clone().requires_grad_()
    value = loss(embeddings, batch.labels, indices_tuple)
    return value.detach(), torch.autograd.grad(value, embeddings)[0]


def assert_equal(actual, expected, tolerance=1e-12):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_raw_is_multi_similarity_with_its_miner(batch):
    mined = pml_miners.MultiSimilarityMiner(epsilon=0.1)(batch.embeddings, batch.labels)
    expected = value_and_gradient(pml_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5), batch, mined)
    if len(mined[0]) + len(mined[2]) > 2:  # of one pair of each kind PML's loss is 0
        assert_equal(value_and_gradient(RAWLoss(), batch), expected)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_derivative_of_raw_by_a_similarity_is_the_weight_of_the_paper(batch):
    loss, (pos, neg) = RAWLoss(alpha=3, beta=7, gamma=0.2, epsilon=0.1), all_pairs(batch.labels)
    sim = CosineSimilarity()(batch.embeddings).requires_grad_()
    defined = pos.any(1) & neg.any(1)
    (gradient,) = torch.autograd.grad(loss.per_anchor(sim, pos, neg)[defined].sum() / len(sim), sim)
    expected = torch.zeros_like(sim)
    for i, row in enumerate(sim.detach()):
        if defined[i]:
            kept_pos = pos[i] & (row < row[neg[i]].max() + 0.1)
            kept_neg = neg[i] & (row > row[pos[i]].min() - 0.1)
            for j in kept_pos.nonzero().flatten():
                w = 1 / ((3 * (row[j] - row[kept_pos])).exp().sum() + (3 * (row[j] - 0.2)).exp())
                expected[i, j] = -w / len(sim)
            for j in kept_neg.nonzero().flatten():
                w = 1 / ((7 * (row[kept_neg] - row[j])).exp().sum() + (-7 * (row[j] - 0.2)).exp())
                expected[i, j] = w / len(sim)
    assert_equal((gradient,), (expected,))


@pytest.mark.pml2("an option of its TripletMarginLoss")
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("margin", [0.02, 0.3])
def test_batch_all_is_the_triplet_loss_of_all_triplets(batch, margin):
    theirs = pml_losses.TripletMarginLoss(margin=margin, triplets_per_anchor="all", reducer=AvgNonZeroReducer())
    assert_equal(value_and_gradient(BatchAllTripletLoss(margin=margin), batch), value_and_gradient(theirs, batch))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_nca_of_all_neighbours_is_pml_nca(batch, normalize):
    distance = LpDistance(power=2, normalize_embeddings=normalize)
    ours = KNNSoftmaxLoss(alpha=1, k=None, distance=distance)
    theirs = pml_losses.NCALoss(softmax_scale=1, distance=distance)
    _, counts = batch.labels.unique(return_counts=True)
    if (counts == 1).any():
        # PML averages over the anchors with a positive only.
        share = counts[counts > 1].sum().item() / len(batch.labels)
        expected = [share * x for x in value_and_gradient(theirs, batch)]
    else:
        expected = value_and_gradient(theirs, batch)
    # PML's loss takes the logarithm of a probability, which it rounds first.
    assert_equal(value_and_gradient(ours, batch), expected, 1e-9)


PML_MINERS = [
    pml_miners.MultiSimilarityMiner(),
    pml_miners.TripletMarginMiner(margin=0.5),
    pml_miners.BatchHardMiner(),
    pml_miners.PairMarginMiner(),
    pml_miners.BatchEasyHardMiner(),
]


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_our_losses_take_the_pairs_of_pml_miners(name):
    batch = BATCHES[0]
    for miner in PML_MINERS:
        value, gradient = value_and_gradient(LOSSES[name](), batch, miner(batch.embeddings, batch.labels))
        assert value.isfinite(), type(miner)
        assert gradient.isfinite().all(), type(miner)


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize(
    "loss",
    # A margin above those by which positive-aware mining keeps its negatives easier than the positive.
    [pml_losses.ContrastiveLoss(), pml_losses.TripletMarginLoss(margin=1), pml_losses.MultiSimilarityLoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_pml_losses_take_the_pairs_of_our_miners(name, loss):
    batch, miner = BATCHES[0], MINERS[name]()
    value, gradient = value_and_gradient(loss, batch, miner(batch.embeddings, batch.labels))
    assert value.isfinite()
    assert gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_our_losses_live_in_multiple_losses(name):
    batch = Batch((4, 4, 4), 4, seed=0)
    parts = LOSSES[name](), pml_losses.ContrastiveLoss()
    expected = [value_and_gradient(part.eval(), batch) for part in parts]
    together = pml_losses.MultipleLosses(dict(zip("ab", parts, strict=True)), weights={"a": 0.5, "b": 2.0})
    assert_equal(value_and_gradient(together, batch), [0.5 * a + 2 * b for a, b in zip(*expected, strict=True)])


def test_triplets_that_pml_mines_are_those_that_count():
    batch = BATCHES[1]
    triplets = as_triplets(all_pairs(batch.labels))
    assert_equal(
        value_and_gradient(BatchAllTripletLoss(margin=0.1), batch, triplets),
        value_and_gradient(pml_losses.TripletMarginLoss(margin=0.1, reducer=AvgNonZeroReducer()), batch, triplets),
    )
