"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, so that no crash and no full disk leaves half of it."""
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except OSError as error:  # a failed write does not name its file, unlike a failed open
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def link(path: Path, source: Path) -> None:
    """Make a file another name of one that is there; a copy, where the disk knows no such names."""
    draft = path.with_name(f".{path.name}.part")
    draft.unlink(missing_ok=True)
    try:
        try:
            os.link(source, draft)
        except OSError:
            shutil.copyfile(source, draft)
        draft.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_folder(path: Path) -> None:
    """Create a folder and make sure that a file can be written in it."""
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".probe"
    write(probe, b"probe")
    probe.unlink()
