"""A parser of command lines whose complaints are one line each."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import Any

from pml_ext.benchmark import streams


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that names the command and the mistake in one line, and the option that may be meant."""

    def error(self, message: str) -> Any:
        """Complain and exit with 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            options = [option for action in self._actions for option in action.option_strings]
            near = get_close_matches(unknown.split()[0].partition("=")[0], options, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        streams.complain(f"{self.prog.removeprefix('python -m ')}: {message}")
        self.exit(2)
