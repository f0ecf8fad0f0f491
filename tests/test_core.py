"""Facts about the core: how large it is, how many types it has, and what a batch crosses on its way to a gradient."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from of_pml import LpDistance

import pml_ext
from pml_ext import losses
from pml_ext.pairs import PairMasks
from pml_ext.testing.cases import all_pairs, as_pairs

ROOT = Path(pml_ext.__file__).parent
# What stands between a loss and its gradient.
CORE = (
    "base",
    "engine",
    "by_autograd",
    "pairs",
    "gathered_positives",
    "pair_masks",
    "closed_form",
    "scores",
    "kept_weights",
    "similarity",
)
CORE += ("vectors", "masked", "reducer")
LABELS = torch.arange(32) // 4


@cache
def tree(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [*CORE, "miners/base", "seeded", "extend"])
def test_files_of_the_core_are_small(name):
    lines = len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines())
    assert lines <= (200 if name == "base" else 300)


def test_the_core_has_few_types():
    types = [node.name for name in CORE for node in tree(f"{name}.py").body if isinstance(node, ast.ClassDef)]
    assert len(types) <= 24, types


@pytest.mark.parametrize("path", sorted((ROOT / "losses").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_the_author_of_a_loss_meets_few_types(path):
    met = [
        alias.name
        for node in ast.walk(tree(path.relative_to(ROOT)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").removeprefix("pml_ext.") in CORE
        for alias in node.names
        if alias.name[0].isupper() and not alias.name.isupper()
    ]
    assert len(met) <= 5, met


def calls_of(step):
    """The stack of files of every call of ours that a step makes, outermost first: a file as often as it is entered."""
    stacks = []

    def note(frame, event, argument):
        if event != "call" or not inside(frame) or frame.f_code.co_name.startswith("<"):
            return
        stack = []
        while frame is not None:
            name = frame.f_code.co_filename
            if inside(frame) and (not stack or stack[-1] != name):
                stack.append(name)
            frame = frame.f_back
        stacks.append([Path(name).relative_to(ROOT).with_suffix("").as_posix() for name in reversed(stack)])

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return stacks


def inside(frame):
    """Whether a call is ours: what stands in for PML's own classes calls the shell back, as they do."""
    return frame.f_code.co_filename.startswith(str(ROOT)) and not frame.f_code.co_filename.endswith("_pml.py")


GIVEN = {"labels": lambda _: None, "masks": lambda masks: masks, "indices": as_pairs}


@pytest.mark.pml2("how many calls a step takes beside it")
@pytest.mark.parametrize(("given", "most"), [("labels", 50), ("masks", 58), ("indices", 62)])
def test_a_batch_on_its_way_to_a_gradient(given, most):
    """It goes down, through at most five files at once, and no file that it has left is called from below."""
    loss, x = losses.RAWLoss(), torch.randn(32, 8, requires_grad=True)
    pairs = GIVEN[given](PairMasks(*all_pairs(LABELS)))

    def step():
        loss(x, LABELS, pairs).backward()

    step()
    stacks = calls_of(step)
    for stack in stacks:
        assert len(stack) <= 5, stack
        assert len(set(stack)) == len(stack), f"called back up: {stack}"
    assert len(stacks) <= most


def test_a_call_back_up_is_seen():
    class Calling(losses.RAWLoss.__mro__[1]):
        def get_default_distance(self):
            return LpDistance()

        def per_anchor(self, sim, pos, neg):
            return self.lacks_pairs(1, sim, None) + (sim * pos).sum(-1)

    stacks = calls_of(lambda: Calling()(torch.randn(8, 4), LABELS[:8]))
    assert any(len(set(stack)) < len(stack) for stack in stacks)


def imports():
    """Module -> the modules of ours that it imports as it is imported."""
    paths = {path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__"): path for path in paths}
    found = {}
    for name, path in names.items():
        body = tree(f"{path.relative_to(ROOT.name)}.py").body
        found[name] = {
            target
            for node in body
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("pml_ext")
            for alias in node.names
            for target in [f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in names else node.module]
        } | {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names if alias.name in names}
    return found


def circle(graph):
    """The modules of a circle, or an empty list."""
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in graph.get(name, ()):
                found = visit(target, [*path, name])
                if found:
                    return found
            done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in graph)), [])


def test_no_module_imports_itself_by_way_of_others():
    assert circle(imports()) == []


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
