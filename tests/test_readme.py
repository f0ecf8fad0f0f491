"""README and pages say what is true: tables are fresh, code runs, commands are the ones the CI runs, links lead on."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import pml_ext
from pml_ext import catalog
from pml_ext.testing import LOSS_LAWS, MINER_LAWS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(
        code, id=f"{page.stem}-{number}", marks=[pytest.mark.pml2("its own losses")] if page.stem == "stock" else []
    )
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.pml2("its own defaults, as the tables write them")
def test_tables_are_fresh():
    page = (ROOT / "docs/catalog.md").read_text(encoding="utf-8")
    assert catalog.with_tables(page) == page, "run: python -m pml_ext.catalog docs/catalog.md"


def test_quickstart_runs_and_is_short_and_so_does_all_other_code():
    quickstart, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(quickstart.strip().splitlines()) <= 10
    scope: dict[str, object] = {}
    for code in (quickstart, *others):
        exec(code, scope)
        gradient = scope["embeddings"].grad  # type: ignore[attr-defined]
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 100


def test_the_two_commands():
    prefix = "python -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert commands == [
        f'{prefix}".[benchmark]" && .venv/bin/python -m pml_ext.benchmark',
        f'{prefix}".[test]" && .venv/bin/python -m pytest',
    ]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "EXTENDING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML 2's trainers show losses
@pytest.mark.parametrize("code", BLOCKS)
def test_code_of_the_pages_runs(code):
    exec(compile(code, "a page", "exec"), {"__name__": "a page"})


@pytest.mark.parametrize("code", BLOCKS)
def test_pages_import_public_names_only(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pml_ext"):
            module = __import__(str(node.module), fromlist=["__all__"])
            assert {alias.name for alias in node.names} <= set(module.__all__), node.module


def test_every_public_module_has_a_page():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    modules = {name for name in pml_ext.__all__ if inspect.ismodule(getattr(pml_ext, name))}
    assert modules == set(re.findall(r"^::: pml_ext\.(\w+)$", pages, re.MULTILINE))


def test_the_pages_of_methods_and_laws(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    contents = importlib.import_module("contents")
    methods, laws = contents.methods(), contents.laws()
    assert re.findall(r"^### (.+)$", methods, re.MULTILINE) == [n for _, names in contents.families() for n in names]
    assert set(re.findall(r"^### (.+)$", methods, re.MULTILINE)) == set(catalog.recipes)
    assert "log(1 + exp(−α (<i>s</i><sub><i>ip</i></sub> − base)))" in methods
    assert set(re.findall(r"^\| `(\w+)` \| \S", laws, re.MULTILINE)) == {*LOSS_LAWS, *MINER_LAWS}
    for name in ("EXTENDING.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = contents.included(name)
        assert not text.startswith("# ")
        assert not [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / "docs" / link).exists()]


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [pml_ext.__version__]
    assert re.findall(r"^## (\d\S*)", changes, re.MULTILINE)[0] == pml_ext.__version__


def test_the_workflow_tries_every_python_of_the_package():
    declared = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    (tried,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r"3\.\d+", tried) == declared


def test_the_oldest_versions_are_those_declared():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^(dependencies|benchmark) = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL))
    of_package, of_benchmark = (
        dict(re.findall(r'"([\w-]+)>=([\d.]+)', blocks[name])) for name in ("dependencies", "benchmark")
    )
    declared = of_package | of_benchmark
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text("utf-8"), re.MULTILINE))
    assert {"numpy", "torch", "pytorch-metric-learning"} == set(of_package)
    for name, version in declared.items():
        if not name.startswith("efficientnet"):  # of which there is one version
            assert f"{pinned[name]}.".startswith(f"{version}."), name
