"""The files of examples/trainers run and learn; those of packages that are not installed are skipped."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "trainers"
# What each needs beside the extra `test`.
NEEDS = {
    "accelerate_loop": ("accelerate",),
    "compiled": (),
    "large_batches": (),
    "lightning_module": ("lightning",),
    "mixed_precision": (),
    "plain_loop": (),
    "pml_trainer": (),
    "sentence_transformers_trainer": ("sentence_transformers", "datasets", "accelerate"),
}
ITS_TRAINERS = pytest.mark.pml2("its trainers")
of_loops = [
    pytest.param(name, marks=ITS_TRAINERS if name == "pml_trainer" else ()) for name in NEEDS if name != "large_batches"
]


def load(name):
    for package in NEEDS[name]:
        try:  # by what is installed: a script of ours in the path may have the same name
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
    spec = importlib.util.spec_from_file_location(f"trainers_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# What these packages themselves warn of is no matter of ours.
@pytest.mark.filterwarnings("ignore::Warning:(?!pml_ext)")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML 2's trainers show losses
@pytest.mark.parametrize("name", of_loops)
def test_the_loss_falls(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(EXAMPLES.parents[1] / "benchmarks")])
    ours = sys.modules.get("accelerate")
    if ours is not None and Path(ours.__file__).parent.name == "benchmarks":
        monkeypatch.delitem(sys.modules, "accelerate")
    # Inductor needs a C++ compiler and half a minute; the graph that it is given is captured the same for any backend.
    values = load(name).main(**({"backend": "eager"} if name == "compiled" else {}))
    assert len(values) >= 6
    assert sum(values[-3:]) < 0.97 * sum(values[:3])
    assert list(tmp_path.iterdir()) == []


def test_cached_gradients_are_those_of_the_whole_batch_and_accumulated_ones_are_not():
    off = load("large_batches").main(samples=256)
    assert off["cached"] < 1e-5
    assert off["accumulated"] > 0.05


def test_every_file_is_run_and_short():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS)
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path.name
