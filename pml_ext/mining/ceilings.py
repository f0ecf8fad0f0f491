"""How near a negative may be: the score of an anchor's positives, and the ceilings that follow from it."""

from typing import Literal

import torch
from torch import Tensor

Reference = Literal["max", "min", "mean"]


def ceilings(
    reference: Tensor,
    *,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
) -> dict[str, Tensor]:
    """The ceilings that are asked for, by name: r - absolute, r - relative |r|, and a constant; shaped as r.

    A negative passes if its score lies below all of them. With the absolute value a margin lowers the ceiling of
    negative scores too.
    """
    found = {}
    if absolute_margin is not None:
        found["absolute_margin"] = reference - absolute_margin
    if relative_margin is not None:
        found["relative_margin"] = reference - relative_margin * reference.abs()
    if max_score is not None:
        found["max_score"] = torch.full_like(reference, max_score)
    return found
