"""The package beside PML 3, of which there is no installation here: on a double made from its documentation.

The double says nothing about the real one but what the documentation says. Where that is silent, it can give either
answer, and the package has to do with both.
"""

import json
from functools import cache

import pytest
import torch
from double import SWITCHES, TESTS, run_on_the_double
from test_laws import Method

from pml_ext import _pml, catalog


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


ON_THE_DOUBLE = str(TESTS / "pml3" / "on_the_double.py")
# Ordinary tests that take no time; all of them under `slow`.
QUICK = [str(TESTS / f"test_{name}.py") for name in ("pml", "sphere")]


def passed(*arguments, flipped="", laws="few"):
    process = run_on_the_double(
        ["-n", "0", *arguments],
        flipped,
        capture=True,
        PML3_LAWS=laws,
        PML3_EXPECTED=json.dumps(expected()),
        HYPOTHESIS_PROFILE="dev",
    )
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-2000:]
    assert " passed" in process.stdout


pytestmark = pytest.mark.skipif(_pml.HAS_TERMS, reason="this is PML 3 itself")


def test_on_the_double():
    passed(ON_THE_DOUBLE, *QUICK)


def test_on_the_double_with_the_other_answers():
    """All of them at once; one by one, with all laws and the benchmark, under `slow`."""
    passed(ON_THE_DOUBLE, "-k", "not keeps_the_laws and not benchmark", flipped=",".join(SWITCHES))


@pytest.mark.slow
@pytest.mark.parametrize("flipped", ["", *SWITCHES, ",".join(SWITCHES)], ids=lambda name: name or "as assumed")
def test_every_law_on_the_double(flipped):
    passed(ON_THE_DOUBLE, flipped=flipped, laws="every" if flipped else "all")


@pytest.mark.slow
@pytest.mark.parametrize("flipped", ["", *SWITCHES, ",".join(SWITCHES)], ids=lambda name: name or "as assumed")
def test_the_suite_on_the_double(flipped):
    """The ordinary tests, without those of the double itself."""
    passed("tests", "--ignore=tests/pml3", flipped=flipped)
