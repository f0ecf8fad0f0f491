"""References: a single one, those that share something with the batch, and pairs that contradict themselves."""

import itertools

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.miners import MultiSimilarityMiner
from registry import LOSSES, MINERS, WRAPPERS

from pml_ext.analysis import pair_weights
from pml_ext.base import MatrixLoss
from pml_ext.losses import (
    AnchorContrastiveLoss,
    BinomialDevianceLoss,
    KNNSoftmaxLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    RAWLoss,
)
from pml_ext.miners import HardNegativePairMiner, KNearestPositiveMiner
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import MinedLoss

MATRIX_LOSSES = [name for name, make in LOSSES.items() if isinstance(make(), MatrixLoss)]
# One positive pair of similarity 0.6, that is distance 0.8944, and one negative of 0.8, that is 0.6325.
X = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 1])
REF, REF_Y = torch.tensor([[0.6, 0.8]], dtype=torch.float64), torch.tensor([0])


def both_ways(loss, *batch, **more):
    """Value and gradient, by the engine and by autograd."""
    for way in (loss, by_autograd(loss)):
        x = batch[0].clone().requires_grad_()
        value = way(x, *batch[1:], **more)
        yield value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # 1/2 (1/2 log(1 + e^-0.2) + 1/50 log(1 + e^15))
        (MultiSimilarityLoss(), 0.299535),
        (BinomialDevianceLoss(), 0.599070),
        # 1/2 ((0.8944 - 0.6) + (1.2 - 0.6325))
        (AnchorContrastiveLoss(), 0.430986),
        # (0.8944 + 1 - 0.6325)^2 / 2
        (LiftedStructureLoss(), 0.796279),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_one_reference_is_enough(loss, expected, chunk_size):
    if hasattr(loss, "chunk_size"):
        loss.chunk_size = chunk_size
    for value, gradient in both_ways(loss, X, Y, ref_emb=REF, ref_labels=REF_Y):
        assert value.item() == pytest.approx(expected, abs=1e-5)
        assert gradient.abs().sum(1).min() > 1e-6


@pytest.mark.parametrize("name", MATRIX_LOSSES)
def test_one_reference_counts_as_much_as_with_one_that_is_no_pair(name):
    loss, far = LOSSES[name](), torch.cat((REF, -REF))
    for label, n in itertools.product((0, 1, 2), (1, 2)):
        labels = torch.tensor([label])
        pairs, others = (each.nonzero().T for each in (Y[:n, None] == labels, Y[:n, None] != labels))
        one = list(both_ways(loss, X[:n], Y[:n], ref_emb=REF, ref_labels=labels))
        two = list(both_ways(loss, X[:n], Y[:n], (*pairs, *others), ref_emb=far, ref_labels=labels.repeat(2)))
        for actual, expected in zip(one, two, strict=True):
            torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(*one)


@pytest.mark.parametrize("name", MATRIX_LOSSES)
def test_one_sample_alone_costs_nothing(name):
    for value, gradient in both_ways(LOSSES[name](), X[:1], Y[:1]):
        assert value == 0
        assert gradient.tolist() == [[0, 0]]


def batch():
    torch.manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("name", MATRIX_LOSSES)
def test_labels_of_references_that_are_the_embeddings_count(name):
    x, labels, other = batch()
    same = list(both_ways(LOSSES[name](), x, labels, ref_emb=x.clone(), ref_labels=other))
    loss = LOSSES[name]()
    torch.testing.assert_close(loss(x, labels, ref_emb=x, ref_labels=other), same[0][0])
    torch.testing.assert_close(by_autograd(loss)(x, labels, ref_emb=x, ref_labels=other), same[1][0])


@pytest.mark.parametrize("name", [name for name in WRAPPERS if "Center" not in name])
def test_wrappers_see_labels_of_references_that_are_the_embeddings(name):
    x, labels, other = batch()
    torch.manual_seed(1)
    expected = WRAPPERS[name]()(x, labels, ref_emb=x.clone(), ref_labels=other)
    torch.manual_seed(1)
    torch.testing.assert_close(WRAPPERS[name]()(x, labels, ref_emb=x, ref_labels=other), expected)


@pytest.mark.parametrize("name", MINERS)
def test_miners_see_labels_of_references_that_are_the_embeddings(name):
    x, labels, other = batch()
    torch.manual_seed(1)
    expected = MINERS[name]()(x, labels, x.clone(), other)
    torch.manual_seed(1)
    actual = MINERS[name]()(x, labels, x, other)
    assert [index.tolist() for index in actual] == [index.tolist() for index in expected]


@pytest.mark.pml2("references that are the batch itself")
def test_labels_of_references_count_as_in_pml():
    x, labels, other = batch()
    expected = pml_losses.MultiSimilarityLoss()(x, labels, ref_emb=x, ref_labels=other)
    torch.testing.assert_close(MultiSimilarityLoss()(x, labels, ref_emb=x, ref_labels=other), expected)
    # As in PML, these are the batch.
    torch.testing.assert_close(
        MultiSimilarityLoss()(x, labels, ref_emb=x, ref_labels=labels), MultiSimilarityLoss()(x, labels)
    )


def test_pair_weights_see_labels_of_references_that_are_the_embeddings():
    x, labels, other = batch()
    actual = pair_weights(RAWLoss(), x, labels, ref_emb=x, ref_labels=other)
    expected = pair_weights(RAWLoss(), x, labels, ref_emb=x.clone(), ref_labels=other)
    torch.testing.assert_close(actual.derivative, expected.derivative)
    assert torch.equal(actual.pos, labels[:, None] == other)


def test_the_gradient_of_references_that_are_the_embeddings_is_theirs_too():
    x, labels, other = batch()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    KNNSoftmaxLoss()(a, labels, ref_emb=b, ref_labels=other).backward()
    x.requires_grad_()
    KNNSoftmaxLoss()(x, labels, ref_emb=x, ref_labels=other).backward()
    torch.testing.assert_close(x.grad, a.grad + b.grad)


@pytest.mark.pml2("its miners leave out the diagonal of equal label tensors")
def test_a_pair_that_a_miner_names_twice_is_told_with_its_cause():
    x, labels, _ = batch()
    pairs = MultiSimilarityMiner()(x, labels, x.clone(), labels)
    with pytest.raises(ValueError, match=r"pair \(0, 0\) both as positive and as negative.*ref_labels\.clone\(\)"):
        RAWLoss()(x, labels, pairs, x.clone(), labels)
    pairs = MultiSimilarityMiner()(x, labels, x.clone(), labels.clone())
    assert RAWLoss()(x, labels, pairs, x.clone(), labels).isfinite()


@pytest.mark.parametrize("name", MINERS)
def test_a_miner_needs_labels(name):
    x, labels, _ = batch()
    with pytest.raises(ValueError, match="a miner needs labels, got None"):
        MINERS[name]()(x, None)
    with pytest.raises(ValueError, match="ref_emb needs ref_labels"):
        MINERS[name]()(x, labels, x.clone())


def test_a_mined_loss_with_one_reference_is_that_of_the_pairs():
    loss, miner = MultiSimilarityLoss(), HardNegativePairMiner()
    expected = loss(X, Y, miner(X, Y, REF, REF_Y), REF, REF_Y)
    torch.testing.assert_close(MinedLoss(loss, miner)(X, Y, ref_emb=REF, ref_labels=REF_Y), expected)
    assert KNearestPositiveMiner()(X, Y, REF, REF_Y)[0].tolist() == [0]
