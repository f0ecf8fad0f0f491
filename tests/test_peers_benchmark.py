"""The benchmark beside other packages runs whoever is there, and says where we are not first."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import speed_peers  # noqa: E402
from speed_jobs import Setting, batch  # noqa: E402
from speed_peers import Found, page  # noqa: E402

SETTING = Setting(24, 8, 4)


def contenders():
    return [*speed_peers.by_labels(SETTING), *speed_peers.by_tuples(SETTING), *speed_peers.of_queue(SETTING)]


@pytest.fixture
def without_others(monkeypatch):
    monkeypatch.setattr(speed_peers, "_imported", lambda name: None)


@pytest.mark.pml2("its own losses as contenders")
def test_every_contender_takes_a_step(without_others):
    x, labels = batch(SETTING, "cpu")
    found = contenders()
    assert len({one.key for one in found}) == len(found) > 20
    for one in speed_peers.kinds_of(found, "cpu"):
        # In half precision PML lacks an operation of torch; that is written down, as a result.
        if one.whose == "pml_ext" or one.kind == "float32":
            one.step(SETTING, x, labels)()


@pytest.mark.pml2("its own losses as contenders")
def test_both_sides_of_a_task_with_tuples_compute_the_same(without_others):
    x, labels = batch(SETTING, "cpu", torch.float64)
    values = {}
    for one in speed_peers.by_tuples(SETTING):
        values.setdefault(one.task, {})[one.whose] = one.make(x, labels)(x, labels)
    assert len(values) == 3
    for task, of in values.items():
        assert set(of) == {"pml_ext", "PML"}, task
        assert all(value > 0 for value in of.values())
    # PML's averages of the others leave out triplets without a loss.
    mined = values["MultiSimilarity, tuples of MultiSimilarityMiner"]
    torch.testing.assert_close(mined["pml_ext"], mined["PML"])


@pytest.mark.pml2("its own losses as contenders")
def test_what_is_installed_takes_part(monkeypatch):
    calls = []

    def loss(x, labels):
        calls.append(len(x))
        return x.square().sum()

    class TheirLoss:
        def __init__(self, model, margin):
            self.margin = margin

        def compute_loss_from_embeddings(self, embeddings, labels):
            return loss(embeddings[0], labels)

    names = ("BatchHardTripletLoss", "BatchSemiHardTripletLoss", "BatchAllTripletLoss")
    modules = {
        "sentence_transformers.sentence_transformer.losses": SimpleNamespace(**dict.fromkeys(names, TheirLoss)),
        "oml.losses.triplet": SimpleNamespace(TripletLossWithMiner=lambda margin, miner: loss),
        "oml.miners.inbatch_hard_tri": SimpleNamespace(HardTripletsMiner=lambda: None),
    }
    monkeypatch.setattr(speed_peers, "_imported", modules.get)
    theirs = [one for one in speed_peers.by_labels(SETTING) if one.whose not in ("pml_ext", "PML")]
    assert [(one.task, one.whose) for one in theirs] == [
        ("BatchHard", "sentence-transformers"),
        ("SemiHard", "sentence-transformers"),
        ("BatchAll", "sentence-transformers"),
        ("BatchHard", "OML"),
    ]
    for one in theirs:
        one.step(SETTING, *batch(SETTING, "cpu"))()
    assert calls == [24] * 4


def test_a_package_that_cannot_be_imported_is_said_and_left_out(monkeypatch, capsys):
    module = ModuleType("surely_not_there")
    assert speed_peers._imported("surely_not_there") is None
    assert "without surely_not_there: ModuleNotFoundError" in capsys.readouterr().out
    # A script of the benchmarks is not taken for the package of its name.
    monkeypatch.setitem(sys.modules, "surely_there", module)
    assert speed_peers._imported("surely_there") is module
    assert str(BENCHMARKS) in sys.path


def test_the_page_says_where_we_are_not_first():
    place = (64, 128, 4)
    found = [
        Found("RAW", "pml_ext", "float32", *place, 2.0, 0.1),
        Found("RAW", "PML", "float32", *place, 3.0, 0.1),
        Found("NCA", "pml_ext", "float32", *place, 2.0, 0.1),
        Found("NCA", "PML", "float32", *place, 1.0, 0.1),
        Found("NCA", "OML", "float32", *place, None, None, "TypeError: no"),
    ]
    text = page(found, "cpu")
    assert "| 64 x 128 / 4 | RAW | **2.00** | 3.00 |  |" in text
    assert "- NCA, float32, 64 x 128, 4 per class: PML by 2.00 x" in text
    assert "- RAW, float32" not in text
    assert "- NCA, OML, float32, n = 64: TypeError: no" in text
    assert torch.backends.cpu.get_cpu_capability() in text
    assert "`python benchmarks/speed.py --peers`" in text
    assert "Nowhere." in page(found[:2], "cpu")


@pytest.mark.pml2("its own losses as contenders")
@pytest.mark.parametrize("n", [[24], None])
def test_lines_and_page_are_written(without_others, tmp_path, capsys, monkeypatch, n):
    options = Namespace(
        device="cpu", no_compile=True, out=tmp_path, n=n, d=[8], per_class=None, quick=True, entries=["BatchHard"]
    )
    monkeypatch.setattr(speed_peers, "SETTINGS", (SETTING,))
    monkeypatch.setattr(speed_peers, "QUEUES", ())
    speed_peers.run(options)
    lines = [json.loads(line) for line in (tmp_path / "peers.jsonl").read_text().splitlines()]
    assert {(line["whose"], line["kind"]) for line in lines} == {
        (whose, kind) for whose in ("pml_ext", "PML") for kind in ("float32", "bfloat16")
    }
    assert all(line["ratio"] > 0 for line in lines if line["whose"] == "pml_ext" or line["kind"] == "float32")
    assert "## bfloat16" in (tmp_path / "peers.md").read_text()
