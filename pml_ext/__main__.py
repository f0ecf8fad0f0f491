"""The command `pml-ext WORD ...`, also `python -m pml_ext WORD ...`: what this package does, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pml_ext
from pml_ext import commands
from pml_ext.benchmark import cli, streams, use
from pml_ext.benchmark.kinds import did_you_mean
from pml_ext.benchmark.parser import OneLineParser

PROG = "pml-ext"
SHELLS = ("bash", "zsh")
EXIT_CODES = (
    "exit codes: 0 done; 1 what was looked at is not as it should be (broken laws, findings, images that cannot be "
    "read); 2 a mistake, a run that failed, or a file that cannot be read or written; 130 interrupted, 143 terminated"
)


def train(arguments: Sequence[str]) -> int:
    """Train and compare: `python -m pml_ext.benchmark`."""
    from pml_ext.benchmark.__main__ import main as benchmark

    return benchmark(list(arguments), PROG)


def completion(arguments: Sequence[str]) -> int:
    """Print what a shell needs to complete this command."""
    parser = OneLineParser(prog=f"{PROG} completion", description=COMPLETION, allow_abbrev=False)
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    try:
        import shtab
    except ImportError:
        streams.complain('pml_ext completion: it needs shtab: pip install "pml_ext[completion]"')
        return commands.WRONG
    streams.say(shtab.complete(tree(), shell))
    return 0


COMPLETION = f'What a shell needs to complete this command: eval "$({PROG} completion bash)", or zsh.'
WORDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "train": ("Train one network with several losses and compare them.", train),
    "tune": ("Search the hyperparameters of losses.", lambda arguments: train(["tune", *arguments])),
    "query": ("Find the images that look most like yours.", lambda arguments: train(["query", *arguments])),
    "export": ("Write a model for another runtime.", lambda arguments: train(["export", *arguments])),
    **{
        word: (each.description, lambda arguments, word=word: commands.run(word, list(arguments), f"{PROG} {word}"))  # type: ignore[misc]
        for word, each in commands.WORDS.items()
    },
    "completion": (COMPLETION, completion),
}


def tree() -> OneLineParser:
    """One parser of all words, for completion and for the help."""
    parser = OneLineParser(prog=PROG, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    words = parser.add_subparsers(title="words", metavar="WORD")
    made = {
        "train": cli.parser(prog=PROG),
        "tune": cli.parser(tuning=True, prog=PROG),
        "query": use.query_parser(PROG),
        "export": use.export_parser(PROG),
        **{word: commands.parser(word, f"{PROG} {word}") for word in commands.WORDS},
    }
    for word, (about, _) in WORDS.items():
        parents = [made[word]] if word in made else []
        under = words.add_parser(word, help=about, parents=parents, add_help=not parents)
        for action in under._actions:
            if action.metavar in commands.FILES or (action.metavar or "") in ("EMBEDDINGS", "LABELS"):
                action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files"}  # type: ignore[attr-defined]
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first word names."""
    streams.settle()
    if not arguments or arguments[0] in ("-h", "--help"):
        streams.say(tree().format_help().rstrip())
        return 0
    if arguments[0] == "--version":
        streams.say(f"{PROG} {pml_ext.__version__}")
        return 0
    if arguments[0] not in WORDS:
        streams.complain(f"pml_ext: {did_you_mean('command', arguments[0], list(WORDS))}")
        return commands.WRONG
    return WORDS[arguments[0]][1](arguments[1:])


def script() -> int:
    """The entry point of the command; module:NAME may be a file of the current folder, as with `python -m`."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append("")  # after everything else: no file there takes the place of a package
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(script())
