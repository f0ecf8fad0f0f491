"""Vectors at unit length, where they have no direction, and distances where products of vectors lose them."""

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance

from pml_ext import losses
from pml_ext.blocks import normalized
from pml_ext.centers import BatchCenters
from pml_ext.similarity import normalize, unit_vectors
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import BranchLoss, CentersAsReferences

HALF = (torch.float16, torch.bfloat16)


def gradient(loss, embeddings, labels, **options):
    x = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(x, labels), x, **options)[0].detach()


@pytest.mark.parametrize("unit", [unit_vectors, normalize])
def test_unit_vectors_are_normalised_ones_with_all_their_derivatives(unit):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit(x), torch.nn.functional.normalize(x))
    assert torch.autograd.gradcheck(unit, x)
    assert torch.autograd.gradgradcheck(unit, x)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_vectors_are_normalised_in_the_norm_of_the_distance(p):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(normalize(x, p), torch.nn.functional.normalize(x, p=p))
    assert torch.autograd.gradcheck(lambda x: normalized(LpDistance(p=p), x), x)


@pytest.mark.parametrize("unit", [unit_vectors, normalize, lambda x: normalize(x, 1)], ids=["fast", "plain", "p=1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("length", [0.0, 5e-13])
def test_vectors_without_a_direction_have_no_gradient(unit, dtype, length):
    if dtype == torch.float16 and length:
        pytest.skip("that is 0 in float16")
    x = torch.tensor([[0.0, length], [3.0, 4.0]]).to(dtype).requires_grad_()
    y = unit(x)
    assert y.dtype == torch.float32 if dtype in HALF else dtype
    torch.testing.assert_close(y[0, 1].item(), length / 1e-12, rtol=1e-2, atol=0)
    (first,) = torch.autograd.grad((y[:, 0] * y[:, 1]).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    for found in (first, second):
        assert found.isfinite().all()
        assert not found[0].any()
        assert found[1].any()


def one_zero_vector(dtype):
    x = torch.randn(12, 4)
    x[5] = 0
    x[6, 2:] = 0  # the second slice of two
    return x.to(dtype)


NORMALIZING = {
    "cosine": losses.MultiSimilarityLoss(),
    "distance": losses.BatchAllTripletLoss(),
    "square": losses.RAWLoss(distance=LpDistance(power=2)),
    "p=1": losses.RAWLoss(distance=LpDistance(p=1)),
    "classes": losses.ClassCenterMarginLoss(),
    "batch": losses.LiftedStructureLoss(),
    "slices": BranchLoss(losses.BinomialDevianceLoss(), 2),
    "centers": CentersAsReferences(losses.MultiSimilarityLoss(), BatchCenters()),
}


@pytest.mark.parametrize("name", NORMALIZING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("path", ["engine", "plain", "again"])
def test_one_zero_vector_does_not_drown_the_others(name, dtype, path):
    x, labels = one_zero_vector(dtype), torch.arange(12) // 3
    loss = by_autograd(NORMALIZING[name]) if path == "plain" else NORMALIZING[name]
    if path == "again" and (name in ("distance", "p=1") or "classes" in name):
        pytest.skip("of torch.cdist there is no second derivative")
    found = gradient(loss, x, labels, create_graph=path == "again")
    assert found.isfinite().all()
    assert found.abs().max() < 100
    if name not in ("slices", "centers"):
        assert not found[5].any()
    elif name == "slices":
        assert not found[6, 2:].any()


def test_the_slice_of_a_half_precision_embedding_that_is_zero():
    x = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]])
    for dtype in (torch.float32, *HALF):
        found = BranchLoss(losses.BinomialDevianceLoss(), 2)(x.to(dtype), torch.tensor([0, 0, 1, 1]))
        torch.testing.assert_close(found.float(), torch.tensor(1.2671), rtol=1e-4, atol=1e-4)
