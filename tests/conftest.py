"""How the suite runs: hypothesis profiles, one thread per worker, the same random state for every test."""

import gc
import os
import re
import sys
from importlib.util import find_spec

import pytest
from hypothesis import settings

# The double of PML 3 stands in place of PML, in a process of its own; what is typed only a type checker reads.
collect_ignore = ["pml3/double", "typing"]
if find_spec("pytorch_metric_learning.switches") is None:
    collect_ignore.append("pml3/on_the_double.py")

settings.register_profile("dev", max_examples=10, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=30, deadline=None, print_blob=True, derandomize=True)
settings.register_profile("nightly", max_examples=1000, deadline=None, print_blob=True)
settings.register_profile("few", max_examples=10, deadline=None, print_blob=True, derandomize=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


# What is imported and collected stays: to look for garbage in it takes a sixth of the time that importing takes.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.enable()
    # What outlives a few looks at the youngest is there to stay: the modules of torch, what its compiler has made.
    gc.set_threshold(700, 50)


def pytest_sessionstart(session):
    """The workers share the cores, and the tensors of the tests are too small for several threads.

    What only hands tests to workers does without torch: importing it takes seconds.
    """
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_runtest_setup(item):
    """Beside PML 3 what is about PML 2 is left out, and beside the double of it what is given what that has not."""
    from of_pml import is_absent

    from pml_ext._pml import HAS_TERMS

    if not HAS_TERMS:
        return
    for mark in item.iter_markers("pml2"):
        pytest.skip(f"about PML 2: {mark.args[0]}")
    if hasattr(item, "callspec") and is_absent(item.callspec.params):
        pytest.skip("about classes of PML's own, which are not there")


@pytest.fixture(autouse=True)
def _random_state():
    import torch

    # torch.manual_seed records the stack for devices that may follow: of so many tests that takes seconds.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)


@pytest.fixture
def _few_examples():
    """What is shown to a reader draws a few cases only; the laws themselves are tried elsewhere."""
    settings.load_profile("few")
    yield
    settings.load_profile(PROFILE)


@pytest.fixture
def _few_points(monkeypatch):
    """Curves of pair weights have a few points only: what is said of them is tried elsewhere."""
    from pml_ext.analysis.plots import weight_curves

    monkeypatch.setitem(weight_curves.__kwdefaults__, "points", 5)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision.transforms.

    Its wheels are built for one torch each; beside another one, or beside a torch without CUDA, it does not find its
    compiled operators. The transforms need none of them: they are declared for it.
    """
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    import torch

    declared = []
    for _ in range(20):
        try:
            from torchvision import transforms as found
        except RuntimeError as error:
            missing = re.fullmatch(r"operator (\w+)::(\w+) does not exist", str(error))
            if missing is None:
                pytest.skip(f"torchvision cannot be imported: {error}")
            declared.append(torch.library.Library(missing[1], "FRAGMENT"))
            declared[-1].define(f"{missing[2]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            return found
    pytest.skip("torchvision cannot be imported")
    return None
