"""Names as they were before, until the next version."""

import sys
import warnings
from collections.abc import Callable
from typing import Any


def renamed(module: str, public: str = "pml_ext.extend", **names: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module in which something has another name now: old=new, to be imported from `public`.

    Example:
        >>> __getattr__ = renamed("pml_ext.base", PairMatrixLoss="RowLoss")
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name]
        warnings.warn(f"{name} is called {new} now: from {public} import {new}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], new)

    return attribute
