"""A parser of command lines whose complaints are one line each."""

from __future__ import annotations

import argparse
from typing import Any

from pml_ext.benchmark import streams
from pml_ext.spelling import hint

MODULE = "python -m pml_ext.benchmark"
TRAIN = "train"


def called(prog: str, word: str) -> str:
    """What to type for a word of a command; the module trains without one.

    >>> called("pml-ext", TRAIN), called(MODULE, "tune"), called(MODULE, TRAIN)
    ('pml-ext train', 'python -m pml_ext.benchmark tune', 'python -m pml_ext.benchmark')
    """
    return prog if (prog, word) == (MODULE, TRAIN) else f"{prog} {word}"


def short(prog: str) -> str:
    """The name of a command before what it complains of."""
    return prog.removeprefix("python -m ")


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that names the command and the mistake in one line, and the option that may be meant."""

    def error(self, message: str) -> Any:
        """Complain and exit with 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            options = [option for action in self._actions for option in action.option_strings]
            meant = hint(unknown.split()[0].partition("=")[0], options, most=1, or_all=False)
            message += f"; {meant}" if meant else ""
        streams.complain(f"{short(self.prog)}: {message}")
        self.exit(2)
