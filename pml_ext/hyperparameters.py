"""The arguments with which losses, miners and wrappers are made: checked, recorded, shown, and checked again when set.

Everything of this package that is one of PML's modules has `Configured` before PML's class among its bases.
"""

import inspect
import math
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from pytorch_metric_learning.distances import (
    BaseDistance,
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
    SNRDistance,
)
from pytorch_metric_learning.reducers import BaseReducer
from torch import nn

from pml_ext import _pml, arguments


class WrapperArguments(TypedDict, total=False):
    """To a type checker, the keyword arguments of every wrapper."""

    embedding_regularizer: nn.Module | None
    embedding_reg_weight: float
    collect_stats: bool | None


class LossArguments(WrapperArguments, total=False):
    """Those of every loss."""

    distance: nn.Module | None
    reducer: nn.Module | None


class RowLossArguments(LossArguments, total=False):
    """Those of every loss of rows."""

    chunk_size: int | None


class MinerArguments(TypedDict, total=False):
    """Those of every miner."""

    distance: nn.Module | None
    collect_stats: bool | None
    as_masks: bool


class SeededMinerArguments(MinerArguments, total=False):
    """Those of every miner that draws."""

    seed: int | torch.Generator | None


class SeededWrapperArguments(WrapperArguments, total=False):
    """Those of every wrapper that draws."""

    seed: int | torch.Generator | None


class Configured:
    """The hyperparameters of one of PML's modules.

    They are attributes. One that is set later is checked as the constructor checks it, and so are `chunk_size`, `seed`
    and the like.

    Attributes:
        levels: the hyperparameters that are absolute levels of the distance. They reach the pure function with the
            sign of its scores, so that one formula runs on similarities and on distances.
        fixed: the hyperparameters that cannot be set later, because parts were made with them.
        has_own_distance: whether the constructor takes a distance.

    Args:
        kwargs: those of PML's class.
    """

    levels: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[tuple[str, ...]] = ()
    has_own_distance: ClassVar[bool] = True
    distance: Any
    _hyperparameter_names: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        if not torch.compiler.is_compiling():  # a loss may be made within another one's forward pass
            self._check(kwargs)
        super().__init__(**kwargs)

    if TYPE_CHECKING:  # hyperparameters, as `record_hyperparameters` makes attributes of them

        def __getattr__(self, name: str) -> Any: ...

    def _check(self, given: dict[str, Any]) -> None:
        """Refuse what PML's class does not take, or would take without a look."""
        cls: type = type(self)
        arguments.known(cls.__name__, given, _parameters(cls))
        for name, kind in (("distance", BaseDistance), ("reducer", BaseReducer)):
            value = given.get(name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be a PML {name} (a {kind.__name__}), got {value!r}")
        if given.get("collect_stats") is not None:
            arguments.flag("collect_stats", given["collect_stats"])
        if "embedding_reg_weight" in given:
            arguments.finite("embedding_reg_weight", given["embedding_reg_weight"])

    def record_hyperparameters(self, **values: Any) -> None:
        """Keep each value as an attribute, and report it to record-keeper."""
        for name, value in values.items():
            setattr(self, name, value)
        self._hyperparameter_names = tuple(values)
        # It takes numbers, texts and lists of them; in a tuple it looks for attributes, and fails.
        recorded = [name for name, value in values.items() if not isinstance(value, tuple)]
        _pml.record(self, recorded)  # type: ignore[arg-type]
        self._warn_of_levels()

    def hyperparameters(self) -> dict[str, Any]:
        """The recorded values as the pure function takes them: levels negated if the distance is not inverted."""
        values = {name: getattr(self, name) for name in self._hyperparameter_names}
        if self.distance.is_inverted:
            return values
        return {k: -v if k in self.levels and v is not None else v for k, v in values.items()}

    def extra_repr(self) -> str:
        """The hyperparameters, and other arguments that are not at their default."""
        shown = {name: getattr(self, name) for name in self._hyperparameter_names}
        for name, default in self._own_parameters().items():
            if name not in shown and self.__dict__.get(name, default) is not default:
                shown[name] = self.__dict__[name]
        return ", ".join(f"{name}={getattr(value, '__name__', repr(value))}" for name, value in shown.items())

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a hyperparameter as the constructor would."""
        if not torch.compiler.is_compiling() and name in self.__dict__:
            names = self.__dict__.get("_hyperparameter_names")
            if names is not None and (name in names or name in self._own_parameters()):
                value = self._as_constructed(name, value)
        super().__setattr__(name, value)

    def _as_constructed(self, name: str, value: Any) -> Any:
        """What becomes of a value that is given to the constructor, with the other hyperparameters as they are."""
        if name in self.fixed:
            raise AttributeError(f"{name} cannot be set later: make a new {type(self).__name__}")
        own = self._own_parameters()
        given = {each: getattr(self, each) for each in (*own, *self._hyperparameter_names) if hasattr(self, each)}
        if any(default is inspect.Parameter.empty for each, default in own.items() if each not in given):
            return value
        if self.has_own_distance:
            given["distance"] = self.distance
        return getattr(type(self)(**(given | {name: value})), name)

    def _own_parameters(self) -> dict[str, Any]:
        kind: type = type(self)
        return _own_parameters(kind)

    def _warn_of_levels(self) -> None:
        """Say which level no score can reach: a hinge at it always costs, or never."""
        least, greatest = reach(self.distance)
        for name in self.levels:
            value = getattr(self, name)
            if value is not None and not least <= value <= greatest:
                warnings.warn(
                    f"{name}={value} of {type(self).__name__} lies outside {least:g}..{greatest:g}, "
                    f"what its {type(self.distance).__name__} can reach",
                    stacklevel=4,
                )


def reach(distance: Any) -> tuple[float, float]:
    """The least and the greatest value that a PML distance can have, as far as is known."""
    kind, (_, normalizes, p, power) = type(distance), _pml.facts(distance)
    if kind in (CosineSimilarity, DotProductSimilarity) and normalizes:
        return (-1.0 if power == 1 else 0.0 if power % 2 == 0 else -1.0), 1.0
    if kind is LpDistance:
        # Two vectors of unit length: by the triangle inequality, which holds from p = 1 on.
        bounded = normalizes and p >= 1
        return 0.0, 2.0**power if bounded else math.inf
    return (0.0 if kind is SNRDistance else -math.inf), math.inf


@cache
def _own_parameters(cls: type) -> dict[str, Any]:
    """The named arguments of a class's constructor that are this package's, with their defaults."""
    return {
        parameter.name: parameter.default
        for base, parameter in _chain(cls)
        if not base.__module__.startswith(("pytorch_metric_learning.", _pml.__name__))
    }


@cache
def _parameters(cls: type) -> tuple[str, ...]:
    """The names of all arguments of a class's constructor: its own, and what it hands on to its bases."""
    return tuple(parameter.name for _, parameter in _chain(cls))


def _chain(cls: type) -> list[tuple[type, inspect.Parameter]]:
    found = []
    for base in cls.__mro__:
        if "__init__" in vars(base) and base not in (nn.Module, object):
            _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found += [(base, each) for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return found
