"""Names as they were before, until the next version."""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


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


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """A function, or a constructor, of which keyword arguments have other names now: old=new.

    Example:
        >>> @renamed_arguments(size="length")
        ... def line(*, length=1):
        ...     return "-" * length
        >>> line(length=3)
        '---'
    """

    def under_both(function: Function) -> Function:
        @wraps(function)
        def called(*args: Any, **given: Any) -> Any:
            for old in names.keys() & given.keys():
                _warn(old, names[old])
                given[names[old]] = given.pop(old)
            return function(*args, **given)

        return cast(Function, called)

    return under_both


class RenamedAttribute:
    """An attribute that has another name now.

    Args:
        new: the name.
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the old name from where it stands."""
        self.old = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The value under the new name."""
        if instance is None:
            return self
        _warn(self.old, self.new)
        return getattr(instance, self.new)

    def __set__(self, instance: Any, value: Any) -> None:
        """Set it under the new name."""
        _warn(self.old, self.new)
        setattr(instance, self.new, value)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)
