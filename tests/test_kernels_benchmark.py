"""The benchmark that counts kernels counts them right, and no loss waits for the device."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import kernels  # noqa: E402
from dense import DENSE  # noqa: E402
from speed_jobs import Setting, batch, build  # noqa: E402

SETTING = Setting(24, 8, 4)
N, D = SETTING.n, SETTING.d


def test_views_cost_nothing_and_broadcast_numbers_once():
    x, row = torch.zeros(6, 4), torch.zeros(4)
    with kernels.Watch() as watch:
        x.t()[1:].unsqueeze(0)
        x + row.expand(6, 4)
        torch.gt(x, row, out=torch.empty(6, 4))
        x.fill_(1)
        x.copy_(x.clone())
    assert [(call.name, call.bytes) for call in watch.calls] == [
        ("add", 4 * (24 + 4 + 24)),
        ("gt", 4 * (24 + 4 + 24)),
        ("fill", 4 * 24),
        ("clone", 4 * 48),
        ("copy", 4 * 48),
    ]
    assert watch.kernels == 5
    assert watch.products == watch.waits == 0


def test_several_tensors_in_place_are_one_kernel():
    x, y = torch.ones(6, 4), torch.ones(2)
    with kernels.Watch() as watch:
        torch._foreach_mul_([x, y], [2.0, 3.0])
    assert [(call.name, call.bytes) for call in watch.calls] == [("_foreach_mul", 4 * 2 * (24 + 2))]


def test_a_product_is_counted_apart_and_so_is_a_wait():
    with kernels.Watch() as watch:
        (torch.ones(3, 2) @ torch.ones(2, 3)).sum().item()
    assert (watch.products, watch.kernels, watch.waits) == (1, 4, 1)
    assert watch.traffic() == 4 * (6 + 6 + 9 + 1 + 1)
    assert watch.large(4 * 9) == 1


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("name", kernels.USUAL)
def test_no_loss_waits_for_the_device(name, on_host):
    found = kernels.watched(build(name, SETTING), SETTING, "cpu", on_host)
    assert found.waits == 0
    assert found.products == 2
    assert found.kernels > 30
    assert found.traffic() > 20 * 4 * N**2


@pytest.mark.parametrize("name", kernels.USUAL)
def test_labels_on_the_host_spare_traffic(name):
    large = Setting(256, 8, 4)
    on_device, on_host = (kernels.watched(build(name, large), large, "cpu", each) for each in (False, True))
    assert on_host.traffic() < 0.85 * on_device.traffic()


@pytest.mark.parametrize("name", sorted(DENSE))
def test_a_dense_form_has_the_value_and_the_gradient_of_the_loss_that_it_stands_beside(name):
    results = []
    for function in (build(name, SETTING), DENSE[name]):
        x, labels = batch(SETTING, "cpu", torch.float64)
        value = function(x.requires_grad_(), labels)
        value.backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)


def test_the_script_prints_a_table_and_the_calls_of_a_loss(capsys):
    kernels.main(["--entries", "RAW", "--n", "24", "--d", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "n = 24, d = 8, 4 per class, labels; a step of a loss"
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["RAW", "RAW, dense by autograd"]
    kernels.main(["--calls", "RAW", "--n", "24", "--d", "8"])
    out = capsys.readouterr().out
    assert "pml_ext/closed_form.py:" in out
    assert "matrices" in out


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_the_schedule_of_a_compiled_loss_is_shorter():
    setting = Setting(64, 8, 4)
    function = build("MultiSimilarity", setting)
    kernels_of_it, matrices, products = kernels.scheduled(function.loss, setting, "cpu")
    eager = kernels.watched(function, setting, "cpu")
    assert 0 < kernels_of_it < eager.kernels / 2
    assert products == eager.products + 1  # not the sum of both halves of the weights, but a product for each
    assert 0 < matrices < eager.traffic() / (4 * 64**2) / 2
