"""What the pages show of the package itself: mkdocs calls `on_page_markdown` for each page, which fills in the marks.

A mark is a comment on a line of its own: `<!-- methods -->`, `<!-- laws -->`, `<!-- tables ... -->`, or
`<!-- file: NAME -->`, a Markdown file of the top level whose links then lead to pages.
"""

import logging
import re
from pathlib import Path
from typing import Any

from contents import TOP, included, laws, methods
from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

_LOG = logging.getLogger("mkdocs.hooks")
_PICTURES = ("benchmarks/results/speed.png",)


class FormulasAsText(Extension):
    """Underscores are subscripts, not emphasis, in the prose of docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Called once for each parser."""
        md.delimiters.remove("_")


@event_priority(100)  # before mkdocstrings makes parsers of its own
def on_config(config: MkDocsConfig) -> None:
    """The parser of all pages."""
    config.markdown_extensions.append(FormulasAsText())


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Pictures that stand with the measurements that they are made of."""
    for name in _PICTURES:
        files.append(File.generated(config, f"assets/{Path(name).name}", abs_src_path=str(TOP / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its marks filled in."""
    for mark, made in (("methods", methods), ("laws", laws)):
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", made())
    return re.sub(r"^<!-- file: (\S+) -->$", lambda found: included(found[1]), markdown, flags=re.MULTILINE)


def on_post_page(output: str, *, page: Any, **_: Any) -> None:
    """Warn, which fails a strict build, of whatever a page would load from another host."""
    for found in re.findall(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>", output
    ):
        _LOG.warning("%s loads from another host: %s", page.file.src_uri, found)
