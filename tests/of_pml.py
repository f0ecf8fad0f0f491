"""PML's names for the tests that compare with PML itself: one that is missing skips the tests that use it.

With PML 2 these are PML's own modules and classes, and nothing else happens. PML 3 has no trainers and testers, and the
double of it (`pml3/double`) few of its losses: there a missing name is an `Absent`, so that the other tests of a file
run.
"""

import os
from importlib import import_module
from importlib.util import find_spec

import pytest

from pml_ext import _pml

PACKAGES = ("losses", "miners", "distances", "reducers", "regularizers", "samplers")
# Names that version 2 alone has under these paths.
ONLY_IN_2 = {
    "trainers": "trainers",
    "testers": "testers",
    "lmu": "utils.loss_and_miner_utils",
    "c_f": "utils.common_functions",
    "logging_presets": "utils.logging_presets",
    "inference": "utils.inference",
    "accuracy_calculator": "utils.accuracy_calculator",
    "distributed": "utils.distributed",
    "distance_weighted_miner": "miners.distance_weighted_miner",
}
# Classes that are in version 2 alone, or something else in version 3.
CLASSES_OF_2 = {
    "AccuracyCalculator",
    "BaseLossWrapper",
    "DoNothingReducer",
    "GlobalEmbeddingSpaceTester",
    "HookContainer",
    "MPerClassSampler",
    "MetricLossOnly",
}
# Of these the double has something simpler, to which the tests have nothing to say.
SIMPLER = set() if find_spec("pytorch_metric_learning.switches") is None else {"MarginLoss"}


class Absent:
    """A name that PML does not have here, and what tables of tests make of it; in a test it skips the test."""

    def __init__(self, name, reason):
        self._name, self._reason = name, reason

    def _of(self, more):
        if "PYTEST_CURRENT_TEST" in os.environ:
            pytest.skip(self._reason)
        return Absent(self._name + more, self._reason)

    def __call__(self, *args, **kwargs):
        return self._of("()")

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self._of(f".{name}")

    def __instancecheck__(self, instance):
        return False

    def __mro_entries__(self, bases):
        """A class that is derived from it cannot be made: one without parents stands for it."""
        return (_Orphan,)

    def __repr__(self):
        return self._name


class _Orphan:
    def __init__(self, *args, **kwargs):
        pytest.skip("about a class of PML's own, which is not there")


class _Package:
    """One of PML's packages, in which what is missing is an `Absent`."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        if name.startswith("_") or (hasattr(self._module, name) and name not in SIMPLER):
            return getattr(self._module, name)
        if name in CLASSES_OF_2:
            return Absent(name, f"about PML 2: its {name}")
        return Absent(name, f"about PML's own {name}, which is not there")

    def __dir__(self):
        return dir(self._module)


def is_absent(value):
    """Whether what a test is given is made of something absent."""
    if isinstance(value, dict):
        return any(map(is_absent, value.values()))
    if isinstance(value, (tuple, list)):
        return any(map(is_absent, value))
    return isinstance(value, Absent) or (isinstance(value, type) and issubclass(value, _Orphan))


def needs(*names):
    """Skip a test that names these of PML's losses and miners in its texts, where they are missing."""
    for name in names:
        found = __getattr__(name)
        if isinstance(found, Absent):
            pytest.skip(found._reason)


def _package(name):
    module = import_module(f"pytorch_metric_learning.{name}")
    return _Package(module) if _pml.HAS_TERMS else module


def __getattr__(name):
    """A package or module of PML, or a class that one of its packages exports."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in PACKAGES:
        return _package(name)
    if name in ONLY_IN_2:
        if _pml.HAS_TERMS:
            return Absent(name, f"about PML 2: its {ONLY_IN_2[name]}")
        return import_module(f"pytorch_metric_learning.{ONLY_IN_2[name]}")
    modules = [import_module(f"pytorch_metric_learning.{package}") for package in PACKAGES]
    if not _pml.HAS_TERMS:
        modules += [import_module(f"pytorch_metric_learning.{path}") for path in ONLY_IN_2.values()]
    for module in modules:
        if hasattr(module, name) and name not in SIMPLER:
            return getattr(module, name)
    if not _pml.HAS_TERMS or not name[0].isupper():
        raise AttributeError(f"PML has no {name}")
    return _Package(modules[0]).__getattr__(name)
