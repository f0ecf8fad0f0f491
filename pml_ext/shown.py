"""What objects of this package show in a notebook: tables and pictures in HTML, readable in light and in dark."""

from __future__ import annotations

import base64
import html
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 300  # letters of a name that are kept
SCREEN = 40  # lines of a text
WORDS = 32  # letters, from which on a cell of a table is read as a sentence


class Html(str):
    """What is HTML already, and not escaped again."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


def one_line(value: Any, longest: int) -> str:
    """A name of a stranger on one line of at most so many letters, without what would act on its surroundings."""
    line = " ".join(str(value).split())
    # Direction overrides and the like reach beyond the name that has them; joiners belong to emoji and scripts.
    kept = "".join(c if c in "\u200c\u200d" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in line)
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def text(value: Any) -> str:
    r"""Any value as text of an element or an attribute: one line, without control characters, at most 300 letters.

    Example:
        >>> text("<b>R&D</b>\n")
        '&lt;b&gt;R&amp;D&lt;/b&gt;'
    """
    return html.escape(one_line(value, LONGEST), quote=True)


def on_a_screen(page: str, rest: str) -> str:
    r"""A text cut after a screen of lines, with what says where the rest is.

    Example:
        >>> on_a_screen("a\n" * 50, "more").splitlines()[-1]
        '... 11 more lines: more'
    """
    lines = page.splitlines()
    if len(lines) <= SCREEN:
        return page
    kept = SCREEN - 1
    return "\n".join([*lines[:kept], f"... {len(lines) - kept} more lines: {rest}"])


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: Any = "", notes: Iterable[Any] = ()) -> Html:
    """A table whose cells are escaped unless they are `Html`; the first cell of each row is its head.

    Columns of numbers and names are set to the right, on one line; columns in which there are sentences are read.

    Example:
        >>> "<td>&lt;1</td>" in table(("loss", "recall"), [("RAW", "<1")])
        True
        >>> '<td class="words">short</td>' in table((), [("A", "short"), ("B", "as long as a sentence is, at least")])
        True
    """
    lines = [list(row) for row in rows]
    words = [any(map(_is_a_sentence, column)) for column in zip(*lines, strict=True)] or [False] * len(head)

    looks = [' class="words"' if each else "" for each in words]

    def row(values: Sequence[Any], first: str, other: str) -> str:
        openings = [first, *[other] * (len(values) - 1)]
        cells = zip(openings, looks, map(_cell, values), strict=True)
        return "".join(f"<{opening}{look}>{cell}</{opening[:2]}>" for opening, look, cell in cells)

    top = row(head, 'th scope="col"', 'th scope="col"') if head else ""
    body = "".join("<tr>" + row(line, 'th scope="row"', "td") + "</tr>" for line in lines)
    title = f"<caption>{_cell(caption)}</caption>" if caption else ""
    below = "".join(f"<p>{_cell(each)}</p>" for each in notes)
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return framed(f"<table>{title}{thead}<tbody>{body}</tbody></table>{below}")


def framed(inner: str) -> Html:
    """HTML of this package, with its looks: colors are those of the page around it."""
    return Html(f'<div class="pml-ext"><style>{STYLE}</style>{inner}</div>')


def preformatted(page: str) -> Html:
    """A text as it is."""
    return framed(f"<pre>{html.escape(page)}</pre>")


def picture(png: bytes, caption: str) -> Html:
    """A picture that stands in the page itself."""
    code = base64.b64encode(png).decode("ascii")
    return Html(f'<img alt="{text(caption)}" src="data:image/png;base64,{code}">')


def wrapped(words: str, indent: str = "") -> str:
    """Lines of at most 118 letters."""
    return textwrap.fill(words, 118, subsequent_indent=indent)


def _is_a_sentence(value: Any) -> bool:
    return not (isinstance(value, Html) and "<" in value) and len(str(value)) > WORDS and " " in str(value)


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, Html) else text(value)


STYLE = (
    ".pml-ext{overflow-x:auto}"
    ".pml-ext table{border-collapse:collapse;font-variant-numeric:tabular-nums;color:inherit;background:transparent}"
    ".pml-ext caption{text-align:left;padding:4px 0;color:inherit;opacity:.8}"
    ".pml-ext th,.pml-ext td{padding:3px 10px;text-align:right;border:0;color:inherit;background:transparent;"
    "border-bottom:1px solid rgba(128,128,128,.35)}"
    ".pml-ext tr>:first-child{text-align:left}"
    ".pml-ext thead th{border-bottom:2px solid rgba(128,128,128,.6)}"
    ".pml-ext td{white-space:nowrap}"
    ".pml-ext th.words,.pml-ext td.words{text-align:left;white-space:normal;min-width:22ch;max-width:42ch;"
    "overflow-wrap:break-word}"
    ".pml-ext .muted{opacity:.7;font-size:.85em;margin-left:.4em}"
    ".pml-ext td .muted{display:block;margin:0}"
    ".pml-ext .name{display:inline-block;max-width:36ch;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;"
    "vertical-align:bottom}"
    ".pml-ext p{margin:4px 0;opacity:.8;font-size:.9em}"
    ".pml-ext pre{margin:0;color:inherit;background:transparent;white-space:pre-wrap;word-break:normal;"
    "overflow-wrap:anywhere}"
    ".pml-ext img{max-width:100%;background:#fff;border-radius:4px}"
    ".pml-ext th img,.pml-ext td img{min-width:48px;min-height:48px;object-fit:contain;image-rendering:pixelated;"
    "vertical-align:middle;margin:2px 6px 2px 0}"
    ".pml-ext .right{color:#00795a}.pml-ext .wrong{color:#b84a00}.pml-ext .best{font-weight:600}"
    "@media (prefers-color-scheme:dark){.pml-ext .right{color:#2fcf9f}.pml-ext .wrong{color:#ff8f4a}}"
    "[data-jp-theme-light=false] .pml-ext .right{color:#2fcf9f}"
    "[data-jp-theme-light=false] .pml-ext .wrong{color:#ff8f4a}"
)
