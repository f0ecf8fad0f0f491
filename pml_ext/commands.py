"""The words of the command `pml-ext` that are functions of `pml_ext` too: the same names, the same arguments.

Nothing heavy is imported here: a mistake is known, and `--help` printed, before torch is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pml_ext.benchmark import streams
from pml_ext.benchmark.errors import explain as explain_error
from pml_ext.benchmark.kinds import Number, Several, Switch, Text, Whole
from pml_ext.benchmark.parser import OneLineParser

FOUND = 1  # what was looked at is not as it should be
WRONG = 2  # a mistake in the arguments, or files that cannot be read or written
INTERRUPTED = 130

FILES = ("FILE", "DIR", "SOURCE")
_OVER = ("queries", "classes")


@dataclass(frozen=True)
class Flag:
    """An argument of a sub-command, and of its function.

    Args:
        name: its name in the function; the command has it with hyphens, after `--`.
        kind: the values that it can have.
        help: its description.
        metavar: the placeholder of a value in the help. Default "N".
        first: whether it is positional on the command line. Default False.
        needed: whether it must be given. Default False.
    """

    name: str
    kind: Text | Whole | Number | Switch | Several
    help: str
    metavar: str = "N"
    first: bool = False
    needed: bool = False


@dataclass(frozen=True)
class Word:
    """A sub-command.

    Args:
        description: what it does.
        run: from the arguments that were given to the exit code.
        flags: its arguments. Default ().
        alone: names of arguments that the function does not have. Default ().
        epilog: what is said below the arguments. Default "".
    """

    description: str
    run: Callable[[Mapping[str, Any]], int]
    flags: tuple[Flag, ...] = ()
    alone: tuple[str, ...] = ()
    epilog: str = field(default="")


def parser(word: str, prog: str) -> OneLineParser:
    """The parser of a word; what is not given is not in its namespace."""
    import argparse

    made = OneLineParser(
        prog=prog,
        description=WORDS[word].description,
        epilog=WORDS[word].epilog or None,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for flag in WORDS[word].flags:
        name = flag.name if flag.first else f"--{flag.name.replace('_', '-')}"
        more: dict[str, Any] = {} if flag.first else {"dest": flag.name, "required": flag.needed}
        if isinstance(flag.kind, Switch):
            more["action"] = argparse.BooleanOptionalAction
        else:
            more |= {"type": flag.kind.parse, "metavar": flag.metavar}
            if isinstance(flag.kind, Several):
                more["nargs"] = "+"
        made.add_argument(name, help=flag.help, **more)
    return made


def run(word: str, arguments: list[str], prog: str) -> int:
    """Run a word and return its exit code: every error is one line."""
    given = vars(parser(word, prog).parse_args(arguments))
    name = f"pml_ext {word}"
    try:
        checked = {
            flag.name: flag.kind.check(flag.name, given[flag.name]) for flag in WORDS[word].flags if flag.name in given
        }
        return WORDS[word].run(checked)
    except KeyboardInterrupt:
        streams.complain(f"{name}: interrupted")
        return INTERRUPTED
    except MemoryError:
        streams.complain(f"{name}: out of memory")
    except (ValueError, TypeError, ImportError) as error:
        streams.complain(f"{name}: {' '.join(str(error).split())}")
    except OSError as error:
        streams.complain(f"{name}: {explain_error(error)}")
    return WRONG


def _evaluate(given: Mapping[str, Any]) -> int:
    from pml_ext.evaluation import evaluate
    from pml_ext.inputs import loaded

    arrays = {name: loaded(name, given[name]) for name in ("query", "gallery", "groups", "ignore") if name in given}
    streams.say(repr(evaluate(**{**given, **arrays})))
    return 0


def _compare(given: Mapping[str, Any]) -> int:
    from pml_ext.evaluation import compare

    streams.say(repr(compare(**given)))
    return 0


def _diagnose(given: Mapping[str, Any]) -> int:
    from pml_ext.analysis import diagnose

    found = diagnose(**given)
    streams.say(repr(found))
    return FOUND if found.findings else 0


def _choose(given: Mapping[str, Any]) -> int:
    from pml_ext.benchmark.advice import choose

    streams.say(str(choose(**given)))
    return 0


def _explain(given: Mapping[str, Any]) -> int:
    from pml_ext.benchmark.explained import drawn, explain

    found = explain(given["loss"])
    streams.say(str(found))
    if found.figure is not None:
        out = drawn(found, Path(given["out"]) if "out" in given else None)
        streams.say(f"\nPair weights drawn in {out}")
    return 0


def _laws(given: Mapping[str, Any]) -> int:
    from pml_ext.benchmark.lawful import laws

    table = laws(**given)
    streams.say(repr(table))
    return FOUND if table.bad else 0


_EMBEDDINGS = Flag("embeddings", Text(), "a file .npy of embeddings [n, d]", "EMBEDDINGS", first=True)
_LABELS = Flag("labels", Text(), "a file .npy of their labels, numbers or strings [n]", "LABELS", first=True)
_K = Flag("k", Several(Whole(1)), "the k of recall@k and similar metrics")
_METRICS = Flag(
    "metrics", Several(Text()), "recall, precision, mean_average_precision_at_r, r_precision, NMI, ...", "NAME"
)
_NORMALIZE = Flag("normalize", Switch(), "compare by cosine similarity")

WORDS: dict[str, Word] = {
    "evaluate": Word(
        "Measure how well the nearest neighbors of each embedding share its label, with intervals.",
        _evaluate,
        (
            _EMBEDDINGS,
            _LABELS,
            _K,
            _METRICS,
            Flag("query", Text(), "a file .npy of the queries: booleans [n] or indices", "FILE"),
            Flag("gallery", Text(), "a file .npy of the references: booleans [n] or indices", "FILE"),
            Flag("groups", Text(), "a file .npy of groups [n]; a query ignores references of its own group", "FILE"),
            _NORMALIZE,
            Flag("device", Text(), "device to compute on. Default: cpu", "NAME"),
        ),
    ),
    "compare": Word(
        "Compare two sets of embeddings of the same samples: is one of them better, or is it chance?",
        _compare,
        (
            Flag("first", Several(Text()), "embeddings, a file .npy for each seed", "FILE", needed=True),
            Flag(
                "second",
                Several(Text()),
                "embeddings of the other method, a file .npy for each seed",
                "FILE",
                needed=True,
            ),
            Flag("labels", Text(), "a file .npy of the labels of the samples", "FILE", needed=True),
            Flag("level", Number(above=0, below=1), "confidence level. Default: 0.95", "P"),
            Flag(
                "over",
                Text(_OVER),
                "intervals that hold for other queries, or for other classes. Default: queries",
                "NAME",
            ),
            _METRICS,
            _K,
            _NORMALIZE,
        ),
    ),
    "diagnose": Word(
        "Find what is wrong with embeddings and labels, without a loss and without a run.",
        _diagnose,
        (_EMBEDDINGS, _LABELS),
        epilog="The exit code is 1 if something is wrong.",
    ),
    "explain": Word(
        "Formula, parts, defaults, source, differences from the reference code, and the weight plot of a loss.",
        _explain,
        (
            Flag(
                "loss", Text(), "a name as in train: RAW, RAWLoss, pml:TripletMarginLoss, my:Loss", "NAME", first=True
            ),
            Flag("out", Text(), "file of the plot. Default: NAME_weights.png", "FILE"),
        ),
        alone=("out",),
    ),
    "choose": Word(
        "Which losses to start with for your data, how to fill a batch, and what to avoid.",
        _choose,
        (
            Flag("classes", Whole(), "number of training classes"),
            Flag("images_per_class", Whole(), "images of a typical class"),
            Flag("batch", Whole(), "images in a training step. Default: 128"),
            Flag("embedding_size", Whole(), "dimension of the embeddings. Default: 128"),
            Flag("data", Text(), "count classes and images in these data", "SOURCE"),
        ),
    ),
    "laws": Word(
        "Check a loss or a miner against all laws that apply to it.",
        _laws,
        (
            Flag(
                "loss",
                Text(),
                "a loss as in train, or a miner: RAW, pml:TripletMarginLoss, my:Loss",
                "NAME",
                first=True,
            ),
            Flag("only", Several(Text()), "names of the laws to try. Default: all", "LAW"),
            Flag("skip", Several(Text()), "names of laws not to try", "LAW"),
            Flag("examples", Whole(1), "cases of each kind to draw. Default: 100"),
            Flag("dimension", Whole(1), "dimension of the embeddings. Default: several"),
        ),
        epilog="The exit code is 1 if a law is broken.",
    ),
}
