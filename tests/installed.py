"""What an installed wheel must do: `.ci/wheel` runs this by the Python of an empty environment, in another folder."""

import json
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import torch

import pml_ext
from pml_ext import catalog
from pml_ext.losses import RAWLoss

HERE = Path(pml_ext.__file__).parent


def of_the_wheel():
    """Nothing of a checkout, the version that was built, and no files but those of the package."""
    assert HERE.is_relative_to(sys.prefix), f"{HERE} is not of {sys.prefix}"
    assert metadata.version("pml_ext") == pml_ext.__version__
    tops = {file.parts[0] for file in metadata.files("pml_ext") or () if ".." not in file.parts}
    assert tops == {"pml_ext", f"pml_ext-{pml_ext.__version__}.dist-info"}, tops


def with_its_data():
    """What is no code came along: types, protocols."""
    assert (HERE / "py.typed").exists()
    protocols = sorted((HERE / "benchmark" / "protocols").glob("*.json"))
    assert {"deep-metric", "frozen-head", "reality-check"} <= {path.stem for path in protocols}
    for path in protocols:
        json.loads(path.read_text(encoding="utf-8"))


def losses():
    """A loss and a recipe with its miner, forward and backward."""
    for loss in (RAWLoss(), catalog.build("BinDeviance2018")):
        embeddings, labels = torch.randn(32, 16, requires_grad=True), torch.arange(32) // 4
        loss(embeddings, labels).backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
        assert embeddings.grad.abs().sum() > 0


def the_command():
    """`pml-ext` is there, and its words."""
    command = str(Path(sysconfig.get_path("scripts")) / "pml-ext")
    for words, said in (
        (["--help"], "choose"),
        (["choose", "--classes", "10000", "--images-per-class", "5"], "RAW"),
        (["train", "--help"], "--losses"),
    ):
        found = subprocess.run([command, *words], capture_output=True, text=True, check=True)
        assert said in found.stdout, (words, found.stdout)


if __name__ == "__main__":
    for check in (of_the_wheel, with_its_data, losses, the_command):
        check()
    print(f"pml_ext {pml_ext.__version__} works as it was installed")
