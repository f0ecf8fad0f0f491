"""Selection without a sort, and noise from integers."""

import pytest
import torch

from pml_ext import pairs
from pml_ext.pairs import gumbel_like, kth_largest, top_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 5, 300])
def test_kth_largest_is_that_of_a_sort(dtype: torch.dtype, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_SORTED", 0)
    generator = torch.Generator().manual_seed(m)
    exponents = torch.randint(-30, 30, (60, 1), generator=generator)
    x = torch.randn(60, m, dtype=dtype, generator=generator) * 10.0**exponents
    x[::3] = x[::3].round()  # equal ones
    x[1], x[2], x[4], x[7, 0] = -torch.inf, 0.0, -x[4].abs(), torch.inf
    k = torch.randint(1, m + 1, (60, 1), generator=generator)
    expected = x.sort(-1, descending=True).values.gather(-1, k - 1)
    assert torch.equal(kth_largest(x, k), expected)


def test_top_mask_has_as_many_as_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 200, generator=generator)
    mask = torch.rand(40, 200, generator=generator) < torch.linspace(0, 0.1, 40).unsqueeze(1)
    k = torch.randint(0, 20, (40, 1), generator=generator)
    top = top_mask(x, mask, k)
    assert torch.equal(top.sum(-1, keepdim=True), k.minimum(mask.sum(-1, keepdim=True)))
    assert not (top & ~mask).any()
    least = x.masked_fill(~top, torch.inf).amin(-1)
    assert (x.masked_fill(~mask | top, -torch.inf).amax(-1) <= least).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_distribution_of_gumbel(dtype: torch.dtype) -> None:
    """Its cumulative distribution is exp(-exp(-x)); also far out, where the draws are decided."""
    noise = gumbel_like(torch.empty(1000, 1000, dtype=dtype), torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    for level in (-2.0, -1.0, 0.0, 1.0, 3.0, 6.0, 9.0):
        expected = -torch.expm1(-torch.exp(torch.tensor(-level, dtype=torch.float64))).item()
        found = (noise > level).double().mean().item()
        assert found == pytest.approx(expected, abs=5 * (expected * (1 - expected) / noise.numel()) ** 0.5)
