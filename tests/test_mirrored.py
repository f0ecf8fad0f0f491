"""A matrix and its mirror image."""

import pytest
import torch

from pml_ext import thresholds
from pml_ext.mirrored import plus_mirror_image, scaled_plus_mirror_image


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


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("is_one_number", [True, False])
def test_with_the_rows_scaled_it_leaves_the_matrix_as_it_is(is_one_number, n, looks):
    matrix = torch.randn(n, n, dtype=torch.float64)
    scale = torch.tensor(0.3, dtype=torch.float64).expand(n) if is_one_number else torch.randn(n, dtype=torch.float64)
    before, scaled = matrix.clone(), scale.unsqueeze(1) * matrix
    found, factor = scaled_plus_mirror_image(matrix, scale, looks)
    torch.testing.assert_close(factor * found, scaled + scaled.t())
    assert (factor != 1) == (looks and is_one_number)
    assert torch.equal(matrix, before)
