"""Real processes, by gloo: one start for everything, because a process takes seconds to import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")

SCRIPT = Path(__file__).with_name("processes.py")


def run(size, folder, seconds=500):
    """What the processes print, and how each ends."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return outputs, [process.returncode for process in started]


def assert_one(size, folder):
    """All checks held."""
    outputs, codes = run(size, folder)
    assert codes == [0] * size, "\n".join(outputs)


def test_two_processes_are_one(tmp_path):
    assert_one(2, tmp_path)


@pytest.mark.slow
def test_four_processes_are_one(tmp_path):
    assert_one(4, tmp_path)
