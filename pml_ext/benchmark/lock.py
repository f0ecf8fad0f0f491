"""One process at a time in the folder of an experiment."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pml_ext.benchmark import files
from pml_ext.benchmark.errors import BenchmarkError

LOCK = ".lock"
HOLDER = ".running.json"
PATIENCE = 10.0  # seconds: a process that loads images for one that was killed holds the lock a little longer


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it whatever ends the process.

    Raises:
        BenchmarkError: another process holds it; the line names it and its host.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(folder / LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _holder(folder)
        if holder is None or holder[1] != socket.gethostname() or _alive(holder[0]):
            raise _busy(folder, holder) from None
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise _busy(folder, holder) from None
    try:
        files.write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


@contextmanager
def alone(file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that makes a file; another one that does is said and waited for."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(file.with_name(f".{file.name}{LOCK}")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that makes {file}")
        lock.acquire()
    try:
        yield
    finally:
        # Who waits for this one takes another lock than who comes later: each looks whether the file is there by then.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _busy(folder: Path, holder: tuple[int, str] | None) -> BenchmarkError:
    by = "another process" if holder is None else f"process {holder[0]} on {holder[1]}"
    return BenchmarkError(f"{folder} is in use by {by}: wait for it, or choose another --out")


def _holder(folder: Path) -> tuple[int, str] | None:
    try:
        said = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return int(said["pid"]), str(said["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
