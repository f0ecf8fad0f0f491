"""At most k of an anchor from any miner: as many as there are, each equally likely, and of what the miner found."""

from collections import Counter

import pytest
import torch
from of_pml import BatchEasyHardMiner, MultiSimilarityMiner, TripletMarginLoss, TripletMarginMiner

from pml_ext import _pml
from pml_ext.losses import RAWLoss
from pml_ext.miners import CappedMiner, HardNegativePairMiner, InverseDensityMiner
from pml_ext.pairs import PairMasks
from pml_ext.testing.sampling import assert_frequencies
from pml_ext.wrappers import CrossBatchMemory, MinedLoss

X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) // 5
MINERS = [
    TripletMarginMiner(margin=2, type_of_triplets="all"),
    MultiSimilarityMiner(epsilon=2),
    BatchEasyHardMiner("all", "all"),
    HardNegativePairMiner(epsilon=2),
]


def sides_of(mined):
    """The entries of what was mined, side by side."""
    sides = (mined,) if len(mined) == 3 else (mined[:2], mined[2:])
    return [list(zip(*(index.tolist() for index in side), strict=True)) for side in sides]


@pytest.mark.parametrize("miner", MINERS, ids=lambda miner: type(miner).__name__)
@pytest.mark.parametrize("k", [1, 3, 1000])
@pytest.mark.parametrize("refs", [(), (X[:9] + 0.1, LABELS[:9])], ids=["batch", "references"])
def test_each_anchor_has_as_many_as_there_are_up_to_k(miner, k, refs):
    mined = _pml.mine(miner, X, LABELS, *refs), CappedMiner(miner, per_anchor=k)(X, LABELS, *refs)
    for found, kept in zip(*map(sides_of, mined), strict=True):
        assert set(kept) <= set(found)
        assert kept == [entry for entry in found if entry in set(kept)], "another order"
        there, left = (Counter(entry[0] for entry in entries) for entries in (found, kept))
        assert left == {anchor: min(number, k) for anchor, number in there.items()}


def test_masks_stay_masks():
    kept = CappedMiner(HardNegativePairMiner(epsilon=2, as_masks=True), per_anchor=2, seed=0)(X, LABELS)
    assert isinstance(kept, PairMasks)
    assert (kept.pos.sum(1) == 2).all()
    assert (kept.neg.sum(1) == 2).all()
    assert (kept.pos & (LABELS[:, None] != LABELS)).sum() == 0


@pytest.mark.parametrize("as_masks", [True, False])
def test_every_entry_is_equally_likely(as_masks):
    miner = CappedMiner(HardNegativePairMiner(epsilon=2, as_masks=as_masks), per_anchor=1, seed=3)
    drawn = []
    for _ in range(1000):
        found = miner(X[3:8], LABELS[3:8])
        pairs = found.indices() if as_masks else found
        drawn += [pair for pair in zip(pairs[2].tolist(), pairs[3].tolist(), strict=True) if pair[0] < 2]
    # Two anchors with the same three negatives, which draw by themselves.
    assert_frequencies(drawn, {(anchor, j): 1 / 6 for anchor in (0, 1) for j in (2, 3, 4)})


@pytest.mark.pml2("it collects statistics")
def test_statistics_count_what_is_left():
    for inner in (HardNegativePairMiner(epsilon=2, as_masks=True), HardNegativePairMiner(epsilon=2)):
        miner = CappedMiner(inner, per_anchor=2, collect_stats=True)
        miner(X, LABELS)
        assert (miner.num_pos_pairs, miner.num_neg_pairs) == (40, 40)


def test_it_works_within_a_loss_and_a_memory():
    assert MinedLoss(RAWLoss(), CappedMiner(InverseDensityMiner(), per_anchor=2, seed=0))(X, LABELS) > 0
    memory = CrossBatchMemory(TripletMarginLoss(), 5, 40, miner=CappedMiner(TripletMarginMiner(), per_anchor=2, seed=0))
    assert memory(X, LABELS).isfinite()
    assert memory(X, LABELS).isfinite()


def test_only_miners_are_capped():
    with pytest.raises(TypeError, match="miner must be a PML miner"):
        CappedMiner(RAWLoss(), 1)
    with pytest.raises(ValueError, match="per_anchor must be at least 1, got 0"):
        CappedMiner(HardNegativePairMiner(), per_anchor=0)
    with pytest.raises(TypeError, match="CappedMiner has no argument 'k'"):
        CappedMiner(HardNegativePairMiner(), 1, k=1)
