"""The device that an experiment runs on."""

from __future__ import annotations

import torch

from pml_ext.benchmark.errors import BenchmarkError


def torch_device(name: str) -> torch.device:
    """The device of a name; BenchmarkError if there is none.

    >>> torch_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BenchmarkError(f"device {name!r} is not available: torch {torch.__version__} sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise BenchmarkError(
                f"device {name!r} is not available: there are {torch.cuda.device_count()} CUDA devices"
            )
    return device
