"""One matrix for a miner and several losses, candidates for a miner, samples with several labels."""

import copy

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance

from pml_ext.losses import BinomialDevianceLoss, HistogramLoss, KNNSoftmaxLoss, RAWLoss
from pml_ext.miners import (
    CappedMiner,
    ChainedMiner,
    GuidedMiner,
    HardNegativePairMiner,
    InverseDensityMiner,
    KNearestNegativeMiner,
)
from pml_ext.pair_masks import PairMasks, label_masks
from pml_ext.wrappers import AnchorWeightedLoss, MinedLoss

LABELS = torch.arange(12) // 3
MINERS = (HardNegativePairMiner, KNearestNegativeMiner, lambda **kwargs: InverseDensityMiner(seed=0, **kwargs))


@pytest.fixture
def x():
    return torch.randn(12, 5, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "make", [RAWLoss, KNNSoftmaxLoss, HistogramLoss, lambda **kwargs: RAWLoss(chunk_size=5, **kwargs)]
)
@pytest.mark.parametrize("distance", [CosineSimilarity(), LpDistance()], ids=str)
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.filterwarnings("ignore:.* lies outside")  # levels are those of another distance
def test_a_given_matrix_is_the_loss_of_it(make, distance, references, x):
    if make is HistogramLoss and isinstance(distance, LpDistance):
        pytest.skip("its bins are those of a similarity")
    loss = make(distance=distance)
    given = (torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 4) if references else (None, None)
    mat = distance(x, given[0]) if references else distance(x)
    expected = loss(x, LABELS, None, *given)
    actual = loss(x, LABELS, None, *given, mat=mat)
    torch.testing.assert_close(actual, expected)
    (a,), (b,) = (torch.autograd.grad(value, x) for value in (actual, expected))
    torch.testing.assert_close(a, b)
    # Nothing of it is left.
    torch.testing.assert_close(loss(x, LABELS, None, *given), expected)


@pytest.mark.parametrize("references", [False, True])
def test_a_loss_with_its_miner_takes_the_matrix_for_both(references, x):
    given = (torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 4) if references else (None, None)
    for miner in (HardNegativePairMiner(), CappedMiner(HardNegativePairMiner(), 2, seed=0)):
        for loss in (RAWLoss(), HistogramLoss()):
            mined = MinedLoss(loss, miner)
            expected = MinedLoss(loss, copy.deepcopy(miner))(x, LABELS, None, *given)
            mat = loss.distance(x, given[0]) if references else loss.distance(x)
            nothing = torch.zeros_like(x)
            actual = mined(nothing, LABELS, None, *(given if references else (None, None)), mat=mat)
            torch.testing.assert_close(actual, expected)
            (a,), (b,) = (torch.autograd.grad(value, x) for value in (actual, expected))
            torch.testing.assert_close(a, b)
            assert mined._mat is None


@pytest.mark.pml2("that it takes no matrix of scores")
def test_what_takes_no_matrix_is_refused(x):
    stock, mat = losses.ContrastiveLoss(), CosineSimilarity()(x)
    with pytest.raises(ValueError, match="not for ContrastiveLoss"):
        MinedLoss(stock, HardNegativePairMiner())(x, LABELS, mat=mat)
    with pytest.raises(ValueError, match="MultiSimilarityMiner of PML 2 takes no mat"):
        MinedLoss(RAWLoss(), miners.MultiSimilarityMiner())(x, LABELS, mat=mat)
    with pytest.raises(ValueError, match="not for AnchorWeightedLoss"):
        MinedLoss(AnchorWeightedLoss(RAWLoss()), HardNegativePairMiner())(x, LABELS, mat=mat)
    with pytest.raises(ValueError, match="MultiSimilarityMiner of PML 2 takes no indices_tuple"):
        CappedMiner(miners.MultiSimilarityMiner(), 2)(x, LABELS, indices_tuple=label_masks(LABELS, LABELS).indices())


def test_candidates_and_matrix_of_miners_with_a_miner(x):
    masks = label_masks(LABELS, LABELS)
    some = torch.rand(12, 12, generator=torch.Generator().manual_seed(3)) < 0.6
    candidates = PairMasks(masks.pos & some, masks.neg & some)
    inner = HardNegativePairMiner()
    mat, nothing = inner.distance(x), torch.zeros(12, 5, dtype=torch.float64)
    for miner in (lambda: CappedMiner(inner, 2, seed=0), lambda: GuidedMiner(miner=inner, absolute_margin=0.2)):
        found = miner()(x, LABELS, indices_tuple=candidates)
        assert bool(candidates.pos[found[0], found[1]].all())
        assert bool(candidates.neg[found[2], found[3]].all())
        assert 0 < len(found[2]) < len(miner()(x, LABELS)[2])
        more = {"guide": x} if isinstance(miner(), GuidedMiner) else {}
        by_matrix = miner()(nothing, LABELS, indices_tuple=candidates, mat=mat, **more)
        assert all(map(torch.equal, found, by_matrix))
    with pytest.raises(ValueError, match="but miner is None"):
        GuidedMiner()(x, LABELS, mat=mat)


def test_the_matrix_decides_not_the_embeddings(x):
    loss = BinomialDevianceLoss()
    expected = loss(x, LABELS)
    mat = CosineSimilarity()(x)
    actual = loss(torch.zeros(12, 2), LABELS, mat=mat)
    torch.testing.assert_close(actual, expected)
    with pytest.raises(ValueError, match="got None for both"):
        loss(x, None, mat=mat)
    torch.testing.assert_close(loss(x * 2 + 1, LABELS), loss(x * 2 + 1, LABELS, mat=CosineSimilarity()(x * 2 + 1)))


@pytest.mark.parametrize("make", MINERS)
def test_a_given_matrix_is_mined(make, x):
    alone, shared = make(), make()
    expected = alone(x, LABELS)
    actual = shared(torch.zeros(12, 5, dtype=torch.float64), LABELS, mat=shared.distance(x))
    assert all(map(torch.equal, actual, expected))
    refs, ref_labels = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 4
    expected = make()(x, LABELS, refs, ref_labels)
    actual = make()(x, LABELS, refs, ref_labels, mat=shared.distance(x, refs))
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("make", MINERS)
@pytest.mark.parametrize("as_masks", [False, True])
def test_candidates_are_mined_among(make, as_masks, x):
    masks = label_masks(LABELS, LABELS)
    some = torch.rand(12, 12, generator=torch.Generator().manual_seed(3)) < 0.6
    candidates = PairMasks(masks.pos & some, masks.neg & some)
    expected = make(as_masks=True).masks(x, LABELS, x, LABELS, candidates)
    for given in (candidates, candidates.indices()):
        found = make(as_masks=as_masks)(x, LABELS, indices_tuple=given)
        found = found if as_masks else (_mask(*found[:2]), _mask(*found[2:]))
        assert all(map(torch.equal, found, expected))
        assert not (found[0] & ~candidates.pos).any()
        assert not (found[1] & ~candidates.neg).any()
    assert expected.neg.any()


def _mask(rows, columns):
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_miners_one_after_another_are_a_chain(x):
    first, second = HardNegativePairMiner(epsilon=0.5), KNearestNegativeMiner(k=2, distance=CosineSimilarity())
    by_hand = second(x, LABELS, indices_tuple=first(x, LABELS))
    assert all(map(torch.equal, by_hand, ChainedMiner(miners=(first, second), distance=CosineSimilarity())(x, LABELS)))


@pytest.mark.parametrize(
    "mat", [torch.zeros(12, 11), torch.zeros(12), torch.zeros(12, 12, dtype=torch.long), [[0.0] * 12] * 12]
)
def test_a_matrix_that_does_not_fit(mat, x):
    for made in (RAWLoss(), HardNegativePairMiner()):
        with pytest.raises(ValueError, match=r"mat must be the matrix of the distance .*\(12, 12\)"):
            made(x, LABELS, mat=mat)


def test_label_sets(x):
    one_hot = torch.nn.functional.one_hot(LABELS).bool()
    torch.testing.assert_close(RAWLoss()(x, None, PairMasks.of_label_sets(one_hot)), RAWLoss()(x, LABELS))
    sets = torch.rand(12, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    refs = torch.rand(5, 4, generator=torch.Generator().manual_seed(2)) < 0.4
    masks = PairMasks.of_label_sets(sets, refs)
    for i, own in enumerate(sets.tolist()):
        for j, other in enumerate(refs.tolist()):
            shared = any(a and b for a, b in zip(own, other, strict=True))
            assert (bool(masks.pos[i, j]), bool(masks.neg[i, j])) == (shared, not shared)
    mined = HardNegativePairMiner()(x, LABELS, indices_tuple=PairMasks.of_label_sets(sets))
    assert not (mined[2] == mined[3]).any()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((torch.zeros(3, 2),), TypeError, "sets must be a boolean tensor"),
        ((torch.zeros(3, 2).bool(), torch.zeros(3).bool()), TypeError, "ref_sets must be a boolean tensor"),
        ((torch.zeros(3, 2).bool(), torch.zeros(3, 4).bool()), ValueError, "got 4 and 2"),
    ],
)
def test_label_sets_that_do_not_fit(given, error, message):
    with pytest.raises(error, match=message):
        PairMasks.of_label_sets(*given)
