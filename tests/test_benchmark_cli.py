"""The command: what it prints, and that whatever goes wrong outside ends in one clear line."""

import errno
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from record_keeper.db_utils import DBManager

from pml_ext.__main__ import main as pml_ext_command
from pml_ext.benchmark import checkpoint, environment, errors, files, folder, plots, result
from pml_ext.benchmark.cli import main
from pml_ext.benchmark.learning import LossLearner

DIGITS = ["--data", "digits", "--epochs", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One loss on a few vectors: what is done with files and on a terminal does not depend on the data."""
    path = tmp_path_factory.mktemp("data") / "vectors.npz"
    draw, labels = np.random.default_rng(0), np.arange(12).repeat(6)
    np.savez(path, vectors=draw.normal(size=(12, 4))[labels] + draw.normal(size=(72, 4)), labels=labels)
    return ["--data", str(path), "--losses", "ContrastiveLoss", "--epochs", "2", "--steps", "2", "--batch-size", "12"]


@pytest.fixture(scope="module")
def small(one):
    return [*one[:3], "RAW", *one[3:]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command takes all cores otherwise
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fails(arguments, capsys, code=2):
    """Run the command, which must end with that code and one line; return the line."""
    capsys.readouterr()
    try:
        ended = main(arguments)
    except SystemExit as stop:  # argparse
        ended = stop.code if isinstance(stop.code, int) else -1
    assert ended == code
    error = capsys.readouterr().err
    assert re.fullmatch(r"pml_ext\.benchmark: [^\n]+\n", error), error
    return error


def measured(out):
    return [(r.loss, r.metrics) for r in result.read(out / "results.jsonl")]


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*DIGITS, "--losses", "RAW", "ContrastiveLoss", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == "", "no bars outside a terminal"
    assert re.search(
        r"training on 5 classes \(\d+ images\), the last epoch counts, testing on 5 other classes", printed.out
    )
    head = r"loss +recall@1 +@2 +@4 +@8 +MAP@R +R-precision +NMI +rank +s/epoch"
    rows = r"\n-+\nuntrained( +\d+\.\d){7} +\S+ +-\nRAW( +\d+\.\d){7} +[123-]+\*? +\d+\.\d\d\n"
    assert re.search(head + rows, printed.out)
    assert str(out / "results.jsonl") in printed.out
    assert [r.loss for r in result.read(out / "results.jsonl")] == ["untrained", "RAW", "ContrastiveLoss"]
    assert (out / "table.md").read_text().count("|\n") == 5


def test_bars_on_a_terminal(small, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([*small, "--out", str(tmp_path / "out")]) == 0
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert shown.count("\n") == 1, "one bar for all runs"
    assert re.search(r"100%.* \d\d:\d\d<00:00, ContrastiveLoss recall@1 \d+\.\d%", shown)
    assert re.search(r"RAW seed 0 epoch 2/2 .*%\|.*\d\d:\d\d<", shown)
    assert re.search(r"loss=\d", shown)


def test_the_default_folder_carries_the_time_and_is_the_one_to_resume(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(small) == 0
    (out,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"vectors-\d{8}-\d{6}", out.name)
    before = measured(out)
    assert main(["--resume"]) == 0
    assert measured(out) == before
    assert f"writing to {Path('runs') / out.name}" in capsys.readouterr().out


def test_unknown_names(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert "unknown loss 'RAWW'; did you mean RAW" in fails(["--losses", "RAWW", "--out", out], capsys)
    assert "did you mean ContrastiveLoss" in fails(["--losses", "contrastiveloss", "--out", out], capsys)
    assert "; known: " in fails(["--losses", "qqqqqqqq", "--out", out], capsys)
    assert "unknown data set 'glyph'; did you mean glyphs?" in fails(["--data", "glyph", "--out", out], capsys)
    assert "unknown device 'gpu'" in fails(["--device", "gpu", "--out", out], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.pml2("losses of its own, by name")
def test_losses_that_cannot_be_run(tmp_path, capsys):
    out = ["--data", "digits", "--out", str(tmp_path / "out")]
    assert "no default for margin, Tn" in fails(["--losses", "RankedListLoss", *out], capsys)
    assert "VICRegLoss cannot be trained on labeled batches" in fails(["--losses", "VICRegLoss", *out], capsys)
    assert "DynamicSoftMarginLoss cannot be trained" in fails(["--losses", "DynamicSoftMarginLoss", *out], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--seeds", "-1"], "each of seeds must be a whole number of at least 0, got -1"),
        (["--seeds", "4294967296"], "each of seeds must be below 4294967296"),
        (["--seeds", "1", "1"], "seeds must be different from each other"),
        (["--losses", "RAW", "RAW"], "losses must be different from each other"),
        (["--losses"], "expected at least one argument"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_bad_values(arguments, message, tmp_path, capsys):
    assert message in fails([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(capsys):
    assert "sees no CUDA device" in fails(["--device", "cuda"], capsys)


def test_missing_packages(small, capsys, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in ("filelock", "sklearn") else name)
    message = fails(small, capsys)
    assert "needs filelock, scikit-learn" in message
    assert "pml_ext[benchmark]" in message


def test_unwritable_folder(small, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert "cannot read or write" in fails([*small, "--out", str(tmp_path / "file" / "out")], capsys)
    assert "cannot read or write /proc/out" in fails([*small, "--out", "/proc/out"], capsys)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(small, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "Permission denied" in fails([*small, "--out", str(tmp_path / "out")], capsys)
    tmp_path.chmod(0o700)


def test_nothing_is_mixed_or_overwritten(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert "there is no experiment" in fails(["--resume", "--out", str(out)], capsys)
    assert main([*small, "--out", str(out)]) == 0
    before = (out / "results.jsonl").read_bytes()
    assert "continue it with --resume" in fails([*small, "--out", str(out)], capsys)
    assert "has epochs 2, not 1" in fails(["--resume", "--epochs", "1", "--out", str(out)], capsys)
    assert "has batch_size 12, not 64" in fails(["--resume", "--batch-size", "64", "--out", str(out)], capsys)
    assert (out / "results.jsonl").read_bytes() == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    assert "is not empty" in fails([*small, "--out", str(tmp_path / "thesis")], capsys)


def test_a_folder_of_another_version(tmp_path, capsys):
    (tmp_path / folder.ARGUMENTS).write_text(json.dumps({"speed": 3}))
    assert "of another version" in fails(["--resume", "--out", str(tmp_path)], capsys)
    (tmp_path / folder.ARGUMENTS).write_text("{")
    assert "is not JSON" in fails(["--resume", "--out", str(tmp_path)], capsys)


def test_interrupted(small, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "a b"
    with monkeypatch.context() as patch:
        patch.setattr(LossLearner, "step", interrupt)
        message = fails([*small, "--out", str(out)], capsys, code=130)
    assert f"continue with: python -m pml_ext.benchmark --resume --out '{out}'" in message
    assert main(["--resume", "--out", str(out)]) == 0
    assert len(measured(out)) == 4  # with two that were not trained


def test_what_was_called_is_what_continues(small, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LossLearner, "step", interrupt)
    assert pml_ext_command(["train", *small, "--out", str(tmp_path / "a")]) == 130
    said = capsys.readouterr().err
    assert said == f"pml-ext train: interrupted; continue with: pml-ext train --resume --out {tmp_path / 'a'}\n"
    assert pml_ext_command(["tune", *small, "--trials", "1", "--out", str(tmp_path / "b")]) == 130
    said = capsys.readouterr().err
    assert said == f"pml-ext tune: interrupted; continue with: pml-ext tune --resume --out {tmp_path / 'b'}\n"
    for word in ("train", "tune", "query", "export"):
        with pytest.raises(SystemExit):
            pml_ext_command([word, "--help"])
        assert f"usage: pml-ext {word} [" in capsys.readouterr().out


@pytest.fixture(scope="module")
def undisturbed(one, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: [])
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main([*one, "--out", str(out)]) == 0
    return measured(out)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for(name, patch):
    """Let the disk be full for one kind of file."""
    replace = os.replace

    def replace_or_fail(source, target):
        if Path(target).name == name:
            full()
        replace(source, target)

    patch.setattr(files.os, "replace", replace_or_fail)


def full_for_sqlite(patch):
    """Let SQLite itself find no room for more than three pages: beside PML 3 fewer records are written."""
    opened = DBManager.open

    def small(self):
        opened(self)
        self.conn.execute("PRAGMA max_page_count = 3")

    patch.setattr(DBManager, "open", small)


def full_for_csv(patch):
    patch.setattr("record_keeper.record_keeper.c_f.write_dict_of_lists_to_csv", full)


@pytest.mark.parametrize(
    "fill",
    [
        lambda patch: full_for(checkpoint.NAME, patch),
        lambda patch: full_for("results.jsonl", patch),
        lambda patch: full_for("table.md", patch),
        full_for_sqlite,
        full_for_csv,
    ],
    ids=["checkpoint", "results", "table", "sqlite", "csv"],
)
def test_full_disk(
    fill,
    undisturbed,
    one,
    tmp_path,
    capsys,
    monkeypatch,
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fill(patch)
        message = fails([*one, "--out", str(out)], capsys)
    assert "the disk is full" in message
    assert f"continue with: python -m pml_ext.benchmark --resume --out {out}" in message
    assert not list(out.rglob("*.part"))
    result.read(out / "results.jsonl")  # whatever is there is whole
    assert main(["--resume", "--out", str(out)]) == 0
    assert measured(out) == undisturbed


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no private mounts here")
def test_a_really_full_disk_and_one_that_cannot_be_written_to(tmp_path):
    # The disk is mounted in a namespace of its own, so that it is gone with the process whatever happens.
    namespace = ["unshare", "--mount", "--map-root-user"]
    mount = 'mount -t tmpfs -o size=900k tmpfs "$1"'
    if subprocess.run([*namespace, "sh", "-c", mount, "sh", tmp_path], capture_output=True).returncode:
        pytest.skip("no private mounts here")
    script = f"""
import os, subprocess, sys
from pml_ext.benchmark import plots
from pml_ext.benchmark.cli import main
plots.draw = lambda *_: []
disk = sys.argv[1]
print("exit code", main([*{DIGITS!r}, "--losses", "ContrastiveLoss", "--out", disk + "/out"]))
print(open(disk + "/out/results.jsonl").read(), "end of results", sep="")
subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
print("exit code", main(["--resume", "--out", disk + "/out"]))
os.mkdir(disk + "/ro")
subprocess.run(["mount", "--bind", disk, disk + "/ro"], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", disk + "/ro"], check=True)
print("read only", main(["--resume", "--out", disk + "/ro/out"]), main([*{DIGITS!r}, "--out", disk + "/ro/new"]))
"""
    command = f'{mount} && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*namespace, "sh", "-c", command, "sh", tmp_path, sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
    )
    full, *read_only = done.stderr.splitlines()
    assert full.startswith("pml_ext.benchmark: the disk is full")
    assert len(read_only) == 2
    assert all(re.match(r"pml_ext\.benchmark: cannot .*Read-only file system", line) for line in read_only)
    first, second = done.stdout.split("end of results")
    written = first.split("exit code 2\n")[1].splitlines()
    assert [json.loads(line)["loss"] for line in written] == ["untrained"]
    assert "exit code 0" in second
    assert "ContrastiveLoss  " in second
    assert second.endswith("read only 2 2\n")


def test_errors_in_words():
    assert errors.explain(sqlite3.OperationalError("database or disk is full")).startswith("the disk is full")
    assert "readonly" in errors.explain(sqlite3.OperationalError("attempt to write a readonly database"))
    assert errors.explain(OSError(errno.EDQUOT, "Disk quota exceeded", "x")) == "the disk is full (x)"


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--losses", "--data", "--epochs", "--seeds", "--device", "--out", "--resume"):
        assert option in text


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "pml_ext.benchmark", "--losses", "nothing_like_it"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pml_ext.benchmark: unknown loss 'nothing_like_it'")
    assert done.stderr.count("\n") == 1


def test_commit_is_that_of_our_own_source_only(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    commit = environment.commit.__wrapped__
    source = tmp_path / "__init__.py"
    source.write_text("")
    assert commit() is None
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert commit() is None, "installed inside somebody else's repository"
    subprocess.run([*git, "add", "__init__.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    clean = commit()
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    source.write_text("# edited")
    assert commit() == f"{clean}-modified"
