"""Names, tables and figures of the report in HTML, in which whatever comes from users is escaped."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pml_ext.shown import one_line, text

SHORT = 24  # in a figure


def shortened(names: Iterable[str]) -> dict[str, str]:
    """Names as a figure has room for them, still different from each other.

    Example:
        >>> list(shortened(["RAW", "a name that goes on and on, 1", "a name that goes on and on, 2"]).values())
        ['RAW', 'a name that goes on and…', 'a name that goes on a… 2']
    """
    short: dict[str, str] = {}
    for each in dict.fromkeys(names):
        candidate, count = one_line(each, SHORT), 1
        while candidate in short.values():
            count += 1
            end = f" {count}"
            candidate = one_line(each, SHORT - len(end)) + end
        short[each] = candidate
    return short


def name(value: Any) -> str:
    """A name of a user: cut by the style sheet where it is too long, whole in its tooltip.

    Example:
        >>> name("cat")
        '<bdi class="name" title="cat">cat</bdi>'
    """
    escaped = text(value)
    return f'<bdi class="name" title="{escaped}">{escaped}</bdi>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """A table of cells that are HTML already; the first of each row is its head. It scrolls where it is too wide."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0"><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def figure(draw: Callable[[], Any], caption: str, size: tuple[float, float] | None = None) -> str:
    """A matplotlib figure as inline SVG whose black is the color of the page's text.

    Args:
        draw: makes the figure; the titles of the whole, and of its axes if there is one, give way to the caption.
        caption: what it shows.
        size: width and height in inches. Default: the figure's own.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # A dollar sign in a name is no mathematics.
    settings = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": caption, "font.family": "sans-serif"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The browser has fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        drawn = draw()
        FigureCanvasSVG(drawn)
        if size is not None:
            drawn.set_size_inches(*size)
        drawn.suptitle("").remove()
        for axes in drawn.axes:
            if axes.get_yscale() == "log":  # its labels are mathematics
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if len([axes for axes in drawn.axes if axes.has_data()]) == 1:
            drawn.axes[0].set_title("", loc="left")
        stream = io.StringIO()
        drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Within HTML it needs none of its name spaces.
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"#(?:000000|000)\b", "currentColor", svg)
    # Text that says nothing of its color is black.
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{text(caption)}" fill="currentColor" ', 1)
    return f'<figure class="drawn"><figcaption>{text(caption)}</figcaption>{svg.strip()}</figure>'
