"""The commands that use a kept model: `query` a gallery with images, `export` the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pml_ext.benchmark import streams
from pml_ext.benchmark.errors import BenchmarkError, explain
from pml_ext.benchmark.kinds import Whole
from pml_ext.benchmark.parser import MODULE, OneLineParser, called, short


def query(arguments: Sequence[str], prog: str = MODULE) -> int:
    """Print the images of a gallery that are most similar to each image that is given, itself left out."""
    return _run(query_parser(prog), arguments, _query)


def query_parser(prog: str = MODULE) -> OneLineParser:
    """The parser of `query`."""
    parser = _parser(prog, "query", "Find the images of a gallery that look most like yours, without these themselves.")
    parser.add_argument("--gallery", metavar="SOURCE", help="a folder with a sub-folder per class, a list (.csv), ...")
    parser.add_argument("--image", nargs="+", required=True, metavar="FILE", help="what to look for")
    parser.add_argument("-k", type=int, default=8, metavar="N", help="how many answers. Default: 8")
    parser.add_argument(
        "--index", metavar="DIR", help="where the embedded gallery is kept, and taken from if it is there already"
    )
    return parser


def export(arguments: Sequence[str], prog: str = MODULE) -> int:
    """Write a model as .onnx or .pt2."""
    return _run(export_parser(prog), arguments, _export)


def export_parser(prog: str = MODULE) -> OneLineParser:
    """The parser of `export`."""
    parser = _parser(prog, "export", "Write a model for another runtime, checked from files to embeddings.")
    parser.add_argument("--to", required=True, metavar="FILE", help="a file that ends in .onnx or .pt2")
    parser.add_argument("--image", nargs="*", default=[], metavar="FILE", help="images to check it with")
    return parser


COMMANDS: dict[str, Callable[[Sequence[str], str], int]] = {"export": export, "query": query}


def _query(given: Any) -> None:
    from pml_ext.benchmark.index import Index
    from pml_ext.benchmark.saved import load

    Whole(1).check("-k", given.k)
    model = load(given.model)
    kept = given.index is not None and (Path(given.index) / "index.json").exists()
    if kept and given.gallery is not None:
        raise BenchmarkError(
            f"{given.index} holds an index: leave out --gallery to use it, or keep the new one elsewhere"
        )
    if kept:
        index = Index.load(given.index)
    elif given.gallery is None:
        raise BenchmarkError("give the images to search by --gallery, or an --index that was kept")
    else:
        index = model.index(given.gallery)
        if given.index is not None:
            index.save(given.index)
    answers = model.queries(given.image, index, given.k + 1)
    for image, matches in zip(given.image, answers, strict=True):
        streams.say(printable(image))
        others = [match for match in matches if not _is_file(match.path, image)]
        for rank, match in enumerate(others[: given.k], 1):
            words = f"{rank:3}  {match.similarity:6.3f}  {printable(match.label)}"
            streams.say(f"{words}  {printable(match.path)}".rstrip())


def _is_file(path: str, other: str) -> bool:
    """Whether two paths are of one file; a vector has none."""
    return path != "" and Path(path).resolve() == Path(other).resolve()


def _export(given: Any) -> None:
    from pml_ext.benchmark.export import export as write
    from pml_ext.benchmark.saved import load

    difference = write(load(given.model), given.to, given.image)
    beside = Path(given.to).with_suffix(".json")
    streams.say(f"{given.to}: embeddings of 1, 2 and 7 images within {difference:.1g}; how to prepare one: {beside}")


def printable(text: str) -> str:
    r"""Text of strangers on one line: what would move the cursor is shown as an escape.

    Example:
        >>> printable("a\x1b[2Jb\nc")
        'a\\x1b[2Jb\\nc'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _parser(prog: str, word: str, description: str) -> OneLineParser:
    parser = OneLineParser(prog=called(prog, word), description=description, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR", help="the folder of a kept model, runs/x/best say")
    return parser


def _run(parser: OneLineParser, arguments: Sequence[str], do: Callable[[Any], None]) -> int:
    streams.settle()
    given = parser.parse_args(arguments)
    try:
        do(given)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:  # of the benchmark, and of data
        return _stop(parser, str(error))
    except OSError as error:
        return _stop(parser, explain(error))
    return 0


def _stop(parser: OneLineParser, message: str) -> int:
    streams.complain(f"{short(parser.prog)}: {' '.join(message.split())}")
    return 2
