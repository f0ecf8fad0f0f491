"""What cells of a notebook show: tables and pictures as HTML or PNG, one bar, and nothing else on the error output."""

import html
import os
import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LARGEST = 500_000  # bytes of a built notebook: they are read where they lie

SETUP = """
import torch, numpy as np, pml_ext
from torch.utils.data import TensorDataset
from pml_ext.losses import RAWLoss
torch.set_num_threads(1)
# What a run leaves in its folder is drawn and looked at elsewhere, and so are curves of many points.
from pml_ext.analysis.plots import weight_curves
from pml_ext.benchmark import plots
plots.draw = lambda *_: []
weight_curves.__kwdefaults__["points"] = 5
draw = torch.Generator().manual_seed(0)
labels = torch.arange(16).repeat_interleave(5)
x = torch.randn(16, 6, generator=draw)[labels] + 0.5 * torch.randn(80, 6, generator=draw)
def my_loss(embeddings, labels):
    scores, same = embeddings @ embeddings.T, labels[:, None] == labels[None]
    return scores[~same].relu().mean() - scores[same].mean()
experiment = pml_ext.Experiment(
    data=TensorDataset(x, labels), losses=["RAW", my_loss], seeds=2, epochs=2, steps=2, batch_size=12,
    embedding_size=4, device="cpu", out="out",
)
"""
# What is typed, and what it must show.
CELLS = {
    "experiment": "text/html",
    "results = experiment.run(); results": "text/html",
    "results.curves()": "image/png",
    "results.recall()": "image/png",
    "results.projection()": "image/png",
    "results.health()": "image/png",
    "results.mistakes()": "text/html",
    "results[0]": "text/html",
    "results.best()": "text/html",
    "results.best().query(x[0])": "text/html",
    "pml_ext.evaluate(x.numpy(), labels.tolist(), k=(1, 5))": "text/html",
    "pml_ext.compare(x, x + torch.randn(80, 6), labels)": "text/html",
    "pml_ext.diagnose(x, labels)": "text/html",
    "pml_ext.explain('RAW')": "text/html",
    "pml_ext.choose(classes=11000, images_per_class=5, batch=256)": "text/html",
    "pml_ext.pair_weights(RAWLoss(), x, labels)": "text/html",
    "pml_ext.laws('RAW', only=['it_learns'], examples=2)": "text/html",
    "pml_ext.datasets.Digits()": "text/html",
    "pml_ext.datasets.open(TensorDataset(x, labels))": "text/html",
    "pml_ext.catalog.build('BinDeviance2018')": "text/html",
    "pml_ext.catalog.recipes": "text/html",
    "from pml_ext.analysis.health import measure; measure(RAWLoss(), x, labels)": "text/html",
    "from pml_ext.analysis.plots import weight_scatter; weight_scatter(pml_ext.pair_weights(RAWLoss(), x, labels))": (
        "image/png"
    ),
    "results.to_frame().shape": "text/plain",
}


def executed(cells, where):
    """A notebook of these cells, run in a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        client = nbclient.NotebookClient(
            notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(where)}}
        )
        return client.execute()


def said(cell, stream):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == stream)


def kinds(cell):
    return {kind for o in cell.outputs if o.output_type in ("execute_result", "display_data") for kind in o.data}


# Sockets of the kernel's client, and files of its connection, are closed when they are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_every_kind_of_cell_shows_something_and_only_the_bar_is_an_error_output(tmp_path):
    without_widgets = "import sys; sys.modules['ipywidgets'] = None"
    done = executed([without_widgets, SETUP, *CELLS], tmp_path)
    for cell, wanted in zip(done.cells[2:], CELLS.values(), strict=True):
        assert wanted in kinds(cell), f"{cell.source} shows {kinds(cell)}"
        text = "".join(o.data.get("text/plain", "") for o in cell.outputs if o.output_type == "execute_result")
        assert len(text.splitlines()) <= 41 or cell.source.endswith("recipes"), cell.source
        on_stderr = said(cell, "stderr")
        if cell.source.startswith("results = "):
            assert "100%|" in on_stderr, "a run shows a bar"
            assert "RAW seed 1 epoch 2/2" in on_stderr
            assert "<00:" in on_stderr, "with the time left"
            assert on_stderr.replace("\r", "\n").strip().splitlines()[-1].count("%|") == 1
        else:
            assert on_stderr == "", f"{cell.source} says {on_stderr}"
    assert "in memory only: my_loss" in said(done.cells[3], "stdout")


def test_where_there_are_widgets_the_bar_is_one_of_them(tmp_path):
    """The bar alone, without a run; what a run shows of it is below."""
    pytest.importorskip("ipywidgets")
    bar = """
from pml_ext.benchmark.progress import Progress
bar = Progress(2)
bar.who = "RAW seed 0 epoch 1/2"
for step in bar.steps(range(3), 3): pass
bar.epoch_done("recall@1 50 %")
bar._bar.refresh()
print(bar._bar.n, bar._bar.container.children[0].value, "|", bar._bar.container.children[2].value)
bar.close()
"""
    (cell,) = executed([bar], tmp_path).cells
    assert "application/vnd.jupyter.widget-view+json" in kinds(cell)
    assert said(cell, "stderr") == ""
    described, beside = html.unescape(said(cell, "stdout")).replace("\u2007", " ").split("|")
    assert described.startswith("1.0 RAW seed 0 epoch 1/2  50%"), described
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, recall@1 50 %$", beside.strip())


@pytest.mark.slow
def test_a_run_has_a_bar_of_widgets(tmp_path):
    pytest.importorskip("ipywidgets")
    done = executed([SETUP, "results = experiment.run(); results"], tmp_path)
    assert "application/vnd.jupyter.widget-view+json" in kinds(done.cells[1])
    assert said(done.cells[1], "stderr") == ""


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_shows_what_it_showed(path, tmp_path):
    built = nbformat.read(path, as_version=4)
    done = executed([cell.source for cell in built.cells if cell.cell_type == "code"], tmp_path)
    before = [kinds(cell) for cell in built.cells if cell.cell_type == "code"]
    assert [kinds(cell) - {"application/vnd.jupyter.widget-view+json"} for cell in done.cells] == before
    for cell in done.cells:
        assert all("%|" in line for line in said(cell, "stderr").replace("\r", "\n").split("\n") if line.strip())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_built_example_is_that_of_its_text_and_small(path):
    jupytext = pytest.importorskip("jupytext")
    assert path.stat().st_size < LARGEST
    built, text = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in built.cells] == [(c.cell_type, c.source) for c in text.cells]
    assert any({"text/html", "image/png"} & kinds(cell) for cell in built.cells if cell.cell_type == "code")
    page = path.read_text(encoding="utf-8")
    assert not re.search("/(home|tmp|Users)/", page), "a path of the machine that built it"
    assert "Traceback" not in page
