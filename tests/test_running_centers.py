"""The state of running centers: what is not finite, inference mode, and processes that see the same samples."""

import copy
import subprocess
import sys

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


GATHERED = """
import datetime, sys, torch
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from pml_ext.losses import CenterLoss

def run(rank, folder):
    store, limit = f"file://{folder}/store", datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=limit)
    try:
        for gathered in (True, False):
            loss = CenterLoss(3, 2)
            call = DistributedLossWrapper(loss) if gathered else loss
            for x, y in torch.load(f"{folder}/batches")[rank]:
                call(x, y)
            torch.save(loss.centers.centers, f"{folder}/{gathered}{rank}")
    finally:
        torch.distributed.destroy_process_group()

if __name__ == "__main__":
    run(1, sys.argv[1])
"""


@pytest.mark.pml2("its DistributedLossWrapper")
def test_samples_that_every_process_sees_count_once(tmp_path):
    """PML's wrapper gives each process the samples of all; without it each has its own. One process is this one."""
    batches = [[(batch(seed), LABELS) for seed in seeds] for seeds in ((0, 2, 4), (1, 3, 4))]
    torch.save(batches, tmp_path / "batches")
    here = {"__name__": "here"}
    exec(GATHERED, here)
    with subprocess.Popen([sys.executable, "-c", GATHERED, str(tmp_path)]) as other:
        here["run"](0, tmp_path)
        assert other.wait(timeout=60) == 0
    source = RunningCenters(3, 2)
    for (x0, y0), (x1, y1) in zip(*(each[:2] for each in batches), strict=True):
        source(torch.cat([x0, x1]), torch.cat([y0, y1]))
    once, twice = copy.deepcopy(source), copy.deepcopy(source)
    once(batch(4), LABELS)
    twice(batch(4).repeat(2, 1), LABELS.repeat(2))
    for rank in range(2):
        # The last samples are the same in both: gathered they are there twice, and without the wrapper alike.
        torch.testing.assert_close(torch.load(tmp_path / f"True{rank}"), twice.centers)
        torch.testing.assert_close(torch.load(tmp_path / f"False{rank}"), once.centers)
    assert torch.load(tmp_path / "True0").equal(torch.load(tmp_path / "True1"))
