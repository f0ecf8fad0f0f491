"""Names that are not known, and those that were meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def hint(name: str, known: Iterable[str], *, most: int = 3, or_all: bool = True) -> str:
    """What may have been meant by a name: the nearest of those that are known; if none is near, all, or nothing.

    Example:
        >>> hint("raww", ["RAW", "NCA"])
        'did you mean RAW?'
        >>> hint("xyz", ["RAW", "NCA"]), hint("xyz", ["RAW", "NCA"], or_all=False)
        ('known: RAW, NCA', '')
    """
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in get_close_matches(str(name).lower(), by_lower, n=most, cutoff=0.5)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(by_lower.values())}" if or_all else ""
