"""Files that are there as a whole or not at all."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pml_ext.benchmark.errors import BenchmarkError


def write(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, so that no crash and no full disk leaves half of it."""
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except OSError as error:  # a failed write does not name its file, unlike a failed open
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, value: Any) -> None:
    """Write nested dicts and lists of tensors and numbers.

    torch.save into the file itself would report a full disk as a bare RuntimeError; it goes through memory instead.
    """
    stream = io.BytesIO()
    torch.save(value, stream)
    write(path, stream.getvalue())


def read_tensors(path: Path, device: torch.device) -> Any:
    """Read what `write_tensors` wrote. Only tensors and plain values are accepted, no code is run."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises whatever its unpickler met
        raise BenchmarkError(f"{path} is not a readable checkpoint; delete it to start this run again") from error


def make_folder(path: Path) -> None:
    """Create a folder and make sure that a file can be written in it."""
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".probe"
    write(probe, b"probe")
    probe.unlink()
