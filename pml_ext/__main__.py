"""`python -m pml_ext WORD ...`: the commands of this package by name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from pml_ext.benchmark import streams
from pml_ext.benchmark.kinds import did_you_mean
from pml_ext.benchmark.parser import OneLineParser

PROG = "python -m pml_ext"


def choose(arguments: Sequence[str]) -> int:
    """Print which losses to start with."""
    parser = OneLineParser(
        prog=f"{PROG} choose",
        description="Which losses to start with for your data, how to fill a batch, and what to avoid.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--classes", type=int, metavar="N", help="classes to train on")
    parser.add_argument("--images-per-class", type=int, metavar="N", help="images of a typical class")
    parser.add_argument("--batch", type=int, metavar="N", help="images of a training step. Default: 128")
    parser.add_argument("--embedding-size", type=int, metavar="N", help="default: 128")
    parser.add_argument("--data", metavar="SOURCE", help="count classes and images in these data")
    given = vars(parser.parse_args(arguments))
    from pml_ext.benchmark import advice

    try:
        streams.say(str(advice.choose(**given)))
    except ValueError as error:
        streams.complain(f"pml_ext choose: {' '.join(str(error).split())}")
        return 2
    return 0


def train(arguments: Sequence[str]) -> int:
    """Train and compare: `python -m pml_ext.benchmark`."""
    from pml_ext.benchmark.__main__ import main as benchmark

    return benchmark(list(arguments))


def explain(arguments: Sequence[str]) -> int:
    """Say what a method is, and draw its pair weights."""
    parser = OneLineParser(prog=f"{PROG} explain", allow_abbrev=False)
    from pml_ext.benchmark import explained

    return explained.main(arguments, parser)


def _of_benchmark(word: str) -> Callable[[Sequence[str]], int]:
    return lambda arguments: train([word, *arguments])


WORDS: dict[str, Callable[[Sequence[str]], int]] = {
    "choose": choose,
    "explain": explain,
    "export": _of_benchmark("export"),
    "query": _of_benchmark("query"),
    "train": train,
    "tune": _of_benchmark("tune"),
}


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first word names."""
    streams.settle()
    if not arguments or arguments[0] in ("-h", "--help"):
        streams.say(f"usage: {PROG} WORD ...\n\n{', '.join(WORDS)}; {PROG} WORD --help says what each does")
        return 0
    if arguments[0] not in WORDS:
        streams.complain(f"pml_ext: {did_you_mean('command', arguments[0], list(WORDS))}")
        return 2
    return WORDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
