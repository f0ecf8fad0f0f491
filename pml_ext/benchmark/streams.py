"""The standard streams of a command: whatever they are connected to, printing never ends a run."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class Nowhere(io.TextIOBase):
    """What is printed where there is no stream."""

    def write(self, text: str) -> int:
        """Forget it."""
        return len(text)


def settle() -> None:
    """Make the streams usable: closed ones lead nowhere, and a character that a terminal lacks is replaced."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next file that is opened would be the error output of C libraries
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Nowhere())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def say(line: str) -> None:
    """Print a line for the reader, if there still is one."""
    _write(sys.stdout, line)


def complain(line: str) -> None:
    """Print a line to the error output, if there still is one."""
    _write(sys.stderr, line)


def _write(stream: Any, line: str) -> None:
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):  # the reader is gone, as with `| head`; what matters is in the files
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python complains again at its end
