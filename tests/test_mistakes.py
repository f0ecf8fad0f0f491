"""The mistakes of an author of a closed form are called by their names."""

import pytest
from mistakes import MISTAKES, Right

from pml_ext.testing import LOSS_LAWS, LawBroken, check_loss

CLOSED_FORM = [name for name, law in LOSS_LAWS.items() if law.check.__module__.endswith("closed_form_laws")]


@pytest.fixture(autouse=True)
def _as_found(monkeypatch):
    """Cases are not made smaller, as in `test_mutants`."""
    monkeypatch.setattr("pml_ext.testing.check._Cases.smallest", lambda cases, kind, broken, check: broken)


def test_a_right_closed_form_keeps_the_laws():
    check_loss(Right, only=[*CLOSED_FORM, "hand_written_gradients_agree_with_autograd"], examples=30)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_called_by_its_name(name):
    mistake, law = MISTAKES[name]
    with pytest.raises(LawBroken) as broken:
        check_loss(mistake, examples=20)
    assert broken.value.law == law


def test_every_law_of_closed_forms_has_a_mistake():
    assert {law for _, law in MISTAKES.values()} == set(CLOSED_FORM)
