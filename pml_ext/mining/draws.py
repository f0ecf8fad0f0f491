"""Chance as a pure function: of a seed and what is drawn, whatever was drawn before and in whatever blocks."""

import random

import torch
from torch import Tensor


def stream(*parts: object) -> random.Random:
    """A generator of its own for each seed, epoch and purpose."""
    return random.Random(" ".join(map(str, parts)))


def keys(seed: int, anchors: Tensor, references: Tensor) -> Tensor:
    """Uniform integers of at least 0, one for each pair of indices: the same for a pair wherever it is drawn.

    References in the order of their keys are in random order. (The mixing function is that of SplitMix64.)
    """
    return _mixed(_mixed(anchors + seed) + references) & torch.iinfo(torch.int64).max


def _mixed(x: Tensor) -> Tensor:
    # Products of int64 wrap around; its shifts keep the sign, which the masks cut off.
    x = x * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
