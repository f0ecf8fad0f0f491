"""Laws of miners: what they return is a part of the pairs of the batch, in the form that PML expects."""

import copy
import pickle
from typing import Any

import torch
from torch import Tensor

from pml_ext.miners.base import PairMiner
from pml_ext.pairs import PairMasks
from pml_ext.testing.cases import Batch, Rows, as_pairs
from pml_ext.testing.invariance_laws import NegatedDistance
from pml_ext.testing.law import (
    by_autograd,
    fresh,
    is_ours,
    is_ours_and_repeatable,
    is_ours_or_repeatable,
    is_repeatable,
    is_seeded,
    law,
    reseed,
    seeded,
    with_attributes,
)

Pairs = set[tuple[int, ...]]


def mine(miner: Any, embeddings: Tensor, labels: Tensor, *refs: Tensor | None) -> tuple[Tensor, ...]:
    """The index tensors that the miner returns, with the random state that it always has in these laws."""
    reseed()
    mined = fresh(miner)(embeddings, labels, *refs)
    return as_pairs(mined) if isinstance(mined, PairMasks) else tuple(mined)


def pairs_of(mined: tuple[Tensor, ...]) -> tuple[Pairs, Pairs]:
    """Positive and negative pairs as sets; triplets as one set, beside an empty one."""
    if len(mined) == 3:
        return set(zip(*(index.tolist() for index in mined), strict=True)), set()
    a, p, b, n = (index.tolist() for index in mined)
    return set(zip(a, p, strict=True)), set(zip(b, n, strict=True))


def _split(mined: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, p, *rest = mined
    return (a, p, a, rest[0]) if len(rest) == 1 else (a, p, rest[0], rest[1])


def _check_pairs(mined: tuple[Tensor, ...], labels: Tensor, ref_labels: Tensor) -> None:
    assert len(mined) in (3, 4), f"{len(mined)} index tensors, not 3 or 4"
    for index in mined:
        assert index.dtype == torch.long, f"indices are {index.dtype}, not torch.int64"
        assert index.device == labels.device, f"indices are on {index.device}, labels on {labels.device}"
        assert index.ndim == 1, f"indices have shape {tuple(index.shape)}"
    a, p, b, n = _split(mined)
    assert len(a) == len(p), f"{len(a)} anchors for {len(p)} positives"
    assert len(b) == len(n), f"{len(b)} anchors for {len(n)} negatives"
    for name, index, allowed in (("anchors", a, labels), ("positives", p, ref_labels), ("anchors", b, labels)):
        _check_range(name, index, len(allowed))
    _check_range("negatives", n, len(ref_labels))


def _check_range(name: str, index: Tensor, size: int) -> None:
    assert bool(((index >= 0) & (index < size)).all()), f"{name} {index.tolist()} are not all in 0..{size - 1}"


@law("miner", "batch")
def indices_are_in_range(miner: Any, case: Batch) -> None:
    """Three or four 1-D tensors of torch.long on the device of the labels, in the range of batch and references."""
    _check_pairs(mine(miner, case.embeddings, case.labels), case.labels, case.labels)


@law("miner", "batch")
def labels_agree(miner: Any, case: Batch) -> None:
    """Positives have the label of their anchor, negatives another one."""
    _check_labels(mine(miner, case.embeddings, case.labels), case.labels, case.labels)


def _check_labels(mined: tuple[Tensor, ...], labels: Tensor, ref_labels: Tensor) -> None:
    a, p, b, n = _split(mined)
    wrong = labels[a] != ref_labels[p]
    assert not wrong.any(), f"positives of another class: {torch.stack((a, p))[:, wrong].tolist()}"
    wrong = labels[b] == ref_labels[n]
    assert not wrong.any(), f"negatives of the same class: {torch.stack((b, n))[:, wrong].tolist()}"


@law("miner", "batch")
def no_sample_is_its_own_positive(miner: Any, case: Batch) -> None:
    """Anchor and positive are two samples, also where they are equal."""
    a, p, *_ = mine(miner, case.embeddings, case.labels)
    assert not (a == p).any(), f"samples that are their own positive: {a[a == p].tolist()}"


@law("miner", "batch", is_ours)
def no_pair_comes_twice(miner: Any, case: Batch) -> None:
    """Each pair is returned once."""
    a, p, b, n = _split(mine(miner, case.embeddings, case.labels))
    for first, second in ((a, p), (b, n)):
        assert len(first) == len(set(zip(first.tolist(), second.tolist(), strict=True))), "a pair comes twice"


@law("miner", "batch", is_repeatable)
def batch_order_is_irrelevant(miner: Any, case: Batch) -> None:
    """From a permuted batch the same pairs are mined."""
    if case.has_ties:
        return
    order = torch.randperm(len(case.labels), generator=seeded(1))
    permuted = mine(miner, case.embeddings[order], case.labels[order])
    actual = pairs_of(tuple(order[index] for index in permuted))
    assert actual == pairs_of(mine(miner, case.embeddings, case.labels)), f"other pairs in the order {order.tolist()}"


# Who draws at random may draw class by class, in the order of their names.
@law("miner", "batch", is_ours_or_repeatable)
def label_names_are_irrelevant(miner: Any, case: Batch) -> None:
    """From a batch with renamed classes the same pairs are mined."""
    expected = pairs_of(mine(miner, case.embeddings, case.labels))
    actual = pairs_of(mine(miner, case.embeddings, 1000 - 337 * case.labels))
    assert actual == expected, "other pairs when labels are renamed"


@law("miner", "batch")
def references_are_indexed(miner: Any, case: Batch) -> None:
    """Given references, positives and negatives index these and have the right labels."""
    if case.ref_emb is None or case.ref_labels is None:
        return
    mined = mine(miner, case.embeddings, case.labels, case.ref_emb, case.ref_labels)
    _check_pairs(mined, case.labels, case.ref_labels)
    _check_labels(mined, case.labels, case.ref_labels)


@law("miner", "batch", is_ours)
def masks_and_indices_agree(miner: PairMiner, case: Batch) -> None:
    """With `as_masks` the same pairs come as `PairMasks`."""
    reseed()
    masks = with_attributes(miner, as_masks=True)(case.embeddings, case.labels)
    assert isinstance(masks, PairMasks), f"as_masks gives {type(masks).__name__}"
    shape = (len(case.labels), len(case.labels))
    for mask in masks:
        assert mask.shape == shape, f"a mask has shape {tuple(mask.shape)}, not {shape}"
        assert mask.dtype == torch.bool, f"a mask is {mask.dtype}"
    indices = mine(with_attributes(miner, as_masks=False), case.embeddings, case.labels)
    assert pairs_of(as_pairs(masks)) == pairs_of(indices), "masks and indices name other pairs"


@law("miner", "batch", is_ours)
def negated_distance_agrees(miner: PairMiner, case: Batch) -> None:
    """Minus the distance, taken as a similarity, with negated levels mines the same pairs."""
    negated = with_attributes(miner, distance=NegatedDistance(miner.distance))
    for name in negated.levels:
        setattr(negated, name, -getattr(negated, name))
    # Of equal distances, rounding chooses: there the two must be computed in the same way.
    expected = pairs_of(mine(by_autograd(miner) if case.has_ties else miner, case.embeddings, case.labels))
    assert pairs_of(mine(negated, case.embeddings, case.labels)) == expected, "other pairs with the distance negated"


@law("miner", "batch")
def batch_is_not_written_to(miner: Any, case: Batch) -> None:
    """Embeddings and labels are not modified, and no gradient flows."""
    given = case.embeddings.clone(), case.labels.clone()
    mine(miner, *given)
    for name, x in zip(("embeddings", "labels"), given, strict=True):
        assert x._version == 0, f"{name} were written to"


@law("miner", "rows", is_ours)
def selection_is_a_subset(miner: PairMiner, case: Rows) -> None:
    """Every selected pair is one of the given pairs."""
    sim, pos, neg = case.matrix
    kept = _select(miner, sim, pos, neg)
    for name, before, after in (("positive", pos, kept.pos), ("negative", neg, kept.neg)):
        assert after.shape == before.shape, f"the {name} mask has shape {tuple(after.shape)}"
        new = after & ~before
        assert not new.any(), f"{name} pairs that were not given: {new.nonzero().tolist()}"


@law("miner", "rows", is_ours)
def unselected_pairs_have_no_influence(miner: PairMiner, case: Rows) -> None:
    """Scores of +-1e4 at pairs that were not given change nothing."""
    sim, pos, neg = case.matrix
    expected = _select(miner, sim, pos, neg)
    for junk in (1e4, -1e4) if case.inverted else (-1e4,):
        actual = _select(miner, torch.where(pos | neg, sim, junk), pos, neg)
        same = torch.equal(actual.pos, expected.pos) and torch.equal(actual.neg, expected.neg)
        assert same, f"other pairs with junk of {junk} outside the masks"


@law("miner", "rows", is_ours_and_repeatable)
def anchors_are_independent(miner: PairMiner, case: Rows) -> None:
    """An anchor alone keeps the pairs that it keeps among others."""
    sim, pos, neg = case.matrix
    expected = _select(miner, sim, pos, neg)
    for i in range(case.n):
        row = slice(i, i + 1)
        alone = _select(miner, sim[row], pos[row], neg[row])
        same = torch.equal(alone.pos, expected.pos[row]) and torch.equal(alone.neg, expected.neg[row])
        assert same, f"anchor {i} alone keeps other pairs"


def _select(miner: PairMiner, sim: Tensor, pos: Tensor, neg: Tensor) -> PairMasks:
    reseed()
    given = sim.clone(), pos.clone(), neg.clone()
    kept = PairMasks(*fresh(miner).select(*given))
    assert all(x._version == 0 for x in given), "the matrix was written to"
    return kept


@law("miner", "once")
def empty_in_empty_out(miner: Any, case: Batch) -> None:
    """No samples, or samples without any pair, give empty index tensors."""
    empty = mine(miner, case.embeddings[:0], case.labels[:0])
    assert not any(len(index) for index in empty), "pairs of an empty batch"
    _check_pairs(empty, case.labels[:0], case.labels[:0])
    one = mine(miner, case.embeddings[:1], case.labels[:1])
    assert not any(len(index) for index in one), "pairs of a single sample"
    _check_pairs(one, case.labels[:1], case.labels[:1])


@law("miner", "once")
def something_is_mined(miner: Any, case: Batch) -> None:
    """Random embeddings give some positives and some negatives, so that the other laws are not empty."""
    _, p, *_, n = mine(miner, case.embeddings, case.labels)
    assert len(p), "no positives are mined from a random batch"
    assert len(n), "no negatives are mined from a random batch"


@law("miner", "once")
def copies_are_equal(miner: Any, case: Batch) -> None:
    """A copied and a pickled miner mine the same pairs, as do two calls from the same random state."""
    expected = pairs_of(mine(miner, case.embeddings, case.labels))
    assert pairs_of(mine(miner, case.embeddings, case.labels)) == expected, "other pairs in a second call"
    pickled = pickle.loads(pickle.dumps(miner))
    for name, other in (("deepcopy", copy.deepcopy(miner)), ("pickle", pickled)):
        assert pairs_of(mine(other, case.embeddings, case.labels)) == expected, f"{name} mines other pairs"


@law("miner", "once", is_seeded)
def a_seed_is_a_stream(miner: Any, case: Batch) -> None:
    """The same seed gives the same pairs call by call, other calls and seeds give others, a loaded state resumes."""
    first, second, other = (with_attributes(miner, seed=seed, _calls=0) for seed in (3, 3, 4))
    torch.manual_seed(1)
    stream = [pairs_of(first(case.embeddings, case.labels)) for _ in range(6)]
    torch.manual_seed(2)
    assert stream == [pairs_of(second(case.embeddings, case.labels)) for _ in range(6)], "a seed gives other pairs"
    assert any(pairs != stream[0] for pairs in stream), "every call draws the same pairs"
    assert stream != [pairs_of(other(case.embeddings, case.labels)) for _ in range(6)], "seeds 3 and 4 draw the same"
    saved = with_attributes(miner, seed=3, _calls=0)
    for _ in range(2):
        saved(case.embeddings, case.labels)
    resumed = with_attributes(miner, seed=3, _calls=0)
    resumed.load_state_dict(saved.state_dict())
    for name, again in (("state_dict", resumed), ("deepcopy", copy.deepcopy(saved))):
        rest = [pairs_of(again(case.embeddings, case.labels)) for _ in range(4)]
        assert rest == stream[2:], f"{name} does not resume the stream"
    generators = [with_attributes(miner, seed=torch.Generator().manual_seed(5)) for _ in range(2)]
    drawn = [pairs_of(each(case.embeddings, case.labels)) for each in generators]
    assert drawn[0] == drawn[1], "generators in the same state give other pairs"


@law("miner", "once", is_seeded)
def the_global_generator_is_the_default(miner: Any, case: Batch) -> None:
    """Without a seed, torch.manual_seed decides; with one, torch's global generator is left alone."""
    unseeded = with_attributes(miner, seed=None)
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        drawn.append([pairs_of(unseeded(case.embeddings, case.labels)) for _ in range(3)])
    assert drawn[0] == drawn[1], "torch.manual_seed does not decide what is drawn"
    before = torch.get_rng_state()
    with_attributes(miner, seed=3)(case.embeddings, case.labels)
    assert torch.equal(torch.get_rng_state(), before), "a seeded miner draws from torch's global generator"
