"""What is written: nothing lost, nothing mixed, one line for whatever is wrong, whoever else was there."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from of_pml import needs
from torch import nn

from pml_ext.benchmark import (
    BenchmarkError,
    Experiment,
    Result,
    checkpoint,
    errors,
    evaluate,
    files,
    folder,
    lock,
    pace,
    plots,
    result,
    runs,
    streams,
)
from pml_ext.benchmark.cli import main
from pml_ext.benchmark.learning import LossLearner

TINY = Experiment(losses=("RAW",), data="digits", epochs=1, steps=1, batch_size=20, device="cpu")
FLAGS = ["--data", "digits", "--losses", "RAW", "--epochs", "1", "--steps", "1", "--batch-size", "20"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """TINY, run once; to be copied, not changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: [])
        replace(TINY, out=str(out)).run()
    return out


def copied(finished, tmp_path):
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "out"))


def numbers(results):
    return [
        (one.key, one.metrics, [{k: v for k, v in e.items() if k != "seconds"} for e in one.history]) for one in results
    ]


# --- results.jsonl


def record(**changes):
    one = Result("RAW", 0, {"recall_at_1": 0.5}, [{"recall_at_1": 0.5, "seconds": 1.0}], 1.0, {}, best_epoch=1)
    return json.loads(json.dumps(asdict(one))) | changes


WRONG: list[tuple[str, Any]] = [
    ("loss", ""),
    ("loss", None),
    ("loss", 3),
    ("loss", ["RAW"]),
    ("seed", "0"),
    ("seed", -1),
    ("seed", 0.5),
    ("seed", True),
    ("seed", None),
    ("metrics", None),
    ("metrics", []),
    ("metrics", {}),
    ("metrics", {"recall_at_1": "0.5"}),
    ("metrics", {"recall_at_1": 50}),
    ("metrics", {"recall_at_1": -0.1}),
    ("metrics", {"recall_at_1": None}),
    ("metrics", {"recall_at_1": True}),
    ("metrics", {"recall_at_2": 0.5}),
    ("history", None),
    ("history", {}),
    ("history", []),
    ("history", [0.5]),
    ("history", [{"seconds": 1.0}]),
    ("history", [{"recall_at_1": "x"}]),
    ("seconds_per_epoch", "1"),
    ("seconds_per_epoch", -1),
    ("seconds_per_epoch", float("nan")),
    ("arguments", None),
    ("arguments", []),
    ("failure", None),
    ("error", 1),
    ("fold", -1),
    ("fold", "0"),
    ("best_epoch", 0),
    ("best_epoch", 2),
    ("last", [1]),
    ("validation", {"NMI": "high"}),
    ("date", 5),
    ("hardware", "big"),
    ("commit", 7),
    ("versions", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_one_line_with_file_line_and_field(name, value, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(record(loss="NCA")) + "\n" + json.dumps(record(**{name: value})) + "\n")
    with pytest.raises(BenchmarkError, match=r"results\.jsonl, line 2 is not a result") as caught:
        result.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["", "x", "[]", "null", "3", '"RAW"', "{}", "[" * 5000, "\x00"])
def test_a_line_that_is_no_result(line, tmp_path):
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(BenchmarkError, match="line 1 is not a result"):
        result.read(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(BenchmarkError, match="line 1 is not a result"):
        result.read(tmp_path / "results.jsonl")


@pytest.mark.parametrize("name", ["loss", "seed", "metrics", "history", "arguments", "versions"])
def test_a_missing_field_is_named(name, tmp_path):
    content = record()
    del content[name]
    (tmp_path / "results.jsonl").write_text(json.dumps(content) + "\n")
    with pytest.raises(BenchmarkError, match=f"without {name}"):
        result.read(tmp_path / "results.jsonl")


def test_a_right_line_is_read_whatever_else_it_holds(tmp_path):
    path = tmp_path / "results.jsonl"
    failed = record(loss="NCA", metrics={}, history=[], error="diverged: x", best_epoch=None)
    path.write_text(json.dumps(record(new_field=3)) + "\n" + json.dumps(failed) + "\n")
    assert [one.key for one in result.read(path)] == [("RAW", 0, None), ("NCA", 0, None)]


def test_a_run_that_is_there_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(3 * (json.dumps(record()) + "\n"))
    with pytest.raises(BenchmarkError, match="lines 1 and 2 are of the same run, RAW, seed 0"):
        result.read(path)


def test_a_run_of_another_experiment(finished, tmp_path):
    out = copied(finished, tmp_path)
    with (out / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record(seed=7)) + "\n")
    before = (out / "results.jsonl").read_bytes()
    with pytest.raises(BenchmarkError, match="has a result of RAW, seed 7, which is no run of this experiment"):
        replace(TINY, out=str(out)).run(resume=True)
    assert (out / "results.jsonl").read_bytes() == before


# --- the folder


@pytest.mark.parametrize("name", [".probe", ".lock", ".experiment.json.part", ".DS_Store", "lost+found/", "Thumbs.db"])
def test_what_is_nobodys_is_not_in_the_way(name, tmp_path):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    assert folder.check_new(replace(TINY, out=str(tmp_path))) == tmp_path


def test_a_folder_of_somebody_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BenchmarkError, match="is not empty"):
        folder.check_new(replace(TINY, out=str(tmp_path)))


def test_folders_of_runs_are_told_apart():
    names = ["RAW", "RAW(gamma=0.3)", "a/b", "a_b", "../x", ".x", "x" * 300, "x" * 301, "C:\\x", "RAW\n", "Ä"]
    paths = [folder.run_folder(Path("out"), name, 0) for name in names]
    assert len(set(paths)) == len(names)
    assert all(path.parent == Path("out") and not path.name.startswith(".") and len(path.name) < 130 for path in paths)
    assert folder.run_folder(Path("out"), "RAW", 3, 1).name == "RAW-seed3-fold1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": "many"}, "each of seeds must be a whole number"),
        ({"epochs": -1}, "epochs must be a whole number"),
        ({"losses": []}, "losses must not be empty"),
        ({"speed": 3}, "of another version"),
        ({"losses": ["MyObject"]}, "unknown loss 'MyObject'"),
    ],
)
def test_a_wrong_experiment_file(changes, said, tmp_path):
    folder.start(tmp_path, TINY, ["RAW"])
    content = json.loads((tmp_path / "experiment.json").read_text())
    (tmp_path / "experiment.json").write_text(json.dumps(content | changes))
    with pytest.raises(BenchmarkError, match=said):
        folder.stored(tmp_path)


def test_an_experiment_grows_by_losses_seeds_and_epochs(finished, tmp_path):
    out = copied(finished, tmp_path)
    before = numbers(result.read(out / "results.jsonl"))
    assert main(["--resume", "--losses", "NCA", "--seeds", "3", "--out", str(out)]) == 0
    grown = result.read(out / "results.jsonl")
    expected = [(name, seed, None) for seed in (0, 3) for name in ("untrained", "RAW", "NCA")]
    assert [one.key for one in grown] == expected
    assert numbers(grown)[:2] == before, "what was there stays"
    assert json.loads((out / "experiment.json").read_text())["seeds"] == [0, 3]

    assert main(["--resume", "--epochs", "2", "--out", str(out)]) == 0
    longer = result.read(out / "results.jsonl")
    assert {len(one.history) for one in longer if one.trained} == {2}
    fresh = replace(TINY, epochs=2, seeds=(3,), out=str(tmp_path / "fresh")).run()
    assert numbers([one for one in longer if one.key in (("untrained", 3, None), ("RAW", 3, None))]) == numbers(fresh)


def test_more_epochs_of_a_schedule_that_knows_them_is_refused(tmp_path):
    experiment = replace(TINY, schedule="cosine", out=str(tmp_path))
    folder.start(tmp_path, experiment, ["RAW"])
    with pytest.raises(BenchmarkError, match="has a cosine schedule over 1 epochs: for 5, choose another --out"):
        folder.reopen(replace(experiment, epochs=5), ["RAW"])


def test_files_of_the_user_stay(finished, tmp_path):
    out = copied(finished, tmp_path)
    run = out / "RAW-seed0"
    kept = [run / "notes.txt", run / "records" / "mine.csv", run / "tensorboard" / "why.md", out / "paper.tex"]
    for path in kept:
        path.write_text("mine")
    (run / "checkpoint.pt").unlink()
    (out / "results.jsonl").unlink()
    replace(TINY, out=str(out)).run(resume=True)
    assert [path.read_text() for path in kept] == ["mine"] * 4
    assert numbers(result.read(out / "results.jsonl")) == numbers(result.read(finished / "results.jsonl"))


# --- one process at a time


def test_the_second_process_is_told_who_is_there(tmp_path):
    code = f"""
import sys
from pathlib import Path
from pml_ext.benchmark import lock
with lock.held(Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BenchmarkError, match=rf"is in use by process {other.pid} on \S+: wait for it"):
            lock.held(tmp_path).__enter__()
        other.kill()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.HOLDER).exists()


def test_an_experiment_that_came_and_went_meanwhile_is_not_run_over(tmp_path, monkeypatch):
    out = tmp_path / "out"
    held = lock.held

    def late(where):
        folder.start(where, TINY, ["RAW"], {})  # by the other one, before we hold the folder
        return held(where)

    monkeypatch.setattr(lock, "held", late)
    with pytest.raises(BenchmarkError, match="holds an experiment already"):
        replace(TINY, out=str(out)).run()
    assert not (out / "results.jsonl").exists()


def test_chance_stands_below_the_table(finished):
    # 180 images each of five digits: 179 of the 899 others are of the same class (some digits have a few more).
    assert re.search(
        r"^by chance: recall@1 (19|20)\.\d %, MAP@R .* on the test classes$", (finished / "table.md").read_text(), re.M
    )


def test_weights_of_a_loss_are_named_with_their_rate(tmp_path):
    needs("ProxyNCALoss")
    said: list[str] = []
    chosen = ("RAW", "ProxyNCALoss", "SoftTripleLoss(loss_learning_rate=0.5, centers_per_class=2)")
    with pytest.raises(KeyboardInterrupt):
        replace(TINY, losses=chosen, out=str(tmp_path / "out")).run(say=until("losses with weights", said))
    assert said[-1] == (
        "losses with weights of their own, and their learning rate: ProxyNCALoss (320 at 0.03), "
        "SoftTripleLoss(loss_learning_rate=0.5, centers_per_class=2) (640 at 0.5)"
    )


def until(start, said):
    """Listen, and interrupt at the line that starts so."""

    def say(line):
        said.append(line)
        if line.startswith(start):
            raise KeyboardInterrupt

    return say


def test_a_long_training_is_announced_after_its_first_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "LONG", 0.0)
    monkeypatch.setattr(pace, "BLOCK", 1)
    monkeypatch.setattr(pace, "AGREE", 1e9)
    said: list[str] = []
    replace(TINY, losses=("RAW", "NCA"), steps=2, out=str(tmp_path / "out")).run(say=said.append)
    about = [i for i, line in enumerate(said) if line.startswith("about")]
    assert len(about) == 1
    assert said[about[0]].endswith("minutes of training, tests not counted")
    done = [i for i, line in enumerate(said) if "recall@1" in line and not line.startswith("untrained")]
    assert about[0] < done[-1]


def first_estimate(steps, workers=0):
    """After how many steps the pace is known, and what it is."""
    clock = pace.Pace(workers)
    return next((i, known) for i, seconds in enumerate(steps, 1) if (known := clock.step(seconds)) is not None)


def test_the_first_slow_steps_do_not_count():
    # 20 of these take 8 s; the 700 after them 70.
    count, seconds = first_estimate([5.0, 1.0, 0.3, 0.2, *[0.1] * 700])
    assert (count, seconds) == (15, pytest.approx(0.1))


def test_a_pace_that_still_changes_is_waited_for():
    slower = [2.0] * 5 + [1.0] * 5 + [0.5] * 5 + [0.25] * 5 + [0.2] * 20
    assert first_estimate(slower) == (25, pytest.approx((0.25 + 0.2) / 2))
    # It never settles: after fifty steps the last ones count.
    assert first_estimate([*[0.1] * 5, *[0.3] * 5] * 10) == (50, pytest.approx(0.3))


def test_very_slow_steps_are_announced_early():
    assert first_estimate([90.0, 70.0, 80.0, 60.0, 70.0]) == (4, pytest.approx(70.0))
    assert first_estimate([30.0] + [10.0] * 20)[0] <= 5


def test_batches_that_come_in_bursts_are_counted_by_the_burst():
    # Four workers load for two seconds, and then there are four batches at once.
    steps = [2.0, 0.1, 0.1, 0.1] * 50
    assert first_estimate(steps, workers=4)[1] == pytest.approx(2.3 / 4)
    steps = [2.0, *[0.1] * 6] * 50
    assert first_estimate(steps, workers=7)[1] == pytest.approx(2.6 / 7)


# --- checkpoints


IDENTITY = {"loss": "RAW", "seed": 0, "fold": None}


def refuse(number):
    def read_bytes(self):
        raise OSError(number, os.strerror(number), str(self))

    return read_bytes


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(number, finished, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", refuse(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        checkpoint.load(finished / "RAW-seed0", CPU, IDENTITY)
    assert errors.explain(caught.value).startswith("cannot read or write ")


def test_too_little_memory_is_not_damage(finished, monkeypatch):
    def scarce(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", scarce)
    with pytest.raises(MemoryError):
        checkpoint.load(finished / "RAW-seed0", CPU, IDENTITY)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint", None])
def test_damage_is_called_damage(content, finished, tmp_path):
    whole = (finished / "RAW-seed0" / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(checkpoint.DamagedError, match="is damaged; delete it to train this run again"):
        checkpoint.load(tmp_path, CPU, IDENTITY)


@pytest.mark.parametrize("content", [3, [1, 2], {"history": []}, {"identity": 1, "history": []}, {"weights": {}}])
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(checkpoint.DamagedError, match="is not a checkpoint of this version"):
        checkpoint.load(tmp_path, CPU, IDENTITY)


def test_the_checkpoint_of_another_run(finished):
    with pytest.raises(checkpoint.DamagedError, match=r"of another run \(loss RAW, seed 0\)"):
        checkpoint.load(finished / "RAW-seed0", CPU, IDENTITY | {"loss": "NCA"})


def test_a_checkpoint_that_does_not_fit(finished, tmp_path, capsys):
    out = copied(finished, tmp_path)
    saved = torch.load(out / "RAW-seed0" / "checkpoint.pt", weights_only=True)
    del saved["parts"]["models"]["trunk"]
    torch.save(saved | {"history": []}, out / "RAW-seed0" / "checkpoint.pt")
    (out / "results.jsonl").unlink()
    assert main(["--resume", "--out", str(out)]) == 2
    assert "does not fit this run; delete it to train it again" in capsys.readouterr().err


def test_a_finished_run_whose_checkpoint_is_damaged_keeps_its_table(finished, tmp_path, capsys, monkeypatch):
    out = copied(finished, tmp_path)

    def damaged(*_):
        raise checkpoint.DamagedError("x is damaged")

    monkeypatch.setattr(plots, "draw", damaged)
    assert main(["--resume", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "RAW  " in printed
    assert "plots:   none: x is damaged" in printed


# --- runs that fail


def failing(monkeypatch, fail):
    step = LossLearner.step

    def step_or_fail(self, *args):
        return fail() if self.miner is None else step(self, *args)

    monkeypatch.setattr(LossLearner, "step", step_or_fail)


def test_what_a_loss_raises_stops_that_run_only_and_is_tried_again(tmp_path, monkeypatch):
    def fail():
        raise KeyError("a bug of its author")

    experiment = replace(TINY, losses=("RAW", "BinDeviance2018"), out=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        failing(patch, fail)
        with pytest.raises(BenchmarkError, match="RAW, seed 0: raised: KeyError: 'a bug of its author'"):
            runs.run(experiment)
    first = result.read(tmp_path / "out" / "results.jsonl")
    assert [bool(one.error) for one in first] == [False, True, False]
    assert "a bug of its author" in (tmp_path / "out" / "RAW-seed0" / "error.txt").read_text()
    assert [one.error for one in experiment.run(resume=True)] == ["", "", ""]


def test_a_network_that_is_not_finite_at_the_test_is_a_run_that_failed(tmp_path, monkeypatch):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 4), float("nan"))

    monkeypatch.setattr(LossLearner, "tested", lambda self: Broken())
    with pytest.raises(BenchmarkError, match="RAW, seed 0: diverged: the embeddings of 896 of 896 images"):
        runs.run(replace(TINY, out=str(tmp_path / "out")))
    assert "failed: diverged" in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(evaluate.NotFinite):
        evaluate.embed(Broken(), [(torch.zeros(1), 0)], device=CPU)


# --- signals and streams


def at_once(act):
    act()


def at_the_end_of_an_object(act):
    """Where what is raised is dropped."""

    def end(_):
        act()
        sum(range(1000))  # while Python looks for signals

    thing = io.StringIO()
    watched = weakref.ref(thing, end)
    del thing
    assert watched() is None
    time.sleep(5)  # until it is interrupted


@pytest.mark.parametrize("when", [at_once, at_the_end_of_an_object])
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_end_a_run_cleanly(
    when,
    number,
    code,
    word,
    tmp_path,
    capsys,
    monkeypatch,
):
    out = tmp_path / "out"
    # As in a terminal: in the background of a shell script an interrupt is ignored from the start.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    found = signal.signal(number, usual)
    try:
        with monkeypatch.context() as patch:
            failing(patch, lambda: when(lambda: os.kill(os.getpid(), number)))
            assert main([*FLAGS, "--out", str(out)]) == code
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, found)
    said = capsys.readouterr().err
    assert said == f"pml_ext.benchmark: {word}; continue with: python -m pml_ext.benchmark --resume --out {out}\n"
    assert not (out / lock.HOLDER).exists()
    assert main(["--resume", "--out", str(out)]) == 0


class Gone(io.TextIOBase):
    """A stream whose reader has left."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def fileno(self):
        raise OSError("no such thing")


@pytest.mark.parametrize("stream", [Gone(), None, io.TextIOWrapper(io.BytesIO(), encoding="ascii")])
def test_the_files_are_whole_whatever_becomes_of_what_is_printed(stream, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    assert main([*FLAGS, "--seeds", "0", "1", "--out", str(tmp_path / "out")]) == 0
    assert "±" in (tmp_path / "out" / "table.md").read_text()
    if isinstance(stream, io.TextIOWrapper):
        assert b"RAW  " in stream.buffer.getvalue()  # type: ignore[attr-defined]
        assert b" ? " in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_closed_error_output_is_not_taken_for_a_file(tmp_path):
    code = f"""
import os
os.close(2)
from pml_ext.benchmark import streams
streams.settle()
with open({str(tmp_path / "file")!r}, "w") as stream:
    print(stream.fileno() > 2, os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n"


def test_printing_to_a_reader_who_has_left_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        streams._write(stream, "a line")
        streams._write(stream, "another")


def test_half_a_file_never_takes_the_place_of_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "x"
    files.write(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write(path, b"new")
    assert errors.explain(caught.value) == f"the disk is full ({path})"
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
