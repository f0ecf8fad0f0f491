"""Thresholds: all in one place, all made tiny, and put back."""

import ast
import re
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance

import pml_ext
from pml_ext import engine, losses, miners, thresholds
from pml_ext.testing.law import by_autograd

ROOT = Path(pml_ext.__file__).parent
DEFINED = {
    target.id
    for node in ast.parse((ROOT / "thresholds.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.Assign)
    for target in node.targets
    if isinstance(target, ast.Name)
}


def test_every_threshold_has_a_tiny_value_and_is_used():
    assert {*thresholds.TINY, "LOOKS"} == DEFINED
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    assert set(re.findall(r"thresholds\.([A-Z_]+)\b", source)) - {"TINY"} >= DEFINED


def current():
    return {name: getattr(thresholds, name) for name in thresholds.TINY}


def test_thresholds_come_back_after_an_error():
    before = current()

    def fail():
        with thresholds.tiny():
            assert current() == thresholds.TINY
            with thresholds.replaced(GROUP=7):
                assert current()["GROUP"] == 7
            assert current() == thresholds.TINY
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert current() == before


def test_a_threshold_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no threshold is called SIZE; there are BLOCK_CPU"):
        thresholds.replaced(SIZE=1).__enter__()


def test_a_dozen_samples_fall_into_blocks(monkeypatch):
    rows, loss = [], losses.BinomialDevianceLoss()
    per_anchor = loss.per_anchor
    monkeypatch.setattr(losses.BinomialDevianceLoss, "closed_form", None)
    monkeypatch.setattr(loss, "per_anchor", lambda sim, *masks: rows.append(len(sim)) or per_anchor(sim, *masks))
    embeddings, labels = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    loss(embeddings, labels)
    with thresholds.tiny():
        loss(embeddings, labels)
    assert rows == [12, 3, 3, 3, 3]


def test_where_the_engine_is_disabled_the_distance_is_asked(monkeypatch):
    name = "compute_mat" if hasattr(LpDistance, "compute_mat") else "forward"
    subjects = losses.BatchAllTripletLoss(), miners.HardNegativePairMiner(distance=LpDistance())
    calls, matrix = [], getattr(LpDistance, name)
    monkeypatch.setattr(LpDistance, name, lambda *given: calls.append(1) or matrix(*given))
    embeddings, labels = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    for subject in subjects:
        subject(embeddings, labels)
        assert calls == []
        by_autograd(subject)(embeddings, labels)
        assert calls.pop() == 1
    assert engine.is_enabled()


@pytest.mark.parametrize("subject", [losses.BatchAllTripletLoss(), miners.HardNegativePairMiner(distance=LpDistance())])
@pytest.mark.parametrize(
    "listen", ["hook", "pre-hook", pytest.param("statistics", marks=pytest.mark.pml2("it collects statistics"))]
)
def test_a_distance_that_is_listened_to_is_called(subject, listen):
    """Else a user's hook or statistics would be passed by without a word."""
    heard = []
    embeddings, labels = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    expected = subject(embeddings, labels)
    subject.distance = distance = LpDistance(**{"collect_stats": True} if listen == "statistics" else {})
    if listen == "hook":
        distance.register_forward_hook(lambda *_: heard.append(1))
    elif listen == "pre-hook":
        distance.register_forward_pre_hook(lambda *_: heard.append(1))
    found = subject(embeddings, labels)
    if listen == "statistics":
        assert distance.initial_avg_query_norm == pytest.approx(embeddings.norm(dim=1).mean().item())
    else:
        assert heard == [1]
    torch.testing.assert_close(found, expected)
