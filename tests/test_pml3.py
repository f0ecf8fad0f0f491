"""The package beside PML 3, of which there is no installation here: on a double made from its documentation.

The double says nothing about the real one but what the documentation says. Where that is silent, it can give either
answer, and the package has to do with both.
"""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from test_laws import Method

from pml_ext import _pml, catalog

HERE = Path(__file__).parent
DOUBLE = HERE / "pml3" / "double"
SWITCHES = [
    ast.literal_eval(key)
    for node in ast.walk(ast.parse((DOUBLE / "pytorch_metric_learning" / "switches.py").read_text(encoding="utf-8")))
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SWITCHES"
    for key in node.value.keys
]


@cache
def expected():
    """Value and length of the gradient of every recipe, as PML 2 has them."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(12, 8, dtype=torch.float64, requires_grad=True), torch.arange(12) // 3
    given = {"num_classes": 4, "embedding_size": 8}
    found = {}
    for name in catalog.recipes:
        torch.manual_seed(1)
        method = Method(catalog.build(name, **{each: given[each] for each in catalog.required(name)}))
        value = method(embeddings, labels)
        (gradient,) = torch.autograd.grad(value, embeddings)
        found[name] = value.item(), gradient.norm().item()
    return found


_OPTIONS = ("-n", "0", "-q", "-p", "no:cacheprovider", "--tb=short")


def run_on_the_double(*arguments, flipped="", laws="few"):
    paths = [str(DOUBLE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "pml3" / "on_the_double.py"), *_OPTIONS, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PML3_DOUBLE": flipped,
            "PML3_LAWS": laws,
            "PML3_EXPECTED": json.dumps(expected()),
            "HYPOTHESIS_PROFILE": "dev",
        },
    )
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-2000:]
    return process.stdout


pytestmark = pytest.mark.skipif(_pml.HAS_TERMS, reason="this is PML 3 itself")


def test_on_the_double():
    assert " passed" in run_on_the_double()


def test_on_the_double_with_the_other_answers():
    """All of them at once; one by one, with all laws and the benchmark, under `slow`."""
    assert " passed" in run_on_the_double("-k", "not keeps_the_laws and not benchmark", flipped=",".join(SWITCHES))


@pytest.mark.slow
@pytest.mark.parametrize("flipped", ["", *SWITCHES, ",".join(SWITCHES)], ids=lambda name: name or "as assumed")
def test_every_law_on_the_double(flipped):
    assert " passed" in run_on_the_double(flipped=flipped, laws="every" if flipped else "all")
