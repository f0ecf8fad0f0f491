"""The public surface: what stands in `pml_ext`, and that it costs nothing until it is used."""

import importlib
import inspect
import subprocess
import sys
from importlib.util import find_spec

import public_names
import pytest

import pml_ext
from pml_ext import base, catalog, extend, losses


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


@pytest.mark.pml2("names that are there beside it alone")
def test_the_public_names_are_those_of_the_record():
    recorded = public_names.RECORD.read_text(encoding="utf-8").splitlines()
    found = public_names.lines()
    gone, new = sorted(set(recorded) - set(found)), sorted(set(found) - set(recorded))
    assert found == recorded, (
        f"gone: {gone}; new: {new}. What is gone needs an alias (see CONTRIBUTING.md); then run: "
        "python tests/public_names.py"
    )


@pytest.mark.parametrize("name", sorted(public_names.public_modules()))
def test_a_public_module_says_what_is_public(name):
    module = public_names.public_modules()[name]
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [each for each in module.__all__ if not hasattr(module, each)]
    assert not missing
    documented = [getattr(module, each) for each in module.__all__]
    assert all(inspect.getdoc(each) for each in documented if inspect.isclass(each) or inspect.isfunction(each))


@pytest.mark.parametrize(("old", "new"), [("PairMatrixLoss", "RowLoss"), ("BatchMatrixLoss", "BatchLoss")])
def test_a_class_under_its_former_name_says_the_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=f"from pml_ext.extend import {new}"):
        assert getattr(base, old) is getattr(extend, new)


@pytest.mark.parametrize("cls", [losses.LogSumExpPairLoss, losses.ClampedNCALoss])
def test_an_argument_under_its_former_name_says_the_new_one(cls):
    with pytest.warns(DeprecationWarning, match="pos_base is called pos_margin now"):
        loss = cls(pos_base=0.25)
    assert loss.pos_margin == 0.25
    with pytest.warns(DeprecationWarning, match="neg_base is called neg_margin now"):
        loss.neg_base = 0.5
    with pytest.warns(DeprecationWarning, match="neg_base is called neg_margin now"):
        assert loss.neg_base == 0.5
    assert loss.hyperparameters()["neg_margin"] == -loss.neg_margin or loss.distance.is_inverted
    with pytest.raises(TypeError, match="'pos_bas'"):
        cls(pos_bas=0.25)


@pytest.mark.parametrize("name", ["AHardPair", "Lifted2020", "Lifted2020Mined", "CenterPair"])
def test_a_recipe_takes_an_override_under_its_former_name(name):
    with pytest.warns(DeprecationWarning, match="pos_base is called pos_margin now"):
        former = catalog.build(name, pos_base=0.25)
    assert repr(former) == repr(catalog.build(name, pos_margin=0.25))


def test_what_people_build_on_is_all_there():
    assert set(extend.__all__) <= set(vars(extend))
    assert extend.__all__ == sorted(set(extend.__all__), key=lambda name: (not name[0].isupper(), name))
