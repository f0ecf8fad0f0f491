"""Several comparisons of the same values as one product of ones and zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A comparison of torch, and the bound to compare with.
Test = tuple[Callable[..., Tensor], Any]


def within(values: Tensor, tests: list[Test], spare: Tensor) -> Tensor:
    """1 where all tests hold and 0 elsewhere, written into `values`; `spare` is overwritten.

    The results are floats: comparisons into booleans take ten times as long, and so does arithmetic with them.
    """
    if not tests:
        return values.fill_(1)
    (first, level), *others = tests
    for place, (compare, bound) in enumerate(others):
        found = compare(values, bound, out=spare if place == 0 else torch.empty_like(values))
        spare = found if place == 0 else spare.mul_(found)
    first(values, level, out=values)
    return values.mul_(spare) if others else values


def joined(tests: list[Test], margin: float) -> list[Test]:
    """The tests together with `value > -margin`; of two lower bounds only the stronger is kept."""
    lower = [level for compare, level in tests if compare is torch.ge]
    if lower and lower[0] > -margin:
        return tests
    return [*(test for test in tests if test[0] is not torch.ge), (torch.gt, -margin)]
