"""Losses whose references travel around, threads in the place of processes."""

import pytest
import torch
from of_pml import AvgNonZeroReducer, DotProductSimilarity, LpDistance, LpRegularizer, NTXentLoss

from pml_ext import losses
from pml_ext.miners import HardNegativePairMiner
from pml_ext.testing import Batch, run_as_ranks
from pml_ext.testing.law import assert_close
from pml_ext.wrappers import DistributedLoss, distributed_ring

CASE = Batch((5, 4, 4, 3, 2, 1), seed=4)
X, LABELS = CASE.embeddings.double(), CASE.labels
N = len(X)
SPLITS = [(0, 11, N), (0, 0, 7, N, N), (0, 6, 12, N)]
LOSSES = {
    "RAW": losses.RAWLoss,
    "RAW, Euclidean": lambda: losses.RAWLoss(distance=LpDistance(normalize_embeddings=False), gamma=2),
    "MultiSimilarity": losses.MultiSimilarityLoss,
    "BinomialDeviance": lambda: losses.BinomialDevianceLoss(balance=0.5, scale=2),
    "AnchorContrastive": losses.AnchorContrastiveLoss,
    "AnchorContrastive, sums": lambda: losses.AnchorContrastiveLoss(average=False, step=0.3),
    "BatchHard": losses.BatchHardTripletLoss,
    "BatchHard, soft": lambda: losses.BatchHardTripletLoss(margin=None),
    "BatchHard, of what is not 0": lambda: losses.BatchHardTripletLoss(reducer=AvgNonZeroReducer()),
    "lifted": losses.GeneralizedLiftedStructureLoss,
    "log-sum-exp": losses.LogSumExpPairLoss,
    "log-sum-exp, bounded": lambda: losses.LogSumExpPairLoss(bounded=True, alpha=3, beta=5, scale=2),
    "NCA": lambda: losses.KNNSoftmaxLoss(k=None, negative_weight=2),
    "inner products": lambda: losses.MultiSimilarityLoss(distance=DotProductSimilarity(normalize_embeddings=False)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(distributed_ring, "BLOCK", 4)


def run(loss, x, labels, group=None):
    x = x.clone().requires_grad_()
    value = (loss if group is None else DistributedLoss(loss, group=group, gradients="summed", ring=True))(x, labels)
    value.backward()
    return value.detach(), x.grad, [] if group is None else group.calls


def check(make, cuts, x=X, labels=LABELS):
    value, gradient, _ = run(make(), x, labels)
    own = [slice(*cuts[r : r + 2]) for r in range(len(cuts) - 1)]
    found = run_as_ranks(len(own), lambda group: run(make(), x[own[group.rank]], labels[own[group.rank]], group))
    assert all(calls == found[0][2] for _, _, calls in found)
    for mine, _, _ in found:
        assert_close(mine, value, "the value")
    assert_close(torch.cat([part for _, part, _ in found]), gradient, "the gradient")
    return found


@pytest.mark.parametrize("cuts", SPLITS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_ring_has_the_numbers_of_one_process(name, cuts):
    check(LOSSES[name], cuts)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [torch.zeros(N, dtype=torch.long), torch.arange(N)], ids=["one class", "all others"])
def test_of_a_batch_without_negatives_or_positives(name, labels):
    check(LOSSES[name], SPLITS[0], labels=labels)


def test_equal_scores_share_the_gradient():
    distance = DotProductSimilarity(normalize_embeddings=False)  # of whole numbers: equal to the last bit
    check(lambda: losses.BatchHardTripletLoss(distance=distance), SPLITS[2], X.sign())


def test_nothing_is_gathered_but_labels_and_losses():
    calls = check(losses.MultiSimilarityLoss, SPLITS[0])[0][2]
    assert calls.count("pass_on") == 1 + 1 + 2  # forward; backward the samples, and their gradients, which come home
    assert "reduce_scatter" not in calls


def test_half_precision_is_computed_in_single():
    found = run_as_ranks(
        2, lambda group: run(losses.RAWLoss(), X[group.rank * 9 :][:9].bfloat16(), LABELS[group.rank * 9 :][:9], group)
    )
    value = losses.RAWLoss()(X[:18].bfloat16().float(), LABELS[:18])
    for mine, gradient, _ in found:
        assert (mine.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
        torch.testing.assert_close(mine, value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((losses.HistogramLoss(),), "ring supports only losses as DistributedLoss lists them, got HistogramLoss"),
        ((losses.KNNSoftmaxLoss(k=3),), "lists them, got KNNSoftmaxLoss"),
        ((NTXentLoss(),), "lists them, got NTXentLoss"),
        ((losses.RAWLoss(), HardNegativePairMiner()), "and takes no miner, got HardNegativePairMiner"),
        ((losses.RAWLoss(embedding_regularizer=LpRegularizer()),), "without embedding_regularizer"),
    ],
)
def test_what_cannot_travel_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DistributedLoss(*given, ring=True)


def test_pairs_and_references_are_refused():
    def of_rank(group):
        return DistributedLoss(losses.RAWLoss(), group=group, ring=True)(X[:4], LABELS[:4], None, X[:4], LABELS[:4])

    with pytest.raises(ValueError, match="ring takes labels, and neither indices_tuple nor ref_emb"):
        run_as_ranks(2, of_rank)


def test_one_process_has_no_ring():
    assert torch.equal(DistributedLoss(losses.RAWLoss(), ring=True)(X, LABELS), losses.RAWLoss()(X, LABELS))
