"""What the pages show of the package itself: mkdocs calls `on_page_markdown` for each page, which fills in the marks.

A mark is a comment on a line of its own: one of `MARKS`, or one that `contents.as_a_page` knows.
The files in `benchmarks/results` are pages as they are.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from choices import at_a_glance, situations
from contents import as_a_page, citation, laws, methods
from intervals import picture
from markdown import Extension, Markdown
from measured import RESULTS, highest, pages, results
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

_LOG = logging.getLogger("mkdocs.hooks")
MARKS: Mapping[str, Callable[[], str]] = {
    "citation": citation,
    "methods": methods,
    "laws": laws,
    "results": results,
    "which: glance": at_a_glance,
    "which: situations": situations,
    "which: intervals": lambda: picture(
        "frozen_cub", "CUB", "mean_average_precision_at_r", "MAP@R on frozen features of CUB, %", 15
    ),
    "which: recall_at_1": lambda: highest("recall_at_1", 5),
    "which: mean_average_precision_at_r": lambda: highest("mean_average_precision_at_r", 5),
}


class FormulasAsText(Extension):
    """Underscores are subscripts, not emphasis, in the prose of docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Called once for each parser."""
        md.delimiters.remove("_")


@event_priority(100)  # before mkdocstrings makes parsers of its own
def on_config(config: MkDocsConfig) -> None:
    """The parser of all pages, and the results among them."""
    config.markdown_extensions.append(FormulasAsText())
    for section in config.nav or ():
        if isinstance(section, dict) and "Results" in section:
            section["Results"] += [f"results/{path.name}" for path in pages()]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Results, with their pictures, stand with the measurements that they are made of."""
    for path in (*pages(), *RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its marks filled in."""
    markdown = as_a_page(markdown)
    for mark, made in MARKS.items():
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", made())
    return markdown


def on_post_page(output: str, *, page: Any, **_: Any) -> None:
    """Warn, which fails a strict build, of whatever a page would load from another host."""
    for found in re.findall(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>", output
    ):
        _LOG.warning("%s loads from another host: %s", page.file.src_uri, found)
