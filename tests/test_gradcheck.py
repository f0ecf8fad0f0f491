"""Gradients against finite differences in float64, first and second order, away from ties.

Losses that hold a part of their formula constant are not the primitive of their gradient: `test_oracles` differentiates
their formula with that part frozen.
"""

import inspect

import pytest
import torch
from oracles import OF_ANCHORS
from registry import LOSSES, WRAPPERS

from pml_ext.base import RowLoss
from pml_ext.masked import Counted
from pml_ext.testing import Batch, Rows

FROZEN = {cls.__name__ for cls, f in OF_ANCHORS.items() if "frozen" in inspect.signature(f).parameters}
PRIMITIVE = [name for name in LOSSES if name.split("(")[0] not in FROZEN]
ROW_LOSSES = [name for name in PRIMITIVE if isinstance(LOSSES[name](), RowLoss)]


@pytest.mark.parametrize("name", PRIMITIVE)
@pytest.mark.parametrize("sizes", [(3, 3), (4, 1, 2)])
def test_gradient_by_embeddings(name, sizes):
    loss, batch = LOSSES[name](), Batch(sizes, seed=4)
    loss.eval()  # a loss with a state must stay where it is
    embeddings = batch.embeddings.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, batch.labels), embeddings, rtol=1e-4)


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_second_gradient_by_scores(name):
    loss = LOSSES[name]()
    # Steep exponents have large third derivatives: nearly flat scores keep finite differences of 1e-6 exact.
    sim, pos, neg = Rows(3, 6, inverted=loss.distance.is_inverted, density=1.0, seed=3).matrix

    def losses(scores):
        result = loss.per_anchor(scores, pos, neg)
        return result.losses if isinstance(result, Counted) else result

    scores = sim.clone().requires_grad_()
    first = torch.autograd.grad(losses(scores).sum(), scores, create_graph=True)[0]
    if not first.requires_grad:
        return  # piecewise linear in the scores: the second derivative is zero
    assert torch.autograd.gradgradcheck(losses, scores, rtol=1e-3, atol=1e-4)


def test_every_loss_is_checked_here_or_with_frozen_parts():
    assert {name.split("(")[0] for name in (*PRIMITIVE, *FROZEN)} == {name.split("(")[0] for name in LOSSES}
    assert WRAPPERS is not LOSSES
