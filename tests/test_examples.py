"""Every example runs, and shows what it says it shows."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pml_ext.benchmark import plots
from pml_ext.datasets import Glyphs

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pickle looks for its classes
    spec.loader.exec_module(module)
    return module


def test_quickstart_learns(monkeypatch):
    quickstart = load("quickstart")

    def third(split):
        """Of the test classes every third: to embed them all takes longer than to train."""
        glyphs = Glyphs(split)
        return glyphs if split == "train" else glyphs.part(glyphs.labels.unique()[::3], split=split)

    monkeypatch.setattr(quickstart, "Glyphs", third)
    before, after = quickstart.main(epochs=1)
    assert after > 2 * before


def test_mix_with_pml(capsys):
    results = load("mix_with_pml").main()
    assert len(results) == 4
    assert all(value > 0 for value in results.values())
    assert "nan" not in capsys.readouterr().out


@pytest.mark.usefixtures("_few_examples")
def test_write_your_own_loss(capsys):
    load("write_your_own_loss").main()
    assert "passes every law" in capsys.readouterr().out


@pytest.mark.pml2("its trainers")
def test_hardness_aware(capsys):
    results = load("hardness_aware").main(epochs=1)
    for first, last, recall in results.values():
        assert last < first == 1
        assert recall > 0.3  # five classes: chance is 0.2
    assert "nan" not in capsys.readouterr().out


@pytest.mark.usefixtures("_few_points")
def test_plot_pair_weights(tmp_path, capsys):
    shares = load("plot_pair_weights").main(tmp_path / "weights.png")
    assert len(shares) == 6
    assert shares["lifted structure"] == 1 > shares["multi-similarity"] > shares["RAW"] > 0
    assert (tmp_path / "weights.png").stat().st_size > 10_000
    assert "has them: True" in capsys.readouterr().out


def test_hard_mining(tmp_path):
    shares = load("hard_mining").main(tmp_path / "pairs.svg", moments=(0, 40))
    assert shares[0] > 2 * shares[1] > 0
    assert (tmp_path / "pairs.svg").stat().st_size > 10_000


def test_photograph_gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: [])  # into the folder of the run, which is deleted
    small = {"per_class": 3, "side": 32, "epochs": 1, "steps": 2, "batch_size": 16, "device": "cpu"}
    assert 0.2 < load("photograph_gallery").main(tmp_path / "gallery.png", **small) <= 1
    assert (tmp_path / "gallery.png").stat().st_size > 100_000


def test_diagnose_collapse(tmp_path):
    collapsed, healthy = load("diagnose_collapse").main(tmp_path, steps=31)
    assert collapsed.startswith("collapsed")
    assert healthy == ""
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_two_modalities(capsys):
    results = load("two_modalities").main(steps=60)
    assert set(results) == {"sigmoid", "softmax"}
    for recall, aligned, even in results.values():
        assert recall > 0.5  # of 20 new concepts: chance is 0.05
        assert 0 < aligned < 1
        assert even < -0.5
    assert "nan" not in capsys.readouterr().out


def test_frozen_trunk_with_mining(capsys):
    results = load("frozen_trunk_with_mining").main(epochs=2)
    assert len(results) == 3
    assert all(recall > 0.3 for recall in results.values())  # five classes: chance is 0.2
    assert "nan" not in capsys.readouterr().out


def test_sentence_pairs(capsys):
    pytest.importorskip("sentence_transformers")
    before, after = load("sentence_pairs").main(steps=10)
    assert after < before
    assert "40 of 40 anchors" in capsys.readouterr().out


def test_examples_are_short_and_all_are_run():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    for path in EXAMPLES.glob("*.py"):
        assert any(path.stem in name for name in tested), f"{path.name} is not run by the tests"
        assert len(path.read_text().splitlines()) <= 60, f"{path.name} is longer than 60 lines"


def test_is_it_better(capsys):
    better, same = load("is_it_better").main()
    assert better.verdict("recall_at_1") == "first"
    assert same.verdict("recall_at_1") == "not distinguishable"
    assert "3 and 3 runs" in capsys.readouterr().out


def test_several_processes(capsys):
    """Alone; `test_distributed_processes` runs it in two."""
    values, recall = load("several_processes").main(steps=8)
    assert len(values) == 8
    assert recall > 3 / 32  # 32 characters
    assert "process 0 of 1" in capsys.readouterr().out
