"""The engine where it matters how a batch falls into blocks, who else is differentiated, and what is kept."""

import gc

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance

from pml_ext import losses
from pml_ext.centers import BatchCenters
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import CentersAsReferences

SPARSE = ("BatchHardTripletLoss", "EasyPositiveTripletLoss", "SemiHardTripletLoss")


def gradient(loss, embeddings, labels, **options):
    x = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(x, labels), x, **options)[0].detach()


@pytest.mark.parametrize("name", SPARSE)
def test_blocks_with_equals_and_without_may_be_mixed(name):
    """Where negatives are equal autograd takes over, for the block that holds them only."""
    torch.manual_seed(0)
    labels = torch.arange(600) // 3
    embeddings = torch.randn(600, 8, dtype=torch.float64)
    # The nearest negative of the first anchor twice; the last blocks have no equals near.
    embeddings[7] = embeddings[4] = embeddings[0] + 1e-3
    embeddings[300:] += 100 * torch.eye(8, dtype=torch.float64)[labels[300:] % 8]
    loss = getattr(losses, name)(distance=LpDistance(normalize_embeddings=False))
    torch.testing.assert_close(
        gradient(loss, embeddings, labels), gradient(by_autograd(loss), embeddings, labels), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_gradients_to_be_differentiated_again_count_references_made_of_the_batch_once(chunk_size):
    torch.manual_seed(0)
    labels, embeddings = torch.arange(12) // 4, torch.randn(12, 4, dtype=torch.float64)
    loss = CentersAsReferences(losses.MultiSimilarityLoss(chunk_size=chunk_size), BatchCenters())
    expected = gradient(loss, embeddings, labels)
    torch.testing.assert_close(gradient(loss, embeddings, labels, create_graph=True), expected)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), embeddings.requires_grad_())


def test_backward_frees_the_pair_weights_though_the_loss_is_kept():
    labels, embeddings = torch.arange(311) // 2, torch.randn(311, 4, requires_grad=True)
    value = losses.MultiSimilarityLoss()(embeddings, labels)
    value.backward()
    assert value.grad_fn is not None
    assert not any(type(x) is torch.Tensor and x.shape == (311, 311) for x in gc.get_objects())


@pytest.mark.parametrize("shift", [0.0, 2e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clamped_nca_far_beyond_its_levels(shift, dtype):
    """What is absent is nowhere near the level, even if all that is there is far beyond it."""
    torch.manual_seed(0)
    labels = torch.tensor([0] * 6 + [1] * 6)
    embeddings = 1e3 * torch.randn(12, 4, dtype=dtype) + shift
    loss = losses.ClampedNCALoss(distance=LpDistance(normalize_embeddings=False))
    plain = by_autograd(loss)
    torch.testing.assert_close(loss(embeddings, labels), plain(embeddings, labels), rtol=1e-5, atol=0)
    expected = gradient(plain, embeddings, labels)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient(loss, embeddings, labels), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["DecoupledNCALoss", "SemiHardTripletLoss", "HistogramLoss", "BatchHardTripletLoss"])
def test_nan_in_an_embedding_is_seen_in_the_loss(name):
    embeddings = torch.randn(24, 4)
    embeddings[5, 2] = torch.nan
    assert getattr(losses, name)()(embeddings, torch.arange(24) // 4).isnan()


@pytest.mark.parametrize(("spread", "normalize"), [(1e-3, True), (1e-4, True), (1e-2, False)])
@pytest.mark.parametrize("name", ["BatchAllTripletLoss", "BatchHardTripletLoss", "BinomialDevianceLoss"])
def test_gradient_of_a_batch_that_has_all_but_collapsed(name, spread, normalize):
    """Far from the origin and close together, where products of float32 vectors alone keep no distance."""
    torch.manual_seed(0)
    labels = torch.arange(64) // 4
    embeddings = (1 if normalize else 10) + spread * torch.randn(64, 32)
    loss = getattr(losses, name)(distance=LpDistance(normalize_embeddings=normalize))
    expected = gradient(by_autograd(loss), embeddings.double(), labels)
    torch.testing.assert_close(
        gradient(loss, embeddings, labels).double(), expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item()
    )
