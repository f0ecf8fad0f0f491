"""Every public name with its signature, one a line; `python tests/public_names.py` brings public_names.txt up to date.

Public is what stands in `pml_ext.__all__`, and in the `__all__` of each module that stands there.
"""

import enum
import inspect
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

RECORD = Path(__file__).with_name("public_names.txt")


def public_modules():
    """The modules of which every name in `__all__` is public."""
    import pml_ext

    found = {f"pml_ext.{name}": getattr(pml_ext, name) for name in pml_ext.__all__}
    return {name: value for name, value in found.items() if isinstance(value, ModuleType)}


def lines():
    """The lines of the record."""
    import pml_ext

    words = [(f"pml_ext.{name}", getattr(pml_ext, name)) for name in pml_ext.__all__]
    for place, module in public_modules().items():
        words += [(f"{place}.{name}", getattr(module, name)) for name in module.__all__]
    return sorted(line for name, value in words for line in _lines_of(name, value))


def _lines_of(name, value):
    yield name + _signature(value)
    # What a loss, a miner or a wrapper has beside its constructor is PML's protocol, and that of `pml_ext.extend`.
    of_protocol = inspect.isclass(value) and issubclass(value, nn.Module) and ".extend." not in name
    if not inspect.isclass(value) or issubclass(value, enum.Enum) or of_protocol:
        return
    for own, member in vars(value).items():
        if own.startswith("_") or inspect.isclass(member):
            continue
        if isinstance(member, property):
            yield f"{name}.{own}"
        elif callable(function := getattr(member, "__func__", member)):
            yield f"{name}.{own}{_signature(function)}"


def _signature(value):
    """The parameters and their defaults, without annotations: no two versions of Python write them alike."""
    if not (inspect.isroutine(value) or inspect.isclass(value)):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    empty = inspect.Parameter.empty
    plain = [each.replace(annotation=empty, default=_Written.of(each.default)) for each in parameters]
    return str(inspect.Signature(plain))


class _Written:
    """A default that is written as it is, but for what is different in every process."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text

    @classmethod
    def of(cls, default):
        if default is inspect.Parameter.empty:
            return default
        text = repr(default)
        return cls(getattr(default, "__name__", "...") if " at 0x" in text or text.startswith("<") else text)


if __name__ == "__main__":
    sys.path.insert(0, str(RECORD.parent.parent))
    RECORD.write_text("\n".join(lines()) + "\n", encoding="utf-8")
