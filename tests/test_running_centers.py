"""The state of running centers: what is not finite, inference mode, and processes that see the same samples."""

import copy

import pytest
import torch

from pml_ext.centers import RunningCenters
from pml_ext.losses import CenterLoss

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def batch(seed):
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_a_sample_that_is_not_finite_is_left_out(bad):
    source, clean = RunningCenters(3, 2), RunningCenters(3, 2)
    x = batch(0).double()
    x[3, 1] = bad  # 1e300 is not finite in the float32 of the centers
    source(x, LABELS)
    others = torch.arange(6) != 3
    clean(x[others], LABELS[others])
    assert source.centers.equal(clean.centers)
    assert source.centers.isfinite().all()


def test_sums_beyond_the_dtype_move_nothing():
    source = RunningCenters(3, 2)
    source(batch(0), LABELS)
    before = source.centers
    source(torch.full((6, 2), 3e38), LABELS)
    assert source.centers.equal(before)


def test_a_bad_batch_is_seen_in_its_own_loss_only():
    loss, clean = CenterLoss(3, 2), CenterLoss(3, 2)
    x = batch(0)
    x[0] = torch.nan
    assert loss(x, LABELS).isnan()
    clean(x[1:], LABELS[1:])
    assert loss(batch(1), LABELS) == clean(batch(1), LABELS)


def test_inference_mode_does_not_break_the_next_step():
    loss = CenterLoss(3, 2)
    with torch.inference_mode():
        loss(batch(0), LABELS)
    expected = copy.deepcopy(CenterLoss(3, 2))
    expected(batch(0), LABELS)
    x = batch(1).requires_grad_()
    value = loss(x, LABELS)
    value.backward()
    assert value == expected(batch(1), LABELS)
    assert x.grad.isfinite().all()
