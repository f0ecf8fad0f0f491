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


def passed(*runs, laws="few"):
    process = run_on_the_double(
        *((flipped, ["-n", "0", *arguments]) for flipped, *arguments in runs),
        capture=True,
        PML3_LAWS=laws,
        PML3_EXPECTED=json.dumps(expected()),
        HYPOTHESIS_PROFILE="dev",
    )
    assert process.returncode == 0, process.stdout[-5000:]
    assert process.stdout.count(" passed") == len(runs)


pytestmark = pytest.mark.skipif(_pml.HAS_TERMS, reason="this is PML 3 itself")


def test_on_the_double():
    """As assumed, and with all other answers at once; one by one, with all laws and the benchmark, under `slow`."""
    passed(
        ("", ON_THE_DOUBLE, *QUICK),
        (",".join(SWITCHES), ON_THE_DOUBLE, "-k", "not keeps_the_laws and not benchmark"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("flipped", ["", *SWITCHES, ",".join(SWITCHES)], ids=lambda name: name or "as assumed")
def test_every_law_on_the_double(flipped):
    passed((flipped, ON_THE_DOUBLE), laws="every" if flipped else "all")


@pytest.mark.slow
@pytest.mark.parametrize("flipped", ["", *SWITCHES, ",".join(SWITCHES)], ids=lambda name: name or "as assumed")
def test_the_suite_on_the_double(flipped):
    """The ordinary tests, without those of the double itself."""
    passed((flipped, "tests", "--ignore=tests/pml3"))
