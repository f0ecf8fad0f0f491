"""Half precision, distances with shapes of their own, tensors changed before backward, forward mode and transforms."""

import pytest
import torch
from pytorch_metric_learning.distances import BaseDistance
from registry import LOSSES, WRAPPERS

from pml_ext import losses, miners, thresholds
from pml_ext.losses.batch_all_triplet import batch_all_triplet
from pml_ext.pairs import PairMasks
from pml_ext.testing.cases import all_pairs, as_pairs
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import MinedLoss

ALL = LOSSES | WRAPPERS
LABELS = torch.arange(12) // 3


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_single_precision_out(name, dtype):
    x = torch.randn(12, 4).to(dtype).requires_grad_()
    value = ALL[name]()(x, LABELS)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, x)[0].dtype == dtype
    assert by_autograd(ALL[name]())(x, LABELS).dtype == torch.float32
    assert ALL[name]()(x[:0], LABELS[:0]).dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert ALL[name]()(x, LABELS).dtype == torch.float32
    assert ALL[name]()(x.double(), LABELS).dtype == torch.float64


class NearestOfSeveral(BaseDistance):
    """The smallest distance between vectors of two samples, embeddings [n, k, d], in both versions of PML."""

    def __init__(self):
        super().__init__(normalize_embeddings=False)
        self.normalize_embeddings = False

    def forward(self, query_emb, ref_emb=None):
        self.check_shapes(query_emb, ref_emb)
        return self.compute_mat(query_emb, query_emb if ref_emb is None else ref_emb)

    def check_shapes(self, query_emb, ref_emb):
        if query_emb.ndim != 3:
            raise ValueError("embeddings must have three dimensions")

    def compute_mat(self, query_emb, ref_emb):
        return (query_emb[:, None, :, None] - ref_emb[None, :, None]).square().sum(-1).amin((-2, -1))


@pytest.mark.pml2("its embeddings may have any shape")
def test_a_distance_may_have_shapes_of_its_own():
    x, distance = torch.randn(12, 3, 16, requires_grad=True), NearestOfSeveral()
    loss, miner = losses.BatchAllTripletLoss(distance=distance), miners.KNearestNegativeMiner(k=1, distance=distance)
    matrix = distance(x)
    expected = batch_all_triplet(-matrix, *all_pairs(LABELS), margin=0.02)
    torch.testing.assert_close(loss(x, LABELS), expected.losses.sum() / expected.counts.sum())
    _, _, anchors, negatives = miner(x, LABELS)
    far = matrix.detach().masked_fill(LABELS[:, None] == LABELS, torch.inf)
    assert negatives[anchors.argsort(stable=True)].tolist() == far.argmin(1).tolist()
    assert MinedLoss(loss, miner)(x, LABELS).isfinite()
    assert loss(x, LABELS, ref_emb=x.detach() + 1, ref_labels=LABELS).isfinite()
    with pytest.raises(ValueError, match="three dimensions"):
        loss(x[:, 0], LABELS)
    with pytest.raises(ValueError, match=r"must have shape \(batch size, dimension\), got \(12, 3, 16\)"):
        losses.BatchAllTripletLoss()(x, LABELS)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", ["labels", "masks", "masks of references", "indices", "many indices"])
def test_what_is_changed_before_backward_is_refused_or_makes_no_difference(plain, kind):
    """Pairs are looked at again in the backward pass of chunks, unless all that is of use was taken before."""
    masks = PairMasks(*(mask.clone() for mask in all_pairs(LABELS)))
    labels, indices = LABELS.clone(), as_pairs(masks)
    given = None if kind == "labels" else masks if "masks" in kind else indices
    changed = labels if kind == "labels" else masks.pos if "masks" in kind else indices[1]
    loss = losses.KNNSoftmaxLoss(chunk_size=5)
    x = torch.randn(12, 4, requires_grad=True)
    refs = (x.detach() + 1, LABELS) if kind == "masks of references" else ()
    with thresholds.replaced(INDEXED_MASKS=0 if kind == "many indices" else 1 << 10):
        value = (by_autograd(loss) if plain else loss)(x, labels, given, *refs)
    expected = torch.autograd.grad(value, x, retain_graph=True)[0]
    changed[:2] = True
    # Labels are sorted and masks searched before; those of the batch with itself, and of few indices, are copies.
    if kind == "many indices" or (kind == "labels" and plain) or kind == "masks of references":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(value, x)
    else:
        torch.testing.assert_close(torch.autograd.grad(value, x)[0], expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch itself uses what it deprecates
@pytest.mark.parametrize("name", LOSSES)
def test_transforms_of_functions_and_forward_mode(name):
    loss, x, v = LOSSES[name](), torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    loss.eval()
    leaf = x.clone().requires_grad_()
    value = loss(leaf, LABELS)
    (expected,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: loss(x, LABELS))(x), expected)
    found, slope = torch.func.jvp(lambda x: loss(x, LABELS), (x,), (v,))
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(slope, (expected * v).sum())


# Parts that are constants to the gradient change with the embeddings, and so do the centers of a running source.
STOPPED = ("AdaptiveBinomialDeviance", "LinearPullDeviance", "DecoupledNCA", "PairWeighted", "CenterLoss")
STOPPED += ("HardNegativeContrastive", "HardnessWeightedContrastive")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_second_derivative(name):
    # Each number costs as many passes as there are others: three classes are enough.
    loss, x, labels = LOSSES[name](), torch.randn(9, 4, dtype=torch.float64, requires_grad=True), LABELS[:9]
    loss.eval()
    if not name.startswith(STOPPED) or "detach=False" in name:
        assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), x)
    (first,) = torch.autograd.grad(loss(x, labels), x, create_graph=True)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.square().sum(), x)
        assert second.isfinite().all()
