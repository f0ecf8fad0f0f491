"""The script that holds PML's classes against the laws, and what it says is found."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("laws_of_pml", FOLDER / "laws_of_pml.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.mark.pml2("what its own classes do")
def test_a_page_is_made(script, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    only = ["BatchHardMiner", "FastAPLoss"]
    monkeypatch.setattr(sys, "argv", ["laws_of_pml", "--only", *only, "--examples", "3", "--out", str(page)])
    monkeypatch.setattr(script, "FINDINGS", script.FINDINGS[:1])
    script.main()
    assert "FastAPLoss: " in capsys.readouterr().out
    text = page.read_text()
    assert "| FastAPLoss | " in text
    assert "- `empty_in_empty_out`, `Batch(sizes=(3, 4, 2), dimension=4, seed=7)`: IndexError" in text
    # It takes no references, and says so.
    assert "- `references_are_a_set`" not in text
    assert "# 0.0 0.0" in text


@pytest.mark.pml2("what its own classes do")
def test_findings_are_still_there(script):
    """If not, PML has changed, and the page should."""
    lines = [line for line in script.findings() if line.startswith("# ")]
    assert len(script.FINDINGS) <= len(lines)
    assert lines[:3] == ["# 0.0 0.0", "# 3.51867938041687", "# 3.289586067199707"]
    assert "# nan" in lines


@pytest.mark.pml2("what its own classes do")
def test_every_class_is_held_against_the_laws_or_left_out(script):
    made = [
        *script.classes(script.losses, script.BaseMetricLossFunction),
        *script.classes(script.miners, script.BaseMiner),
    ]
    assert len(made) > 40
    for cls in made:
        script.instance(cls)
