"""The main job end to end, small: what it writes, that it is deterministic, and that nothing stops it for good."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch

from pml_ext.benchmark import (
    BenchmarkError,
    Experiment,
    Result,
    checkpoint,
    evaluate,
    folder,
    losses,
    plots,
    randomness,
    records,
    result,
    run,
)
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.losses import catalog_names
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.training import Run, identity, new_network
from pml_ext.datasets import Samples

METRICS = evaluate.names((1, 2, 4, 8))

# Proxies bring weights and an optimiser of their own, DistWeightBinDeviance a miner that draws numbers.
SMALL = Experiment(
    losses=("RAW", "SoftTripleLoss", "DistWeightBinDeviance"), data="digits", epochs=2, seeds=(3,), steps=2
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # The plots have their own tests; here they would be drawn a dozen times.
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """SMALL, run without a break."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: [])
        return out, replace(SMALL, out=str(out)).run()


def numbers(results):
    """Everything that a run measured but time."""
    history = [[{k: v for k, v in e.items() if k != "seconds"} for e in r.history] for r in results]
    return [(r.loss, r.seed, r.metrics, h) for r, h in zip(results, history, strict=True)]


def numbers_of(finished, names):
    """Those of the untrained network and of some losses."""
    return [each for each in numbers(finished[1]) if each[0] in ("untrained", *names)]


def tables(database):
    with closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in names}


def columns(database, table):
    with closing(sqlite3.connect(database)) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def same_logs(a, b):
    assert tables(a / "records" / "logs.db") == tables(b / "records" / "logs.db")
    files = sorted(path.name for path in (a / "records").glob("*.csv"))
    assert files == sorted(path.name for path in (b / "records").glob("*.csv"))
    for name in files:
        assert (a / "records" / name).read_bytes() == (b / "records" / name).read_bytes(), name


def test_one_result_per_run(finished):
    _, results = finished
    assert [r.loss for r in results] == ["untrained", *SMALL.losses]
    for r in results:
        assert set(r.metrics) == set(METRICS)
        assert all(0 < value <= 1 for value in r.metrics.values())
        assert r.metrics["recall_at_1"] <= r.metrics["recall_at_2"] <= r.metrics["recall_at_8"]
    for r in results[1:]:
        assert len(r.history) == SMALL.epochs
        assert r.best_epoch == SMALL.epochs, "without validation classes"
        assert r.last == r.metrics
        assert {k: v for k, v in r.history[-1].items() if k in r.metrics}.items() < r.metrics.items()
        assert r.seconds_per_epoch == pytest.approx(np.mean([epoch["seconds"] for epoch in r.history]))
        assert r.metrics != results[0].metrics


def test_results_file(finished):
    out, results = finished
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(r) for r in results]
    record = json.loads(lines[1])
    assert set(record) == {field.name for field in fields(Result)}
    assert record["arguments"] == json.loads(json.dumps(replace(SMALL, out=str(out)).arguments()))
    assert record["hardware"]["cores"] >= 1
    assert record["versions"]["torch"] == torch.__version__
    assert record["date"].endswith("+00:00")
    assert record["commit"] is None or len(record["commit"].removesuffix("-modified")) == 40


def test_record_keeper_tables(finished):
    out, results = finished
    where = out / "RAW-seed3" / "records"
    table = "accuracies_test"
    with closing(sqlite3.connect(where / "logs.db")) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, epoch in zip(rows, results[1].history, strict=True):
        for metric in METRICS[:-1]:
            assert row[metric] == epoch[metric]
    with (where / f"{table}.csv").open(newline="") as stream:
        assert [float(row["recall_at_1"]) for row in csv.DictReader(stream)] == [
            epoch["recall_at_1"] for epoch in results[1].history
        ]
    for name in ("loss_histories", "metric_loss_RAWLoss", "trunk_optimizer_Adam", "embedder_optimizer_Adam"):
        assert tables(where / "logs.db")[name]
    assert "gamma" in columns(where / "logs.db", "metric_loss_RAWLoss")
    assert tables(out / "SoftTripleLoss-seed3" / "records" / "logs.db")["metric_loss_optimizer_Adam"]
    assert tables(out / "untrained-seed3" / "records" / "logs.db")[table]
    assert list((out / "RAW-seed3" / "tensorboard").glob("events.*"))


def test_without_record_keeper_the_same_numbers(finished, tmp_path, monkeypatch):
    """PML 3 does not bring it. One line says what is missing; the logs of before are neither cut nor continued."""
    for module in ("record_keeper", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    said: list[str] = []
    small = replace(SMALL, losses=("RAW", "HDML-NPair"), out=str(tmp_path / "out"))
    first = run(replace(small, epochs=1), say=said.append)
    assert len(first) == 3
    assert not any(one.error for one in first)
    assert sum("record-keeper is not installed" in line for line in said) == 1
    assert not any("tensorboard --logdir" in line for line in said)
    both = run(small, resume=True)
    assert both[1].metrics == finished[1][1].metrics
    assert both[1].history[-1]["loss"] == finished[1][1].history[-1]["loss"]
    assert not list((tmp_path / "out").rglob("logs.db")) + list((tmp_path / "out").rglob("events.*"))


def test_without_tensorboard_there_are_files(tmp_path, monkeypatch):
    for module in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with records.keeping(tmp_path) as keeper:
        records.record_metrics(keeper, 1, "test", {"recall_at_1": 0.5})
        assert records.lengths(tmp_path, keeper)["tables"]["accuracies_test"] == 1
    assert (tmp_path / "records" / "accuracies_test.csv").exists()
    assert not (tmp_path / "tensorboard").exists()
    assert "no events" in records.missing()[0]
    assert not records.have_events()


def test_same_arguments_same_numbers(finished, tmp_path):
    torch.rand(7), np.random.rand(5)  # noqa: NPY002 - whatever was drawn before has no influence
    again = replace(SMALL, losses=SMALL.losses[::-1], out=str(tmp_path / "again")).run()
    assert sorted(numbers(again), key=str) == sorted(numbers(finished[1]), key=str)


def test_another_seed_other_numbers(finished, tmp_path):
    other = replace(SMALL, losses=("RAW",), epochs=1, seeds=(4,), out=str(tmp_path / "other")).run()
    assert other[0].metrics != finished[1][0].metrics
    assert other[1].history[0]["loss"] != finished[1][1].history[0]["loss"]


def test_losses_of_a_seed_share_weights_and_batches(tmp_path):
    data = Data.of(SMALL)
    runs = {name: Run(SMALL, data, losses.parse(name), 5, tmp_path, Progress(0)) for name in SMALL.losses}
    start = new_network(SMALL, data, 5).trunk.state_dict()
    batches = {}
    for name, trial in runs.items():
        for key, value in trial.learner.network.trunk.state_dict().items():
            assert torch.equal(value, start[key])
        batches[name] = trial.batches.epoch()
    assert batches["RAW"] == batches["SoftTripleLoss"] == batches["DistWeightBinDeviance"]
    assert [len(batch) for batch in batches["RAW"]] == [data.batch_size(SMALL)] * SMALL.steps


def test_building_a_run_leaves_the_seed_set(tmp_path):
    # SoftTripleLoss draws its proxies; the first batch must not depend on that.
    drawn = set()
    for name in ("RAW", "SoftTripleLoss"):
        Run(SMALL, Data.of(SMALL), losses.parse(name), 5, tmp_path, Progress(0))
        drawn.add((float(torch.rand(())), float(np.random.rand())))  # noqa: NPY002
    assert len(drawn) == 1


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is tidied up."""


@pytest.mark.parametrize(
    ("loss", "epoch", "where"),
    [(0, 1, "before"), (0, 2, "before"), (1, 2, "after"), (2, 1, "after")],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    finished,
    tmp_path,
    monkeypatch,
    loss,
    epoch,
    where,
):
    # Beside the loss that it stops at, the one before it and the one after.
    names = SMALL.losses[max(0, loss - 1) : loss + 2]
    save, saved, before = checkpoint.save, 0, names.index(SMALL.losses[loss])

    def save_or_die(path, content):
        nonlocal saved
        saved += 1
        now = saved == before * SMALL.epochs + epoch
        if now and where == "before":  # the epoch is tested and logged, but not in the checkpoint
            raise Killed
        save(path, content)
        if now:
            raise Killed

    experiment = replace(SMALL, losses=names, out=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_or_die)
        with pytest.raises(Killed):
            experiment.run()
    left = result.read(tmp_path / "out" / "results.jsonl")
    assert [r.loss for r in left] == ["untrained", *names[:before]]
    results = experiment.run(resume=True)
    assert numbers(results) == numbers_of(finished, names)
    same_logs(tmp_path / "out" / f"{SMALL.losses[loss]}-seed3", finished[0] / f"{SMALL.losses[loss]}-seed3")


def test_sigkill_in_the_middle_of_an_epoch(finished, tmp_path):
    small = replace(SMALL, losses=SMALL.losses[1:], out=str(tmp_path / "out"))
    code = f"""
import os, signal, torch
torch.set_num_threads(1)
from pml_ext.benchmark import Experiment
from pml_ext.benchmark.learning import LossLearner
step_before = LossLearner.step
def step_or_die(self, images, labels, step):
    if self.miner is not None and step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_before(self, images, labels, step)
LossLearner.step = step_or_die
Experiment(**{small.arguments()!r}).run()
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    saved = checkpoint.load(
        tmp_path / "out" / "DistWeightBinDeviance-seed3",
        torch.device("cpu"),
        identity("DistWeightBinDeviance", 3, None),
    )
    assert saved is not None
    assert len(saved["history"]) == 1
    assert numbers(small.run(resume=True)) == numbers_of(finished, small.losses)


def test_tensorboard_of_a_resumed_run_has_every_step_once(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment = replace(SMALL, losses=("RAW",), out=str(tmp_path / "out"))
    save, saved = checkpoint.save, 0

    def die_second(path, content):
        nonlocal saved
        saved += 1
        if saved == 2:
            raise Killed
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", die_second)
        with pytest.raises(Killed):
            experiment.run()
    experiment.run(resume=True)
    events = EventAccumulator(str(tmp_path / "out" / "RAW-seed3" / "tensorboard"))
    events.Reload()
    (tag,) = [name for name in events.Tags()["scalars"] if name.endswith("recall_at_1")]
    assert [event.step for event in events.Scalars(tag)] == [1, 2]


def test_a_finished_experiment_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(Run, "__init__", lambda *_: pytest.fail("a finished run was started again"))
    out, results = finished
    assert replace(SMALL, out=str(out)).run(resume=True) == results


def test_a_half_written_line_is_not_a_result(finished, tmp_path):
    whole = (finished[0] / "results.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "results.jsonl"
    path.write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])
    assert result.read(path) == finished[1][:2]
    path.write_text("".join(lines[:2]) + lines[2].rstrip("\n"))  # cut exactly before its end
    assert result.read(path) == finished[1][:2]
    result.write(path, [*result.read(path), *finished[1][2:]])
    assert path.read_text() == whole


def test_a_broken_line_in_the_middle_is_an_error(finished, tmp_path):
    lines = (finished[0] / "results.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / "results.jsonl"
    path.write_text(lines[0][:40] + "\n" + lines[1])
    with pytest.raises(BenchmarkError, match="line 1 is not a result"):
        result.read(path)


def test_checkpoints_hold_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"history": [Harmful()]}, tmp_path / "checkpoint.pt")
    with pytest.raises(BenchmarkError, match="is damaged; delete it"):
        checkpoint.load(tmp_path, torch.device("cpu"), {})
    assert not (tmp_path / "harm").exists()


def test_random_states_come_back(tmp_path):
    import random

    def draw():
        return random.random(), np.random.rand(), np.random.randn(), float(torch.rand(()))  # noqa: NPY002

    randomness.seed_everything(0)
    draw()  # randn leaves a second number behind in numpy's state
    checkpoint.write_tensors(tmp_path / "state.pt", randomness.state())
    first = draw()
    assert draw() != first
    randomness.restore(checkpoint.read_tensors(tmp_path / "state.pt", torch.device("cpu")))
    assert draw() == first


def test_a_diverging_loss_does_not_stop_the_others(tmp_path, monkeypatch):
    from pytorch_metric_learning.losses import ContrastiveLoss

    forward = ContrastiveLoss.forward

    def explode(self, embeddings, *rest):
        # Real batches are all of digits 0 to 4; the rehearsal has its own.
        value = forward(self, embeddings, *rest)
        return value * float("inf") if len(embeddings) > 40 and self.training and embeddings.requires_grad else value

    experiment = replace(SMALL, losses=("ContrastiveLoss", "RAW"), out=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr("pml_ext.benchmark.losses.rehearse", lambda *_, **__: None)
        patch.setattr(ContrastiveLoss, "forward", explode)
        with pytest.raises(BenchmarkError, match=r"ContrastiveLoss, seed 3: diverged: the loss is inf at epoch 1"):
            run(experiment)
    results = result.read(tmp_path / "out" / "results.jsonl")
    assert [(r.loss, bool(r.error), bool(r.metrics)) for r in results] == [
        ("untrained", False, True),
        ("ContrastiveLoss", True, False),
        ("RAW", False, True),
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| ContrastiveLoss (0 of 1) | - |" in table
    assert "ContrastiveLoss, seed 3, failed: diverged: the loss is inf" in table
    with pytest.raises(BenchmarkError, match="diverged"):  # it is known, and not tried again
        run(experiment, resume=True)
    assert [bool(one.error) for one in experiment.run()] == [False, True, False], "from Python it is a row"


def test_several_seeds(tmp_path):
    results = replace(SMALL, losses=("RAW",), epochs=1, seeds=(0, 1), out=str(tmp_path / "out")).run()
    assert [(r.loss, r.seed) for r in results] == [("untrained", 0), ("RAW", 0), ("untrained", 1), ("RAW", 1)]
    assert "±" in (tmp_path / "out" / "table.md").read_text()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A file of a few vectors: a recipe does not depend on what the embeddings are made of."""
    path = tmp_path_factory.mktemp("data") / "vectors.npz"
    draw, labels = np.random.default_rng(0), np.arange(12).repeat(8)
    np.savez(path, vectors=draw.normal(size=(12, 8))[labels] + draw.normal(size=(96, 8)), labels=labels)
    return str(path)


@pytest.mark.parametrize("part", range(6))
def test_every_entry_of_the_catalog_runs(part, vectors, tmp_path):
    names = tuple(catalog_names()[part::6])
    experiment = replace(SMALL, data=vectors, losses=names, epochs=1, steps=1, batch_size=24, out=str(tmp_path / "out"))
    trained = experiment.run()[2:]  # after the vectors themselves and a head that was not trained
    assert [one.loss for one in trained] == [*names]
    for name, one in zip(names, trained, strict=True):
        assert not one.error, f"{name}: {one.error}"
        assert np.isfinite(list(one.metrics.values())).all(), name
        run = folder.run_folder(tmp_path / "out", name, 3, None)
        assert checkpoint.load(run, torch.device("cpu"), identity(name, 3, None)) is not None
    assert folder.stored(tmp_path / "out") == experiment


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog_names())
def test_every_entry_of_the_catalog_resumes(name, tmp_path, monkeypatch):
    experiment = replace(SMALL, losses=(name,), batch_size=40, out=str(tmp_path / "whole"))
    whole = experiment.run()
    save = checkpoint.save

    def save_and_die(path, content):
        save(path, content)
        raise Killed

    parts = replace(experiment, out=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            parts.run()
    assert numbers(parts.run(resume=True)) == numbers(whole)


def test_queries_and_a_gallery_are_of_the_test_only(tmp_path):
    """As in In-Shop: classes to train on have neither, and those of them that choose the epoch are compared all."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(18).repeat_interleave(4)
    vectors = torch.randn(18, 6, generator=generator)[labels] + 0.5 * torch.randn(72, 6, generator=generator)
    test = labels >= 10
    query = test & (torch.arange(72) % 4 == 0)
    samples = Samples(
        "shop",
        labels,
        tuple(map(str, range(18))),
        vectors=vectors,
        split=tuple("test" if each else "train" for each in test.tolist()),
        query=query,
        gallery=test & ~query,
    )
    out = tmp_path / "out"
    results = Experiment(
        data=samples, losses=("RAW",), epochs=1, steps=2, batch_size=8, embedding_size=4, out=str(out), device="cpu"
    ).run()
    trained = results[-1]
    assert not trained.error
    assert trained.best_epoch == 1
    with np.load(out / "RAW-seed0" / "queries.npz") as stored:
        assert len(stored["recall_at_1"]) == int(query.sum())
