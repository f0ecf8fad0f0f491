"""The benchmark of equally tuned losses: its page says what its lines hold, and no more."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pml_ext.benchmark import BenchmarkError
from pml_ext.benchmark.folder import run_folder, start
from pml_ext.benchmark.result import BASELINES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import conditions
import hdml_table
import image_options
import reality
import reality_page
import run_lines


def write_runs(folder, methods):
    """Runs of methods whose queries have an average precision around a number."""
    rng = np.random.default_rng(0)
    of_query = rng.normal(0, 0.05, 200)
    rows = []
    for loss, level in methods.items():
        for seed in range(3):
            values = (level + of_query + rng.normal(0, 0.01, 200)).astype(np.float32)
            where = run_folder(folder, loss, seed)
            where.mkdir(parents=True)
            np.savez(where / "queries.npz", mean_average_precision_at_r=values)
            metrics = {"mean_average_precision_at_r": float(values.mean()), "recall_at_1": level, "NMI": 0.5}
            rows.append({"loss": loss, "seed": seed, "error": "", "metrics": metrics, "seconds_per_epoch": 0.1})
            rows[-1] |= {"history": [], "arguments": {"epochs": 5, "out": "somewhere"}, "hardware": {}}
    rows.append({"loss": "NCA", "seed": 0, "error": "diverged: at step 3", "metrics": {}, "seconds_per_epoch": None})
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(reality_page, "RESULTS", tmp_path / "reality.md")
    write_runs(
        tmp_path / "frozen" / "A" / "tested",
        {"RAW(gamma=0.3)": 0.4, "pml:ContrastiveLoss": 0.3, "BatchHard": 0.5, "BatchAll": 0.5},
    )
    (tmp_path / "frozen" / "B").mkdir()  # nothing was tested there yet
    return tmp_path


def test_the_page_has_the_differences_that_there_are_and_marks_no_others(out):
    (out / "reality.md").write_text("# Read this\n\nby hand\n\n<!-- measured -->\nold numbers\n")
    reality_page.write(out)
    page = (out / "reality.md").read_text()
    assert page.startswith("# Read this\n\nby hand\n")
    assert "old numbers" not in page
    claims = {tuple(line.split(" | ")[:2]): line for line in page.splitlines() if line.startswith("| ")}
    assert "| **+10.0 [" in claims["| RAW", "pml:ContrastiveLoss"]
    assert "**" not in claims["| BatchHard", "BatchAll"]
    assert claims["| XBM", "pml:ContrastiveLoss"].count("|") == 5  # an empty cell: XBM was not tested
    assert "| RAW | 40.0 ± " in page
    assert "gamma=0.3" in page
    assert page.index("| BatchHard | ") < page.index("| RAW | 40")
    assert (out / "reality.png").stat().st_size > 1000
    kept = [json.loads(line) for line in (out / "reality.jsonl").read_text().splitlines()]
    # A line for each loss; the run that diverged has no metrics.
    assert [line["runs"]["seed"] for line in kept] == [[0, 1, 2]] * 4
    assert [len(line["runs"]["metrics"]["NMI"]) for line in kept] == [3] * 4
    assert {line["data"] for line in kept} == {"frozen: A"}
    assert kept[0]["arguments"] == {"epochs": 5}
    assert "all data sets" not in page  # there is one


def test_methods_of_several_data_sets_stand_beside_each_other(out):
    levels = {"RAW(gamma=0.1)": 0.5, "BatchHard": 0.3, "BatchAll": 0.3}
    write_runs(out / "frozen" / "C" / "tested", levels)
    reality_page.write(out)
    _, table = (out / "reality.md").read_text().split("## frozen: all data sets")
    rows = [line.split(" | ") for line in table.split("## ")[0].splitlines() if line.startswith("| ")]
    assert rows[0] == ["| method", "mean place", "frozen: A", "frozen: C |"]
    found = {row[0]: row[1:] for row in rows[1:]}
    assert found["| RAW"] == ["2.0", "40.0", "50.0* |"]  # third, then first
    assert set(found) == {"| RAW", "| BatchHard", "| BatchAll"}  # C lacks the contrastive loss


def test_data_sets_of_another_day_stay_as_they_are_without_their_runs(out, tmp_path):
    reality_page.write(out)
    before = (out / "reality.md").read_text()
    files = {kind: (out / f"reality.{kind}").read_bytes() for kind in ("json", "jsonl")}
    reality_page.write(tmp_path / "empty")
    assert (out / "reality.md").read_text() == before
    assert {kind: (out / f"reality.{kind}").read_bytes() for kind in files} == files

    (tmp_path / "empty" / "frozen").mkdir(parents=True)
    write_runs(tmp_path / "empty" / "frozen" / "C" / "tested", {"RAW(gamma=0.1)": 0.5, "BatchHard": 0.3})
    reality_page.write(tmp_path / "empty")
    page = (out / "reality.md").read_text()
    section = before.split("## frozen: A")[1].rstrip()
    assert section in page
    assert page.index("## frozen: A") < page.index("## frozen: C")
    assert "## frozen: all data sets" in page
    (claim,) = (line for line in before.splitlines() if line.startswith("| RAW | pml:ContrastiveLoss |"))
    assert f"{claim} |" in page  # C has no contrastive loss: an empty cell more


def test_the_page_in_the_repository_is_that_of_the_files_beside_it(tmp_path, monkeypatch):
    for kind in ("md", "json", "jsonl"):
        shutil.copy(reality_page.RESULTS.with_suffix(f".{kind}"), tmp_path)
    before = (tmp_path / "reality.md").read_text()
    monkeypatch.setattr(reality_page, "RESULTS", tmp_path / "reality.md")
    reality_page.write(tmp_path / "empty")
    assert (tmp_path / "reality.md").read_text() == before


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"seed": 0}],
        [{"seed": 0, "metrics": {"NMI": 0.5}}, {"seed": 1}, {"seed": 2, "metrics": {"MAP@R": 0.1}, "date": "today"}],
        [{"seed": 1}, {"seed": 0, "fold": 0, "validation": {"MAP@R": 0.0}}],
    ],
)
def test_rows_come_back_from_their_columns(rows):
    assert run_lines.rows(json.loads(json.dumps(run_lines.columns(rows)))) == rows


def test_a_line_that_is_kept_says_nothing_of_the_machine():
    arguments = {"out": "/home/me/runs", "cache": "/c", "weights": "/home/me/best/weights.pt", "trunk": "conv4"}
    line = {"loss": "RAW", "metrics": {}, "hardware": {"cpu": "x"}, "arguments": arguments}
    kept = run_lines.kept(line, "A")
    assert kept["arguments"] == {"weights": "weights.pt", "trunk": "conv4"}
    assert "hardware" not in kept


def test_what_was_run_again_is_held_against_the_first_run(out):
    first = reality_page.lines(out / "frozen" / "A" / "tested")
    for place, change in enumerate((0.0, 0.01)):
        line = first[place] | {"metrics": {"mean_average_precision_at_r": 0.0}}
        line["metrics"]["mean_average_precision_at_r"] = first[place]["metrics"]["mean_average_precision_at_r"] + change
        where = out / "frozen" / "A" / "again" / str(place)
        where.mkdir(parents=True)
        (where / "results.jsonl").write_text(json.dumps(line) + "\n")
    said = reality_page.repeated(out / "frozen" / "A")
    assert said[0] == "2 runs were made again; 1 have the same MAP@R to nine digits."
    assert said[2].startswith("- RAW, seed 1: MAP@R ")


def test_a_part_is_run_again_by_seeds(out, monkeypatch):
    ran = []
    monkeypatch.setattr(reality, "run", lambda experiment, **_: ran.append((experiment.seeds, experiment.losses)))
    whole = reality.Experiment(losses=("RAW",), out=str(out / "frozen" / "A"))
    start(out / "frozen" / "A" / "tested", whole, whole.losses)
    reality.again(whole, 0.5)
    tested = {(line["loss"], line["seed"]) for line in reality_page.lines(out / "frozen" / "A" / "tested")}
    drawn = [(loss, seed) for (seed,), losses in ran for loss in losses]
    assert len(drawn) == len(set(drawn)) == 6
    assert set(drawn) < tested
    assert len(ran) == len({seed for _, seed in drawn})


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_not_trained_is_not_run_again(tmp_path, monkeypatch, name):
    write_runs(tmp_path / "tested", {"RAW": 0.4, name: 0.1})
    ran = []
    monkeypatch.setattr(reality, "run", lambda experiment, **_: ran.extend(experiment.losses))
    whole = reality.Experiment(losses=("RAW",), out=str(tmp_path))
    start(tmp_path / "tested", whole, whole.losses)
    reality.again(whole, 1)
    assert ran == ["RAW"] * 3
    shutil.copytree(tmp_path / "tested", tmp_path / "again" / "seed0")
    assert reality_page.repeated(tmp_path)[0].startswith("3 runs were made again; 3 have")


def test_what_is_run_again_has_the_arguments_of_the_test(out, monkeypatch):
    ran = []
    monkeypatch.setattr(reality, "run", lambda *_, **__: ran.append(1))
    tested = reality.Experiment(losses=("RAW",), trunk_learning_rate=1e-4, out=str(out / "frozen" / "A"))
    start(out / "frozen" / "A" / "tested", tested, tested.losses)
    with pytest.raises(BenchmarkError, match=r"has trunk_learning_rate 0\.0001, not 0\.0005"):
        reality.again(reality.replace(tested, trunk_learning_rate=5e-4), 0.5)
    assert not ran
    reality.again(tested, 0.5)
    assert ran


def test_nothing_is_run_again_before_it_was_tested(tmp_path):
    with pytest.raises(SystemExit, match=r"`reality\.py test` comes first"):
        reality.again(reality.Experiment(losses=("RAW",), out=str(tmp_path)), 0.5)


def test_without_a_run_there_is_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(reality_page, "RESULTS", tmp_path / "reality.md")
    with pytest.raises(SystemExit, match="has ended"):
        reality_page.write(tmp_path)


def test_corrected_p_values():
    assert reality_page.holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert reality_page.holm([]) == []


@pytest.mark.pml2("its own losses, by name")
def test_every_method_and_every_claim_has_a_name_that_is_known():
    from pml_ext.benchmark.losses import parse

    assert len(set(reality.METHODS)) == len(reality.METHODS)
    for name in reality.METHODS:
        assert parse(name).build(classes=5, embedding_size=8)
    for name, track in reality.TRACKS.items():
        assert set(track.methods) <= set(reality.METHODS), name
        reality.Experiment(losses=track.methods, **track.budget)
    claimed = {name for first, second, _ in reality_page.CLAIMS for name in (first, second)}
    assert claimed <= set(reality.METHODS)


def innermost(loss):
    """The loss inside wrappers."""
    while isinstance(getattr(loss, "loss", None), torch.nn.Module):
        loss = loss.loss
    return loss


@pytest.mark.parametrize(("first", "second", "what"), reality_page.ONE_CHANGE)
def test_where_one_thing_differs_the_same_loss_is_inside(first, second, what):
    from pml_ext.benchmark.losses import parse

    one, other = (innermost(parse(name).build(classes=5, embedding_size=8).loss) for name in (first, second))
    assert type(one) is type(other)


def test_conditions_are_held_against_the_base_of_the_same_method(tmp_path):
    write_runs(tmp_path / "A" / conditions.BASE, {"RAW": 0.4, "NCA": 0.4, "NCA(k=1)": 0.3})
    write_runs(tmp_path / "A" / "8 x 4", {"RAW": 0.4, "NCA": 0.5})
    page = conditions.page(tmp_path)
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in page.splitlines() if line.startswith("| ")}
    assert cells["|"] == ["RAW", "NCA |"]
    assert "**" not in cells["| 8 x 4"][0]
    assert cells["| 8 x 4"][1].startswith("**+10.0 [")
    assert cells["| k = 1"][1].startswith("**-10.0 [")
    assert "| k = 4" not in cells
    for condition in conditions.CONDITIONS.values():
        conditions.Experiment(losses=(*conditions.METHODS, *conditions.NEAREST), **condition)


def test_a_page_of_nothing_does_not_take_the_place_of_one(tmp_path):
    with pytest.raises(SystemExit, match="has ended"):
        conditions.page(tmp_path)


@pytest.mark.pml2("its own losses, by name")
def test_what_a_track_tunes_is_tested_as_tuned_or_not_at_all(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(reality, "run", lambda experiment, **_: ran.append(experiment.losses))
    whole = reality.Experiment(losses=("RAW", "NCA"), out=str(tmp_path))
    with pytest.raises(SystemExit, match=r"tuned\.json"):
        reality.measured(whole, (0,), is_tuned=True)
    (tmp_path / "tuned").mkdir()
    tuned = tmp_path / "tuned" / "tuned.json"
    tuned.write_text(json.dumps({"losses": ["RAW(gamma=0.3)", "BatchHard(margin=0.1)"]}))
    with pytest.raises(SystemExit, match="not tuned yet: NCA"):
        reality.measured(whole, (0,), is_tuned=True)
    tuned.write_text(json.dumps({"losses": ["RAW(gamma=0.3)", "BatchHard(margin=0.1)", "NCA(k=3,scale=2)"]}))
    reality.measured(whole, (0,), is_tuned=True)
    reality.measured(whole, (0,), is_tuned=False)
    reality.measured(reality.replace(whole, losses=("NCA(k=3)",)), (0,), is_tuned=True)
    assert ran == [("RAW(gamma=0.3)", "NCA(k=3,scale=2)"), ("RAW", "NCA"), ("NCA(k=3,scale=2)",)]


@pytest.mark.parametrize(("rate", "expected"), [([], 5e-4), (["--trunk-learning-rate", "1e-4"], 1e-4)])
def test_the_trunk_that_is_trained_has_the_rate_that_was_given(tmp_path, monkeypatch, rate, expected):
    ran = []
    monkeypatch.setattr(reality, "run", lambda one, **_: ran.append(one.trunk_learning_rate))
    command = ["reality.py", "test", "glyphs", "--track", "fine-tuned", "--out", str(tmp_path), *rate]
    monkeypatch.setattr(sys, "argv", command)
    reality.main()
    assert ran == [expected]


@pytest.mark.parametrize("track", ["frozen", "scratch"])
def test_a_rate_is_for_the_trunk_that_is_trained_alone(monkeypatch, capsys, track):
    monkeypatch.setattr(sys, "argv", ["reality.py", "test", "--track", track, "--trunk-learning-rate", "1e-4"])
    with pytest.raises(SystemExit):
        reality.main()
    assert f"--trunk-learning-rate: '{track}' has its own" in capsys.readouterr().err


def test_flags_of_images():
    parser = argparse.ArgumentParser()
    image_options.add_to(parser, "runs/x")
    assert image_options.arguments(parser.parse_args([])) == {"cache": None}
    sized = image_options.arguments(parser.parse_args(["--image-size", "96", "128", "--cache", "c"]))
    assert sized == {"cache": "c", "image_size": (96, 128), "shorter_side": 96}
    own = image_options.arguments(parser.parse_args(["--trunk", "conv4", "--weights", "w.pt"]))
    assert own == {"cache": None, "trunk": "conv4", "weights": "w.pt"}


def test_the_table_of_synthesis_compares_with_the_loss_without_and_keeps_other_data(tmp_path, monkeypatch, capsys):
    levels = dict.fromkeys([name for plain, each in hdml_table.FAMILIES.items() for name in (plain, *each)], 0.5)
    write_runs(tmp_path / "runs", levels | {"HDML-NPair": 0.4})
    monkeypatch.setattr(hdml_table, "RUNS", tmp_path / "kept.jsonl")
    for data in ("first", "second", "second"):
        monkeypatch.setattr(sys, "argv", ["hdml_table.py", str(tmp_path / "runs"), "--data", data, "--add"])
        hdml_table.main()
    cells = [[each.strip() for each in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {name: each[-2:] for name, *each in cells if len(each) == 5}
    assert [cell.startswith(("-10.", "-9.9"), 2) and cell.startswith("**") for cell in rows["HDML-NPair"]] == [
        True,
        True,
    ]
    assert not any("**" in cell for name, each in rows.items() for cell in each if name != "HDML-NPair")
    assert rows["Triplet"] == ["", ""]
    assert rows["HDML-NPair-real"][0] == ""
    assert rows["HDML-NPair-balanced"][0] != ""
    kept = run_lines.read(tmp_path / "kept.jsonl")
    assert [line["data"] for line in kept].count("first") == [line["data"] for line in kept].count("second") == 27


def test_the_table_of_synthesis_compares_what_was_measured(tmp_path, monkeypatch, capsys):
    write_runs(tmp_path / "runs", {"untrained": 0.1, "NPair": 0.5, "HDML-NPair-real": 0.5, "HDML-NPair": 0.4})
    monkeypatch.setattr(sys, "argv", ["hdml_table.py", str(tmp_path / "runs"), "--data", "some"])
    hdml_table.main()
    shown = capsys.readouterr().out
    assert "Triplet" not in shown
    assert "balanced" not in shown
    assert any(line.startswith("| untrained | ") for line in shown.splitlines())
    (row,) = [line for line in shown.splitlines() if line.startswith("| HDML-NPair |")]
    assert row.count("**-") == 2
