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
from speed_peers_page import Found, Point, again, by_place, head, others_over_ours, page, picture  # noqa: E402

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
    for one in speed_peers.kinds_of(found, "cpu", SETTING.n):
        # In half precision PML lacks an operation of torch; that is written down, as a result.
        if one.whose == "pml_ext" or one.kind == "float32":
            one.step(SETTING, x, labels)()


@pytest.mark.pml2("its own losses as contenders")
@pytest.mark.parametrize(
    ("device", "n", "kinds"),
    [
        ("cpu", 1024, ["float32", "bfloat16"]),
        ("cpu", 4096, ["float32"]),
        ("cuda", 4096, ["float32", "tf32", "bfloat16", "graph"]),
    ],
)
def test_every_contender_runs_in_each_way_of_the_device(without_others, device, n, kinds):
    found = list(speed_peers.by_labels(SETTING))
    assert [(one.kind, one.task) for one in speed_peers.kinds_of(found, device, n)] == [
        (kind, one.task) for kind in kinds for one in found
    ]


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
    text = page(found, head("cpu"))
    assert "| 64 x 128 / 4 | RAW | **2.00** | 3.00 |  |" in text
    assert "- NCA, float32, 64 x 128, 4 per class: PML by 2.00 x" in text
    assert "- RAW, float32" not in text
    assert "- NCA, OML, float32, n = 64: TypeError: no" in text
    assert torch.backends.cpu.get_cpu_capability() in text
    assert "`python benchmarks/speed.py --peers`" in text
    assert "Nowhere." in page(found[:2], "where")


def drawn(lines, *, n=(64, 128)):
    """Found lines of a task at d = 128 with 4 per class: the ratios of each package, one for each batch."""
    return [
        Found(task, whose, "float32", batch, 128, 4, ratio, None)
        for task, of in lines.items()
        for whose, ratios in of.items()
        for batch, ratio in zip(n, ratios, strict=True)
    ]


def test_the_picture_has_the_fastest_of_the_others_where_all_of_them_ran():
    found = drawn(
        {
            "BatchHard": {"pml_ext": (2.0, 1.0), "PML": (3.0, 4.0), "OML": (1.0, None)},
            "RAW": {"pml_ext": (2.0, 1.0), "PML": (3.0, 4.0)},
            "SemiHard": {"pml_ext": (2.0, 1.0)},
            "RAW, queue": {"pml_ext": (2.0, 1.0), "PML": (3.0, 4.0)},
        }
    )
    found.append(found[-1]._replace(task="NCA", kind="bfloat16"))
    assert others_over_ours(found) == {
        (128, 4): {
            "BatchHard": [Point(64, 0.5, "OML")],  # behind: in the picture too
            "RAW": [Point(64, 1.5, "PML"), Point(128, 4.0, "PML")],
        }
    }
    assert "![" not in page(drawn({"SemiHard": {"pml_ext": (2.0, 1.0)}}), "where")


def test_lines_of_the_picture():
    pytest.importorskip("matplotlib")
    found = drawn(
        {
            "RAW": {"pml_ext": (2.0, 1.0), "PML": (3.0, 4.0)},
            "RAW, tuples of a miner": {"pml_ext": (2.0, 1.0), "PML": (1.0, 0.5)},
        }
    )
    found += [one._replace(d=512) for one in found[:4]]
    figure = picture(found)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["d = 128, 4 per class", "d = 512, 4 per class"]
    lines = [[*line.get_ydata()] for line in figure.axes[0].get_lines()]
    assert [1.5, 4.0] in lines
    assert [0.5, 0.5] in lines
    low, high = figure.axes[0].get_ylim()
    assert low < 0.5
    assert high > 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["RAW", "given PML's tuples", "fastest: PML"]


def test_page_and_picture_are_made_again_from_the_lines(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match=r"peers\.jsonl is missing"):
        again(tmp_path)
    found = drawn({"RAW": {"pml_ext": (2.0, 1.0), "PML": (3.0, 4.0)}})
    (tmp_path / "peers.jsonl").write_text("".join(json.dumps(one._asdict()) + "\n" for one in found))
    (tmp_path / "peers.md").write_text("# Old\n\nMeasured there.\n\nThe rest.\n")
    again(tmp_path)
    assert (tmp_path / "peers.md").read_text() == page(found, "Measured there.")
    assert 1_000 < (tmp_path / "peers.png").stat().st_size < 150_000


def test_the_page_and_the_picture_are_of_the_lines_beside_them():
    """Of the results that are kept: only the paragraph of where and how is not in the lines."""
    results = BENCHMARKS / "results"
    lines = (results / "peers.jsonl").read_text(encoding="utf-8").splitlines()
    found = [Found(**json.loads(line)) for line in lines]
    text = (results / "peers.md").read_text(encoding="utf-8")
    assert text == page(found, text.split("\n\n")[1])
    assert "](peers.png)" in text
    assert (results / "peers.png").stat().st_size < 150_000


def test_how_far_the_others_are_ahead_stands_in_the_documentation():
    root = BENCHMARKS.parent
    lines = (BENCHMARKS / "results" / "peers.jsonl").read_text(encoding="utf-8").splitlines()
    found = [Found(**json.loads(line)) for line in lines]
    most: dict[str, float] = {}  # ours over the fastest of the others
    for tasks in others_over_ours(found).values():
        for task, of in tasks.items():
            kind = "tuples" if "tuples" in task else task
            most[kind] = max(most.get(kind, 0.0), *(1 / point.times for point in of))
    said = " ".join((root / "docs" / "speed.md").read_text(encoding="utf-8").split())
    assert f"ahead in BatchHard (by up to {most['BatchHard']:.1f} x)" in said
    assert f"PML in NCA ({most['NCA']:.1f} x)" in said
    assert f"some of BatchAll ({most['BatchAll']:.1f} x) and SemiHard" in said
    assert f"PML is ahead in triplets at n = 64 (by up to {most['tuples']:.1f} x)" in said
    assert most["SemiHard"] > 1
    compiled: dict[str, float] = {}
    for place, ratios in by_place(found).items():
        if place.kind == "float32" and "dense, torch.compile" in ratios:
            ahead = ratios["pml_ext"] / ratios["dense, torch.compile"]
            compiled[place.task] = max(compiled.get(place.task, 0.0), ahead)
    assert f"is ahead in RAW at n = 64 (by up to {compiled['RAW']:.1f} x)" in said
    two = f"{compiled['MultiSimilarity']:.1f} and {compiled['BatchHard']:.1f}"
    assert f"in MultiSimilarity and BatchHard at 64 and 128 (by up to {two} x)" in said
    assert max(value for task, value in most.items() if task in ("RAW", "MultiSimilarity", "Contrastive2018")) < 1


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
