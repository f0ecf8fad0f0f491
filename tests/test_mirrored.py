"""A matrix and its mirror image."""

import pytest
import torch

from pml_ext import thresholds
from pml_ext.mirrored import plus_mirror_image


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 96, 97, 200])
def test_it_is_the_sum_with_the_transpose_in_the_same_memory(n, dtype):
    for values in ({}, {"MIRRORED": 0}, {"MIRRORED": 0, "SYMMETRIC_ROWS": 2}):
        matrix = torch.randn(n, n, dtype=dtype)
        expected = matrix + matrix.t()
        with thresholds.replaced(**values):
            found = plus_mirror_image(matrix)
        assert found is matrix
        assert torch.equal(found, expected)


def test_a_large_one_goes_in_stripes():
    matrix = torch.randn(800, 800)
    expected = matrix + matrix.t()
    assert matrix.numel() > thresholds.MIRRORED
    assert torch.equal(plus_mirror_image(matrix), expected)
