"""Laws of constructor arguments: hyperparameters that are set later, and wrapper arguments, which have an effect."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance
from pytorch_metric_learning.reducers import MeanReducer, SumReducer

from pml_ext.hyperparameters import Configured
from pml_ext.testing.cases import Batch
from pml_ext.testing.law import Outcome, assert_same, evaluate, is_wrapper, law, with_attributes
from pml_ext.testing.miner_laws import mine, pairs_of
from pml_ext.wrappers.base import LossWrapper


def is_configured(subject: Any) -> bool:
    """A loss, a miner or a wrapper of this package, whose hyperparameters are attributes."""
    return isinstance(subject, Configured)


@law("loss", "once", is_configured)
def hyperparameters_may_be_set_later(loss: Any, case: Batch) -> None:
    """A hyperparameter set on an existing loss has the same effect and the same errors as in the constructor."""

    def same(later: Any, made: Any, what: str) -> None:
        expected = evaluate(made, case.embeddings, case.labels)
        assert_same(evaluate(later, case.embeddings, case.labels), expected, what)

    _set_later(loss, same)


@law("miner", "once", is_configured)
def hyperparameters_of_a_miner_may_be_set_later(miner: Any, case: Batch) -> None:
    """A hyperparameter set on an existing miner has the same effect and the same errors as in the constructor."""

    def same(later: Any, made: Any, what: str) -> None:
        found, expected = (pairs_of(mine(each, case.embeddings, case.labels)) for each in (later, made))
        assert found == expected, f"other pairs: {what}"

    _set_later(miner, same)


def _set_later(subject: Any, same: Callable[[Any, Any, str], None]) -> None:
    try:
        same(subject, _made_with(subject), "made again")
    except (AssertionError, TypeError, ValueError):
        return  # what it was made with cannot be told from its attributes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of levels that no score can reach
        for name in subject._hyperparameter_names:
            for value in _near(getattr(subject, name)):
                _is_set_alike(subject, name, value, same)
            for value in (math.nan, "much"):
                _is_refused_alike(subject, name, value, same)


def _near(value: Any) -> tuple[Any, ...]:
    """Another value of a hyperparameter."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1,)
    return (1.25 * value + 0.125,) if isinstance(value, float) else ()


def _is_set_alike(subject: Any, name: str, value: Any, same: Callable[[Any, Any, str], None]) -> None:
    try:
        made = _made_with(subject, **{name: value})
    except (TypeError, ValueError):
        _is_refused_alike(subject, name, value, same)
        return
    later = copy.deepcopy(subject)
    try:
        setattr(later, name, value)
    except AttributeError:
        return  # parts were made with it: it cannot be set at all
    assert getattr(later, name) == getattr(made, name), f"{name}={value!r} becomes {getattr(later, name)!r}"
    same(later, made, f"{name}={value!r} set later")


def _is_refused_alike(subject: Any, name: str, value: Any, same: Callable[[Any, Any, str], None]) -> None:
    try:
        _made_with(subject, **{name: value})
    except (TypeError, ValueError):
        later = copy.deepcopy(subject)
        try:
            setattr(later, name, value)
            same(later, later, "called")
        except (TypeError, ValueError, AttributeError):
            return
        raise AssertionError(f"{name}={value!r} is refused by the constructor, but not later") from None


def _made_with(subject: Any, **arguments: Any) -> Any:
    """The subject made anew, from its attributes and these arguments."""
    kind = type(subject)
    known = {name: getattr(subject, name) for name in inspect.signature(kind).parameters if hasattr(subject, name)}
    if subject.has_own_distance:
        known["distance"] = subject.distance
        if hasattr(subject, "reducer"):
            known["reducer"] = subject.reducer
    made = kind(**(known | arguments))
    if not arguments.keys() & {"num_classes", "embedding_size"}:
        made.load_state_dict(subject.state_dict())
    return made


_GIVEN: dict[str, tuple[Any, Any]] = {
    "reducer": (MeanReducer(), SumReducer()),
    "distance": (LpDistance(normalize_embeddings=False), DotProductSimilarity(normalize_embeddings=False)),
}


@law("loss", "once", is_wrapper)
def what_a_wrapper_is_given_is_used(loss: Any, case: Batch) -> None:
    """A `reducer`, a `distance` and every flag of a wrapper have an effect, or are refused by the constructor."""
    flags = {
        name: (False, True)
        for name, parameter in inspect.signature(type(loss)).parameters.items()
        if isinstance(parameter.default, bool)
    }
    inner = loss.loss
    while isinstance(inner, LossWrapper):
        inner = inner.loss
    # What normalizes makes no difference around a loss that does so itself.
    without = with_attributes(inner, distance=LpDistance(normalize_embeddings=False))
    for name, values in (_GIVEN | flags).items():
        if not any(_makes_a_difference(loss, case, name, values, each) for each in (inner, without)):
            raise AssertionError(f"{name} is taken, but {values[0]} and {values[1]} do the same")


def _makes_a_difference(loss: Any, case: Batch, name: str, values: tuple[Any, Any], inner: Any) -> bool:
    """Whether two values of an argument give other losses; also if one of them is refused."""
    outcomes: list[Outcome] = []
    for value in values:
        try:
            outcomes.append(evaluate(_made_with(loss, loss=inner, **{name: value}), case.embeddings, case.labels))
        except (TypeError, ValueError):
            return True
    first, second = outcomes
    return not torch.allclose(first.gradient, second.gradient)
