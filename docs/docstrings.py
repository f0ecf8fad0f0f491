"""Docstrings as Markdown: a griffe extension that mkdocstrings loads, for what Google's sections do not say alike."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # griffe loads this file alone


from formulas import with_formulas
from griffe import Extension, Object

# Doctests are a section of their own, not a paragraph in a box; a literal block is announced by its indentation alone;
# a name is code, whatever it is the name of.
_MARKDOWN = (
    (re.compile(r"^(\s*)Example:$", re.MULTILINE), r"\1Examples:"),
    (re.compile(r"(?<!\.\. math)::$", re.MULTILINE), ":"),
    (re.compile(r":(?:func|class|meth|mod):(?=`)"), ""),
)


class Markdown(Extension):
    """Write the docstring of every object as its renderer understands it."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for each object, after it was read."""
        if obj.docstring is not None:
            for written, rendered in _MARKDOWN:
                obj.docstring.value = written.sub(rendered, obj.docstring.value)
            obj.docstring.value = with_formulas(obj.docstring.value)
