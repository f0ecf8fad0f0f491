"""The flags that benchmarks on real images have in common."""

import argparse
from pathlib import Path
from typing import Any


def add_to(parser: argparse.ArgumentParser, out: str) -> None:
    """How images are read, where their features are kept, where runs are written."""
    parser.add_argument("--image-size", nargs="+", type=int, help="of whole images; default: that of the protocol")
    parser.add_argument("--trunk", help="as --trunk of python -m pml_ext.benchmark; default: that of the protocol")
    parser.add_argument("--weights", metavar="FILE", help="of the trunk, as those of a model that a run has kept")
    parser.add_argument("--cache", default=None, help="where features are kept")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"default: {out}")


def arguments(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments of an `Experiment` that these flags mean; without a size the protocol has its own.

    >>> arguments(argparse.Namespace(cache=None, trunk=None, weights=None, image_size=[96, 128]))
    {'cache': None, 'image_size': (96, 128), 'shorter_side': 96}
    """
    found: dict[str, Any] = {"cache": given.cache}
    found |= {name: value for name in ("trunk", "weights") if (value := getattr(given, name)) is not None}
    if given.image_size:
        found |= {"image_size": tuple(given.image_size), "shorter_side": min(given.image_size)}
    return found
