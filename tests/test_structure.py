"""The shape of the package: what is public, where it lives, what its docstrings hold, and which way imports point."""

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import pml_ext
from pml_ext import catalog

ROOT = Path(pml_ext.__file__).parent
PACKAGES = ("losses", "miners", "wrappers")
EXPORTED = [
    pytest.param(package, name, id=name)
    for package in PACKAGES
    for name in importlib.import_module(f"pml_ext.{package}").__all__
]
SECTIONS = ("Args:", "Shape:", "Defaults:", "Source:", "Raises:", "Example:")

# Each may import what stands in a later group, and members of its own folder.
LAYERS = (
    ("__main__",),
    ("commands",),
    ("benchmark",),
    ("mining",),
    ("trainers", "analysis", "evaluation", "datasets", "testing"),
    ("catalog",),
    ("spaces", "wrappers"),
    ("stock",),
    ("extend",),
    ("losses", "miners"),
    ("centers", "info_nce", "rank_counts", "soft_sides", "weightings"),
    ("kmeans",),
    ("base",),
    ("engine",),
    ("by_autograd",),
    ("index_tuples",),
    ("pairs", "reducer", "sampling", "seeded", "scores"),
    ("gathered_positives",),
    ("closed_form", "kept_weights", "ranks", "pair_masks", "similarity"),
    ("mirrored", "vectors"),
    ("masked", "potential", "synthesis"),
    ("hyperparameters",),
    ("_pml",),
    ("arguments", "bins", "inputs", "renamed", "thresholds"),
    ("figures", "palette", "shown", "spelling", "watched"),
)


ONE_SPELLING = re.compile(
    r"\b\w*(?:cent(?:re|red|ring)(?![a-z])|centres|(?:normal|general|optim|minim|maxim|penal|recogn|synchron|standard"
    r"|capital|regular|initial|real|local|organ|vector|character|util|summar)is[aei]|colour|avour)\w*\b"
    r"|\b(?:labelled|grey|licence|analysed?|(?-i:neighbours?))\b",  # Neighbour is the name of a method
    re.IGNORECASE,
)


@cache
def modules():
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def layer(part):
    return next((i for i, group in enumerate(LAYERS) if part in group), f"{part} has no place in LAYERS")


def imported(tree):
    """The full names of the modules, and of the names in them, that a file imports from outside its folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, "an import that leaves its folder says where it points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.level == 0)


def wrong_imports(path, tree):
    """The imports of a file that point up, or sideways out of its folder."""
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        # What only a type checker imports costs nothing.
        tree = ast.Module([node for node in tree.body if not isinstance(node, ast.If)], [])
        return [name for name in imported(tree) if name.startswith("pml_ext.")]
    parts = [name.split(".")[1] for name in imported(tree) if name.startswith("pml_ext.")]
    return [part for part in parts if part != own and layer(part) <= layer(own)]


def test_the_tests_run_on_one_thread():
    """Two workers of two threads each would take longer, and the numbers of a run depend on how many there are."""
    assert torch.get_num_threads() == 1


def test_imports_point_down():
    # Trainers, analysis, evaluation and testing are separate: a part of one that the others need belongs lower.
    found = {str(path): wrong_imports(path, tree) for path, tree in modules().items()}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


def test_an_import_that_points_up_is_seen():
    assert wrong_imports(Path("masked.py"), ast.parse("from pml_ext.base import RowLoss")) == ["base"]
    assert wrong_imports(Path("losses/raw.py"), ast.parse("from pml_ext import catalog")) == ["catalog"]
    assert wrong_imports(Path("losses/raw.py"), ast.parse("from pml_ext.losses.other import x")) == []


@pytest.mark.parametrize(
    "name",
    [
        "masked.py",
        "vectors.py",
        "scores.py",
        "kept_weights.py",
        "by_autograd.py",
        "engine.py",
        "thresholds.py",
        "synthesis.py",
        "potential.py",
    ],
)
def test_the_kernel_knows_torch_only(name):
    if (ROOT / name).exists():
        tops = {module.split(".")[0] for module in imported(modules()[Path(name)])}
        assert tops <= {"torch", "pml_ext", *_STANDARD}, tops


_STANDARD = {"typing", "math", "functools", "collections", "dataclasses", "contextlib"}


def annotated(tree):
    """The names of functions with annotations in their signatures, but for recipes, of which those are a part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "recipe" not in "".join(map(ast.unparse, node.decorator_list)):
            each = node.args
            arguments = [*each.posonlyargs, *each.args, *each.kwonlyargs, each.vararg, each.kwarg]
            if node.returns is not None or any(argument is not None and argument.annotation for argument in arguments):
                yield node.name


def test_tests_carry_no_annotations():
    tests = Path(__file__).parent
    paths = [*tests.glob("*.py"), *(tests / "pml3").glob("*.py")]
    assert [f"{path.name}: {name}" for path in paths for name in annotated(ast.parse(path.read_text("utf-8")))] == []
    assert list(annotated(ast.parse("def a(x: int): ...\ndef b(x): ...\n@recipe('c')\ndef c(x: int): ..."))) == ["a"]


def test_there_is_no_room_for_odds_and_ends():
    names = {path.stem for path in modules()} | {path.parent.name for path in modules()}
    assert not names & {"utils", "helpers", "common", "functional", "misc"}


def test_words_are_spelled_one_way():
    found = {
        str(path): words
        for path in ROOT.rglob("*.py")
        if (words := ONE_SPELLING.findall(path.read_text(encoding="utf-8")))
    }
    assert not found, "American: center, normalize"
    wrong = [
        "centre",
        "class_centres",
        "Normalised",
        "a k-nearest-neighbour loss",
        "colour",
        "labelled",
        "grey",
        "synchronisation",
    ]
    right = ["centered", "normal", "Neighbour", "dist_weight_neighbour", "neighbor", "raise", "promised", "minimum"]
    assert [each for each in (*wrong, *right) if ONE_SPELLING.search(each)] == wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_what_it_imports(package):
    module = importlib.import_module(f"pml_ext.{package}")
    classes = {name for name, value in vars(module).items() if inspect.isclass(value)}
    assert set(module.__all__) == classes
    assert sorted(module.__all__, key=str.lower) == sorted(set(module.__all__), key=str.lower)


def test_the_catalog_lists_what_is_exported():
    from pml_ext import losses, miners

    assert [cls.__name__ for cls in catalog.all_losses()] == losses.__all__
    assert [cls.__name__ for cls in catalog.all_miners()] == miners.__all__


def file_of(name):
    """KNNSoftmaxLoss -> knn_softmax: words begin with a capital, or are made of capitals."""
    stem = re.sub(r"(Loss|Miner|Regularizer)$", "", name)
    return "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[0-9]+", stem)).lower()


def test_words_of_a_class_name():
    assert file_of("KNNSoftmaxLoss") == "knn_softmax"
    assert file_of("KNearestPositiveMiner") == "k_nearest_positive"
    assert file_of("RAWLoss") == "raw"


@pytest.mark.parametrize(("package", "name"), EXPORTED)
def test_the_path_follows_from_the_name(package, name):
    cls = getattr(importlib.import_module(f"pml_ext.{package}"), name)
    assert cls.__module__ == f"pml_ext.{package}.{file_of(name)}"


@pytest.mark.parametrize(("package", "name"), EXPORTED)
def test_a_class_is_final_and_documented(package, name):
    cls = getattr(importlib.import_module(f"pml_ext.{package}"), name)
    assert getattr(cls, "__final__", False), "classes are abstract or final"
    doc = inspect.getdoc(cls)
    first, rest = doc.split("\n", 1)
    assert first.endswith("."), "the first line is a sentence: it is the row of docs/catalog.md"
    assert rest.startswith("\n"), "the first line stands alone"
    places = [doc.find(f"\n{section}\n") for section in SECTIONS]
    assert -1 not in places, f"missing {[s for s, place in zip(SECTIONS, places, strict=True) if place < 0]}"
    assert places == sorted(places), "sections are out of order"
    assert ">>> " in doc[places[-1] :]


@pytest.mark.parametrize(("package", "name"), [p for p in EXPORTED if p.values[0] == "losses"])
def test_a_loss_shows_its_formula(package, name):
    doc = inspect.getdoc(getattr(importlib.import_module(f"pml_ext.{package}"), name))
    formula = doc[: doc.index("\nArgs:")]
    assert re.search(r"^ {4}\S.*=", formula, re.MULTILINE), "no indented formula before Args"


@pytest.mark.parametrize(("package", "name"), EXPORTED)
def test_hyperparameters_are_documented_and_keyword_only(package, name):
    cls = getattr(importlib.import_module(f"pml_ext.{package}"), name)
    args = inspect.getdoc(cls).split("\nArgs:\n")[1].split("\nShape:\n")[0]
    for parameter in inspect.signature(cls).parameters.values():
        documented = "kwargs" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        assert re.search(rf"^ {{4}}{documented}\b", args, re.MULTILINE), f"{parameter.name} is not documented"
        # Some wrappers replace classes of PML, and have the parameters of these or what goes with them.
        if parameter.default is not parameter.empty and name not in _POSITIONAL:
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{parameter.name} has a default, but is not keyword-only"


_POSITIONAL = ("CrossBatchMemory", "DistributedLoss", "SelfSupervisedLoss")
