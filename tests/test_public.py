"""The public surface: what stands in `pml_ext`, and that it costs nothing until it is used."""

import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

import pml_ext
from pml_ext import base, extend


def test_every_name_is_there():
    assert set(pml_ext.__all__) <= set(dir(pml_ext))
    for name in pml_ext.__all__:
        assert getattr(pml_ext, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lossses'"):
        _ = pml_ext.lossses


def test_a_word_is_never_a_module():
    for word in pml_ext._WORDS:
        assert find_spec(f"pml_ext.{word}") is None, f"importing pml_ext.{word} would put the module in its place"
    for module in set(pml_ext.__all__) - set(pml_ext._WORDS):
        assert getattr(pml_ext, module) is importlib.import_module(f"pml_ext.{module}")


def test_nothing_heavy_is_imported_with_the_package():
    code = (
        "import sys, pml_ext; dir(pml_ext)\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pytorch_metric_learning', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("old", "new"), [("PairMatrixLoss", "RowLoss"), ("BatchMatrixLoss", "BatchLoss")])
def test_a_class_under_its_former_name_says_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"from pml_ext.extend import {new}"):
        assert getattr(base, old) is getattr(extend, new)


def test_what_people_build_on_is_all_there():
    assert set(extend.__all__) <= set(vars(extend))
    assert extend.__all__ == sorted(set(extend.__all__), key=lambda name: (not name[0].isupper(), name))
