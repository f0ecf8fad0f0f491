"""What can stop an experiment from outside, in one line each."""

from __future__ import annotations

import errno
from importlib.util import find_spec

# What no run and no report can do without; faiss makes an index faster, `records` says what record-keeper adds.
NEEDED = {
    "filelock": "filelock",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
}


class BenchmarkError(ValueError):
    """An experiment that cannot start or continue; the message is one line that says why and what to change."""


def check_extras() -> None:
    """Raise BenchmarkError unless what the benchmark needs is installed."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise BenchmarkError(
            f'the benchmark needs {", ".join(missing)}: pip install "pml_ext[benchmark]" (or "pml_ext[gpu]")'
        )


def explain(error: Exception) -> str:
    """One line for a failed read or write, of a file or of record-keeper's SQLite.

    >>> explain(OSError(28, "No space left on device", "runs/a/results.jsonl"))
    'the disk is full (runs/a/results.jsonl)'
    >>> explain(PermissionError(13, "Permission denied", "/data/a"))
    'cannot read or write /data/a: Permission denied'
    """
    if not isinstance(error, OSError):
        full = "is full" in str(error)
        return "the disk is full (record-keeper's logs.db)" if full else f"record-keeper's logs.db: {error}"
    where = error.filename or ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({where})" if where else "the disk is full"
    what = error.strerror or str(error)
    return f"cannot read or write {where}: {what}" if where else f"cannot read or write: {what}"
