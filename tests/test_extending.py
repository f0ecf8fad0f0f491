"""EXTENDING.md says what is true: all of its code runs, and is as short as it says."""

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pml_ext import _pml
from pml_ext.catalog import registry

TEXT = (Path(__file__).parent.parent / "EXTENDING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.usefixtures("_few_examples")
def test_the_code_of_the_page_runs(monkeypatch, capsys):
    monkeypatch.setattr(registry, "entries", registry.entries.copy())
    module = ModuleType("extending")  # what is pickled must be found again
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in BLOCKS:
        if _pml.HAS_TERMS and "BaseDistance" in block:
            continue  # written for PML 2
        exec(compile(block, "EXTENDING.md", "exec"), vars(module))
    output = capsys.readouterr().out
    assert re.search(r"SquaredHingeLoss: \d+ laws, \d+ passed", output)
    assert re.search(r"CloseNegativeMiner: \d+ laws, \d+ passed", output)
    assert "0.6 0.3 margin" in output
    assert "3 classes, 30 vectors of 2 numbers" in output
    assert "both_of_two" in output


def test_a_loss_with_a_closed_form_is_short():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(lines) < 40
    assert "closed_form" in BLOCKS[0]


def test_only_public_names_are_imported():
    for node in (node for block in BLOCKS for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pml_ext"):
            module = __import__(str(node.module), fromlist=["__all__"])
            assert {alias.name for alias in node.names} <= set(module.__all__), node.module


def test_an_author_of_a_closed_form_has_seven_things_to_know():
    assert len(re.findall(r"^\d+\. \*\*", TEXT, re.MULTILINE)) <= 7
