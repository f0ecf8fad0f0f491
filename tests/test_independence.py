"""The package stands on what PML exports: without its trainers, testers, data sets, records and private paths."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pml_ext

ROOT = Path(pml_ext.__file__).parent
# What PML 2 and PML 3 both export; to PML 2 the names below belong as well.
PUBLIC = ("distances", "distributed", "evaluation", "losses", "miners", "reducers", "regularizers", "samplers", "types")
# The only modules that know more of PML, and what.
INTEGRATIONS = {
    "_pml.py": ("losses.mixins", "utils.distributed"),
    "trainers/hardness_aware.py": ("trainers",),  # PML 2's
}


# What is shown and measured outside of the package, and what PML 2 alone has of it.
AROUND = {
    "benchmarks/evaluation.py": ("utils.accuracy_calculator",),  # what ours is measured against
    "docs/trainer.md": ("trainers",),
    "examples/trainers/pml_trainer.py": ("trainers",),
}


def of_pml(tree):
    """What a file says about PML: the modules that it imports, and the name of its version."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pytorch_metric_learning"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytorch_metric_learning"):
            plain = node.module == "pytorch_metric_learning"
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if plain else (node.module,)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec", "version")):
            yield from (
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("pytorch_metric_learning")
            )


def private(name, allowed=()):
    inside = name.removeprefix("pytorch_metric_learning").removeprefix(".")
    return inside not in ("", *PUBLIC, *allowed)


def test_one_module_knows_what_pml_does_not_export():
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in ROOT.rglob("*.py")
        for name in of_pml(ast.parse(path.read_text(encoding="utf-8")))
        if private(name, INTEGRATIONS.get(path.relative_to(ROOT).as_posix(), ()))
    }
    assert wrong == set()


def blocks(path):
    """The Python of a script, or of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    return [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def test_examples_benchmarks_and_pages_need_no_more():
    root = ROOT.parent
    if not (root / "docs").exists():
        pytest.skip("there is the package only")
    paths = [
        *(path for folder in ("examples", "benchmarks", "docs") for path in sorted((root / folder).rglob("*"))),
        *root.glob("*.md"),
    ]
    found = {
        (name, private_name)
        for path in paths
        if path.suffix in (".py", ".md")
        for name in [path.relative_to(root).as_posix()]
        for block in blocks(path)
        for private_name in of_pml(ast.parse(block))
        if private(private_name, AROUND.get(name, ()))
    }
    assert found == set()
    assert sum(len(blocks(path)) for path in paths if path.suffix in (".py", ".md")) > 50


def test_a_private_path_is_seen():
    def seen(code):
        return [name for name in of_pml(ast.parse(code)) if private(name)]

    assert seen("from pytorch_metric_learning.losses import ContrastiveLoss") == []
    assert seen("from pytorch_metric_learning import losses, miners") == []
    assert seen("from pytorch_metric_learning.utils import common_functions") == ["pytorch_metric_learning.utils"]
    assert seen("import pytorch_metric_learning.losses.mixins") == ["pytorch_metric_learning.losses.mixins"]
    assert seen("import_module('pytorch_metric_learning.losses.mixins')") == ["pytorch_metric_learning.losses.mixins"]


WITHOUT = """
    import builtins, importlib, pkgutil, sys

    BLOCKED = ("trainers", "testers", "datasets", "utils")
    real = builtins.__import__


    def guarded(name, globals=None, locals=None, fromlist=(), level=0):
        asks = (globals or {}).get("__name__", "")
        parts = name.split(".")
        if asks.startswith("pml_ext") and asks != "pml_ext._pml" and level == 0:
            inside = [*parts[1:], *(fromlist or ())] if parts[0] == "pytorch_metric_learning" else []
            if parts[0] == "record_keeper" or any(part in BLOCKED for part in inside):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, globals, locals, fromlist, level)


    builtins.__import__ = guarded

    import torch
    import pml_ext

    skipped = {}
    for module in pkgutil.walk_packages(pml_ext.__path__, "pml_ext."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            skipped[module.name] = str(error)
    of_pml_2 = ["pml_ext.trainers.hardness_aware"]
    if pml_ext._pml.HAS_TERMS:
        of_pml_2.append("pml_ext.wrappers.distributed_stock")
    assert list(skipped) == of_pml_2, skipped
    assert "HardnessAwareLoss is the same method" in skipped["pml_ext.trainers.hardness_aware"]

    from pml_ext import catalog
    from pml_ext.evaluation import RetrievalAccuracyCalculator
    from pml_ext.trainers import FeatureGenerator, HardnessAwareLoss, NPairTupleLoss, RandomTupleMiner
    from pml_ext.wrappers import CrossBatchMemory, SelfSupervisedLoss

    torch.manual_seed(0)
    embeddings, labels = torch.randn(12, 8, requires_grad=True), torch.arange(12) // 3
    given = {"num_classes": 4, "embedding_size": 8}
    for name in catalog.recipes:
        recipe = catalog.build(name, **{each: given[each] for each in catalog.required(name)})
        mined = None if recipe.miner is None else recipe.miner(embeddings, labels)
        assert recipe.loss(embeddings, labels, mined).isfinite(), name
    for miner in (None, RandomTupleMiner(seed=0)):
        memory = CrossBatchMemory(catalog.build("RAW").loss, 8, memory_size=16, miner=miner)
        assert memory(embeddings, labels).isfinite()
    assert SelfSupervisedLoss(catalog.build("RAW").loss)(embeddings[:6], embeddings[6:]).isfinite()
    hardness = HardnessAwareLoss(
        torch.nn.Linear(8, 4), FeatureGenerator(4, 8), torch.nn.Linear(8, 4), NPairTupleLoss(),
        miner=RandomTupleMiner(seed=0),
    )
    features = torch.randn(12, 8)
    hardness(features, hardness.embedder(features), labels).total.backward()
    scores = RetrievalAccuracyCalculator((1, 2), exclude=("NMI", "AMI")).get_accuracy(embeddings, labels)
    assert 0 <= scores["recall_at_1"] <= scores["recall_at_2"] <= 1
    print(len(catalog.recipes))
"""


def test_it_runs_without_what_pml_does_not_export():
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT.parent,
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 20
