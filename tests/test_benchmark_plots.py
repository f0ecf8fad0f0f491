"""What the curves of an experiment are drawn from: the numbers of that k, of that epoch, of that run."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pml_ext.benchmark import plots
from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.result import Result

RECALL_AT = (1, 2, 4, 8)


def ran(loss, seed, at_1):
    """A run whose recall differs from k to k and from epoch to epoch."""
    metrics = {f"recall_at_{k}": at_1 + i / 100 for i, k in enumerate(RECALL_AT)} | {"NMI": 0.99}
    history = [{"epoch": i + 1, "seconds": 1.0, "recall_at_1": at_1 * i / 4, "recall_at_2": 0.9} for i in range(3)]
    return Result(loss, seed, metrics, history, 1.0, {})


def test_a_point_of_a_recall_curve_has_the_recall_at_its_k():
    figure = plots.recall_curves([ran("RAW", 0, 0.5), ran("RAW", 1, 0.7), ran("NCALoss", 0, 0.2)])
    for line, at_1 in zip(figure.axes[0].lines, (0.6, 0.2), strict=False):
        assert list(line.get_xdata()) == list(RECALL_AT)
        np.testing.assert_allclose(line.get_ydata(), [100 * at_1 + i for i in range(4)])


def test_the_band_of_a_recall_curve_is_that_of_its_seeds():
    figure = plots.recall_curves([ran("RAW", 0, 0.5), ran("RAW", 1, 0.7)])
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    for i, k in enumerate(RECALL_AT):
        heights = corners[corners[:, 0] == k][:, 1]
        np.testing.assert_allclose((heights.min(), heights.max()), (50 + i, 70 + i))


def test_a_learning_curve_has_the_recall_of_each_epoch_and_its_thin_lines_that_of_each_seed():
    figure = plots.learning_curves([ran("RAW", 3, 0.4), ran("RAW", 5, 0.8)])
    middle, first, second = (line.get_ydata() for line in figure.axes[0].lines[:3])
    np.testing.assert_allclose(middle, [0, 15, 30])
    np.testing.assert_allclose(first, [0, 10, 20])
    np.testing.assert_allclose(second, [0, 20, 40])


def test_pictures_are_of_the_first_run_of_each_loss_and_of_no_other_seed(monkeypatch, tmp_path):
    results = [ran("RAW", 5, 0.4), ran("NCALoss", 7, 0.8), ran("RAW", 3, 0.6)]
    asked, shown = [], {}

    def embeddings_of(experiment, data, folder, *key):
        assert folder == run_folder(tmp_path, *key), "the folder of another run"
        asked.append(key)
        return torch.full((2, 2), float(key[1]))

    def picture(test, embeddings):
        shown.update(embeddings)
        return Figure()

    monkeypatch.setattr(plots, "embeddings_of", embeddings_of)
    monkeypatch.setattr(plots, "_save", lambda figure, path: path)
    for name in ("gallery", "projection"):
        monkeypatch.setattr(plots, name, picture)
    monkeypatch.setattr(plots, "page", lambda contents: "")  # the report has tests of its own
    described = staticmethod(lambda done: "toy")
    data = type(
        "Data",
        (),
        {
            "samples": None,
            "test": None,
            "name": "toy",
            "notes": (),
            "describe": described,
            "chance": staticmethod(lambda: ""),
        },
    )
    plots.draw(None, data, tmp_path, results)
    assert sorted(asked) == [("NCALoss", 7, None), ("RAW", 5, None)]
    assert {name: vectors[0, 0].item() for name, vectors in shown.items()} == {"NCALoss": 7, "RAW": 5}


def test_the_titles_of_the_health_leave_room_in_wider_letters():
    run = {name: [0.5] * 3 for name in plots.HEALTH} | {"step": [0, 1, 2]}
    figure = plots.health_curves({name: [run] for name in ("RAW", "NCA", "MultiSimilarity")})
    figure.set_size_inches(9, 6.4)  # as in the report, whose reader has letters of another width
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    places = [axes.title if axes.title.get_text() else axes._left_title for axes in figure.axes]
    boxes = [each.get_window_extent(renderer) for each in places]
    ends = [box.x0 + 1.15 * box.width for box in boxes]
    (legend,) = figure.legends
    assert ends[0] < boxes[1].x0
    assert ends[2] < boxes[3].x0
    assert max(ends[1], ends[3]) < legend.get_window_extent(renderer).x0
