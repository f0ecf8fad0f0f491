"""How the suite runs: hypothesis profiles, one thread per worker, the same random state for every test."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("dev", max_examples=10, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=50, deadline=None, print_blob=True, derandomize=True)
settings.register_profile("nightly", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# The workers share the cores, and the tensors of the tests are too small for several threads.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _random_state():
    torch.manual_seed(0)
