"""Mining by a guide, and losses on what it allows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml
from toy import toy

from pml_ext.losses import CenterLoss, RAWLoss
from pml_ext.miners import GuidedMiner, KNearestNegativeMiner, PositiveAwareMiner
from pml_ext.miners.positive_aware import ceilings
from pml_ext.pairs import PairMasks
from pml_ext.wrappers import CrossBatchMemory, GuidedLoss

ANGLES = torch.deg2rad(torch.tensor([0, 20, 40, 35, 100, 150], dtype=torch.float64))
GUIDE = torch.stack((ANGLES.cos(), ANGLES.sin()), 1)


def lists(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


@pytest.mark.parametrize("margin", [{}, {"absolute_margin": 0.1}, {"absolute_margin": None, "relative_margin": 0.05}])
@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("max", [[3, 4, 5], [4, 5], [4, 5], [], [0, 1, 2], [0, 1, 2]]),
        ("min", [[4, 5], [4, 5], [4, 5], [], [0, 1], [0, 1]]),
    ],
)
def test_worked_values(margin, reference, expected):
    masks = GuidedMiner(reference=reference, as_masks=True, **margin)(*toy(6), guide=GUIDE)
    assert lists(masks.neg) == expected
    assert lists(masks.pos) == [[1, 2], [0, 2], [0, 1], [], [3, 5], [3, 4]]


def gist(queries, positives, guides, margin):
    """The published loss of pairs: rows of three blocks, without what the guide finds too near, and without oneself."""
    (q, p), (gq, gp) = (queries, positives), guides
    r = (gq * gp).sum(1, keepdim=True)
    level = ceilings(r, absolute_margin=margin)["absolute_margin"]
    own = torch.eye(len(q), dtype=torch.bool)
    blocks = [
        (u @ v.T / 0.1).masked_fill(~((gu @ gv.T < level) & ~own) & ~(own & true), -torch.inf)
        for u, v, gu, gv, true in ((q, p, gq, gp, True), (q, q, gq, gq, False), (p, p, gp, gp, False))
    ]
    return float((torch.cat(blocks, 1).logsumexp(1) - (q * p).sum(1) / 0.1).mean())


def test_worked_values_of_the_published_loss():
    x, _ = toy(6)
    q, p, guides = x[[0, 3]], x[[1, 4]], (GUIDE[[0, 3]], GUIDE[[1, 4]])
    assert gist(q, p, guides, 0.0) == pytest.approx(0.0145773028, abs=1e-10)
    assert gist(q, p, guides, 0.3) == pytest.approx(0.0000168647, abs=1e-10)
    assert gist(q, p, guides, -2.0) == pytest.approx(1.4199799379, abs=1e-10)
    # With oneself left out by index, an identical pair costs nothing, not log 3.
    assert gist(q[:1], q[:1], (q[:1], q[:1]), 0.0) == 0


@st.composite
def batches(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    n = draw(st.integers(2, 12))
    x, guide = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=generator), guide


@given(batches(), st.sampled_from(["max", "min", "mean"]))
def test_it_is_positive_aware_mining_by_the_guide(batch, reference):
    x, labels, guide = batch
    aware = PositiveAwareMiner(absolute_margin=0, relative_margin=None, reference=reference, as_masks=True)
    guided = GuidedMiner(reference=reference, as_masks=True)
    for by in (guide, x):
        for found, expected in zip(guided(x, labels, guide=by), aware(by, labels), strict=True):
            assert torch.equal(found, expected)
    # Without a guide the embeddings are it.
    for found, expected in zip(guided(x, labels), aware(x, labels), strict=True):
        assert torch.equal(found, expected)


@given(batches(), st.integers(1, 3))
def test_the_inner_miner_mines_among_what_is_allowed(batch, k):
    x, labels, guide = batch
    allowed = GuidedMiner(as_masks=True)(x, labels, guide=guide)
    found = GuidedMiner(miner=KNearestNegativeMiner(k=k), as_masks=True)(x, labels, guide=guide)
    unit = x / x.norm(dim=1, keepdim=True)
    for i, row in enumerate(allowed.neg):
        ranked = sorted(row.nonzero().flatten().tolist(), key=lambda j: -float(unit[i] @ unit[j]))
        assert lists(found.neg)[i] == sorted(ranked[:k])
    assert torch.equal(found.pos, allowed.pos)


@given(batches())
def test_references_have_guides_of_their_own(batch):
    x, labels, guide = batch
    n = len(x) // 2
    rows, refs = slice(n), slice(n, None)
    masks = GuidedMiner(as_masks=True)(
        x[rows], labels[rows], x[refs], labels[refs], guide=guide[rows], guide_refs=guide[refs]
    )
    unit = guide / guide.norm(dim=1, keepdim=True)
    for i in range(n):
        columns = range(n, len(x))
        positives = [float(unit[i] @ unit[j]) for j in columns if labels[j] == labels[i]]
        expected = [
            positives != [] and labels[j] != labels[i] and float(unit[i] @ unit[j]) < max(positives) for j in columns
        ]
        assert masks.neg[i].tolist() == expected
    anchors, _, _, _ = GuidedMiner()(x, labels, x, labels, guide=guide)  # the batch itself
    assert torch.equal(anchors, GuidedMiner()(x, labels, guide=guide)[0])


@pytest.mark.parametrize("loss", [RAWLoss(), pml.ContrastiveLoss()], ids=lambda loss: type(loss).__name__)
def test_the_loss_sees_what_is_allowed(loss):
    x, labels = toy(6)
    allowed = [[3, 4, 5], [4, 5], [4, 5], [], [0, 1, 2], [0, 1, 2]]
    neg = torch.tensor([[j in row for j in range(6)] for row in allowed])
    pos = (labels.unsqueeze(1) == labels) & ~torch.eye(6, dtype=torch.bool) & neg.any(1, keepdim=True)
    masks = PairMasks(pos, neg)
    pairs = masks if isinstance(loss, RAWLoss) else masks.indices()
    x.requires_grad_()
    value = GuidedLoss(loss)(x, labels, guide=GUIDE)
    assert value.item() == pytest.approx(loss(x, labels, pairs).item(), abs=1e-12)
    assert value.item() != pytest.approx(loss(x, labels).item(), abs=1e-3)
    guide = GUIDE.clone().requires_grad_()
    GuidedLoss(loss)(x, labels, guide=guide).backward()
    assert x.grad is not None
    assert guide.grad is None


@pytest.mark.pml2("it collects statistics")
def test_statistics():
    miner = GuidedMiner(collect_stats=True)
    miner(*toy(6), guide=GUIDE)
    assert (miner.num_pos_pairs, miner.num_neg_pairs) == (10, 13)
    miner.as_masks = True
    GuidedLoss(RAWLoss(), miner=miner)(*toy(6), guide=GUIDE)
    assert (miner.num_pos_pairs, miner.num_neg_pairs) == (10, 13)


def test_errors_name_argument_and_value():
    x, labels = toy(6)
    miner = GuidedMiner()
    for guide, message in ((GUIDE[:4], r"got \(4, 2\)"), (GUIDE[0], r"got \(2,\)"), ([1], "got list")):
        with pytest.raises(
            ValueError, match=rf"guide must be a tensor \[n, e\], one row for each of 6 samples, {message}"
        ):
            miner(x, labels, guide=guide)
    with pytest.raises(ValueError, match="guide must be finite, got nan"):
        miner(x, labels, guide=GUIDE * math.nan)
    with pytest.raises(ValueError, match="guide_refs needs guide, got None"):
        miner(x, labels, x[:3], labels[:3], guide_refs=GUIDE[:3])
    for references, guide_refs in (((x[:3], labels[:3]), None), ((), GUIDE)):
        with pytest.raises(ValueError, match="guide_refs and ref_emb must be given together"):
            miner(x, labels, *references, guide=GUIDE, guide_refs=guide_refs)
    with pytest.raises(TypeError, match=r"miner must be a miner of this package .*, got int"):
        GuidedMiner(miner=3)
    with pytest.raises(ValueError, match="absolute_margin must be at least 0, got -1"):
        GuidedMiner(absolute_margin=-1)
    with pytest.raises(TypeError, match="loss must take an indices_tuple, CenterLoss does not"):
        GuidedLoss(CenterLoss(3, 6))
    with pytest.raises(TypeError, match=r"loss must be a PML loss .*, got CrossBatchMemory"):
        GuidedLoss(CrossBatchMemory(RAWLoss(), 2))
    with pytest.raises(TypeError, match="miner must be a GuidedMiner, got KNearestNegativeMiner"):
        GuidedLoss(RAWLoss(), miner=KNearestNegativeMiner())
    with pytest.raises(TypeError, match="guide"):
        GuidedLoss(RAWLoss())(x, labels)
    with pytest.raises(TypeError, match="guide must be embeddings of the same samples, got None"):
        GuidedLoss(RAWLoss())(x, labels, guide=None)
