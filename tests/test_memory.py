"""The cross-batch memory: its miners, its queue, its warm-up, and pairs instead of labels."""

import copy
import io
from typing import Any

import pytest
import torch
from of_pml import CosineSimilarity, LpDistance
from of_pml import losses as pml
from of_pml import miners as pml_miners
from torch import Tensor
from torch.nn.functional import normalize
from toy import all_pairs

from pml_ext import _pml
from pml_ext.losses import BatchAllTripletLoss, BinomialDevianceLoss, KNNSoftmaxLoss, RAWLoss
from pml_ext.miners import HardNegativePairMiner, KNearestNegativeMiner, KNearestPositiveMiner
from pml_ext.pairs import PairMasks, label_masks
from pml_ext.trainers import NPairTupleMiner
from pml_ext.wrappers import BranchLoss, CrossBatchMemory


def batch(seed, n=12, d=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), labels


class Seen(pml.ContrastiveLoss):  # type: ignore[misc]
    """A loss that keeps what it was given."""

    def forward(self, *args):
        self.args = args
        loss: Tensor = super().forward(*args)
        return loss


OWN = pytest.mark.pml2("how a miner of one's own is written")


class _Own(pml_miners.BaseMiner):
    """A miner of one's own, which finds its pairs itself: of each anchor the nearest positive and nearest negative."""

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        matrix = self.distance(embeddings, ref_emb)
        alike = labels.unsqueeze(1) == ref_labels.unsqueeze(0)
        other = ~alike
        if ref_emb is embeddings:
            alike = alike & ~torch.eye(len(labels), dtype=torch.bool)
        a = (alike.any(1) & other.any(1)).nonzero().squeeze(1)
        p = matrix.masked_fill(~alike, torch.inf).argmin(1)[a]
        n = matrix.masked_fill(~other, torch.inf).argmin(1)[a]
        return a, p, a, n


def triples(indices):
    """Pairs or triplets as a set: (anchor, positive, 1), (anchor, negative, -1), or (anchor, positive, negative)."""
    if len(indices) == 3:
        return set(zip(*(x.tolist() for x in indices), strict=True))
    a, p, b, n = (x.tolist() for x in indices)
    return {(i, j, 1) for i, j in zip(a, p, strict=True)} | {(i, j, -1) for i, j in zip(b, n, strict=True)}


ROW_MINERS = [
    pml_miners.AngularMiner(),
    pml_miners.BatchEasyHardMiner("easy", "hard"),
    pml_miners.BatchEasyHardMiner("easy", "semihard", allowed_pos_range=(0.1, 1.2)),
    pml_miners.BatchEasyHardMiner("semihard", "easy"),
    pml_miners.BatchEasyHardMiner("all", "hard"),
    pml_miners.BatchHardMiner(),
    pml_miners.MultiSimilarityMiner(epsilon=0.1),
    pml_miners.MultiSimilarityMiner(epsilon=0.1, distance=LpDistance()),
    pml_miners.PairMarginMiner(0.9, 1.1),
    pml_miners.TripletMarginMiner(type_of_triplets="semihard"),
    pytest.param(_Own(distance=LpDistance()), marks=OWN),
    HardNegativePairMiner(),
    KNearestPositiveMiner(k=1),
    KNearestNegativeMiner(k=2),
]


def one_by_one(miner, embeddings, labels, refs, ref_labels, own):
    """What a miner of rows finds for each anchor, by itself, among the references without it."""
    found: set[tuple[int, ...]] = set()
    for i in range(len(labels)):
        others = torch.arange(len(refs))[torch.arange(len(refs)) != own[i]]
        for _, x, y in triples(
            _pml.mine(miner, embeddings[i : i + 1], labels[i : i + 1], refs[others], ref_labels[others])
        ):
            pair = y in (1, -1) and len(miner_columns(miner)) == 2
            found.add((i, int(others[x]), y if pair else int(others[y])))
    return found


def miner_columns(miner):
    of_triplets = (pml_miners.AngularMiner, pml_miners.BatchHardMiner, pml_miners.TripletMarginMiner)
    return (0,) if isinstance(miner, of_triplets) else (0, 2)


@pytest.mark.parametrize("miner", ROW_MINERS, ids=lambda miner: type(miner).__name__)
def test_a_miner_mines_as_if_self_pairs_did_not_exist(miner):
    memory = CrossBatchMemory(Seen(), 6, 30, miner)
    for seed in range(5):  # the queue fills in the third step
        embeddings, labels = batch(seed, classes=3 + seed)
        memory(embeddings, labels)
        _, _, found, refs, ref_labels = memory.loss.args
        assert triples(found) == one_by_one(miner, embeddings, labels, refs, ref_labels, memory.curr_batch_idx)
        if seed == 0:
            assert triples(found) == triples(miner(embeddings, labels))
            assert len(found[0]) > 0


@pytest.mark.parametrize(
    "miner",
    [
        pml_miners.HDCMiner(),
        pml_miners.UniformHistogramMiner(num_bins=5, pos_per_bin=2, neg_per_bin=2),
        pml_miners.DistanceWeightedMiner(),
        NPairTupleMiner(),
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_the_first_batch_is_the_batch_alone_for_any_miner(miner):
    memory = CrossBatchMemory(Seen(), 6, 30, miner)
    embeddings, labels = batch(0)
    torch.manual_seed(3)
    memory(embeddings, labels)
    torch.manual_seed(3)
    assert triples(memory.loss.args[2]) == triples(miner(embeddings, labels))
    memory(*batch(1))
    own = memory.curr_batch_idx
    found = memory.loss.args[2]
    assert (own[found[0]] != found[1]).all()


def test_percentiles_are_those_without_self_pairs():
    memory = CrossBatchMemory(Seen(), 6, 40, pml_miners.HDCMiner(filter_percentage=0.3))
    memory(*batch(0))
    embeddings, labels = batch(1)
    memory(embeddings, labels)
    _, _, found, refs, ref_labels = memory.loss.args
    matrix = torch.cdist(normalize(embeddings), normalize(refs))
    pos = [(float(-matrix[i, j]), i, j, 1) for i in range(12) for j in range(24) if labels[i] == ref_labels[j]]
    pos = [pair for pair in pos if pair[2] != 12 + pair[1]]
    neg = [(float(matrix[i, j]), i, j, -1) for i in range(12) for j in range(24) if labels[i] != ref_labels[j]]
    expected = sorted(pos)[: -(-3 * len(pos) // 10)] + sorted(neg)[: -(-3 * len(neg) // 10)]
    assert triples(found) == {pair[1:] for pair in expected}


def test_easiest_positives_are_no_copies():
    labels = torch.arange(4).repeat_interleave(2)
    embeddings = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    miner, loss = pml_miners.BatchEasyHardMiner("easy", "hard"), BatchAllTripletLoss(margin=0.5)
    memory = CrossBatchMemory(loss, 4, 16, miner)
    alone = loss(embeddings, labels, miner(embeddings, labels))
    assert alone > 0
    torch.testing.assert_close(memory(embeddings, labels), alone)


def test_miners_that_cannot_mine_here_are_refused():
    with pytest.raises(TypeError, match="EmbeddingsAlreadyPackagedAsTriplets"):
        CrossBatchMemory(RAWLoss(), 6, 30, pml_miners.EmbeddingsAlreadyPackagedAsTriplets())
    with pytest.raises(TypeError, match="miner must be a PML miner"):
        CrossBatchMemory(RAWLoss(), 6, 30, RAWLoss())


@pytest.mark.pml2("it collects statistics")
@pytest.mark.parametrize("miner", [HardNegativePairMiner, pml_miners.MultiSimilarityMiner, pml_miners.PairMarginMiner])
def test_miners_record_their_statistics(miner):
    memory = CrossBatchMemory(RAWLoss(), 6, 30, miner(collect_stats=True))
    embeddings, labels = batch(0)
    memory(embeddings, labels)
    alone = miner(collect_stats=True)
    alone(embeddings, labels)
    assert memory.miner.num_neg_pairs == alone.num_neg_pairs > 0
    assert memory.miner.num_pos_pairs == alone.num_pos_pairs > 0


@pytest.mark.parametrize("name", ["ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss"])
def test_proxies_are_no_references(name):
    with pytest.raises(TypeError, match=f"{name} does not"):
        CrossBatchMemory(getattr(pml, name)(num_classes=4, embedding_size=6), 6, 30)


# --- The queue. -------------------------------------------------------------------------------------------------------


def test_a_narrower_batch_leaves_the_queue_as_wide_as_it_was():
    memory = CrossBatchMemory(RAWLoss(), 6, 30)
    embeddings, labels = batch(0)
    big = labels + 2**40
    memory(embeddings, big)
    memory(embeddings.half(), labels.to(torch.uint8))
    assert memory.embedding_memory.dtype == torch.float64
    torch.testing.assert_close(memory.embedding_memory[:12], embeddings, rtol=0, atol=0)
    assert memory.label_memory[:24].equal(torch.cat((big, labels)))
    memory(embeddings.float(), labels + 0.5)
    halves = labels.double() + 0.5
    assert memory.label_memory.equal(torch.cat((halves[6:], big[6:], labels, halves[:6])))


@pytest.mark.parametrize("loss", [lambda: pml.ContrastiveLoss(1, 0, distance=CosineSimilarity()), RAWLoss])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_narrow_batch_meets_a_wide_queue(loss, dtype):
    memory, wide = (CrossBatchMemory(loss(), 6, 30) for _ in range(2))
    memory(*batch(0)), wide(*batch(0))
    embeddings, labels = batch(1)
    value, expected = memory(embeddings.to(dtype), labels), wide(embeddings, labels)
    torch.testing.assert_close(value.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.float16])
def test_labels_of_any_dtype_survive_a_file(dtype):
    memory, resumed = CrossBatchMemory(RAWLoss(), 6, 30), CrossBatchMemory(RAWLoss(), 6, 30)
    embeddings, labels = batch(0)
    labels = labels.to(dtype) + (0.25 if dtype.is_floating_point else 0)
    memory(embeddings, labels)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    assert resumed.label_memory[:12].equal(labels.to(resumed.label_memory.dtype))
    torch.testing.assert_close(resumed.embedding_memory[:12], embeddings, rtol=0, atol=0)
    more = batch(1)[0], batch(1)[1].to(dtype)
    torch.testing.assert_close(resumed(*more), memory(*more), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [RAWLoss, pml.ContrastiveLoss, lambda: BranchLoss(KNNSoftmaxLoss(), 2)])
@pytest.mark.parametrize(
    "miner",
    [None, HardNegativePairMiner(), pml_miners.BatchHardMiner(), pytest.param(_Own(distance=LpDistance()), marks=OWN)],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_once(loss, miner, bad):
    memory, clean = (CrossBatchMemory(loss(), 6, 30, miner) for _ in range(2))
    memory(*batch(0)), clean(*batch(0))
    embeddings, labels = batch(1)
    broken = embeddings.clone()
    broken[3, 2] = bad
    assert memory(broken, labels).isnan()
    others = torch.arange(12) != 3
    clean(embeddings[others], labels[others])
    torch.testing.assert_close(memory(*batch(2)), clean(*batch(2)), rtol=0, atol=0)
    assert memory.embedding_memory.isfinite().all()


def test_labels_that_are_not_finite_are_not_enqueued():
    memory = CrossBatchMemory(RAWLoss(), 6, 30)
    embeddings, labels = batch(0)
    labels = labels.double()
    labels[5] = torch.nan
    memory(embeddings, labels)
    assert (memory.queue_idx, memory.label_memory.isnan().any()) == (11, False)


@pytest.mark.parametrize("miner", [None, HardNegativePairMiner(), pml_miners.BatchHardMiner()])
def test_in_eval_mode_the_queue_stays_as_it_is(miner):
    memory = CrossBatchMemory(RAWLoss(), 6, 30, miner)
    memory(*batch(0))
    before, trained = copy.deepcopy(memory.state_dict()), copy.deepcopy(memory)
    memory.eval()
    value = memory(*batch(1))
    after = memory.state_dict()
    assert after.pop("_extra_state") == before.pop("_extra_state")
    assert all(after[name].equal(before[name]) for name in before)
    torch.testing.assert_close(value, trained(*batch(1)), rtol=0, atol=0)


def test_inference_mode_does_not_break_the_next_step():
    memory = CrossBatchMemory(RAWLoss(), 6, 30)
    with torch.inference_mode():
        memory(*batch(0))
    embeddings, labels = batch(1)
    memory(embeddings.requires_grad_(), labels, enqueue_mask=torch.zeros(12, dtype=torch.bool)).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.any()


# --- The warm-up. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("miner", [None, HardNegativePairMiner(), pml_miners.BatchHardMiner()])
def test_until_the_start_a_batch_is_by_itself(miner):
    memory, cold, loss = (
        CrossBatchMemory(RAWLoss(), 6, 30, miner, start=20),
        CrossBatchMemory(RAWLoss(), 6, 30, miner),
        RAWLoss(),
    )
    for seed in range(2):
        embeddings, labels = batch(seed)
        pairs = None if miner is None else miner(embeddings, labels)
        x, y = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
        value, expected = memory(x, labels), loss(y, labels, pairs)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(*(torch.autograd.grad(*each)[0] for each in ((value, x), (expected, y))))
        assert memory.queue_idx == 0
    for seed in range(2, 5):
        torch.testing.assert_close(memory(*batch(seed)), cold(*batch(seed)), rtol=0, atol=0)


def test_the_warm_up_resumes_and_ends_with_a_queue():
    memory, resumed = (CrossBatchMemory(RAWLoss(), 6, 30, start=20) for _ in range(2))
    memory(*batch(0))
    resumed.load_state_dict(memory.state_dict())
    resumed(*batch(1))
    assert (resumed.seen, resumed.queue_idx) == (24, 0)
    older = CrossBatchMemory(RAWLoss(), 6, 30)
    older(*batch(0))
    state = older.state_dict()
    del state["_extra_state"]["seen"]
    resumed.load_state_dict(state)
    assert resumed.seen == 20
    assert resumed.eval()(*batch(1)) == older(*batch(1))


def test_the_warm_up_knows_who_would_be_enqueued():
    memory, loss = CrossBatchMemory(RAWLoss(), 6, 30, start=7), RAWLoss()
    embeddings, labels = batch(0)
    mask = torch.arange(12) < 7
    expected = loss(embeddings[~mask], labels[~mask], None, embeddings[mask], labels[mask])
    torch.testing.assert_close(memory(embeddings, labels, enqueue_mask=mask), expected)
    assert memory.seen == 7


# --- Compilation. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("miner", "start"), [(None, 0), (HardNegativePairMiner(), 20)], ids=["all pairs", "warm-up and miner"]
)
def test_compiled_it_is_the_same_step_by_step(miner, start):
    """More steps than there may be graphs; the queue wraps around, and takes no part in what is not finite."""
    memory, other = (CrossBatchMemory(RAWLoss(), 6, 30, miner, start=start).double() for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    for seed in range(10):
        embeddings, labels = batch(seed, n=7)
        if seed == 4:
            embeddings[2] = torch.nan
        is_training = seed < 9 or start > 0
        memory.train(is_training)
        other.train(is_training)
        x, y = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
        expected, value = memory(x, labels), compiled(y, labels)
        torch.testing.assert_close(value, expected, equal_nan=True)
        assert bool(expected.isfinite()) == (seed != 4)
        if seed != 4:
            torch.testing.assert_close(*(torch.autograd.grad(*each)[0] for each in ((value, y), (expected, x))))
        for name in ("embedding_memory", "label_memory", "curr_batch_idx"):
            assert torch.equal(getattr(other, name), getattr(memory, name))
        assert other.get_extra_state() == memory.get_extra_state()
    assert memory.has_been_filled


# --- Pairs instead of labels. -----------------------------------------------------------------------------------------


def views(seed, n=6):
    """Two views of each of n samples, one after the other, and which pairs are of one sample [2n, 2n]."""
    embeddings, _ = batch(seed, n=2 * n)
    pos = torch.eye(n, dtype=torch.bool).repeat(2, 2) & ~torch.eye(2 * n, dtype=torch.bool)
    return embeddings, pos


@pytest.mark.parametrize("loss", [RAWLoss, pml.ContrastiveLoss, pml.NTXentLoss])
@pytest.mark.parametrize("miner", [None, HardNegativePairMiner()])
@pytest.mark.parametrize("as_masks", [True, False])
def test_pairs_are_those_of_labels_that_nobody_else_has(loss, miner, as_masks):
    memory, known = (CrossBatchMemory(loss(), 6, 30, miner) for _ in range(2))
    for seed in range(5):
        embeddings, pos = views(seed)
        pairs: Any = PairMasks(pos, ~pos & ~torch.eye(12, dtype=torch.bool))
        labels = torch.arange(6).repeat(2) + 100 * seed
        value = memory(embeddings, None, pairs if as_masks else pairs.indices())
        torch.testing.assert_close(value, known(embeddings, labels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", [RAWLoss, pml.NTXentLoss])
def test_queries_meet_the_keys_of_the_queue(loss):
    memory, by_hand = CrossBatchMemory(loss(), 6, 18), loss()
    keys = torch.zeros(0, 6, dtype=torch.float64)
    for seed in range(5):
        embeddings, _ = views(seed)
        mask = torch.arange(12) >= 6
        a, nothing = torch.arange(6), torch.zeros(0, dtype=torch.long)
        value = memory(embeddings, None, (a, a + 6, nothing, nothing), mask)
        keys = torch.cat((keys, embeddings[6:]))[-18:]
        pos = torch.zeros(6, len(keys), dtype=torch.bool)
        pos[a, len(keys) - 6 + a] = True
        neg = torch.zeros_like(pos)
        neg[:, :-6] = True  # the other keys of the batch are no pairs that were given
        torch.testing.assert_close(value, by_hand(embeddings[:6], None, PairMasks(pos, neg).indices(), keys))


def test_samples_without_a_label_are_negatives_of_those_with_one():
    memory = CrossBatchMemory(RAWLoss(), 6, 30)
    embeddings, pos = views(0)
    memory(embeddings, None, PairMasks(pos, torch.zeros_like(pos)))
    more, labels = batch(1)
    expected_pos, expected_neg = label_masks(labels, labels)
    expected_pos &= ~torch.eye(12, dtype=torch.bool)
    masks = PairMasks(
        torch.cat((torch.zeros_like(pos), expected_pos), 1), torch.cat((torch.ones_like(pos), expected_neg), 1)
    )
    expected = RAWLoss()(more, None, masks, torch.cat((embeddings, more)))
    torch.testing.assert_close(memory(more, labels), expected)


def test_given_pairs_go_with_a_mask_of_what_is_enqueued():
    embeddings, labels = batch(0)
    mask = torch.arange(12) % 3 == 0
    memory, plain = (CrossBatchMemory(BinomialDevianceLoss(), 6, 30) for _ in range(2))
    every = all_pairs(labels)  # all are there already
    torch.testing.assert_close(memory(embeddings, labels, every, mask), plain(embeddings, labels, enqueue_mask=mask))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, x, p: m(x), "got None for both"),
        (lambda m, x, p: m(x, None, PairMasks(p[:3], p[:3])), "must have shape .12, 12."),
        (lambda m, x, p: m(x, None, (torch.tensor([0]), torch.tensor([12]), *[torch.tensor([0])] * 2)), "12..12"),
        (
            lambda m, x, p: CrossBatchMemory(RAWLoss(), 6, 30, _Own(distance=LpDistance()))(x, None, PairMasks(p, ~p)),
            "_Own mines by them",
        ),
        (lambda m, x, p: CrossBatchMemory(RAWLoss(), 6, 30, start=-1), "start must be at least 1, got -1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(CrossBatchMemory(RAWLoss(), 6, 30), *views(0))
