"""Losses made of losses: slices, random slices, the diversity of slices, own miners, memories, views."""

import copy
import io
import math
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from of_pml import CosineSimilarity, DotProductSimilarity, LpDistance
from of_pml import losses as pml
from of_pml import miners as pml_miners
from torch import Tensor
from toy import all_pairs, toy

from pml_ext import _pml, wrappers
from pml_ext.catalog import build
from pml_ext.index_tuples import to_pairs
from pml_ext.losses import (
    BinomialDevianceLoss,
    EasyPositiveTripletLoss,
    HistogramLoss,
    KNNSoftmaxLoss,
    RAWLoss,
)
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner, KNearestPositiveMiner
from pml_ext.pairs import PairMasks, label_masks
from pml_ext.wrappers import (
    AnchorWeightedLoss,
    BranchDiversityRegularizer,
    BranchLoss,
    CrossBatchMemory,
    MinedLoss,
    RandomSliceLoss,
    SelfSupervisedLoss,
)
from pml_ext.wrappers.branch_diversity import jensen_shannon

T6, LABELS = toy(6)
PERMUTED = T6[[3, 0, 4, 1, 5, 2]]
T6X4 = torch.cat((T6, PERMUTED), dim=1) / math.sqrt(2)


def batch(seed, n=12, d=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), labels


def gradient_of(loss, embeddings, *args):
    embeddings = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(embeddings, *args), embeddings)[0]


def assert_same_loss(first, second, *args):
    torch.testing.assert_close(first(*args), second(*args), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient_of(first, *args), gradient_of(second, *args), atol=1e-12, rtol=0)


# --- Slices. ----------------------------------------------------------------------------------------------------------


def test_worked_values_of_slices():
    dot = {"distance": DotProductSimilarity(normalize_embeddings=False)}
    as_coded = MinedLoss(BinomialDevianceLoss(**dot), HardNegativePairMiner(**dot))
    value = BranchLoss(as_coded, (2, 2), normalize=False)(T6X4, LABELS)
    assert value.item() == pytest.approx(1.0910153600, abs=1e-10)
    assert build("BinBranch", sizes=2)(T6X4, LABELS).item() == pytest.approx(1.4086727852, abs=1e-10)


@pytest.mark.parametrize("loss", [RAWLoss(), HistogramLoss(), pml.ContrastiveLoss(), pml.MultiSimilarityLoss()])
@pytest.mark.parametrize("sizes", [(1, 2, 3), (6,), 1, 2, 4])
def test_slices_are_means_of_losses(loss, sizes):
    embeddings, labels = batch(0)
    refs, ref_labels = batch(1, n=9)
    bounds = {1: [6], 2: [3, 3], 4: [1, 2, 1, 2]}.get(sizes, sizes) if isinstance(sizes, int) else list(sizes)
    branches = BranchLoss(loss, sizes)

    def by_hand(x, y, pairs=None, r=None, ry=None):
        slices = [F.normalize(part, dim=1) for part in x.split(bounds, dim=1)]
        others = [None] * len(bounds) if r is None else [F.normalize(part, dim=1) for part in r.split(bounds, dim=1)]
        losses = [loss(part, y, pairs, other, ry) for part, other in zip(slices, others, strict=True)]
        return sum(losses) / len(losses)

    pairs = all_pairs(labels)
    some = (pairs[0][::2], pairs[1][::2], pairs[2][1::2], pairs[3][1::2])
    assert_same_loss(branches, by_hand, embeddings, labels)
    assert_same_loss(branches, by_hand, embeddings, labels, some)
    assert_same_loss(branches, by_hand, embeddings, labels, None, refs, ref_labels)


def test_bounds_of_slices_are_those_of_dm18():
    widths = [x.shape[1] for x in BranchLoss(RAWLoss(), 3).slices(torch.ones(2, 512))]
    assert widths == [170, 171, 171]


def test_a_slice_of_zeros_is_a_zero_vector():
    embeddings, labels = batch(2)
    embeddings[:, :3] = 0
    assert gradient_of(BranchLoss(RAWLoss(), 2), embeddings, labels).isfinite().all()


def test_slices_may_mix_within_but_not_between():
    embeddings, labels = batch(3)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    loss = BranchLoss(KNNSoftmaxLoss(), 2)
    within = embeddings @ torch.block_diag(turn, turn.T)
    between = embeddings @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    torch.testing.assert_close(loss(within, labels), loss(embeddings, labels))
    assert (loss(between, labels) - loss(embeddings, labels)).abs() > 1e-3


# --- Random slices. ---------------------------------------------------------------------------------------------------


def test_random_slices_are_slices_of_shuffled_columns():
    embeddings, labels = batch(4)
    loss = RandomSliceLoss(RAWLoss(), (2, 4), seed=7)
    order = torch.randperm(6, generator=copy.deepcopy(loss).generator(embeddings.device))
    expected = BranchLoss(RAWLoss(), (2, 4))(embeddings[:, order], labels)
    torch.testing.assert_close(loss(embeddings, labels), expected)


def test_random_slices_are_drawn_anew_and_uniformly():
    loss, counts = RandomSliceLoss(RAWLoss(), 2, seed=0), torch.zeros(6)
    parts = loss.loss
    seen: list[Tensor] = []
    parts.loss_dict = lambda embeddings, *_: seen.append(embeddings) or parts.zero_losses()  # type: ignore
    embeddings = torch.arange(6.0).expand(2, 6)
    for _ in range(600):
        loss(embeddings, torch.tensor([0, 1]))
    assert all(x[0].sort().values.equal(embeddings[0]) for x in seen)
    for x in seen:
        counts[x[0, :3].long()] += 1
    # Each count is binomial(600, 1/2), with a standard deviation of 12.2: five of them.
    assert (counts - 300).abs().max() < 62


def test_random_slices_resume_where_they_stood():
    embeddings, labels = batch(5)
    loss = RandomSliceLoss(RAWLoss(), 2, seed=3)
    run = [loss(embeddings, labels) for _ in range(4)]
    assert len({x.item() for x in run}) > 1
    fresh = RandomSliceLoss(RAWLoss(), 2, seed=3)
    first = [fresh(embeddings, labels) for _ in range(2)]
    resumed = RandomSliceLoss(RAWLoss(), 2, seed=3)
    resumed.load_state_dict(through_a_file(fresh.state_dict()))
    assert [*first, *(resumed(embeddings, labels) for _ in range(2))] == run


def test_random_slices_cut_references_alike():
    embeddings, labels = batch(6)
    loss = RandomSliceLoss(KNNSoftmaxLoss(k=None), 2, seed=1)
    refs, ref_labels = embeddings + 1e-9, labels
    exact = copy.deepcopy(loss)(embeddings, labels, all_pairs(labels))
    pairs = all_pairs(labels)
    torch.testing.assert_close(loss(embeddings, labels, pairs, refs, ref_labels), exact, atol=1e-6, rtol=0)


# --- The diversity of slices. -----------------------------------------------------------------------------------------


def diversity_by_hand(slices, beta):
    def js(a, b):
        half = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
        return sum(x * math.log(x / m) for x, m in (*zip(a, half, strict=True), *zip(b, half, strict=True)) if x) / 2

    def others(points, i):
        mass = [math.exp(-beta * math.dist(points[i], p)) for j, p in enumerate(points) if j != i]
        return [x / sum(mass) for x in mass]

    n, points = len(slices[0]), [F.normalize(x, dim=1).tolist() for x in slices]
    values = [js(others(a, i), others(b, i)) for a, b in combinations(points, 2) for i in range(n)]
    return math.log(2) - sum(values) / len(values)


@pytest.mark.parametrize(("beta", "divergence"), [(4, 0.3442112724), (40, 0.6757962725)])
def test_worked_values_of_the_diversity(beta, divergence):
    value = BranchDiversityRegularizer(2, beta=beta)(torch.cat((T6, PERMUTED), dim=1))
    assert math.log(2) - value.item() == pytest.approx(divergence, abs=1e-10)


@pytest.mark.parametrize("sizes", [(1, 5), (2, 2, 2), (1, 2, 1, 2)])
def test_diversity_is_its_formula(sizes):
    embeddings, _ = batch(7, n=7)
    regularizer = BranchDiversityRegularizer(sizes, beta=3)
    expected = diversity_by_hand(list(embeddings.split(sizes, dim=1)), 3)
    assert regularizer(embeddings).item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(regularizer, embeddings.requires_grad_())


def test_divergence_is_symmetric_and_bounded():
    generator = torch.Generator().manual_seed(0)
    a, b = (40 * torch.randn(2, 50, 9, generator=generator, dtype=torch.float64)).log_softmax(-1)
    value = jensen_shannon(a, b)
    torch.testing.assert_close(value, jensen_shannon(b, a))
    assert (value >= -1e-15).all()
    assert (value <= math.log(2) + 1e-15).all()
    assert jensen_shannon(a, a).abs().max() < 1e-15


def test_equal_branches_have_the_largest_cost_and_few_samples_none():
    embeddings, _ = batch(8)
    regularizer = BranchDiversityRegularizer(2)
    twice = torch.cat((embeddings, embeddings), dim=1)
    assert regularizer(twice).item() == pytest.approx(math.log(2))
    for few in (embeddings[:0], embeddings[:1], embeddings[:2]):
        assert gradient_of(regularizer, few).abs().sum() == 0
    assert gradient_of(regularizer, torch.ones(5, 4)).isfinite().all()


def test_recipe_of_diverse_branches():
    embeddings, labels = batch(9, n=16, d=8)
    slices = [F.normalize(x, dim=1) for x in embeddings.split(2, dim=1)]
    softmax = sum(KNNSoftmaxLoss(alpha=40, k=100, distance=LpDistance())(x, labels) for x in slices) / 4
    expected = softmax.item() + diversity_by_hand(slices, 40)
    assert build("JSDivBranch")(embeddings, labels).item() == pytest.approx(expected, abs=1e-12)
    heavy = build("JSDivBranch", embedding_reg_weight=3.0)(embeddings, labels).item()
    assert heavy == pytest.approx(softmax.item() + 3 * diversity_by_hand(slices, 40), abs=1e-12)


# --- A loss with its miner. -------------------------------------------------------------------------------------------

PAIRS_OF_PARTS = [
    (BinomialDevianceLoss(), HardNegativePairMiner()),
    (BinomialDevianceLoss(), pml_miners.MultiSimilarityMiner()),
    (BinomialDevianceLoss(), pml_miners.TripletMarginMiner()),
    (pml.ContrastiveLoss(), HardNegativePairMiner()),
    (pml.TripletMarginLoss(), pml_miners.BatchHardMiner()),
    (pml.ContrastiveLoss(), KNearestPositiveMiner(k=1, as_masks=True)),
    (BranchLoss(RAWLoss(), 2), KNearestPositiveMiner(k=1)),
    (BranchLoss(pml.ContrastiveLoss(), 2), KNearestPositiveMiner(k=1)),
]


@pytest.mark.parametrize(("loss", "miner"), PAIRS_OF_PARTS)
def test_mined_loss_is_miner_then_loss(loss, miner):
    (embeddings, labels), (refs, ref_labels) = batch(10, classes=3), batch(11, n=9, classes=3)

    def by_hand(x, *others):
        pairs = _pml.mine(miner, x, *others)
        pairs = pairs.indices() if isinstance(pairs, PairMasks) else pairs
        return loss(x, others[0], pairs, *others[1:])

    mined = MinedLoss(loss, miner)
    assert_same_loss(mined, by_hand, embeddings, labels)
    value, expected = mined(embeddings, labels, None, refs, ref_labels), by_hand(embeddings, labels, refs, ref_labels)
    torch.testing.assert_close(value, expected)


def test_mined_loss_makes_no_index_tensor(monkeypatch):
    monkeypatch.setattr(PairMasks, "indices", lambda _: pytest.fail("an index tensor was made"))
    embeddings, labels = batch(12)
    MinedLoss(BranchLoss(AnchorWeightedLoss(RAWLoss()), 2), InverseDensityMiner())(embeddings, labels)


def test_mined_loss_mines_in_every_slice():
    embeddings, labels = batch(13)
    inside = BranchLoss(MinedLoss(RAWLoss(), HardNegativePairMiner()), 2)(embeddings, labels)
    outside = MinedLoss(BranchLoss(RAWLoss(), 2), HardNegativePairMiner())(embeddings, labels)
    assert (inside - outside).abs() > 1e-6


def test_mined_loss_draws_anew_for_every_slice():
    embeddings, labels = batch(14)
    miner = InverseDensityMiner(seed=0)
    BranchLoss(MinedLoss(RAWLoss(), miner), 3)(embeddings, labels)
    assert miner.get_extra_state()["calls"] == 3


# --- Memories. --------------------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)  # weights only, as record-keeper loads


MEMORIES = [
    pml.ContrastiveLoss,
    RAWLoss,
    lambda: BranchLoss(KNNSoftmaxLoss(), 2),
    lambda: AnchorWeightedLoss(RAWLoss()),
]


@pytest.mark.pml2("its memory")
@pytest.mark.parametrize("make", MEMORIES)
@pytest.mark.parametrize("miner", [None, HardNegativePairMiner(), pml_miners.MultiSimilarityMiner()])
def test_memory_is_that_of_pml(make, miner):
    ours, theirs = CrossBatchMemory(make(), 6, 30, miner), _Admitting(make(), 6, 30, miner)
    for seed in range(5):  # the queue fills in the third step
        embeddings, labels = batch(seed)
        assert_same_loss(copy.deepcopy(ours), copy.deepcopy(theirs), embeddings, labels)
        ours(embeddings, labels), theirs(embeddings, labels)
        torch.testing.assert_close(ours.embedding_memory, theirs.embedding_memory)
        assert (ours.queue_idx, ours.has_been_filled) == (theirs.queue_idx, theirs.has_been_filled)
    mask = torch.arange(12) < 7
    torch.testing.assert_close(ours(*batch(6), enqueue_mask=mask), theirs(*batch(6), enqueue_mask=mask))


class _Admitting(pml.CrossBatchMemory):
    """PML's memory for any loss."""

    @classmethod
    def check_loss_support(cls, loss_name):
        pass


@pytest.mark.pml2("its memory")
def test_memory_is_an_instance_of_that_of_pml():
    assert isinstance(CrossBatchMemory(RAWLoss(), 4), pml.CrossBatchMemory)
    assert isinstance(build("XBM", embedding_size=8).loss.loss, pml.ContrastiveLoss)


def test_memory_equals_references_by_hand():
    memory, loss = CrossBatchMemory(KNNSoftmaxLoss(), 6, 100), KNNSoftmaxLoss()
    (first, first_labels), (second, second_labels) = batch(0), batch(1)
    torch.testing.assert_close(memory(first, first_labels), loss(first, first_labels))
    pos, neg = label_masks(second_labels, torch.cat((first_labels, second_labels)))
    pos[:, 12:] &= ~torch.eye(12, dtype=torch.bool)
    references = torch.cat((first, second))
    torch.testing.assert_close(memory(second, second_labels), loss(second, None, PairMasks(pos, neg), references))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("make", MEMORIES)
def test_memory_resumes_as_if_it_had_not_stopped(make, steps):
    whole, first = CrossBatchMemory(make(), 6, 30), CrossBatchMemory(make(), 6, 30)
    for seed in range(steps):
        whole(*batch(seed)), first(*batch(seed))
    resumed = CrossBatchMemory(make(), 6, 30)
    resumed.double().load_state_dict(through_a_file(first.state_dict()))
    for seed in range(steps, 6):
        torch.testing.assert_close(resumed(*batch(seed)), whole(*batch(seed)), rtol=0, atol=0)


@pytest.mark.pml2("its memory")
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_memory_loads_the_state_of_that_of_pml(steps):
    theirs, ours = pml.CrossBatchMemory(pml.ContrastiveLoss(), 6, 30), CrossBatchMemory(pml.ContrastiveLoss(), 6, 30)
    for seed in range(steps):
        theirs(*batch(seed))
    ours.double().load_state_dict(theirs.state_dict())
    assert ours.has_been_filled == theirs.has_been_filled
    if not theirs.has_been_filled:  # where a full queue starts is not in the state
        assert ours.queue_idx == theirs.queue_idx
    holder = torch.nn.ModuleDict({"memory": CrossBatchMemory(pml.ContrastiveLoss(), 6, 30)}).double()
    holder.load_state_dict({f"memory.{k}": v for k, v in theirs.state_dict().items()})
    assert holder["memory"].queue_idx == ours.queue_idx


def test_memory_shifts_given_pairs_to_their_places_in_the_queue():
    nothing = _Nothing(distance=LpDistance())
    seen: list[Any] = []
    for outer in ("triplets", "pairs", "masks"):
        memory = CrossBatchMemory(pml.ContrastiveLoss(), 6, 20, nothing)
        memory.loss.forward = lambda x, y, pairs, refs, ref_labels: seen.append((y, pairs, refs, ref_labels)) or x.sum()
        for seed in range(4):
            embeddings, labels = batch(seed, n=7)
            pairs: Any = pml_miners.TripletMarginMiner(margin=2)(embeddings, labels)
            if outer != "triplets":
                pairs = HardNegativePairMiner(as_masks=outer == "masks")(embeddings, labels)
            memory(embeddings, labels, pairs)
            labels, (a, p, b, n), refs, ref_labels = seen[-1]
            assert len(a) > 0
            assert (labels[a] == ref_labels[p]).all()
            assert (labels[b] != ref_labels[n]).all()
            expected = pairs.indices() if outer == "masks" else to_pairs(pairs)
            torch.testing.assert_close(refs[p], embeddings[expected[1]])
            torch.testing.assert_close(refs[n], embeddings[expected[3]])


class _Nothing(_pml.Miner):
    """A miner that leaves no pair."""

    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None):
        return self.mined(embeddings, labels, ref_emb, ref_labels)

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return (torch.zeros(0, dtype=torch.long),) * 4


def test_memory_adds_given_pairs_to_its_own():
    given = CrossBatchMemory(RAWLoss(), 6, 30), CrossBatchMemory(RAWLoss(), 6, 30)
    for seed in range(4):  # all pairs are in already
        embeddings, labels = batch(seed)
        torch.testing.assert_close(given[0](embeddings, labels, all_pairs(labels)), given[1](embeddings, labels))
    triplets = CrossBatchMemory(pml.TripletMarginLoss(), 6, 30, pml_miners.TripletMarginMiner())
    for seed in range(4):
        embeddings, labels = batch(seed)
        assert triplets(embeddings, labels, all_pairs(labels)).isfinite()


def test_own_miners_never_see_a_sample_as_its_own_positive():
    memory = CrossBatchMemory(EasyPositiveTripletLoss(), 6, 40, KNearestPositiveMiner(k=1))
    memory(*batch(0))
    embeddings, labels = batch(1)
    refs, ref_labels = torch.cat((batch(0)[0], embeddings)), torch.cat((batch(0)[1], labels))
    pos, neg = label_masks(labels, ref_labels)
    pos[:, 12:] &= ~torch.eye(12, dtype=torch.bool)
    distance = LpDistance()(embeddings, refs)
    near = distance.masked_fill(~pos, math.inf).amin(1)
    expected = (near - distance.masked_fill(~neg, math.inf).amin(1) + 0.05).relu()
    expected = torch.where(pos.any(1) & neg.any(1), expected, 0.0).mean()
    torch.testing.assert_close(memory(embeddings, labels), expected)


def test_a_batch_of_one_is_not_compared_with_itself():
    memory = CrossBatchMemory(pml.ContrastiveLoss(pos_margin=0, neg_margin=0), 2, 4)
    one, label = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([0])
    assert memory(one, label) == 0
    seen: list[Any] = []
    memory = CrossBatchMemory(pml.ContrastiveLoss(), 2, 4, pml_miners.BatchEasyHardMiner("easy", "all"))
    memory.loss.forward = lambda x, y, pairs, refs, ref_labels: seen.append(pairs) or x.sum()
    memory(one, label)
    assert [len(x) for x in seen[0]] == [0, 0, 0, 0]


def test_an_empty_batch_does_not_fill_the_queue():
    memory = CrossBatchMemory(RAWLoss(), 6, 30)
    memory(*batch(0))
    embeddings, labels = batch(1)
    memory(embeddings[:0], labels[:0])
    memory(embeddings, labels, enqueue_mask=torch.zeros(12, dtype=torch.bool))
    assert (memory.queue_idx, memory.has_been_filled) == (12, False)


def test_one_backward_pass_may_follow_two_batches():
    memory = CrossBatchMemory(RAWLoss(distance=DotProductSimilarity(normalize_embeddings=False)), 6, 30)
    embeddings, labels = batch(0)
    embeddings.requires_grad_()
    (memory(embeddings, labels) + memory(embeddings, labels)).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


# --- Views. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("loss", [RAWLoss(), BranchLoss(KNNSoftmaxLoss(), 2), pml.NTXentLoss()])
def test_views_are_classes_of_their_own(loss, symmetric):
    (first, _), (second, _) = batch(0), batch(1)
    labels = torch.arange(12)
    value = SelfSupervisedLoss(loss, symmetric=symmetric)(first, second)
    if symmetric:
        expected = loss(torch.cat((first, second)), torch.cat((labels, labels)))
    else:
        expected = loss(first, labels, ref_emb=second, ref_labels=labels.clone())
    torch.testing.assert_close(value, expected)


def test_views_take_a_loss_with_its_own_miner():
    (first, _), (second, _) = batch(0), batch(1)
    assert SelfSupervisedLoss(MinedLoss(RAWLoss(), HardNegativePairMiner()))(first, second).isfinite()


# --- What is refused, and how. ----------------------------------------------------------------------------------------

X, Y = batch(0)
MISTAKES = [
    (lambda: BranchLoss(3, 2), TypeError, "loss must be a PML loss"),
    (lambda: BranchLoss(RAWLoss(), ()), ValueError, "sizes must not be empty"),
    (lambda: BranchLoss(RAWLoss(), 0), ValueError, "sizes must be at least 1, got 0"),
    (lambda: BranchLoss(RAWLoss(), 2.0), TypeError, "sizes must be an integer, got 2.0"),
    (lambda: BranchLoss(RAWLoss(), (2, 0)), ValueError, "sizes must be at least 1, got 0"),
    (lambda: BranchLoss(RAWLoss(), (2, 3))(X, Y), ValueError, "got .2, 3. with sum 5 and 6"),
    (lambda: BranchLoss(RAWLoss(), 7)(X, Y), ValueError, "got 7 and 6"),
    (lambda: RandomSliceLoss(RAWLoss(), 2, seed=-1), ValueError, "seed must be in"),
    (lambda: BranchDiversityRegularizer(1), ValueError, "at least two slices, got 1"),
    (lambda: BranchDiversityRegularizer((6,)), ValueError, "at least two slices, got .6,."),
    (lambda: BranchDiversityRegularizer(2, beta=0), ValueError, "beta must be above 0, got 0"),
    (lambda: MinedLoss(RAWLoss(), RAWLoss()), TypeError, "miner must be a PML miner"),
    (lambda: MinedLoss(RAWLoss(), HardNegativePairMiner())(X), ValueError, "labels"),
    (
        lambda: MinedLoss(RAWLoss(), HardNegativePairMiner())(X, Y, all_pairs(Y)),
        ValueError,
        "indices_tuple",
    ),
    (lambda: CrossBatchMemory(pml.ArcFaceLoss(2, 2), 2), TypeError, "ArcFaceLoss does not"),
    (lambda: CrossBatchMemory(BranchLoss(pml.FastAPLoss(), 2), 2), TypeError, "BranchLoss does not"),
    (
        lambda: CrossBatchMemory(MinedLoss(RAWLoss(), HardNegativePairMiner()), 2),
        TypeError,
        "MinedLoss does not; a min",
    ),
    (lambda: CrossBatchMemory(RAWLoss(), 6, 0), ValueError, "memory_size must be at least 1"),
    (lambda: CrossBatchMemory(RAWLoss(), 6, 11)(X, Y), ValueError, "got 12 samples, memory_size=11"),
    (lambda: CrossBatchMemory(RAWLoss(), 5, 20)(X, Y), ValueError, "embedding_size=5, got 6"),
    (lambda: CrossBatchMemory(RAWLoss(), 6, 20)(X, None), ValueError, "labels or an indices_tuple must be given"),
    (lambda: CrossBatchMemory(RAWLoss(), 6, 20)(X, Y, None, Y), ValueError, "enqueue_mask must be boolean"),
    (lambda: SelfSupervisedLoss(pml.FastAPLoss()), TypeError, "FastAPLoss does not"),
    (lambda: SelfSupervisedLoss(pml.MarginLoss()), TypeError, "MarginLoss does not"),
    (lambda: SelfSupervisedLoss(RAWLoss())(X, X[:3]), ValueError, "12 embeddings, got 3"),
]


@pytest.mark.parametrize(("make", "error", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.pml2("its lists of losses")
def test_everything_that_pml_admits_is_admitted():
    known = {"MarginLoss": {}, "ContrastiveLoss": {}}
    for name in pml.CrossBatchMemory.supported_losses():
        CrossBatchMemory(getattr(pml, name)(**known.get(name, {})), 4)
    for name in pml.SelfSupervisedLoss.supported_losses():
        SelfSupervisedLoss(getattr(pml, name)())


def test_recipes_of_slices_have_their_parts():
    neighbour = build("BDWNeighbour").loss
    assert (neighbour.loss.loss.base, neighbour.sizes, len(neighbour.loss.miner.miners)) == (0.7, 3, 3)
    assert isinstance(build("DevBranch").loss.loss.miner.distance, CosineSimilarity)
    ensemble = build("EnsembleDWNeighbour", seed=1, base=0.9, sizes=2).loss
    assert (ensemble.seed, ensemble.loss.loss.loss.base, ensemble.loss.sizes) == (1, 0.9, 2)


def test_wrappers_are_exported_by_name():
    assert all(getattr(wrappers, name).__name__ == name for name in wrappers.__all__)


def test_an_override_of_the_sizes_reaches_the_regularizer():
    loss = build("JSDivBranch", sizes=3).loss
    assert (loss.sizes, loss.embedding_regularizer.sizes) == (3, 3)
    loss = build("JSDivBranch", sizes=[2, 6], **{"embedding_regularizer.sizes": 2}).loss
    assert (loss.sizes, loss.embedding_regularizer.sizes) == ((2, 6), 2)
