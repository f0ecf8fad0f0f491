"""The report of an experiment: one self-contained page, made from results by functions of results."""

from .page import Contents, page

__all__ = ["Contents", "page"]
