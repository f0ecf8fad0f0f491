"""Figures that show themselves in a notebook, without pyplot, its global state or any magic."""

from __future__ import annotations

import io
import warnings
from typing import Any

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('plots need matplotlib: pip install "pml_ext[benchmark]"') from error

DPI = 110


class Picture(Figure):
    """A matplotlib figure that a notebook shows: `savefig` writes it, `axes` restyle it, and nothing global knows it.

    Example:
        >>> picture = Picture(figsize=(2, 1))
        >>> _ = picture.subplots().plot([1, 2])
        >>> picture._repr_png_()[1:4]
        b'PNG'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return png(self)

    def __repr__(self) -> str:
        titles = [axes.get_title(loc="left") or axes.get_title() for axes in self.axes]
        heading = self.get_suptitle() or next((title for title in titles if title), "")
        width, height = self.get_size_inches()
        return f"<Picture {' '.join(heading.split())!r}, {width:g} x {height:g} inches: savefig(path) writes it>"

    __str__ = __repr__


def png(figure: Any, dpi: int = DPI) -> bytes:
    """The bytes of a figure as PNG."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks
        figure.savefig(stream, format="png", dpi=dpi, facecolor="white")
    return stream.getvalue()
