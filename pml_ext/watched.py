"""Whether somebody watches, and a bar for what takes long."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Pairs of vectors of which some seconds are spent on one core.
LONG = 1 << 30


@contextmanager
def bar_of_pairs(what: str, pairs: int) -> Iterator[Callable[[int], object]]:
    """A bar over so many pairs of vectors, moved by what is given: on a terminal or in a notebook, if it takes long."""
    if pairs < LONG or not watched():
        yield lambda done: None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a notebook without ipywidgets has a bar of text
        from tqdm.auto import tqdm
    with tqdm(total=pairs, desc=what, unit="pair", unit_scale=True, leave=False, dynamic_ncols=True) as bar:
        yield bar.update


def watched() -> bool:
    """Whether somebody may look at a bar: on a terminal, or in a notebook."""
    try:
        return sys.stderr.isatty() or in_notebook()
    except (AttributeError, ValueError):  # there is no error output, or it is closed
        return False


def in_notebook() -> bool:
    """Whether this is a cell of a notebook."""
    shell: Any = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    return running is not None and hasattr(running, "kernel")
