"""Docstrings as Markdown: a griffe extension that mkdocstrings loads, for what Google's sections do not say alike."""

import re
from typing import Any

from griffe import Extension, Object

# Doctests are a section of their own, not a paragraph in a box; a literal block is announced by its indentation alone.
_MARKDOWN = (
    (re.compile(r"^(\s*)Example:$", re.MULTILINE), r"\1Examples:"),
    (re.compile(r"::$", re.MULTILINE), ":"),
)


class Markdown(Extension):
    """Write the docstring of every object as its renderer understands it."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for each object, after it was read."""
        if obj.docstring is not None:
            for written, rendered in _MARKDOWN:
                obj.docstring.value = written.sub(rendered, obj.docstring.value)
