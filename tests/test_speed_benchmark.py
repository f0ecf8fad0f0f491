"""The benchmark of speed runs, and the loops that it compares with compute what our losses do."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pml_ext.catalog import build
from pml_ext.losses import BinomialDevianceLoss
from pml_ext.miners import InverseDensityMiner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import mining  # noqa: E402
import speed  # noqa: E402
from loops import dist_weight_neighbour, loops  # noqa: E402
from speed_jobs import FLOOR, Setting, all_jobs, batch  # noqa: E402
from speed_measure import peak_megabytes, times  # noqa: E402
from speed_report import MAIN, Goal, Lines, goals, table  # noqa: E402

SETTING = Setting(48, 16, 4)


def value_and_gradient(function, x, labels):
    x = x.clone().requires_grad_()
    value = function(x, labels)
    value.backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("name", sorted(set(loops) - {"DistWeightNeighbour"}))
def test_a_loop_has_the_value_and_the_gradient_of_the_loss_that_it_is_compared_with(name):
    ours = BinomialDevianceLoss() if name == "BinomialDevianceLoss" else build(name)
    x, labels = batch(SETTING, "cpu", torch.float64)
    value, gradient = value_and_gradient(ours, x, labels)
    other_value, other_gradient = value_and_gradient(loops[name], x, labels)
    assert value > 0
    torch.testing.assert_close(other_value, value, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-6, atol=1e-10)


def test_the_loop_that_draws_has_the_value_and_the_gradient_of_ours_on_the_same_draws():
    x, labels = batch(SETTING, "cpu", torch.float64)
    ours = build("DistWeightNeighbour")
    ours.miner.miners[0].seed = 1
    drawn = InverseDensityMiner(seed=1).masks(x, labels, x, labels).neg
    value, gradient = value_and_gradient(ours, x, labels)
    other_value, other_gradient = value_and_gradient(lambda x, y: dist_weight_neighbour(x, y, drawn), x, labels)
    assert value > 0
    torch.testing.assert_close(other_value, value, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.pml2("its own losses as peers")
def test_every_job_has_a_name_of_its_own_and_every_peer_something_to_be_compared_with():
    jobs = all_jobs()
    assert len({job.key for job in jobs}) == len(jobs)
    ours = {job.name for job in jobs if job.side == "ours"}
    assert {job.name for job in jobs if job.side != "ours"} <= ours


@pytest.mark.pml2("its own losses as peers")
def test_what_cannot_run_is_a_result_and_the_others_are_measured():
    def broken(setting):
        raise RuntimeError("no such thing")

    (good,) = [job for job in all_jobs() if job.key == "BatchHard"]
    bad = type(good)("bad", "row", broken)
    found = times([good, bad], Setting(32, 8, 4), "cpu", rounds=3, budget=0.0)
    assert isinstance(found["bad"], RuntimeError)
    assert found["BatchHard"].ratio > 0
    assert found["BatchHard"].rounds == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_the_peak_of_a_step_is_that_of_its_largest_tensors():
    matrix = 2000**2 * 4 / 1e6
    assert 0.9 * matrix < peak_megabytes(FLOOR, Setting(2000, 8, 4), "cpu") < 3 * matrix


def test_mining_is_measured_beside_what_it_cannot_do_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mining, "megabytes", lambda *_: 1.0)
    out = tmp_path / "mining.jsonl"
    sizes = ["--size", "60x8x12", "--graph", "40x8x20", "--anchors", "10", "--candidates", "6"]
    mining.main([*sizes, "--rounds", "1", "--out", str(out)])
    lines = {line["job"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert set(lines) == {*mining.JOBS, *mining.GRAPHS}
    assert all(line["seconds"] > 0 and line["times_floor"] > 0 for line in lines.values())
    assert [lines[job]["anchors"] for job in ("mine", "class graph of means")] == [10, 20]
    assert capsys.readouterr().out.count("\n| ") == len(lines)


def test_a_goal_says_by_how_much_it_is_missed():
    assert "missed by 50%" in Goal("a", 1.5, 1.0, True, " F").line()
    assert "missed by 50%" in Goal("a", 5, 10, False, " x").line()
    assert Goal("a", 1.0, 1.0, True, " F").is_met
    assert Goal("a", None, 1.0, True, " F").is_met is None


def test_the_script_measures_and_reports(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--d", "8", "--rounds", "3", "--seconds", "0", "--out", str(tmp_path)]
    speed.main(["--entries", "RAW", "BatchHard", "--n", "32", *options])
    assert "Goals" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert {line["job"] for line in lines} == {
        "F",
        *(f"{name}{side}" for name in ("RAW", "BatchHard") for side in ("", ", stock", ", loop")),
    }
    assert all(line["seconds"] > 0 and line["commit"] and line["hardware"] and line["date"] for line in lines)
    assert "| RAW |" in (tmp_path / "speed.md").read_text()
    assert (tmp_path / "speed.png").stat().st_size < 150_000
    assert any(goal.value is not None for goal in goals(Lines(line | {"n": 1024, "d": 512} for line in lines)))

    later = [line | {"date": "2027-01-01", "commit": "abc", "seconds": 2 * line["seconds"]} for line in lines]
    both = Lines(line | {"n": 1024, "d": 512, "per_class": 4} for line in [*lines, *later])
    seconds = {line["job"]: line["seconds"] for line in lines}
    assert both.value(FLOOR, MAIN, "seconds") == seconds[FLOOR], "the floor of the table is that of its first day"
    assert both.value("RAW", MAIN, "seconds") == 2 * seconds["RAW"]
    page = table(both, "python")
    assert "Measured later, on 2027-01-01, commit abc: RAW, BatchHard. F with" in page
    assert f"took {2e3 * seconds[FLOOR]:.1f} ms then: compare ratios, not times." in page
    assert "Measured later" not in (tmp_path / "speed.md").read_text()
