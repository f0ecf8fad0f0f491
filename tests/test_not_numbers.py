"""What is no number, or larger than a score may be: seen where it belongs, and nowhere else."""

import copy
import itertools

import pytest
import torch
from of_pml import CosineSimilarity, DoNothingReducer, DotProductSimilarity, LpDistance

from pml_ext import losses, masked
from pml_ext.pairs import PairMasks
from pml_ext.testing.cases import all_pairs
from pml_ext.testing.law import by_autograd
from tests.registry import LOSSES

pytestmark = pytest.mark.filterwarnings("ignore:.*lies outside:UserWarning")
ROWS = [name for name, make in LOSSES.items() if hasattr(make(), "chunk_size")]
DISTANCES = {
    "cosine": CosineSimilarity(),
    "product": DotProductSimilarity(normalize_embeddings=False),
    "distance": LpDistance(),
    "square of vectors as they are": LpDistance(power=2, normalize_embeddings=False),
}


@pytest.fixture(params=["looks", "does not look"])
def device(request, monkeypatch):
    """The CPU, as it is, and as another device, where to look at numbers would wait for it."""
    if request.param == "does not look":
        for module in ("pairs", "pair_masks", "engine", "similarity", "scores", "vectors", "reducer", "masked"):
            target = f"pml_ext.{module}.looks_are_free"
            monkeypatch.setattr(target, lambda numbers: False, raising=False)
    return request.param


def losses_and_gradient(loss, x, labels, indices=None):
    x = x.clone().requires_grad_()
    found = loss(x, labels, indices)["loss"]["losses"]
    return found.detach(), torch.autograd.grad(found[found.detach().isfinite()].sum(), x)[0]


@pytest.mark.parametrize("name", ROWS)
def test_pairs_that_are_not_selected_may_be_anything(name, device):
    loss, labels = copy.deepcopy(LOSSES[name]()), torch.arange(16) // 4
    loss.set_reducer(DoNothingReducer())
    selected = PairMasks(*(mask.clone() for mask in all_pairs(labels)))
    for mask in selected:
        mask[5] = mask[:, 5] = False
    others = torch.arange(16) != 5
    for distance, chunk_size in itertools.product(("cosine", "distance"), (None, 5)):
        loss.distance, loss.chunk_size = DISTANCES[distance], chunk_size
        x = torch.randn(16, 4, dtype=torch.float64)
        expected = losses_and_gradient(loss, x, labels, selected)
        x[5, 1] = torch.nan
        for each in (loss, by_autograd(loss)) if chunk_size is None else (loss,):
            found = losses_and_gradient(each, x, labels, selected)
            torch.testing.assert_close(found[0], expected[0])
            if each is loss and loss.closed_form is not None:  # autograd multiplies what is no number by 0
                torch.testing.assert_close(found[1][others], expected[1][others])
                assert not found[1][5].any()


@pytest.mark.parametrize("name", ROWS)
def test_every_anchor_that_is_compared_with_it_has_no_loss(name, device):
    loss = LOSSES[name]()
    loss.set_reducer(DoNothingReducer())
    x, labels = torch.randn(16, 4, dtype=torch.float64), torch.arange(16) // 4
    for each, value in itertools.product((loss, by_autograd(loss)), (torch.nan, torch.inf)):
        x[5, 1] = value
        leaf = x.clone().requires_grad_()
        found = each(leaf, labels)["loss"]["losses"]
        assert not found.isfinite().any()
        (gradient,) = torch.autograd.grad(found.mean(), leaf)
        assert not gradient.isfinite().all()


@pytest.mark.parametrize("name", ["BatchHardTripletLoss", "SemiHardTripletLoss", "RAWLoss"])
@pytest.mark.parametrize("distance", list(DISTANCES.values())[1::2], ids=list(DISTANCES)[1::2])
def test_scores_like_those_of_absent_pairs_are_no_numbers(name, distance, device):
    loss, labels = getattr(losses, name)(distance=distance), torch.arange(12) // 3
    for dtype, length in itertools.product((torch.float32, torch.float64), (1e15, 1e30)):
        leaf = (length * torch.randn(12, 4, dtype=dtype)).requires_grad_()
        for each in (loss, by_autograd(loss)):
            value = each(leaf, labels)
            assert not value.isfinite()
            assert not torch.autograd.grad(value, leaf)[0].isfinite().all()


@pytest.mark.parametrize("path", ["engine", "plain"])
def test_large_scores_are_right_up_to_there(path, device):
    x, labels = torch.tensor([[0.0], [1], [2], [4]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    loss = losses.BatchHardTripletLoss(margin=0.0, distance=LpDistance(power=2, normalize_embeddings=False))
    loss = by_autograd(loss) if path == "plain" else loss
    expected = loss(x, labels).item()
    assert expected > 0
    leaf = (1e13 * x).requires_grad_()
    value = loss(leaf, labels)
    assert value.item() == pytest.approx(1e26 * expected)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_sums_of_scores_are_numbers():
    assert masked.all_known(torch.full((100, 100), 1e29))
    assert not masked.all_known(torch.full((2, 2), torch.inf))
