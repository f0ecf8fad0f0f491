"""Losses and miners of several processes, with threads in their place: against one process with the whole batch.

The laws hold every loss and miner that is exported to the same; here stand methods, PML's losses, and how one calls it.
"""

import copy

import pytest
import torch
from of_pml import LpDistance
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners
from of_pml import reducers as pml_reducers
from of_pml import regularizers as pml_regularizers
from registry import RECIPES, STATEFUL

from pml_ext import losses, miners, ranks, thresholds
from pml_ext.base import RowLoss, StaticDivisorReducer
from pml_ext.centers import BatchCenters, KMeansCenters, LearnedCenters, RunningCenters
from pml_ext.masked import masked_mean
from pml_ext.pairs import PairMasks
from pml_ext.testing import Batch, run_as_ranks
from pml_ext.testing.sharding_laws import check_sharding
from pml_ext.trainers import NPairTupleLoss, RandomTupleMiner
from pml_ext.wrappers import (
    AnchorWeightedLoss,
    BranchDiversityRegularizer,
    BranchLoss,
    CentersAsReferences,
    CrossBatchMemory,
    DistributedLoss,
    DistributedMiner,
    GuidedLoss,
    MinedLoss,
    RandomSliceLoss,
    SelfSupervisedLoss,
)
from pml_ext.wrappers import distributed as distributed_module

CLASSES, D, N = 6, 4, 24
CASE = Batch((6, 5, 4, 4, 3, 2), seed=4)
X, LABELS = CASE.embeddings, CASE.labels
OTHER = Batch((5, 4, 4, 4, 4, 3), seed=5)
SIZES = [(15, 9), (0, 7, 0, 17), (11, 8, 5), (24, 0)]
B, RAW = losses.BinomialDevianceLoss, losses.RAWLoss


@pytest.mark.parametrize("name", RECIPES)
def test_methods_are_those_of_one_process(name):
    recipe = RECIPES[name]()
    check_sharding(recipe.loss, recipe.miner, CASE)


WITH_PROXIES = {"num_classes": CLASSES, "embedding_size": D}
OF_PML = {
    **{
        name: getattr(pml_losses, name)
        for name in ("ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss", "NTXentLoss", "NCALoss",
                     "HistogramLoss", "SupConLoss", "LiftedStructureLoss", "FastAPLoss", "CircleLoss", "PNPLoss",
                     "IntraPairVarianceLoss", "SignalToNoiseRatioContrastiveLoss", "AngularLoss", "NPairsLoss",
                     "TupletMarginLoss")
    },
    **{
        name: lambda name=name: getattr(pml_losses, name)(**WITH_PROXIES)
        for name in ("ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "ArcFaceLoss", "NormalizedSoftmaxLoss")
    },
    "MarginLoss": lambda: pml_losses.MarginLoss(num_classes=CLASSES, learn_beta=True),
    "CrossBatchMemory": lambda: pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), D, 40),
    "MultipleLosses": lambda: pml_losses.MultipleLosses(
        [RAW(), pml_losses.TripletMarginLoss(), losses.HistogramLoss(), B()],
        miners=[None, pml_miners.TripletMarginMiner(), None, miners.HardNegativePairMiner()],
        weights=[1, 0.5, 2, 1],
    ),
}  # fmt: skip
OURS = {
    "PML's miner": lambda: (B(), pml_miners.MultiSimilarityMiner()),
    "a miner of triplets": lambda: (RAW(), pml_miners.TripletMarginMiner()),
    "PML's miner that draws": lambda: (pml_losses.MarginLoss(), pml_miners.DistanceWeightedMiner()),
    "our miner, PML's loss": lambda: (pml_losses.ContrastiveLoss(), miners.HardNegativePairMiner()),
    "a miner that shares the scores": lambda: (B(), miners.HardNegativePairMiner()),
    "a miner with another distance": lambda: (B(), miners.KNearestPositiveMiner(k=2)),
    "a seeded miner": lambda: (B(), miners.InverseDensityMiner(seed=3)),
    "a chain": lambda: (
        B(), miners.ChainedMiner(miners=[miners.KNearestPositiveMiner(), miners.DistanceWeightedMiner()])),
    "capped": lambda: (B(), miners.CappedMiner(miners.HardNegativePairMiner(epsilon=1), 2, seed=1)),
    "random tuples": lambda: (pml_losses.TripletMarginLoss(), RandomTupleMiner(seed=0)),
    "N-pairs": lambda: (NPairTupleLoss(), None),
    "anchors weighted": lambda: (AnchorWeightedLoss(pml_losses.TripletMarginLoss()), None),
    "anchors weighted, regularized": lambda: (
        AnchorWeightedLoss(RAW(embedding_regularizer=pml_regularizers.LpRegularizer())), None),
    "mined slices": lambda: (BranchLoss(MinedLoss(B(), miners.HardNegativePairMiner()), 2), None),
    "slices that disagree": lambda: (
        BranchLoss(RAW(), 2, embedding_regularizer=BranchDiversityRegularizer(2, beta=4)), None),
    "slices at random": lambda: (RandomSliceLoss(RAW(), 2, seed=0), None),
    "clusters": lambda: (CentersAsReferences(losses.KNNSoftmaxLoss(), KMeansCenters(n_clusters=4)), None),
    "clusters of classes": lambda: (
        CentersAsReferences(losses.KNNSoftmaxLoss(), KMeansCenters(n_clusters=2, per_class=True, detach=True)), None),
    "running centers": lambda: (CentersAsReferences(losses.KNNSoftmaxLoss(), RunningCenters(CLASSES, D)), None),
    "learned centers": lambda: (
        CentersAsReferences(losses.KNNSoftmaxLoss(), LearnedCenters(CLASSES, D, centers_per_class=2)), None),
    "means of the others": lambda: (
        CentersAsReferences(losses.KNNSoftmaxLoss(), BatchCenters(), leave_one_out=True), None),
    "mined centers": lambda: (
        CentersAsReferences(MinedLoss(B(), miners.HardNegativePairMiner()), BatchCenters()), None),
    "center loss of the batch": lambda: (losses.CenterLoss(CLASSES, D, centers=BatchCenters()), None),
    "center loss, learned": lambda: (losses.CenterLoss(CLASSES, D, centers="learned"), None),
    "a memory that wraps": lambda: (CrossBatchMemory(RAW(), D, 40), None),
    "a memory with a miner": lambda: (CrossBatchMemory(RAW(), D, 40, miner=miners.HardNegativePairMiner()), None),
    "a memory with PML's miner": lambda: (
        CrossBatchMemory(RAW(), D, 40, miner=pml_miners.MultiSimilarityMiner()), None),
    "a memory that warms up": lambda: (CrossBatchMemory(RAW(), D, 40, start=20), None),
    "chunks": lambda: (RAW(chunk_size=5), None),
    "chunks and autograd": lambda: (losses.KNNSoftmaxLoss(chunk_size=4, distance=LpDistance(p=1)), None),
    "no closed form": lambda: (losses.SoftTripletLoss(), None),
    "mean of what is not 0": lambda: (losses.BatchAllTripletLoss(reducer=pml_reducers.AvgNonZeroReducer()), None),
    "sum": lambda: (losses.BatchAllTripletLoss(reducer=pml_reducers.SumReducer()), None),
    "divisor": lambda: (losses.BatchAllTripletLoss(reducer=StaticDivisorReducer()), None),
    "thresholds": lambda: (losses.BatchAllTripletLoss(reducer=pml_reducers.ThresholdReducer(low=0.2, high=3)), None),
    "weights of classes": lambda: (
        losses.BatchAllTripletLoss(reducer=pml_reducers.ClassWeightedReducer(torch.arange(CLASSES).double())), None),
    "regularizer": lambda: (
        RAW(embedding_regularizer=pml_regularizers.LpRegularizer(), embedding_reg_weight=0.1), None),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # PML's HistogramLoss
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.pml2(f"its {name}") if name in ("CrossBatchMemory", "MultipleLosses") else ()
        )
        for name in OF_PML
    ],
)
def test_losses_of_pml_are_those_of_one_process(name):
    check_sharding(OF_PML[name](), None, CASE)


@pytest.mark.parametrize("name", OURS)
def test_what_is_made_of_losses_is_that_of_one_process(name):
    loss, miner = OURS[name]()
    check_sharding(loss, miner, CASE)


@pytest.mark.parametrize("name", STATEFUL)
def test_what_remembers_remembers_the_same(name):
    check_sharding(STATEFUL[name](), None, Batch((4, 3, 3, 2), seed=3))


@pytest.mark.parametrize("loss", [RAW(), B(), losses.BatchHardTripletLoss(), losses.MultiSimilarityLoss(chunk_size=3)])
def test_as_large_batches_are_computed(loss):
    for regime in (thresholds.tiny, thresholds.as_on_a_device):
        with regime():
            check_sharding(loss, None, CASE)


def ranges(sizes):
    return [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


def gradients(call, tensors):
    """The value of a call of tensors, and the gradients by them."""
    tensors = [x.clone().requires_grad_() for x in tensors]
    value = call(*tensors)
    value.backward()
    return value.detach(), [x.grad for x in tensors]


def assert_same(one, several, tensors, sizes, tolerance=1e-10):
    """One process's call of all, against `several(group, own rows)` of each."""
    value, expected = gradients(one, tensors)
    parts = ranges(sizes)
    runs = run_as_ranks(
        len(sizes),
        lambda group: gradients(
            lambda *own: several(group, parts[group.rank], *own), [x[parts[group.rank]] for x in tensors]
        ),
    )
    for run, _ in runs:
        torch.testing.assert_close(run, value, rtol=tolerance, atol=tolerance)
    for found, wanted in zip(zip(*(run for _, run in runs), strict=True), expected, strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(torch.cat(found), wanted, rtol=tolerance, atol=tolerance)


def summed(loss, group, miner=None):
    return DistributedLoss(copy.deepcopy(loss), copy.deepcopy(miner), group=group, gradients="summed")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "loss", [RAW(), losses.BatchAllTripletLoss(), losses.HistogramLoss(), pml_losses.ContrastiveLoss()]
)
def test_references_of_ones_own(loss, sizes):
    z, names = OTHER.embeddings, OTHER.labels
    assert_same(
        lambda x, z: loss(x, LABELS, None, z, names),
        lambda group, own, x, z: summed(loss, group)(x, LABELS[own], None, z, names[own]),
        [X, z],
        sizes,
    )


def test_miners_with_references():
    z, names = OTHER.embeddings, OTHER.labels
    miner, loss = miners.HardNegativePairMiner(), B()
    assert_same(
        lambda x, z: loss(x, LABELS, miner(x, LABELS, z, names), z, names),
        lambda group, own, x, z: summed(loss, group, miner)(x, LABELS[own], None, z, names[own]),
        [X, z],
        (11, 8, 5),
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        (B(), miners.HardNegativePairMiner()),
        (B(), miners.HardNegativePairMiner(as_masks=True)),
        (B(), pml_miners.MultiSimilarityMiner()),
        (pml_losses.ContrastiveLoss(), miners.HardNegativePairMiner()),
        (pml_losses.TripletMarginLoss(), pml_miners.TripletMarginMiner()),
    ],
)
def test_pairs_of_a_distributed_miner(loss, miner, sizes):
    assert_same(
        lambda x: loss(x, LABELS, miner(x, LABELS)),
        lambda group, own, x: summed(loss, group)(x, LABELS[own], DistributedMiner(miner, group=group)(x, LABELS[own])),
        [X],
        sizes,
    )


def blocks(sizes):
    """Which pairs are within one process's samples."""
    where = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return where.unsqueeze(1) == where


@pytest.mark.parametrize("loss", [RAW(), pml_losses.ContrastiveLoss()])
@pytest.mark.parametrize("form", ["pairs", "triplets", "masks"])
def test_pairs_of_own_samples_with_own(loss, form):
    """Each process names pairs of its own samples only: together they are the pairs within the blocks."""
    sizes = (11, 8, 5)
    alike, within = LABELS.unsqueeze(1) == LABELS, blocks(sizes)
    other = ~torch.eye(N, dtype=torch.bool)
    masks = PairMasks(alike & within & other, ~alike & within)

    def given(masks):
        if form == "masks" and isinstance(loss, RAW):
            return masks
        if form == "triplets":
            return (masks.pos.unsqueeze(2) & masks.neg.unsqueeze(1)).nonzero(as_tuple=True)
        return masks.indices()

    def own_masks(own):
        return PairMasks(masks.pos[own, own], masks.neg[own, own])

    assert_same(
        lambda x: loss(x, LABELS, given(masks)),
        lambda group, own, x: summed(loss, group)(x, LABELS[own], given(own_masks(own))),
        [X],
        sizes,
    )


def test_masks_of_own_samples_with_all():
    generator = torch.Generator().manual_seed(0)
    pos, side = torch.rand(2, N, N, generator=generator) < 0.3
    masks = PairMasks(pos, side & ~pos)
    for loss in (RAW(), losses.HistogramLoss()):
        assert_same(
            lambda x, loss=loss: loss(x, None, masks),
            lambda group, own, x, loss=loss: summed(loss, group)(x, None, PairMasks(masks.pos[own], masks.neg[own])),
            [X],
            (11, 8, 5),
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("number", [2, 3])
def test_views_of_samples(symmetric, number):
    loss = SelfSupervisedLoss(RAW(), symmetric=symmetric)
    views = [X + 0.1 * k * OTHER.embeddings for k in range(number)]
    assert_same(loss, lambda group, own, *views: summed(loss, group)(*views), views, (11, 8, 5))


def test_views_with_false_negatives():
    loss = SelfSupervisedLoss(RAW())
    false = LABELS.unsqueeze(1) == LABELS
    views = [X, X + 0.1 * OTHER.embeddings]
    assert_same(
        lambda *views: loss(*views, false_negatives=false),
        lambda group, own, *views: summed(loss, group)(*views, false_negatives=false[own]),
        views,
        (0, 13, 11),
    )


def test_what_a_loss_takes_by_name():
    guide = OTHER.embeddings
    guided = GuidedLoss(B())
    assert_same(
        lambda x: guided(x, LABELS, guide=guide),
        lambda group, own, x: summed(guided, group)(x, LABELS[own], guide=guide[own]),
        [X],
        (11, 8, 5),
    )
    memory, mask = CrossBatchMemory(RAW(), D, 40), torch.arange(N) % 2 == 0
    assert_same(
        lambda x: copy.deepcopy(memory)(x, LABELS, enqueue_mask=mask),
        lambda group, own, x: summed(memory, group)(x, LABELS[own], enqueue_mask=mask[own]),
        [X],
        (11, 8, 5),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_single(dtype):
    """The gradients of halves are single ones, rounded once: those of one process but for the last digit."""
    x = X.to(dtype)
    value, (expected,) = gradients(lambda x: RAW()(x, LABELS), [x])
    parts = ranges((9, 7, 5, 3))
    runs = run_as_ranks(
        4, lambda group: gradients(lambda x: summed(RAW(), group)(x, LABELS[parts[group.rank]]), [x[parts[group.rank]]])
    )
    assert {run.dtype for run, _ in runs} == {torch.float32}
    torch.testing.assert_close(runs[0][0], value, rtol=1e-5, atol=1e-6)
    found = torch.cat([gradient for _, (gradient,) in runs])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_averaged_gradients_are_multiplied_by_the_number_of_processes():
    one = gradients(lambda x: RAW()(x, LABELS), [X])[1][0]

    def of_rank(group):
        own = slice(8 * group.rank, 8 * group.rank + 8)
        return gradients(lambda x: DistributedLoss(RAW(), group=group)(x, LABELS[own]), [X[own]])[1][0]

    torch.testing.assert_close(torch.cat(run_as_ranks(3, of_rank)) / 3, one)


def test_parameters_start_as_on_the_first_process():
    def of_rank(group):
        loss = losses.CenterLoss(CLASSES, D, centers="learned").double()
        with torch.no_grad():
            loss.centers.centers.fill_(group.rank + 1.0)
        DistributedLoss(loss, group=group)(X[:4], LABELS[:4])
        return loss.centers.centers.detach()

    assert all((centers == 1).all() for centers in run_as_ranks(3, of_rank))


def test_nobody_has_samples():
    for loss in (RAW(), losses.HistogramLoss(), losses.CenterLoss(CLASSES, D), pml_losses.ContrastiveLoss()):
        runs = run_as_ranks(
            2, lambda group, loss=loss: gradients(lambda x: summed(loss, group)(x, LABELS[:0]), [X[:0]])
        )
        assert [float(value) for value, _ in runs] == [0, 0]


def test_equal_sizes_are_exchanged_once():
    def of_rank(group, **how):
        own = slice(12 * group.rank, 12 * group.rank + 12)
        loss = DistributedLoss(RAW(), group=group, **how)
        first = loss(X[own], LABELS[own])
        of_first = len(group.calls)
        assert torch.equal(loss(X[own], LABELS[own]), first)
        return first, of_first, len(group.calls) - of_first

    told, known = run_as_ranks(2, of_rank), run_as_ranks(2, lambda group: of_rank(group, equal_sizes=True))
    assert torch.equal(told[0][0], known[0][0])
    assert told[0][1:] == (known[0][1], known[0][2] + 1)


def test_columns_are_permuted_alike_by_all():
    loss = RandomSliceLoss(RAW(), 2)
    torch.manual_seed(3)
    expected = loss(X, LABELS)
    torch.manual_seed(3)
    for value in run_as_ranks(
        2, lambda group: summed(loss, group)(*(each[group.rank * 12 :][:12] for each in (X, LABELS)))
    ):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_draws_without_a_seed_differ_between_processes():
    """Processes that were given one seed, and have the same samples, do not draw the same pairs."""

    def of_rank(group):
        miner = DistributedMiner(miners.InverseDensityMiner(), group=group)
        return miner(X[:12], LABELS[:12]).neg

    first, second = run_as_ranks(2, of_rank)
    assert not torch.equal(first[:, :12], second[:, 12:])


def test_without_other_processes_it_is_the_loss_itself():
    for loss, miner in ((RAW(), None), (B(), miners.HardNegativePairMiner()), (pml_losses.ContrastiveLoss(), None)):
        expected = loss(X, LABELS, None if miner is None else miner(X, LABELS))
        assert torch.equal(DistributedLoss(loss, miner)(X, LABELS), expected)
        assert torch.equal(
            run_as_ranks(1, lambda g, loss=loss, m=miner: DistributedLoss(loss, m, group=g)(X, LABELS))[0], expected
        )
    views = SelfSupervisedLoss(RAW())
    assert torch.equal(DistributedLoss(views)(X, OTHER.embeddings), views(X, OTHER.embeddings))
    found = DistributedMiner(miners.HardNegativePairMiner())(X, LABELS)
    assert all(map(torch.equal, found, miners.HardNegativePairMiner()(X, LABELS)))


def errors(of_rank, size=3):
    """What is raised in each of some threads, which all of them must leave."""

    def caught(group):
        try:
            of_rank(group)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    return run_as_ranks(size, caught, timeout=5)


def test_processes_that_differ_are_told_so():
    def call(loss=None, x=X[:6], y=LABELS[:6], pairs=None):
        return lambda group: DistributedLoss(loss or RAW(), group=group)(x, y, pairs)

    def second(other, usual=None):
        return errors(lambda group: (other if group.rank == 1 else usual or call())(group))

    told = "ValueError: the dimension of embeddings must be the same on all processes, got 4, 3, 4"
    assert second(call(x=X[:6, :3])) == [told] * 3
    told = "the loss and its miner must be the same on all processes, got another one on process 1"
    assert second(call(RAW(alpha=3)))[0].endswith(told)
    told = "the dtype of embeddings must be the same on all processes, got torch.float64, torch.float32"
    assert told in second(call(x=X[:6].float()))[2]
    assert "the dtype of labels must be the same on all processes" in second(call(y=LABELS[:6].int()))[0]
    assert "the kind of indices_tuple" in second(call(pairs=(LABELS[:0],) * 3))[0]
    first, wrong, last = second(call(y=LABELS[:5]))
    assert wrong.startswith("ValueError: labels must be one label for each of 6 embeddings")
    assert first == last == "RuntimeError: process 1 of 3 was called with wrong arguments, see its error"


def test_where_an_object_lies_is_no_difference():
    def of_rank(group):
        own = slice(8 * group.rank, 8 * group.rank + 8)
        loss = RandomSliceLoss(RAW(), 2, seed=torch.Generator().manual_seed(0))
        return DistributedLoss(loss, group=group)(X[own], LABELS[own])

    assert len(set(map(float, run_as_ranks(3, of_rank)))) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DistributedLoss(lambda x, y: x), TypeError, r"loss must be a loss \(a torch module\), got function"),
        (lambda: DistributedLoss(RAW(), RAW()), TypeError, "miner must be a PML miner"),
        (lambda: DistributedLoss(RAW(), gradients="mean"), ValueError, "'averaged' or 'summed', got 'mean'"),
        (lambda: DistributedLoss(RAW(), equal_sizes="yes"), TypeError, "equal_sizes must be True or False"),
        (lambda: DistributedLoss(MinedLoss(B(), miners.KNearestPositiveMiner()), miners.KNearestPositiveMiner()),
         TypeError, "must take an indices_tuple to have a miner, MinedLoss does not"),
        (lambda: DistributedMiner(RAW()), TypeError, "miner must be a PML miner"),
        (lambda: DistributedLoss(RAW(), miners.KNearestPositiveMiner())(X), ValueError, "a miner needs labels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (RAW(), (X[:6], None), "labels or an indices_tuple must be given"),
        (
            RAW(),
            (X[:6], LABELS[:6], PairMasks(*torch.zeros(2, 6, 7, dtype=torch.bool))),
            r"shape \(6, 6\).* or \(6, 12\)",
        ),
        (SelfSupervisedLoss(RAW()), (X[:6],), "the views must be two or more of the same samples"),
        (SelfSupervisedLoss(RAW()), (X[:6], X[:5]), "the views must be two or more of the same samples"),
        (MinedLoss(B(), miners.KNearestPositiveMiner()), (X[:6], None), "needs labels"),
    ],
)
def test_a_wrong_call_is_refused(loss, given, message):
    with pytest.raises(ValueError, match=message):
        run_as_ranks(2, lambda group: DistributedLoss(copy.deepcopy(loss), group=group)(*given), timeout=5)


# Mistakes that one makes, each with what must notice it.


def _own_first(mutant):
    def all_rows(self, x):
        every = original(self, x)
        return torch.cat((every[self.own], every[: self.own.start], every[self.own.stop :]))

    original = ranks.Ranks.all_rows
    mutant.setattr(ranks.Ranks, "all_rows", all_rows)
    return losses.CenterLoss(CLASSES, D), None


def _factor_on_the_loss(mutant):
    original = ranks.touched
    mutant.setattr(distributed_module, "touched", lambda value, *x: 2 * original(value, *x))
    return RAW(), None


def _parameters_are_not_added_up(mutant):
    mutant.setattr(distributed_module, "sum_of_parts", lambda tensors, group: tensors)
    return losses.CenterLoss(CLASSES, D, centers="learned"), None


def _nothing_is_touched(mutant):
    mutant.setattr(distributed_module, "touched", lambda value, *x: value)
    return RAW(), None


def _no_reduce_scatter(mutant):
    mutant.setattr(ranks.Ranks, "own_rows_of_sum", lambda self, x: x[self.own])
    return RAW(), None


def _own_random_numbers(mutant):
    from pml_ext.wrappers import distributed_values

    mutant.setattr(distributed_values, "same_random_numbers", ranks.own_random_numbers)
    return pml_losses.MarginLoss(), pml_miners.DistanceWeightedMiner()


class _LocalMaximum(RowLoss):
    """A loss that is none of rows, though it says so: it takes the largest of the rows that it is given."""

    def get_default_distance(self):
        return LpDistance()

    def per_anchor(self, sim, pos, neg):
        return masked_mean(sim, neg) + masked_mean(sim, neg).max()


@pytest.mark.parametrize(
    "mistake",
    [
        _own_first,
        _factor_on_the_loss,
        _parameters_are_not_added_up,
        pytest.param(
            _nothing_is_touched, marks=pytest.mark.pml2("beside PML 3 the reducer adds 0 times all embeddings")
        ),
        _no_reduce_scatter,
        _own_random_numbers,
        lambda mutant: (_LocalMaximum(), None),
    ],
)
def test_mistakes_are_noticed(mistake, monkeypatch):
    loss, miner = mistake(monkeypatch)

    def notice():
        for seed in range(12):
            check_sharding(loss, miner, Batch((6, 5, 4, 4, 3, 2), seed=seed))

    with pytest.raises((AssertionError, RuntimeError)):
        notice()
