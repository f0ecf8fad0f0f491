"""Where the checkpoint of a run is, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pml_ext.benchmark import files

NAME = "checkpoint.pt"
UNTRAINED = "untrained"


def run_folder(out: Path, name: str, seed: int) -> Path:
    """The folder of one run."""
    return out / f"{name}-seed{seed}"


def save(folder: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint in the folder of a run; at any moment it is the old one or the new one."""
    files.write_tensors(folder / NAME, content)


def load(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint in the folder of a run, None where there is none."""
    try:
        saved: dict[str, Any] = files.read_tensors(folder / NAME, device)
    except FileNotFoundError:
        return None
    return saved


def epochs_done(folder: Path) -> int:
    """The number of epochs that the run in a folder has behind it."""
    saved = load(folder, torch.device("cpu"))
    return 0 if saved is None else len(saved["history"])
