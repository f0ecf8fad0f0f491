"""A default device that is not the tensors' own, imitated by `meta`, which has no numbers at all."""

import ast
import copy
from pathlib import Path

import pytest
import torch

import pml_ext
from tests.registry import LOSSES, MINERS, RECIPES, WRAPPERS

ROOT = Path(pml_ext.__file__).parent
FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
FACTORIES |= {"tensor", "zeros", "scalar_tensor", "asarray", "tril_indices", "triu_indices"}
# What makes the tensors that losses are given, and figures.
OTHERS = ("analysis", "benchmark", "datasets", "evaluation", "testing")


def placeless(tree):
    """The calls of torch's factories that do not say on which device, but in a constructor: a module's own state."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            is_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if is_torch and "device" not in {keyword.arg for keyword in node.keywords}:
                yield f"line {node.lineno}: torch.{node.func.attr}"


def test_every_tensor_that_is_made_says_where():
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    found = {
        str(path): list(placeless(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
        for path in paths
        if path.parts[0] not in OTHERS
    }
    assert len(found) > 100
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_a_tensor_that_does_not_say_where_is_seen():
    assert list(placeless(ast.parse("x = 1\ny = torch.arange(x)"))) == ["line 2: torch.arange"]


# The recipe NPair is a loss of PML's own, which makes its pairs by numpy.


def outcome(loss, embeddings, labels):
    torch.default_generator.manual_seed(0)
    x = embeddings.clone().requires_grad_()
    value = loss(x, labels)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("name", [*LOSSES, *WRAPPERS, *(name for name in RECIPES if name != "NPair")])
def test_losses_do_not_ask_for_the_default_device(name):
    loss = (LOSSES | WRAPPERS | RECIPES)[name]()
    for per_class in (4, 12):
        embeddings, labels = torch.randn(24, 4, dtype=torch.float64), torch.arange(24) // per_class
        other = copy.deepcopy(loss)
        expected = outcome(loss, embeddings, labels)
        with torch.device("meta"):
            found = outcome(other, embeddings, labels)
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("name", MINERS)
def test_miners_do_not_ask_for_the_default_device(name):
    miner = MINERS[name]()
    embeddings, labels = torch.randn(24, 4, dtype=torch.float64), torch.arange(24) // 4
    other = copy.deepcopy(miner)
    torch.default_generator.manual_seed(0)
    expected = miner(embeddings, labels)
    torch.default_generator.manual_seed(0)
    with torch.device("meta"):
        found = other(embeddings, labels)
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.equal(actual, wanted)
