"""Whether an object is the one that an experiment was started with: a digest of its class, code and values."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTH = 16
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis))


def fingerprint(thing: Any) -> str:
    """A hexadecimal digest that is the same for objects that are made the same way, also in another process.

    Of functions and classes it has the code, with that of the functions and classes of the same module that they use,
    but not that of installed packages; of other objects their attributes.

    Example:
        >>> __name__ = "__main__"  # as in a notebook
        >>> def squared(x): return x * x
        >>> first = fingerprint(squared)
        >>> def squared(x): return x * x
        >>> first == fingerprint(squared)
        True
        >>> def squared(x): return x * x * 1.0
        >>> first == fingerprint(squared)
        False
    """
    digest = hashlib.sha256()
    _Walk(digest).go(thing)
    return digest.hexdigest()[:LENGTH]


class _Walk:
    """Goes through an object once, in an order that does not depend on where its parts lie in memory."""

    def __init__(self, digest: Any) -> None:
        self.digest = digest
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # an address that is free could be that of another object

    def add(self, *words: object) -> None:
        self.digest.update(repr(words).encode("utf-8", "backslashreplace"))

    def go(self, thing: Any) -> None:
        if isinstance(thing, _PLAIN):
            self.add(type(thing).__name__, thing)
            return
        if id(thing) in self.seen:
            self.add("again", self.seen[id(thing)])
            return
        self.seen[id(thing)] = len(self.seen)
        self.alive.append(thing)
        if isinstance(thing, Tensor):
            self.array(thing.detach().cpu())
        elif isinstance(thing, np.ndarray):
            self.array(thing)
        elif isinstance(thing, torch.Generator):
            self.array(thing.get_state())
        elif isinstance(thing, (list, tuple)):
            self.add(type(thing).__name__, len(thing))
            for each in thing:
                self.go(each)
        elif isinstance(thing, Mapping):
            self.add("mapping", len(thing))
            for key, value in thing.items():
                self.go(key)
                self.go(value)
        elif isinstance(thing, (set, frozenset)):
            self.add("set", sorted(fingerprint(each) for each in thing))
        elif isinstance(thing, MethodType):
            self.go(thing.__func__)
            self.go(thing.__self__)
        elif isinstance(thing, FunctionType):
            self.function(thing)
        elif isinstance(thing, type):
            self.klass(thing)
        elif isinstance(thing, (ModuleType, BuiltinFunctionType)):
            self.add("named", thing.__name__)
        else:
            self.instance(thing)

    def array(self, values: Any) -> None:
        array = values.float().numpy() if isinstance(values, Tensor) and values.dtype is torch.bfloat16 else values
        array = np.asarray(array)
        self.add("array", array.dtype.str, array.shape)
        if array.dtype.kind == "O":
            self.go(array.tolist())
        else:
            self.digest.update(np.ascontiguousarray(array).tobytes())

    def function(self, thing: FunctionType) -> None:
        self.add("function", thing.__qualname__ if _installed(thing) else "")
        if _installed(thing):
            self.add(thing.__module__)
        else:
            self.code(thing.__code__)
            self.used(thing, thing.__code__)
        self.go(thing.__defaults__)
        self.go(thing.__kwdefaults__)
        for cell in thing.__closure__ or ():
            try:
                self.go(cell.cell_contents)
            except ValueError:  # not filled yet
                self.add("empty")

    def code(self, code: CodeType) -> None:
        self.add("code", code.co_code, code.co_names, code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.code(constant)
            else:
                self.add(constant if not isinstance(constant, frozenset) else sorted(map(repr, constant)))

    def used(self, thing: FunctionType, code: CodeType) -> None:
        """The functions, classes and plain values beside it that a function reads."""
        for name in code.co_names:
            value = thing.__globals__.get(name)
            own = isinstance(value, (FunctionType, type)) and value.__module__ == thing.__module__
            if own or (isinstance(value, _PLAIN) and value is not None):
                self.add(name)
                self.go(value)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.used(thing, constant)

    def klass(self, thing: type) -> None:
        self.add("class", thing.__module__ if _installed(thing) else "", thing.__qualname__.rpartition(".")[2])
        if _installed(thing):
            return
        for base in thing.__bases__:
            self.go(base)
        for name, value in sorted(vars(thing).items()):
            inner = getattr(value, "__func__", value)
            inner = getattr(inner, "fget", inner)
            if isinstance(inner, (FunctionType, *_PLAIN)) and name not in ("__module__", "__doc__", *_LINES):
                self.add(name)
                self.go(inner)

    def instance(self, thing: Any) -> None:
        self.go(type(thing))
        told = getattr(thing, "__dict__", None)
        if told:
            for name, value in told.items():
                self.add(name)
                self.go(value)
        elif hasattr(thing, "tobytes"):  # an image
            self.add(thing.tobytes())
        elif type(thing).__module__ in ("torch", "builtins", "pathlib", "decimal", "fractions"):
            self.add(str(thing) if " at 0x" not in repr(thing) else "")


_LINES = ("__firstlineno__", "__static_attributes__")  # of Python 3.13


def _installed(thing: Any) -> bool:
    """Whether it is of an installed package, or of Python itself, whose code does not change under a notebook."""
    name = thing.__module__ or ""
    if name == "__main__" or name not in sys.modules:
        return False
    if name.partition(".")[0] in sys.stdlib_module_names or name.partition(".")[0] == "pml_ext":
        return True
    path = getattr(sys.modules[name], "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path or not path
