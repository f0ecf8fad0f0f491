"""Real processes, by gloo: one start for everything, because a process takes seconds to import torch."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")

SCRIPT = Path(__file__).with_name("processes.py")


def assert_one(size, folder, seconds=500):
    """All checks held."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(size), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = started.communicate(timeout=seconds)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # those that it has forked, too
        started.wait()
    assert started.returncode == 0, said
    assert said.splitlines()[-1] == f"{size} processes are one"


def test_two_processes_are_one(tmp_path):
    assert_one(2, tmp_path)


@pytest.mark.slow
def test_four_processes_are_one(tmp_path):
    assert_one(4, tmp_path)


def command(folder, *more, processes=2):
    """The exit code and what is printed by the command, started by torchrun."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    given = ["--data", "digits", "--losses", "RAW", "--steps", "3", "--batch-size", "20", "--classes-per-batch", "5"]
    done = subprocess.run(
        [*start, "pml_ext.benchmark", *given, "--device", "cpu", "--out", str(folder), *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path):
    """Two processes write one folder and say everything once; one goes on with it."""
    out = tmp_path / "out"
    code, said, complained = command(out, "--epochs", "1")
    assert code == 0, complained
    assert said.count("RAW: 1 run of 1 epoch") == said.count("RAW, seed 0: recall@1") == 1
    assert {"results.jsonl", "report.html", "RAW-seed0"} <= {path.name for path in out.iterdir()}
    code, said, complained = command(out, "--epochs", "1")
    assert code != 0
    assert complained.count("holds an experiment already") == 2  # each process sees that, and says which it is
    assert "pml_ext.benchmark, process 1 of 2:" in complained
    code, said, complained = command(out, "--resume", "--epochs", "2", processes=1)
    assert code == 0, complained
    assert "RAW, seed 0: recall@1" in said
