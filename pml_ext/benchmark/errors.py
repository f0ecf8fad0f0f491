"""What can stop an experiment from outside, in one line each."""

from __future__ import annotations

import errno
import sqlite3
from importlib.util import find_spec

EXTRAS = {
    "faiss": "faiss-cpu",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "record_keeper": "record-keeper",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
}


class BenchmarkError(ValueError):
    """An experiment that cannot start or go on; the message is one line that says why and what to change."""


def check_extras() -> None:
    """Raise BenchmarkError unless everything of the extra `benchmark` is installed.

    Without record-keeper or tensorboard PML would go on and record nothing.
    """
    missing = [package for module, package in EXTRAS.items() if find_spec(module) is None]
    if missing:
        raise BenchmarkError(
            f'the benchmark needs {", ".join(missing)}: pip install "pml_ext[benchmark]" (or "pml_ext[gpu]")'
        )


def explain(error: OSError | sqlite3.Error) -> str:
    """One line for a failed read or write.

    >>> explain(OSError(28, "No space left on device", "runs/a/results.jsonl"))
    'the disk is full (runs/a/results.jsonl)'
    >>> explain(PermissionError(13, "Permission denied", "/data/a"))
    'cannot write to /data/a: Permission denied'
    """
    if isinstance(error, sqlite3.Error):
        full = "is full" in str(error)
        return "the disk is full (record-keeper's logs.db)" if full else f"record-keeper's logs.db: {error}"
    where = error.filename or ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({where})" if where else "the disk is full"
    return f"cannot write to {where}: {error.strerror}" if where else f"cannot write: {error.strerror or error}"
