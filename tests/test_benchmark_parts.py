"""Arguments, losses by name, the network, the table, and the pictures."""

import io
import math
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from of_pml import losses as pml_losses
from of_pml import needs
from PIL import Image

from pml_ext import catalog
from pml_ext.benchmark import (
    BenchmarkError,
    Experiment,
    Result,
    curves,
    difference,
    evaluate,
    losses,
    names,
    pictures,
    plots,
    table,
)
from pml_ext.benchmark.data import Data
from pml_ext.datasets import DATASETS
from pml_ext.evaluation import Difference, Standing

METRICS = evaluate.names((1, 2, 4, 8))


def made(loss, seed, recall, epochs=3):
    metrics = dict.fromkeys(METRICS, recall)
    if loss == "untrained":
        return Result(loss, seed, metrics, [], None, {})
    history = [{**dict.fromkeys(METRICS, recall * (i + 1) / epochs), "seconds": 1.5} for i in range(epochs)]
    return Result(loss, seed, metrics, history, 1.5, {})


# --- arguments


def test_arguments_survive_json():
    experiment = Experiment(losses=("RAW", "SoftTripleLoss"), seeds=(1, 2), out="x")
    assert Experiment(**experiment.arguments()) == experiment
    assert Experiment(losses="RAW") == Experiment(losses=["RAW"])  # type: ignore[arg-type]


def test_the_old_name_of_data():
    with pytest.warns(DeprecationWarning, match="data now"):
        assert Experiment(dataset="digits") == Experiment(data="digits")
    with pytest.raises(BenchmarkError, match="give data alone"), pytest.warns(DeprecationWarning, match="data now"):
        Experiment(dataset="digits", data="digits")


def test_all_is_the_catalog():
    assert Experiment(losses=("all",)).losses == tuple(catalog.recipes)
    assert Experiment(losses=("all",)).losses


@pytest.mark.parametrize(
    "bad",
    [
        {"losses": ()},
        {"epochs": 1.5},
        {"epochs": True},
        {"steps": 0},
        {"batch_size": 3},
        {"classes_per_batch": 1},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"seeds": (-1,)},
        {"device": "meta"},
    ],
)
def test_bad_arguments(bad):
    with pytest.raises(BenchmarkError, match=str(next(iter(bad.values()))).strip("()-,") or "empty"):
        Experiment(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_batches_are_whole_classes(dataset):
    data = Data.of(Experiment(data=dataset))
    assert not set(data.train.labels.tolist()) & set(data.test.labels.tolist())
    for size, classes in ((128, 32), (30, 7), (4, 2)):
        experiment = Experiment(data=dataset, batch_size=size, classes_per_batch=classes)
        assert 0 < data.batch_size(experiment) <= size
        assert data.batch_size(experiment) % data.images_per_class(experiment) == 0
        assert data.batch_size(experiment) / data.images_per_class(experiment) <= data.train_classes
        assert data.images_per_class(experiment) >= 2


# --- losses by name


@pytest.mark.filterwarnings("default")  # PML's LargeMarginSoftmaxLoss and HistogramLoss use torch and numpy of old
@pytest.mark.parametrize("name", losses.names())
def test_every_name_can_be_trained_or_says_why_not(name):
    unusable = {
        "DynamicSoftMarginLoss": "second time",
        "ManifoldLoss": "no default for l",
        "PairWeightedLoss": "no default for weighting",
        "RankedListLoss": "no default for margin, Tn",
        "VICRegLoss": "not supported for this loss function",
    }
    if name in unusable:
        with pytest.raises(BenchmarkError, match=unusable[name]):
            losses.rehearse(name, classes=10, embedding_size=16, images_per_class=4)
    else:
        losses.rehearse(name, classes=10, embedding_size=16, images_per_class=4)


def test_losses_are_told_the_number_of_classes():
    needs("SubCenterArcFaceLoss", "P2SGradLoss")
    recipe = losses.build("SubCenterArcFaceLoss", classes=7, embedding_size=5)
    assert isinstance(recipe.loss, pml_losses.SubCenterArcFaceLoss)
    assert recipe.loss.W.shape == (5, 7 * 3)
    assert losses.build("P2SGradLoss", classes=7, embedding_size=5).loss.weight.shape == (5, 7)
    assert losses.build("MarginLoss", classes=7, embedding_size=5).loss.beta.numel() == 1  # its default


def test_the_catalog_comes_before_pml():
    recipe = losses.build("RAW", classes=7, embedding_size=5)
    assert type(recipe.loss) is type(catalog.build("RAW").loss)
    assert len(losses.names()) == len(set(losses.names()))


# --- the table


def test_names_of_pml_are_read_wherever_they_are_written_down(tmp_path, monkeypatch):
    package = tmp_path / "pytorch_metric_learning"
    package.mkdir()
    (package / "__init__.py").write_text("")
    found = ModuleSpec("pytorch_metric_learning", None, is_package=True)
    found.submodule_search_locations = [str(package)]
    monkeypatch.setattr(names, "find_spec", lambda name: found)
    monkeypatch.setattr(names, "pml", names.pml.__wrapped__)
    assert names.pml() == ()
    names.check_loss("ALoss")  # PML itself knows
    names.check_loss("pml:ALoss")
    (package / "losses.py").write_text("__all__ = ['ALoss', 'Base']\n")
    assert names.pml() == ("ALoss",)
    names.check_loss("pml:ALoss")
    for wrong in ("BLoss", "pml:BLoss", "pml:Base"):
        with pytest.raises(BenchmarkError, match="unknown loss"):
            names.check_loss(wrong)
    (package / "losses.py").unlink()
    (package / "losses").mkdir()
    (package / "losses" / "__init__.py").write_text("from .a import Other as ALoss\n__all__ = ['ALoss', 'BLoss']\n")
    assert names.pml() == ("ALoss", "BLoss")


def test_bases_of_pml_are_no_losses():
    assert not {"BaseMetricLossFunction", "GenericPairLoss", "BaseProxyLoss"} & set(losses.names())


def test_table():
    lines = table.text([made("untrained", 0, 0.05), made("RAW", 0, 0.5)]).splitlines()
    assert lines[0].split() == ["loss", "recall@1", "@2", "@4", "@8", "MAP@R", "R-precision", "NMI", "s/epoch"]
    assert lines[2].split() == ["untrained", *["5.0"] * 7, "-"]
    assert lines[3].split() == ["RAW", *["50.0"] * 7, "1.50"]
    assert len({len(line) for line in lines[:4]}) == 1, "the columns are aligned"
    for form in (table.text, table.markdown):
        assert form([made("RAW", 0, 0.5)], notes=["by chance: 1 %"]).rstrip().endswith("by chance: 1 %")


@pytest.mark.parametrize(
    ("levels", "said"), [((0.4, 0.4), True), ((0.4, 0.6), False), ((0.6, 0.4), False), ((math.nan, 0.4), True)]
)
def test_a_frozen_trunk_that_no_loss_exceeds_is_named(levels, said):
    trained = [made(loss, seed, level) for loss, level in zip("AB", levels, strict=True) for seed in (0, 1)]
    trained = [replace(each, metrics={}) if math.isnan(each.metrics["NMI"]) else each for each in trained]
    for form in (table.text, table.markdown):
        assert ("than the frozen trunk: train for longer" in form([made("frozen trunk", 0, 0.5), *trained])) == said
        assert "frozen trunk" not in form([made("untrained", 0, 0.5), *trained])


def test_table_of_several_seeds():
    results = [made(name, seed, recall) for name in ("untrained", "RAW") for seed, recall in enumerate((0.4, 0.5, 0.6))]
    text = table.text(results)
    assert text.count("RAW") == 1
    assert "50.0 ± 24.8" in text, "4.303 x 0.1 / sqrt(3)"
    assert "3 seeds" in text
    assert "| RAW | 50.0 ± 24.8 |" in table.markdown(results)


def test_the_table_says_how_many_have_failed_and_why():
    failed = Result("RAW", 2, {}, [], None, {}, error="diverged: the loss is nan at epoch 1, step 3")
    text = table.text([made("RAW", 0, 0.4), made("RAW", 1, 0.4), failed])
    assert "RAW (2 of 3)" in text
    assert "40.0 ± 0.0" in text
    assert text.splitlines()[-1] == "RAW, seed 2, failed: diverged: the loss is nan at epoch 1, step 3"


def test_ranks_in_the_table():
    results = [made(name, 0, 0.5) for name in ("A", "B|C")]
    standing = {
        "A": Standing(0.5, 1, 1, None, True, 1, 1),
        "B|C": Standing(0.4, 1, 1, Difference(-0.1, -0.2, -0.05, 0.001), False, 2, 3),
    }
    rows = [row.split(" | ") for row in table.markdown(results, standing).splitlines()[2:4]]
    assert [row[-2] for row in rows] == ["1*", "2-3"]
    assert rows[1][0] == "| B\\|C", "a name does not end a cell"


def test_table_shows_nan():
    result = made("RAW", 0, 0.4)
    assert "nan" in table.text([replace(result, metrics={**result.metrics, "NMI": float("nan")})])


# --- the pictures


def pixels(figure, tmp_path):
    with Image.open(io.BytesIO(plots._save(figure, tmp_path / "figure.png").read_bytes())) as image:
        return np.asarray(image.convert("RGB"))


def has(image, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image.astype(int) - rgb).sum(axis=2) < 6).sum() > 40)


@pytest.mark.parametrize("draw", [curves.learning_curves, curves.recall_curves])
def test_curves_have_a_line_and_a_name_per_loss(draw, tmp_path):
    names = ["RAW", "ContrastiveLoss", "TripletMarginLoss"]
    figure = draw([made("untrained", 0, 0.05), *(made(name, 0, 0.5 + i / 10) for i, name in enumerate(names))])
    image = pixels(figure, tmp_path)
    for colour in curves.COLORS[:3]:
        assert has(image, colour)
    (axes,) = figure.axes
    written = [text.get_text() for text in axes.texts]
    assert all(any(name in text for text in written) for name in [*names, "untrained"])
    assert "%" in axes.get_ylabel()
    assert axes.get_xlabel()
    assert axes.get_title(loc="left")


def test_learning_curves_start_untrained():
    figure = curves.learning_curves([made("untrained", 0, 0.05), made("RAW", 0, 0.6)])
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert np.allclose(line.get_ydata(), [5, 20, 40, 60])


def test_names_at_the_ends_do_not_overlap():
    results = [made("untrained", 0, 0.05), *(made(name, 0, 0.9) for name in ("RAW", "ContrastiveLoss", "NCALoss"))]
    figure = curves.recall_curves(results)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_many_losses_get_a_legend(tmp_path):
    figure = curves.learning_curves([made(f"loss{i}", 0, i / 40) for i in range(1, 32)])
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) >= 28
    assert len(figure.axes[0].get_legend().get_texts()) == 31
    assert pixels(figure, tmp_path).std() > 10


@pytest.mark.parametrize("draw", [curves.learning_curves, curves.recall_curves])
def test_lines_that_lie_high_fill_the_picture(draw):
    high = [made(f"loss{i}", 0, 0.8 + i / 200, epochs=1) for i in range(4)]
    axes = draw(high).axes[0]
    bottom, top = axes.get_ylim()
    lines = [value for line in axes.lines for value in line.get_ydata()]
    assert 0 < bottom < min(lines)
    assert max(lines) <= top
    assert draw([made("low", 0, 0.3, epochs=1), *high]).axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize("draw", [curves.learning_curves, curves.recall_curves])
def test_lines_at_the_top_have_an_axis_below_them(draw):
    axes = draw([made("untrained", 0, 1.0), made("RAW", 0, 1.0, epochs=1)]).axes[0]  # a warning would be an error here
    assert axes.get_ylim()[0] == 95
    assert axes.get_ylim()[1] >= 100
    near = draw([made(f"loss{i}", 0, 0.83 + i / 200, epochs=1) for i in range(3)])
    assert near.axes[0].get_ylim()[0] == 82, "83 to 84: half as much again below them, in whole numbers"


def test_gallery_marks_right_and_wrong(tmp_path):
    test = DATASETS["digits"](split="test")
    one_hot = torch.nn.functional.one_hot(test.labels - test.labels.min()).float()
    right = pixels(pictures.gallery(test, {"oracle": one_hot}), tmp_path)[120:]
    opposite = torch.randn(len(test), 8, generator=torch.Generator().manual_seed(0))
    wrong = pixels(pictures.gallery(test, {"chance": torch.nn.functional.normalize(opposite)}), tmp_path)[120:]
    assert has(right, pictures.RIGHT)
    assert not has(right, pictures.WRONG)
    assert has(wrong, pictures.WRONG)


def test_gallery_leaves_the_query_out():
    vectors = torch.nn.functional.normalize(torch.randn(20, 4), dim=1)
    for query in range(20):
        nearest = pictures._nearest(vectors, query)
        assert query not in nearest
        by_hand = sorted((i for i in range(20) if i != query), key=lambda i: -float(vectors[i] @ vectors[query]))
        assert nearest == by_hand[:8]


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # the font has no Chinese
def test_names_of_strangers_fit_into_the_pictures(tmp_path):
    names = ("$x^", "a name that goes on and on and on until the picture is over", "two\nlines", "<b>", "_", "鳥")

    class Test:
        labels = torch.arange(24) % 6
        classes = names

        def __len__(self):
            return 24

        def image(self, index):
            return Image.new("RGB", (60, 20), (10 * index, 90, 90))

    vectors = torch.nn.functional.normalize(torch.randn(24, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    figure = pictures.gallery(Test(), {"RAW": vectors})
    drawn = pixels(figure, tmp_path)
    pixels(pictures.projection(Test(), {"$RAW": vectors}), tmp_path)
    titles = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
    shown = [title for title in titles if title.get_text()]
    assert len(shown) == pictures.QUERIES
    width = drawn.shape[1]
    for title in shown:
        box = title.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
    # A wide photograph keeps its shape: white above and below.
    picture = figure.axes[0].images[0].get_array()
    assert tuple(picture[0, 0]) == (255, 255, 255)
    assert tuple(picture[48, 0]) != (255, 255, 255)


def test_projection_has_a_panel_per_loss_and_a_name_per_class(tmp_path):
    digits = DATASETS["digits"](split="test")
    few = torch.cat([(digits.labels == label).nonzero()[:12, 0] for label in digits.labels.unique()])
    test = SimpleNamespace(labels=digits.labels[few], classes=digits.classes)
    one_hot = torch.nn.functional.one_hot(test.labels - test.labels.min()).float()
    noise = 0.1 * torch.randn(one_hot.shape, generator=torch.Generator().manual_seed(0))
    figure = pictures.projection(test, {"a": one_hot + noise, "b": noise, "c": one_hot + 2 * noise})
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == ["a", "b", "c"]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {str(test.classes[i]) for i in set(test.labels.tolist())}
    image = pixels(figure, tmp_path)
    for colour in pictures.HUES[:5]:
        assert has(image, colour)


def test_all_pictures_of_an_experiment(tmp_path):
    out = tmp_path / "out"
    Experiment(losses=("RAW",), data="digits", epochs=1, steps=1, out=str(out), device="cpu").run()
    names = ["gallery.png", "health.png", "learning_curves.png", "projection.png", "recall_at_k.png"]
    assert sorted(path.name for path in (out / "plots").iterdir()) == names
    for name in names:
        with Image.open(out / "plots" / name) as image:
            assert min(image.size) > 500
            assert np.asarray(image.convert("L")).std() > 10
    report = (out / "report.html").read_text(encoding="utf-8")
    for part in ("Results", "Curves", "Retrievals", "Map", "Health", "Arguments", "gain over<br>untrained"):
        assert part in report, part
    assert report.count("<li class=") == 6 * 2 * 8
    assert "training on" not in report
    assert "digits: trained on" in report


def test_what_queries_have_is_known_or_not(tmp_path):
    results = [made("RAW", 0, 0.5), replace(made("RAW", 1, 0.5), error="diverged", metrics={}), made("NCA", 0, 0.5)]

    def save(loss, seed, content):
        (tmp_path / f"{loss}-seed{seed}").mkdir(exist_ok=True)
        (tmp_path / f"{loss}-seed{seed}" / "queries.npz").write_bytes(content)

    def values(*rows):
        stream = io.BytesIO()
        np.savez_compressed(stream, recall_at_1=np.array(rows, dtype=np.float32))
        return stream.getvalue()

    save("RAW", 0, values(1, 0, 1))
    assert list(difference.of_losses(tmp_path, results)) == ["RAW"]
    save("NCA", 0, values(0, 0, 1))
    found = difference.of_losses(tmp_path, results)
    assert found["RAW"].tolist()[0] == [1, 0, 1]
    assert np.isnan(found["RAW"][1]).all()
    for damaged in (b"", values(0, 0, 1)[:40], values(0, 0, 1).replace(b"recall", b"recoll"), b"PK\x03\x04nothing"):
        save("NCA", 0, damaged)
        assert list(difference.of_losses(tmp_path, results)) == ["RAW"]
    save("NCA", 0, values(0, 1))  # of another test set
    assert difference.of_losses(tmp_path, results) == {}


def test_no_more_than_the_best_losses_are_pictured():
    results = [made("untrained", 0, 0.9), *(made(f"loss{i}", 0, i / 10) for i in (3, 5, 1, 4, 2))]
    assert plots._best(results) == ["untrained", "loss3", "loss5", "loss4"]
