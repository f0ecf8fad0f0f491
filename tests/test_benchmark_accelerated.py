"""Losses of PML in the benchmark, without tuples: the same results."""

import pytest
import torch

from pml_ext import thresholds
from pml_ext.benchmark import BenchmarkError, Experiment, training
from pml_ext.datasets.samples import Samples
from pml_ext.stock import NotAcceleratedError
from pml_ext.stock.loss import AcceleratedLoss

LOSSES = ("pml:NTXentLoss", "pml:TripletMarginLoss + pml:TripletMarginMiner", "RAW")


def toy():
    labels = torch.arange(12).repeat_interleave(6)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, 8, generator=generator)[labels] + torch.randn(72, 8, generator=generator)
    return Samples("toy", labels, tuple(map(str, range(12))), vectors=vectors)


@pytest.mark.pml2("its own losses without tuples")
def test_accelerated_losses_give_the_same_results(tmp_path, monkeypatch):
    trained = []
    made = training.LossLearner
    monkeypatch.setattr(training, "LossLearner", lambda *a, **k: trained.append(a[1]) or made(*a, **k))
    given = {"data": toy(), "losses": LOSSES, "seeds": (0,), "epochs": 2, "steps": 5, "batch_size": 16}
    plain, fast = (
        Experiment(**given, classes_per_batch=4, accelerate=each, out=tmp_path / str(each)) for each in (False, True)
    )
    expected = {result.loss: result.metrics for result in plain.run()}
    with thresholds.replaced(STOCK_PAYS=0):
        found = {result.loss: result.metrics for result in fast.run()}
    assert [isinstance(loss, AcceleratedLoss) for loss in trained] == [False] * 3 + [True, True, False]
    assert {name for name in expected if name in LOSSES} == set(LOSSES)
    for name, metrics in expected.items():
        assert metrics == pytest.approx(found[name], rel=1e-3), name


def test_what_cannot_be_accelerated_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise NotAcceleratedError("beside PML 3")

    monkeypatch.setattr(training, "accelerate", refuse)
    with pytest.raises(BenchmarkError, match="accelerate cannot be True here: beside PML 3"):
        Experiment(data=toy(), losses="RAW", accelerate=True, epochs=1, out=tmp_path / "a").run()
