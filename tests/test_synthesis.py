"""Hardness-aware synthesis: worked values, and the properties of the pull, the schedule and the mixing weight."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from pml_ext.synthesis import hardness_schedule, mixing_weight, pull_negatives

# Of float64 values of the size of these coordinates, with a handful of operations each.
TOLERANCE = 1e-9

lams = st.floats(0, 1)
rates = st.floats(0, 1e3)
averages = st.one_of(st.just(0.0), st.just(math.inf), st.floats(1e-3, 1e6))


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@st.composite
def triples(draw):
    """Anchors, positives and negatives [n, d]; on a grid, so that points coincide and distances tie."""
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    step = draw(st.sampled_from([1.0, 0.125, 1e-3]))
    numbers = draw(st.lists(st.integers(-16, 16), min_size=3 * n * d, max_size=3 * n * d))
    return tuple((step * torch.tensor(numbers, dtype=torch.float64)).view(3, n, d).unbind())


def distance(x, y):
    return (x - y).norm(dim=-1)


# Worked values.

Z, POS, NEG = points([0, 0], [1, 1], [0, 0]), points([1, 0], [1, 4], [2, 0]), points([0, 3], [3, 1], [0, 2])


@pytest.mark.parametrize(
    ("alpha", "lam", "pulled", "loss"),
    [(7, 0.4965853038, 1.9931706076, 7.0), (90, 0.0001234098, 1.0002468196, 7.9995062999)],
)
def test_worked_triplets(alpha, lam, pulled, loss):
    factor = hardness_schedule(alpha, 10.0)
    assert_close(factor.item(), lam, rtol=0, atol=1e-10)
    synthetic = pull_negatives(Z, POS, NEG, factor)
    assert_close(synthetic[0], torch.tensor([0, pulled], dtype=torch.float64), rtol=0, atol=1e-10)
    # The other two negatives are not farther than the positives: exactly unchanged.
    assert torch.equal(synthetic[1:], NEG[1:])

    def triplet_sum(negatives):
        return (distance(Z, POS) ** 2 - distance(Z, negatives) ** 2 + 1).clamp(min=0).sum().item()

    assert triplet_sum(NEG) == 7
    assert_close(triplet_sum(synthetic), loss, rtol=0, atol=1e-9)


def test_worked_n_pairs():
    a, p = points([1, 0], [0, 1]), points([0.8, 0.6], [-0.6, 0.8])
    pulled = pull_negatives(a, p, p.flip(0), hardness_schedule(1, 1.0))
    expected = points([0.0538115072, 0.4730942464], [0.6518849399, 0.6740575301])
    assert_close(pulled, expected, rtol=0, atol=1e-10)


def test_worked_mixing_weight():
    for j_gen, expected in ((1e6, 0.4117799284), (1e4, 0.4744204186), (1e3, 0.5114541717)):
        w = mixing_weight(1e4, j_gen).item()
        assert_close(w * 0.4107781397 + (1 - w) * 0.5114587426, expected, rtol=0, atol=2e-10)


# Edges.


@pytest.mark.parametrize("function", [hardness_schedule, mixing_weight])
def test_schedule_at_its_ends(function):
    assert function(7, math.inf).item() == 1
    assert function(7, 0.0).item() == 0
    assert function(7, -3.0).item() == 0
    assert function(7, 5e-324).item() == 0
    assert function(0, 0.0).item() == 1
    assert function(7, math.nan).isnan()
    both = function(7, torch.tensor([[0.0, 7.0], [math.inf, -1.0]]))
    assert_close(both, torch.tensor([[0.0, math.exp(-1)], [1.0, 0.0]]))
    assert both.dtype == torch.float32


@pytest.mark.parametrize("function", [hardness_schedule, mixing_weight])
@pytest.mark.parametrize("rate", [-1, math.inf, math.nan])
def test_schedule_refuses_a_rate(function, rate):
    with pytest.raises(ValueError, match=str(rate)):
        function(rate, 1.0)


def test_pull_refuses_a_number_outside_the_unit_interval():
    with pytest.raises(ValueError, match=r"lam must be in 0\.\.1, got 1\.5"):
        pull_negatives(Z, POS, NEG, 1.5)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gradients_are_finite_where_points_coincide(lam):
    same = torch.zeros(3, 2)
    far = torch.ones(3, 2)
    for anchor, positive, negative in ((same, same, same), (same, far, same), (same, same, far), (same, far, far)):
        inputs = [x.clone().requires_grad_() for x in (anchor, positive, negative)]
        pull_negatives(*inputs, lam).square().sum().backward()
        assert all(x.grad.isfinite().all() for x in inputs)


def test_gradients_reach_all_three_points_through_the_distances():
    generator = torch.Generator().manual_seed(0)
    anchor, positive, offset = torch.randn(3, 4, 3, dtype=torch.float64, generator=generator).unbind()
    inputs = [x.requires_grad_() for x in (anchor.clone(), anchor + 0.1 * positive, anchor + offset + offset.sign())]
    assert torch.autograd.gradcheck(lambda *x: pull_negatives(*x, 0.3), inputs)
    pull_negatives(*inputs, 0.3).sum().backward()
    assert all((x.grad != 0).any() for x in inputs)


def test_lam_may_differ_from_row_to_row():
    lam = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    anchors, positives, negatives = Z[:1].expand(3, 2), POS[:1].expand(3, 2), NEG[:1].expand(3, 2)
    rows = [pull_negatives(Z[0], POS[0], NEG[0], float(x)) for x in lam]
    assert_close(pull_negatives(anchors, positives, negatives, lam), torch.stack(rows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_that_of_the_negatives(dtype):
    large = (300 * NEG[:1]).to(dtype)  # its square is beyond float16
    pulled = pull_negatives(Z[:1].to(dtype), POS[:1].to(dtype), large, torch.tensor(0.5, dtype=torch.float64))
    assert pulled.dtype == dtype
    assert_close(pulled.double(), points([0, 450.5]), rtol=0, atol=2)  # bfloat16 has steps of 2 there


# Properties.


@given(triples(), lams)
def test_pulled_negatives_lie_on_the_segment_between_positive_and_negative_distance(points_, lam):
    anchor, positive, negative = points_
    pulled = pull_negatives(anchor, positive, negative, lam)
    d_pos, d_neg, d = distance(anchor, positive), distance(anchor, negative), distance(anchor, pulled)
    # On the segment: the way by the pulled point is not longer.
    assert_close(d + distance(pulled, negative), d_neg, rtol=TOLERANCE, atol=TOLERANCE)
    assert (d <= d_neg * (1 + TOLERANCE)).all()
    assert (d >= torch.minimum(d_pos, d_neg) * (1 - TOLERANCE)).all()
    expected = torch.where(d_pos < d_neg, lam * d_neg + (1 - lam) * d_pos, d_neg)
    assert_close(d, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(pulled[d_pos >= d_neg], negative[d_pos >= d_neg])
    assert torch.equal(pull_negatives(anchor, positive, negative, 1.0), negative)


@given(triples(), rates, averages, averages)
def test_distance_does_not_fall_with_the_loss(points_, alpha, one, other):
    anchor, positive, negative = points_
    low, high = sorted((one, other))
    near, far = (
        distance(anchor, pull_negatives(anchor, positive, negative, hardness_schedule(alpha, average)))
        for average in (low, high)
    )
    assert (near <= far + TOLERANCE).all()


@given(triples(), rates, rates, averages)
def test_distance_does_not_grow_with_alpha(points_, one, other, average):
    anchor, positive, negative = points_
    low, high = sorted((one, other))
    far, near = (
        distance(anchor, pull_negatives(anchor, positive, negative, hardness_schedule(alpha, average)))
        for alpha in (low, high)
    )
    assert (near <= far + TOLERANCE).all()


@given(triples(), lams, st.integers(0, 99), st.floats(1e-2, 1e2))
def test_pull_moves_turns_and_scales_with_its_points(points_, lam, seed, scale):
    d = points_[0].shape[-1]
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    shift = torch.randn(d, dtype=torch.float64, generator=generator)

    def moved(x):
        return scale * x @ rotation + shift

    anchor, positive, negative = points_
    # A tie of d+ and d- may break either way after the motion, but there the pull is 0 from both sides.
    moved_first = pull_negatives(moved(anchor), moved(positive), moved(negative), lam)
    assert_close(moved_first, moved(pull_negatives(*points_, lam)), rtol=TOLERANCE, atol=TOLERANCE)


@given(triples(), lams)
def test_triplet_loss_does_not_fall(points_, lam):
    anchor, positive, negative = points_

    def triplet(negatives):
        return (distance(anchor, positive) ** 2 - distance(anchor, negatives) ** 2 + 1).clamp(min=0)

    pulled = pull_negatives(anchor, positive, negative, lam)
    assert (triplet(pulled) >= triplet(negative) - 1e-6 * (1 + distance(anchor, negative) ** 2)).all()


@given(rates, averages, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_mixing_is_a_convex_combination(beta, j_gen, real, synthetic):
    w = mixing_weight(beta, j_gen).item()
    assert 0 <= w <= 1
    mixed = w * real + (1 - w) * synthetic
    assert min(real, synthetic) - TOLERANCE * 1e3 <= mixed <= max(real, synthetic) + TOLERANCE * 1e3


@given(rates, averages, averages)
def test_factors_grow_with_the_average(rate, one, other):
    low, high = sorted((one, other))
    assert mixing_weight(rate, low) <= mixing_weight(rate, high)
    assert hardness_schedule(rate, low) <= hardness_schedule(rate, high)
