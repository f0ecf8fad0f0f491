"""Losses of all pairs at once of several processes, threads in their place, by sums over own rows."""

from itertools import pairwise

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance

from pml_ext import losses, thresholds
from pml_ext.miners import HardNegativePairMiner
from pml_ext.pairs import PairMasks
from pml_ext.ranks import add_up
from pml_ext.testing import Batch, run_as_ranks
from pml_ext.testing.law import assert_close
from pml_ext.testing.sharding_laws import on_one, on_several
from pml_ext.wrappers import DistributedLoss, distributed_sums, distributed_values

CASE = Batch((5, 4, 4, 3, 2), seed=4)
X, LABELS = CASE.embeddings.double(), CASE.labels
N = len(X)
SPLITS = [(0, 11, 18), (0, 0, 7, 18, 18), (0, 6, 12, 18)]
LOSSES = {
    "histogram": losses.HistogramLoss,
    "histogram of few bins": lambda: losses.HistogramLoss(n_bins=3, distance=LpDistance(), center=1),
    "lifted structure": losses.LiftedStructureLoss,
    "lifted structure, cosine": lambda: losses.LiftedStructureLoss(distance=CosineSimilarity(), neg_margin=0.5),
    "mean gap": losses.MeanGapLoss,
    "mean gap of all": lambda: losses.MeanGapLoss(fraction=1),
    "mean gap, inner products": lambda: losses.MeanGapLoss(distance=DotProductSimilarity(normalize_embeddings=False)),
}


@pytest.fixture(autouse=True)
def own_rows_only(monkeypatch):
    """No process computes the whole batch, and rows come in several blocks."""

    def refuse(loss, *_):
        raise AssertionError(f"{type(loss).__name__} was computed by all")

    monkeypatch.setattr(distributed_values, "computed_by_all", refuse)
    with thresholds.replaced(SUMMED_SCORES=4 * N, SUMMED_FROM=0):
        yield


def check(loss, miner, cuts, batch=(X, LABELS)):
    parts = [slice(start, stop) for start, stop in pairwise(cuts)]
    one = on_one(loss, miner, batch)
    together, each = on_several(loss, miner, batch, parts)
    for run in each:
        assert_close(run.value, one.value, "the value")
    assert_close(together.gradient, one.gradient, "the gradient")
    return one


@pytest.mark.parametrize("cuts", SPLITS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_sums_of_rows_are_what_one_process_has(name, cuts):
    assert check(LOSSES[name](), None, cuts).gradient.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_of_the_pairs_of_a_miner(name):
    check(LOSSES[name](), HardNegativePairMiner(epsilon=1), SPLITS[0])


@pytest.mark.parametrize("name", LOSSES)
def test_of_equal_samples(name):
    """Equal scores share what is left to the last of those that are kept."""
    x = X.clone()
    x[[3, 9, 15]] = X[0]
    check(LOSSES[name](), None, SPLITS[1], (x.round(decimals=1), LABELS))


def test_scores_that_are_equal_to_the_last_bit():
    distance = DotProductSimilarity(normalize_embeddings=False)  # of whole numbers
    check(losses.MeanGapLoss(distance=distance, fraction=0.5), None, SPLITS[1], (X.sign(), LABELS))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [torch.zeros(N, dtype=torch.long), torch.arange(N)], ids=["one class", "all others"])
def test_of_a_batch_without_positives_or_negatives(name, labels):
    one = check(LOSSES[name](), None, SPLITS[0], (X, labels))
    assert one.value == 0


@pytest.mark.parametrize("name", LOSSES)
def test_of_references_and_masks_that_are_not_symmetric(name):
    z, of_z = X.flip(0).roll(1, 1), LABELS.flip(0)
    same = LABELS.unsqueeze(1) == of_z
    keep = torch.arange(N * N).view(N, N) % 5 > 0
    masks = PairMasks(same & keep, ~same & keep.mT)
    loss = LOSSES[name]()
    expected = loss(X, LABELS, masks, z, of_z)
    own = [slice(0, 7), slice(7, N)]

    def of_rank(group):
        mine = own[group.rank]
        pairs = PairMasks(masks.pos[mine], masks.neg[mine])
        return DistributedLoss(loss, group=group)(X[mine], LABELS[mine], pairs, z[mine], of_z[mine])

    for value in run_as_ranks(2, of_rank):
        assert_close(value, expected, "the value")


@pytest.mark.parametrize("name", LOSSES)
def test_not_a_number_stays_visible(name):
    x = X.clone()
    x[4] = torch.nan
    own = [slice(0, 7), slice(7, N)]
    found = run_as_ranks(
        2, lambda group: DistributedLoss(LOSSES[name](), group=group)(x[own[group.rank]], LABELS[own[group.rank]])
    )
    assert all(value.isnan() for value in found)


def test_a_column_needs_the_gradients_of_all(monkeypatch):
    """The check would find a sum whose gradient stays where it is."""
    monkeypatch.setattr(distributed_sums, "total", add_up)
    with pytest.raises(AssertionError, match="the gradient"):
        check(losses.LiftedStructureLoss(), None, SPLITS[0])


def test_a_small_batch_is_computed_by_all(monkeypatch):
    """Sums of rows would take every process longer than the whole batch, but for a histogram."""

    def refuse(*_):
        raise AssertionError("sums of few scores")

    monkeypatch.undo()
    monkeypatch.setattr(distributed_values, "by_sums", refuse)
    with thresholds.replaced(SUMMED_FROM=N * N):
        check(losses.MeanGapLoss(), None, SPLITS[0])
    for loss, scores in ((losses.MeanGapLoss(), N * N - 1), (losses.HistogramLoss(), N * N)):
        with thresholds.replaced(SUMMED_FROM=scores), pytest.raises(AssertionError, match="sums of few scores"):
            check(loss, None, SPLITS[0])
