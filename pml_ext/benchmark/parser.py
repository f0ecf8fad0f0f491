"""A parser of command lines whose complaints are one line each."""

from __future__ import annotations

import argparse
from typing import Any

from pml_ext.benchmark import streams
from pml_ext.spelling import hint


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that names the command and the mistake in one line, and the option that may be meant."""

    def error(self, message: str) -> Any:
        """Complain and exit with 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            options = [option for action in self._actions for option in action.option_strings]
            meant = hint(unknown.split()[0].partition("=")[0], options, most=1, or_all=False)
            message += f"; {meant}" if meant else ""
        streams.complain(f"{self.prog.removeprefix('python -m ')}: {message}")
        self.exit(2)
