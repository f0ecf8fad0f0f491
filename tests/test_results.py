"""What an experiment gives back from Python: it shows itself, goes on where it was, and knows its objects."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.distances import LpDistance
from torch.utils.data import TensorDataset

from pml_ext import catalog
from pml_ext.benchmark import BenchmarkError, Experiment, losses, plots, runs, training
from pml_ext.benchmark.events import EpochEnded, Event, RunEnded, RunStarted
from pml_ext.benchmark.fingerprint import fingerprint
from pml_ext.losses import BinomialDevianceLoss, RAWLoss

BUDGET: dict[str, Any] = {"epochs": 2, "steps": 2, "batch_size": 12, "embedding_size": 4, "device": "cpu"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors(classes=16, seed=0):
    labels = torch.arange(classes).repeat_interleave(5)
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 6, generator=draw)
    return TensorDataset(centers[labels] + 0.5 * torch.randn(len(labels), 6, generator=draw), labels)


def my_loss(embeddings, labels):
    scores, same = embeddings @ embeddings.T, labels[:, None] == labels[None]
    return scores[~same].relu().mean() - scores[same].mean()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: [])
        out = tmp_path_factory.mktemp("results") / "out"
        return Experiment(data=vectors(), losses=["RAW", my_loss], seeds=2, out=out, **BUDGET).run()


@pytest.fixture
def photos(tmp_path):
    """12 classes of 3 pictures, each of one color, and a name that is no harmless one."""
    draw = np.random.default_rng(0)
    for label in range(12):
        name = "<b>&'0" if label == 0 else f"class {label}"
        (tmp_path / "photos" / name).mkdir(parents=True)
        color = draw.integers(0, 200, 3)
        for i in range(3):
            pixels = np.clip(color + draw.integers(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_table_on_a_screen_and_in_html(results):
    shown = repr(results).splitlines()
    assert len(shown) <= 40
    assert [line.split()[0] for line in shown[2:6]] == ["frozen", "untrained", "RAW", "my_loss"]
    assert "±" in shown[4], "an interval over the seeds"
    page = results._repr_html_()
    assert page.count("<tr>") == 5
    assert "&ndash;" in page, "an interval"
    assert results["my_loss"].losses == ("my_loss",)
    assert [one.seed for one in results["RAW"]] == [0, 1]
    with pytest.raises(BenchmarkError, match="unknown loss 'RAV'; did you mean RAW"):
        results["RAV"]


def test_a_table_of_many_losses_is_cut(results):
    many = [replace(one, loss=f"{one.loss} {i}") for one in results["RAW"] for i in range(60)]
    cut = replace(results, runs=tuple(many))
    assert len(repr(cut).splitlines()) <= 40
    assert "40 more losses" in repr(cut)
    assert cut._repr_html_().count("<tr>") == 21


def test_one_result(results):
    assert repr(results[-1]).startswith("my_loss, seed 1\n  recall_at_1 ")
    assert len(repr(results[-1]).splitlines()) <= 40
    assert "<table>" in results[-1]._repr_html_()
    failed = replace(results[-1], metrics={}, error="diverged: <b>", loss="<i>")
    assert "failed: diverged" in repr(failed)
    assert "<i>" not in failed._repr_html_()
    assert "&lt;b&gt;" in failed._repr_html_()


def test_pictures_need_no_pyplot_and_can_be_composed(results):
    import sys

    from matplotlib.figure import Figure

    sys.modules.pop("matplotlib.pyplot", None)
    for picture in (results.curves(), results.recall(), results.health()):
        assert picture._repr_png_().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules
    whole = Figure()
    first, second = whole.subplots(1, 2)
    assert results.curves(ax=first) is whole
    assert results.recall(ax=second) is whole
    assert first.lines
    assert second.lines
    with pytest.raises(BenchmarkError, match="no images"):
        results.gallery()


def test_mistakes_are_those_that_a_loop_finds(results):
    found = results.mistakes(1000, loss="RAW")
    test = results.data[0].test
    one = results["RAW"][0]
    experiment = results.experiment
    x = training.embeddings_of(experiment, results.data[0], results.out / "RAW-seed0", *one.key)
    expected = []
    for i in range(len(x)):
        by_class: dict[bool, list[float]] = {True: [], False: []}
        for j in range(len(x)):
            if i != j:
                by_class[bool(test.labels[i] == test.labels[j])].append(float(x[i] @ x[j]))
        gap = max(by_class[False]) - max(by_class[True])
        if gap > 0:
            expected.append((gap, i))
    order = [i for _, i in sorted(expected, key=lambda pair: -pair[0])]
    assert [mistake.query for mistake in found] == order
    assert found.total == len(order)
    assert found[0].similarity > found[0].right_similarity
    assert len(repr(found).splitlines()) <= 40
    assert found._repr_html_().count("<tr>") == 1 + len(order)
    with pytest.raises(BenchmarkError, match="k must be a whole number of at least 1, got 0"):
        results.mistakes(0)


def test_to_frame(results):
    pytest.importorskip("pandas")
    frame = results.to_frame()
    assert len(frame) == len(results)
    assert frame[frame.loss == "RAW"].recall_at_1.tolist() == [one.metrics["recall_at_1"] for one in results["RAW"]]


def test_the_best_model_is_asked_for_what_looks_alike(photos):
    experiment = Experiment(data=photos, losses="RAW", image_size=16, **BUDGET)
    results = experiment.run()
    model = results.best()
    assert len(repr(model).splitlines()) <= 4
    image = next(photos.rglob("*.png"))
    answers = model.query(str(image), k=3)
    assert answers[0].similarity == pytest.approx(1, abs=1e-4), "the image itself is in the gallery"
    page = answers._repr_html_()
    assert page.count("data:image/png") == 3
    assert "<b>" not in page
    assert results.gallery()._repr_png_().startswith(b"\x89PNG")
    worst = results.mistakes()
    assert "<b>" not in worst._repr_html_()
    assert worst._repr_html_().count("<img") == 3 * len(worst)


def test_the_same_cell_goes_on_and_another_has_a_folder_of_its_own(capsys, monkeypatch):
    def cell(**changes):
        given: dict[str, Any] = {"data": vectors(), "losses": ["RAW", RAWLoss(gamma=0.3), my_loss]}
        return Experiment(**(given | BUDGET | {"epochs": 1, "steps": 1} | changes)).run()

    first = cell()
    said = capsys.readouterr().out
    assert f"in memory only: RAWLoss(gamma=0.3), my_loss. Results are in {first.out}; give the same objects" in said
    assert cell() == first, "the dates too: nothing was run again"
    assert cell().out == first.out
    monkeypatch.setattr(runs.Jobs, "run", lambda self, before: before)
    others = [
        cell(data=vectors(seed=1)).out,
        cell(learning_rate=0.01).out,
        cell(losses=["RAW"]).out,
        cell(losses=["RAW", RAWLoss(gamma=0.3), lambda x, y: my_loss(x, y) * 2]).out,
    ]
    assert len({first.out, *others}) == 5


def test_an_object_that_is_another_one_is_not_continued():
    class Mine:
        factor = 1.0

        def __call__(self, x, y):
            return self.factor * my_loss(x, y)

    experiment = Experiment(data=vectors(), losses=[Mine()], out="out", **BUDGET)
    experiment.run()
    Mine.factor = 2.0
    with pytest.raises(
        BenchmarkError, match="Mine is not the object that the experiment in out has: choose another out"
    ):
        experiment.run()


def test_interrupted_it_returns_what_there_is_and_goes_on(monkeypatch):
    experiment = Experiment(data=vectors(), losses=["RAW", "NCA"], **BUDGET)
    epoch, calls = training.Run._epoch, []

    def interrupted(self, *args):
        calls.append(self.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        epoch(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "_epoch", interrupted)
        part = experiment.run()
    assert part.losses == ("RAW",)
    assert "interrupted: run it again" in repr(part)
    assert "interrupted: run it again" in part._repr_html_()
    whole = experiment.run()
    assert whole.losses == ("RAW", "NCA")
    assert "interrupted" not in repr(whole)
    assert calls == ["RAW", "RAW", "NCA", "NCA"]


def test_whatever_stands_for_a_loss():
    pair = (BinomialDevianceLoss(), pml_miners.MultiSimilarityMiner())
    assert Experiment(losses=RAWLoss()).losses[0].gamma == RAWLoss().gamma
    assert Experiment(losses=pair).losses == (pair,)
    assert Experiment(losses=my_loss).losses == (my_loss,)
    assert Experiment(seeds=3).seeds == (0, 1, 2)
    assert Experiment(seeds=[3]).seeds == (3,)
    with pytest.raises(BenchmarkError, match="seeds must not be empty"):
        Experiment(seeds=0)
    given = [RAWLoss(), RAWLoss(distance=LpDistance()), RAWLoss(), pair, catalog.build("NCA"), my_loss, "NCA(k=8)"]
    experiment = Experiment(losses=given)
    assert tuple(spec.name for spec in losses.parse_all(experiment.losses)) == (
        "RAWLoss",
        "RAWLoss(distance=LpDistance())",
        "RAWLoss (2)",
        "BinomialDevianceLoss + MultiSimilarityMiner",
        "NCA",
        "my_loss",
        "NCA(k=8)",
    )


def test_events_reach_every_callback_and_one_that_fails_ends_nothing():
    heard: list[Event] = []

    def bad(event):
        raise OSError("no tracker")

    experiment = Experiment(data=vectors(), losses="RAW", **BUDGET)
    with pytest.warns(UserWarning, match="callback bad is not called again: OSError: no tracker") as warned:
        results = experiment.run(callbacks=[bad, heard.append])
    assert len(warned) == 1
    kinds = [type(event) for event in heard]
    assert kinds == [RunEnded, RunEnded, RunStarted, EpochEnded, EpochEnded, RunEnded]
    epochs = [event for event in heard if isinstance(event, EpochEnded)]
    assert [event.metrics["loss"] for event in epochs] == [epoch["loss"] for epoch in results[-1].history]
    assert [(event.epoch, event.epochs) for event in epochs] == [(1, 2), (2, 2)]
    with pytest.raises(TypeError, match="callbacks must be called with an event, got 3"):
        experiment.run(callbacks=[3])  # type: ignore[list-item]


def test_a_fingerprint_tells_code_and_values_apart():
    def made(factor):
        return lambda x: factor * x

    assert fingerprint(made(1.0)) == fingerprint(made(1.0))
    assert fingerprint(made(1.0)) != fingerprint(made(2.0))
    assert fingerprint(RAWLoss()) == fingerprint(RAWLoss())
    assert fingerprint(RAWLoss()) != fingerprint(RAWLoss(gamma=0.3))
    assert fingerprint(RAWLoss()) != fingerprint(RAWLoss(distance=LpDistance()))
    own: list[Any] = []
    own.append(own)
    assert fingerprint(own), "what holds itself ends"
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 3)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.weight += 1
    assert fingerprint(layer) != before


def test_an_experiment_shows_what_was_asked_for():
    experiment = Experiment(data=vectors(), losses=[RAWLoss(), "NCA"], seeds=2, learning_rate=0.01)
    assert repr(experiment) == (
        "Experiment(data='TensorDataset', losses=['RAWLoss', 'NCA'], seeds=[0, 1], learning_rate=0.01)"
    )
    assert "learning_rate" in experiment._repr_html_()
    assert "by default: " in experiment._repr_html_()
