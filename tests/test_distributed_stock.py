"""PML's own losses of several processes, threads in their place, by own rows: against PML's in one process."""

from itertools import pairwise

import pytest

pytest.importorskip("pytorch_metric_learning.trainers", reason="about PML 2: its losses, run faster")

import torch
from of_pml import (
    DotProductSimilarity,
    LpDistance,
    LpRegularizer,
    SNRDistance,
    TripletMarginLoss,
    losses,
    miners,
    reducers,
)

from pml_ext import thresholds
from pml_ext.pairs import PairMasks
from pml_ext.stock import accelerate
from pml_ext.stock import run as run_module
from pml_ext.stock.forms import FORMS
from pml_ext.testing import Batch, run_as_ranks
from pml_ext.testing.law import assert_close
from pml_ext.testing.sharding_laws import on_one, on_several
from pml_ext.wrappers import DistributedLoss, distributed_values

CASE = Batch((5, 4, 4, 3, 2), seed=4)
X, LABELS = CASE.embeddings.double(), CASE.labels
N = len(X)
SPLITS = {"unequal": (0, 11, 18), "empty ones": (0, 0, 7, 18, 18)}
GIVEN = {"RankedListLoss": {"margin": 0.4, "Tn": 1.0}}
PLAIN = [kind.__name__ for kind in FORMS]


def margins():
    loss = losses.MarginLoss(num_classes=5)
    loss.beta += torch.arange(5) / 20
    return loss


OTHERS = {
    "a margin of each class": lambda: (margins(), None),
    "a smooth margin": lambda: (TripletMarginLoss(margin=0.1, smooth_loss=True, triplets_per_anchor="all"), None),
    "a Euclidean distance": lambda: (losses.ContrastiveLoss(distance=LpDistance(power=2)), None),
    "an inner product": lambda: (losses.NTXentLoss(distance=DotProductSimilarity(normalize_embeddings=False)), None),
    "a ratio of variances": lambda: (TripletMarginLoss(margin=0.4, distance=SNRDistance()), None),
    "pairs of a miner": lambda: (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
    "pairs that repeat": lambda: (losses.ContrastiveLoss(), miners.TripletMarginMiner(margin=0.3)),
    "weights of classes": lambda: (
        losses.SupConLoss(reducer=reducers.ClassWeightedReducer(torch.arange(1.0, 6).double())), None),
    "means of anchors": lambda: (losses.NTXentLoss(reducer=reducers.PerAnchorReducer()), None),
    "a sum": lambda: (losses.CircleLoss(reducer=reducers.SumReducer()), None),
    "a regularizer": lambda: (
        losses.MultiSimilarityLoss(embedding_regularizer=LpRegularizer(power=2), embedding_reg_weight=0.3), None),
    "accelerated, in chunks": lambda: (accelerate(losses.NTXentLoss(), chunk_size=2), None),
    "accelerated histograms, in chunks": lambda: (accelerate(losses.HistogramLoss(), chunk_size=3), None),
    "several": lambda: (losses.MultipleLosses([losses.CircleLoss(), losses.NCALoss()], weights=[1, 0.3]), None),
}  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # PML's HistogramLoss


@pytest.fixture
def own_rows_only(monkeypatch):
    """No process computes the whole batch."""

    def refuse(loss, *_):
        raise AssertionError(f"{type(loss).__name__} was computed by all")

    monkeypatch.setattr(distributed_values, "computed_by_all", refuse)
    with thresholds.replaced(STOCK_PAYS=0):
        yield


def check(loss, miner, cuts):
    parts = [slice(start, stop) for start, stop in pairwise(cuts)]
    one = on_one(loss, miner, (X, LABELS))
    together, each = on_several(loss, miner, (X, LABELS), parts)
    assert_close(together.gradient, one.gradient, "the gradient")
    assert one.gradient.abs().sum() > 0
    for run in each:
        assert_close(run.value, one.value, "the value")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_of_pml_needs_own_rows(name, split, own_rows_only):
    check(getattr(losses, name)(**GIVEN.get(name, {})), None, SPLITS[split])


@pytest.mark.parametrize("name", OTHERS)
def test_so_it_does_with_other_parts(name, own_rows_only):
    check(*OTHERS[name](), SPLITS["empty ones"])


def test_scores_of_a_process_are_those_of_its_rows(own_rows_only, monkeypatch):
    shapes = []
    plain = run_module.Scores.whole

    def seen(scores):
        found, way = plain(scores)
        shapes.append(tuple(found.shape))
        return found, way

    monkeypatch.setattr(run_module.Scores, "whole", seen)
    loss = losses.MultiSimilarityLoss()
    run_as_ranks(2, lambda group: DistributedLoss(loss, group=group)(X[group.rank * 9 :][:9], LABELS[:9]))
    assert shapes == [(9, N)] * 2


def test_references_of_their_own(own_rows_only):
    other = X.flip(0) + 0.1
    loss = losses.NTXentLoss()
    expected = loss(X, LABELS, ref_emb=other, ref_labels=LABELS.clone())

    def of_rank(group):
        own = slice(0, 5) if group.rank else slice(5, N)
        refs = slice(9, N) if group.rank else slice(0, 9)
        return DistributedLoss(loss, group=group)(X[own], LABELS[own], None, other[refs], LABELS[refs])

    for value in run_as_ranks(2, of_rank):
        assert_close(value, expected, "the value")


def test_masks_of_own_rows(own_rows_only):
    same = LABELS.unsqueeze(1) == LABELS
    pos, neg = same & ~torch.eye(N, dtype=torch.bool), ~same & (torch.arange(N) % 3 > 0)
    loss = losses.SupConLoss()
    expected = loss(X, LABELS, PairMasks(pos, neg).indices())

    own = [slice(0, 5), slice(5, N)]
    found = run_as_ranks(
        2,
        lambda group: DistributedLoss(loss, group=group)(
            X[own[group.rank]], LABELS[own[group.rank]], PairMasks(pos[own[group.rank]], neg[own[group.rank]])
        ),
    )
    for value in found:
        assert_close(value, expected, "the value")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TripletMarginLoss(swap=True),
        lambda: losses.MarginLoss(learn_beta=True),
        lambda: losses.AngularLoss(),
        lambda: type("Own", (losses.NTXentLoss,), {})(),
        lambda: (TripletMarginLoss(), miners.TripletMarginMiner(margin=0.3)),
    ],
)
def test_what_needs_other_rows_is_computed_by_all(make):
    made = make()
    with thresholds.replaced(STOCK_PAYS=0):
        check(*(made if isinstance(made, tuple) else (made, None)), SPLITS["unequal"])


@pytest.mark.parametrize("name", ["NTXentLoss", "MultiSimilarityLoss", "ContrastiveLoss"])
@pytest.mark.parametrize("labels", [torch.zeros(N, dtype=torch.long), torch.arange(N)], ids=["one class", "all others"])
def test_batches_without_negatives_or_positives(name, labels, own_rows_only):
    loss = getattr(losses, name)()
    expected = loss(X, labels)
    found = run_as_ranks(
        2, lambda group: DistributedLoss(loss, group=group)(X[group.rank * 9 :][:9], labels[group.rank * 9 :][:9])
    )
    for value in found:
        assert_close(value, expected.reshape(value.shape), "the value")
