"""The names of losses and data sets, read without importing what they name: a typo is known before torch is loaded."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.kinds import did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
ALL = "all"
BUILT_IN = ("glyphs", "digits")
LAYOUTS = ("cub", "cars196", "sop", "in_shop", "omniglot")
ENTRY_POINTS = "pml_ext.datasets"


@cache
def catalog() -> tuple[str, ...]:
    """The names of `pml_ext.catalog`, in its order."""
    calls = [
        (path.name, node.lineno, str(node.args[0].value))
        for path in (PACKAGE / "catalog").glob("*.py")
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "recipe"
        if node.args and isinstance(node.args[0], ast.Constant)
    ]
    return tuple(name for _, _, name in sorted(calls))


@cache
def methods() -> tuple[str, ...]:
    """The names of `pml_ext.trainers.methods`."""
    return _keys(PACKAGE / "trainers" / "methods.py", "methods")


@cache
def ours() -> tuple[str, ...]:
    """The class names of `pml_ext.losses`."""
    for node in _parsed(PACKAGE / "losses" / "__init__.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


@cache
def pml() -> tuple[str, ...]:
    """The names of PML's losses, whatever version is installed; none where they are not written down."""
    found = find_spec("pytorch_metric_learning")
    if found is None or not found.submodule_search_locations:
        return ()
    package = Path(next(iter(found.submodule_search_locations)))
    exported: set[str] = set()
    for path in (package / "losses" / "__init__.py", package / "losses.py"):
        for node in _parsed(path).body:
            if isinstance(node, ast.ImportFrom):
                exported |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                exported |= {str(each.value) for each in ast.walk(node.value) if isinstance(each, ast.Constant)}
    return tuple(sorted(name for name in exported if name.endswith("Loss")))


def losses() -> list[str]:
    """Every name of a loss that a command knows."""
    return list(dict.fromkeys((*catalog(), *methods(), *ours(), *pml())))


def check_loss(spec: str) -> None:
    """Raise BenchmarkError for a loss whose name cannot be meant: "RAWW", "RAWW(gamma=0.3)", "pml:Triplet"."""
    module, colon, name = (each.strip() for each in re.split(r"[(+]", spec, maxsplit=1)[0].partition(":"))
    if colon and module != "pml":
        if not (module and name):
            raise BenchmarkError(f"loss {spec!r} must be written module:name")
        return
    name, known = (name, list(pml())) if colon else (module, losses())
    if name not in known and pml():  # or else PML itself is asked, once it is imported
        raise BenchmarkError(did_you_mean("loss", name, known))


def check_data(source: str) -> None:
    """Raise BenchmarkError for a data set that is neither a name, nor a layout with its folder, nor a path there."""
    layout, colon, rest = source.partition(":")
    if colon and rest and re.fullmatch(r"[A-Za-z_][\w.-]+", layout):  # of two letters or more: C:\ is a path
        return
    if source in BUILT_IN or Path(source).exists():
        return
    if re.fullmatch(r"[\w-]+", source):
        from importlib.metadata import entry_points  # it takes longer to import than all the rest

        installed = {entry.name for entry in entry_points(group=ENTRY_POINTS)}
        if source in installed:
            return
        if source in LAYOUTS:
            raise BenchmarkError(f"data {source!r} needs the folder it was unpacked to: {source}:FOLDER")
        raise BenchmarkError(did_you_mean("data set", source, [*BUILT_IN, *LAYOUTS, *sorted(installed)]))
    raise BenchmarkError(f"there is no data at {source!r}")


def _keys(path: Path, variable: str) -> tuple[str, ...]:
    """The keys of the mapping that a module assigns to a variable."""
    for node in _parsed(path).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == variable and node.value is not None:
            mapping = next((each for each in ast.walk(node.value) if isinstance(each, ast.Dict)), None)
            keys = [] if mapping is None else mapping.keys
            return tuple(str(key.value) for key in keys if isinstance(key, ast.Constant))
    return ()


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except OSError:  # no sources beside the compiled files
        return ast.Module(body=[], type_ignores=[])
