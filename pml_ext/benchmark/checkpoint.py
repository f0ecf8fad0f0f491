"""Where the checkpoint of a run is, what is in it, and why it cannot be read if it cannot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from pml_ext.benchmark import files
from pml_ext.benchmark.errors import BenchmarkError

NAME = "checkpoint.pt"


class DamagedError(BenchmarkError):
    """A checkpoint that is there and cannot be what it should be."""


def write_tensors(path: Path, value: Any) -> None:
    """Write nested dicts and lists of tensors and numbers.

    torch.save into the file itself would report a full disk as a bare RuntimeError; it goes through memory instead.
    """
    stream = io.BytesIO()
    torch.save(value, stream)
    files.write(path, stream.getvalue())


def read_tensors(path: Path, device: torch.device) -> Any:
    """Read what `write_tensors` wrote. Only tensors and plain values are accepted, no code is run.

    Raises:
        OSError: the file cannot be read: permission, the disk.
        MemoryError: it does not fit.
        DamagedError: it is read, and is not what was written.
    """
    content = path.read_bytes()
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises whatever its unpickler met
        if "alloc" in str(error):
            raise MemoryError(str(error)) from error
        raise DamagedError(f"{path} is damaged; delete it to train this run again") from error
    return _moved(value, device)


def save(folder: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint in the folder of a run; at any moment it is the old one or the new one."""
    write_tensors(folder / NAME, content)


def load(folder: Path, device: torch.device, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint in the folder of a run, None where there is none.

    Args:
        folder: the folder.
        device: where its tensors go.
        identity: what run it must be of: loss, seed and fold.

    Raises:
        DamagedError: it is damaged, no checkpoint at all, or that of another run.
        OSError, MemoryError: it cannot be read.
    """
    path = folder / NAME
    try:
        saved = read_tensors(path, device)
    except FileNotFoundError:
        return None
    if not (isinstance(saved, dict) and isinstance(saved.get("identity"), dict) and "history" in saved):
        raise DamagedError(f"{path} is not a checkpoint of this version; delete it to train this run again")
    if saved["identity"] != identity:
        other = ", ".join(f"{key} {value}" for key, value in saved["identity"].items() if value is not None)
        raise DamagedError(f"{path} is the checkpoint of another run ({other}); delete it to train this one again")
    return saved


def epochs_done(folder: Path, identity: dict[str, Any]) -> int:
    """The number of epochs that the run in a folder has behind it."""
    saved = load(folder, torch.device("cpu"), identity)
    return 0 if saved is None else len(saved["history"])


def _moved(value: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(each, device) for each in value)
    return value
