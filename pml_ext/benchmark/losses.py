"""Parse the losses that a user writes: names, arguments, user-defined classes, objects.

    RAW, BinDeviance2018        a method of `pml_ext.catalog`, with its miner
    RAWLoss                     a loss class of this package
    HDML-Triplet                a method of `pml_ext.trainers.methods`
    pml:TripletMarginLoss       a loss class of PML; the prefix may be left out where we have no class of that name
    my_losses:MyLoss            a class or function of your own
    RAW(gamma=0.3, alpha=4)     any of these with arguments, which are literals
    RAW(miner.epsilon=0.2)      an argument of a part
    RAW(learning_rate=1e-4)     a learning rate of its own, in the place of the experiment's (also trunk_learning_rate,
                                loss_learning_rate)
    pml:MarginLoss + pml:DistanceWeightedMiner(cutoff=0.5)      with a miner

From Python also losses, pairs of a loss and a miner, recipes, and classes or functions that make one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytorch_metric_learning.losses as pml_losses
import pytorch_metric_learning.miners as pml_miners
import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from torch import nn

from pml_ext import _pml, catalog
from pml_ext import losses as our_losses
from pml_ext import miners as our_miners
from pml_ext.benchmark.config import flags
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.kinds import did_you_mean
from pml_ext.spaces import Range, ranges
from pml_ext.trainers.methods import methods

Make = Callable[..., Any]
RATES = ("learning_rate", "trunk_learning_rate", "loss_learning_rate")


@dataclass(frozen=True)
class LossSpec:
    """A loss that can be built as often as wanted, with its name in tables and files.

    Args:
        name: as it was written, or one made for an object.
        make: num_classes and embedding_size, by keyword -> a loss, with its miner or None.
        method: the name in `pml_ext.trainers.methods` if it is a method with a trainer of its own, else None.
        in_memory: whether it is an object, which a later process cannot make again.
        rates: learning rates, by the names that they have in an experiment, in the place of the experiment's.
        given: that object, None of a text.
    """

    name: str
    make: Callable[[int, int], catalog.Recipe] = field(repr=False)
    method: str | None = None
    in_memory: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)
    given: Any = field(default=None, repr=False, compare=False)

    def build(self, *, classes: int, embedding_size: int) -> catalog.Recipe:
        """Build the loss and its miner.

        Raises:
            BenchmarkError: arguments that do not fit, or an argument without a default whose value is unknown.
        """
        return self.make(classes, embedding_size)


def parse_all(specs: Any) -> tuple[LossSpec, ...]:
    """All losses that are given, with different names: one or several of the forms above; "all" is the catalog."""
    if isinstance(specs, str) or not isinstance(specs, Iterable) or _is_pair(specs):
        specs = (specs,)
    listed = [each for spec in specs for each in (catalog_names() if spec == "all" else (spec,))]
    if not listed:
        raise BenchmarkError("losses must not be empty")
    parsed: list[LossSpec] = []
    for spec in map(parse, listed):
        taken = {each.name for each in parsed}
        if spec.name in taken and not spec.in_memory:
            raise BenchmarkError(f"losses must be different from each other, got {spec.name} twice")
        number, name = 2, spec.name
        while name in taken:
            name, number = f"{spec.name} ({number})", number + 1
        parsed.append(replace(spec, name=name))
    return tuple(parsed)


def parse(spec: Any) -> LossSpec:
    """The loss that is meant by a text in one of the forms above, or by an object.

    Raises:
        BenchmarkError: nothing of that name, or not a loss.

    Example:
        >>> parse("RAW(gamma=0.3)").build(classes=4, embedding_size=8).loss.gamma
        0.3
    """
    if isinstance(spec, LossSpec):
        return spec
    if isinstance(spec, str):
        return _of_text(spec)
    return replace(_of_object(spec), given=spec)


def build(spec: Any, *, classes: int, embedding_size: int) -> catalog.Recipe:
    """Build the loss that is meant, with its miner: `parse(spec).build(...)`."""
    return parse(spec).build(classes=classes, embedding_size=embedding_size)


@dataclass(frozen=True)
class Searched:
    """A loss that is written as a text, and what a search may change in it.

    Args:
        name: of the loss, without arguments.
        arguments: those that were given.
        miner: what stands after the plus sign; "" for nothing.
        space: the ranges of the other arguments, by keyword.
    """

    name: str
    arguments: Mapping[str, Any]
    miner: str
    space: Mapping[str, Range]

    def written(self, values: Mapping[str, Any]) -> str:
        """The text of the loss with some values.

        Example:
            >>> searched("RAW(gamma=0.3)").written({"alpha": 4})
            'RAW(gamma=0.3, alpha=4)'
        """
        arguments = ", ".join(f"{key}={value!r}" for key, value in {**self.arguments, **values}.items())
        return (f"{self.name}({arguments})" if arguments else self.name) + (f" + {self.miner}" if self.miner else "")


def searched(spec: Any) -> Searched:
    """What a search may change in a loss: the space of a recipe or class, without the arguments that are given.

    A user-defined class may declare `space`, a mapping from arguments to `pml_ext.spaces.Range`.

    Raises:
        BenchmarkError: a loss that is not written as a text, or unknown.

    Example:
        >>> list(searched("RAW(gamma=0.3)").space)
        ['alpha', 'beta', 'epsilon']
    """
    if not isinstance(spec, str):
        raise BenchmarkError(
            f"only a loss that is written as a text can be searched, as RAW or module:name; got {spec!r}"
        )
    loss_text, *miner_texts = _split(spec)
    name, arguments = _call(loss_text)
    parse(spec)
    if name in methods:
        found: Mapping[str, Range] = {}
    elif name in catalog.recipes:
        found = catalog.space(name)
        if miner_texts:
            found = {key: each for key, each in found.items() if not key.startswith("miner.")}
    else:
        cls = _loss_class(name)
        found = {**ranges(cls, _rates(name, arguments)[1]), **getattr(cls, "space", {})}
    space = {key: each for key, each in found.items() if key not in arguments}
    return Searched(name, arguments, " + ".join(miner_texts), space)


def told(text: str) -> tuple[str, ...]:
    """The arguments without a default that a loss is told when it is built."""
    name, arguments = _call(_split(text)[0])
    needed = catalog.required(name) if name in catalog.recipes else _required(_loss_class(name))
    return tuple(each for each in needed if each not in arguments)


def catalog_names() -> tuple[str, ...]:
    """Every name of the catalog."""
    return tuple(catalog.recipes)


def names() -> list[str]:
    """Every plain name that is accepted."""
    ours = [*catalog_names(), *methods, *our_losses.__all__]
    return [*ours, *(name for name in _classes(pml_losses, BaseMetricLossFunction) if name not in ours)]


def _of_text(text: str) -> LossSpec:
    loss_text, *miner_texts = _split(text)
    if len(miner_texts) > 1:
        raise BenchmarkError(f"a loss takes one miner, got {text!r}")
    name, arguments = _call(loss_text)
    if name in methods:
        if arguments or miner_texts:
            raise BenchmarkError(
                f"{name} is a method with a trainer of its own: it takes neither arguments nor a miner"
            )
        return LossSpec(text, _no_loss(name), method=name)
    rates, arguments = _rates(name, arguments)
    make = _maker(name, arguments)
    if not miner_texts:
        return LossSpec(text, make, rates=rates)
    miner_name, miner_arguments = _call(miner_texts[0])
    miner = _of_class(_miner(miner_name), miner_name, miner_arguments)

    def with_miner(classes: int, embedding_size: int) -> catalog.Recipe:
        return replace(make(classes, embedding_size), miner=miner(classes, embedding_size))

    return LossSpec(text, with_miner, rates=rates)


def _rates(name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """The learning rates among the arguments of a loss, and the others; what a loss itself has is its own."""
    kinds = {flag.name: flag.metadata["kind"] for flag in flags() if flag.name in RATES}
    asked = [key for key in arguments if key in RATES]
    if asked and ":" in name:
        own = inspect.signature(_loss_class(name)).parameters
        asked = [key for key in asked if key not in own]
    rest = {key: value for key, value in arguments.items() if key not in asked}
    return {key: kinds[key].check(f"{key} of {name}", arguments[key]) for key in asked}, rest


def _split(text: str) -> list[str]:
    """The parts between the plus signs that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


_DOT = "__of__"


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments in a text like RAW(gamma=0.3): nothing is evaluated but literals."""
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name.strip(), {}
    # An argument of a part, miner.epsilon, is no keyword of Python.
    dotted = re.sub(r"\b([A-Za-z_]\w*)\.([A-Za-z_]\w*)(?=\s*=)", rf"\1{_DOT}\2", f"f({rest}")
    try:
        call = ast.parse(dotted, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise BenchmarkError(f"the arguments of {name.strip()} must have names, as in RAW(gamma=0.3); got {text!r}")
        arguments = {str(keyword.arg).replace(_DOT, "."): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except BenchmarkError:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise BenchmarkError(
            f"cannot read the loss {text!r}: write it as RAW(gamma=0.3, alpha=4); values are numbers, True, False, "
            "None, quoted text, or lists of them"
        ) from None
    return name.strip(), arguments


def _maker(name: str, arguments: dict[str, Any]) -> Callable[[int, int], catalog.Recipe]:
    if name in catalog.recipes:
        return _of_recipe(name, arguments)
    cls = _loss_class(name)
    make = _of_class(cls, name, arguments)
    ours, bare = name in our_losses.__all__, name.removeprefix("pml:")
    source = name if ":" in bare else f"{'pml_ext' if ours else 'pytorch_metric_learning'}.losses.{bare}"

    def recipe(classes: int, embedding_size: int) -> catalog.Recipe:
        return _recipe(make(classes, embedding_size), name, source)

    return recipe


def _loss_class(name: str) -> Make:
    """The class of ours, of PML or of one's own that a name without arguments means."""
    known = _classes(pml_losses, BaseMetricLossFunction)
    if name in our_losses.__all__:
        return _class_of(our_losses, name)
    if ":" not in name and name in known:
        return known[name]
    if name.startswith("pml:"):
        return _known("PML loss", name.removeprefix("pml:"), known)
    if ":" in name:
        return imported(name, "loss")
    raise _unknown("loss", name, names())


def _of_recipe(name: str, arguments: dict[str, Any]) -> Callable[[int, int], catalog.Recipe]:
    def make(classes: int, embedding_size: int) -> catalog.Recipe:
        needed = {k: v for k, v in _known_arguments(classes, embedding_size).items() if k in catalog.required(name)}
        try:
            return catalog.build(name, **(needed | arguments))
        except (TypeError, ValueError) as error:
            raise BenchmarkError(f"{name}: {error}") from error

    return make


def _of_class(cls: Make, name: str, arguments: dict[str, Any]) -> Callable[[int, int], Any]:
    """What makes an instance of a class or function, told what it needs and is known."""

    def make(classes: int, embedding_size: int) -> Any:
        known = _known_arguments(classes, embedding_size)
        needed = [argument for argument in _required(cls) if argument not in arguments]
        unknown = [argument for argument in needed if argument not in known]
        if unknown:
            raise BenchmarkError(f"{name} has no default for {', '.join(unknown)}: write {name}({unknown[0]}=...)")
        try:
            return cls(**({argument: known[argument] for argument in needed} | arguments))
        except (TypeError, ValueError) as error:
            raise BenchmarkError(f"{name}: {error}") from error

    return make


def _known_arguments(classes: int, embedding_size: int) -> dict[str, Any]:
    return {"num_classes": classes, "embedding_size": embedding_size, "descriptors_dim": embedding_size}


def _no_loss(name: str) -> Callable[[int, int], catalog.Recipe]:
    def make(classes: int, embedding_size: int) -> catalog.Recipe:
        raise BenchmarkError(f"{name} is a method with a trainer of its own, not a loss")

    return make


def _miner(name: str) -> Make:
    if name in our_miners.__all__:
        return _class_of(our_miners, name)
    known = _classes(pml_miners, BaseMiner)
    if ":" not in name and name in known:
        return known[name]
    if name.startswith("pml:"):
        return _known("PML miner", name.removeprefix("pml:"), known)
    if ":" in name:
        return imported(name, "miner")
    raise _unknown("miner", name, [*our_miners.__all__, *known])


def _class_of(module: Any, name: str) -> Make:
    cls: Make = getattr(module, name)
    return cls


def imported(name: str, kind: str) -> Make:
    """What stands behind package.module:attribute.

    Raises:
        BenchmarkError: no such module, or nothing callable of that name in it.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError) as error:
        raise BenchmarkError(f"cannot import the {kind} {name!r}: {error}") from None
    except AttributeError:
        raise BenchmarkError(f"the {kind} {name!r} is unknown: {module} has no {attribute!r}") from None
    if not callable(found):
        raise BenchmarkError(f"the {kind} {name!r} is neither a class nor a function but a {type(found).__name__}")
    make: Make = found
    return make


def miner(spec: str, *, classes: int, embedding_size: int) -> Callable[[], Any]:
    """What makes the miner that a text means: "HardNegativePairMiner(epsilon=0.2)", "pml:AngularMiner", "my:Miner".

    Raises:
        BenchmarkError: nothing of that name, or arguments that do not fit.
    """
    name, arguments = _call(spec)
    make = partial(_of_class(_miner(name), name, arguments), classes, embedding_size)
    make()
    return make


def _recipe(made: Any, name: str, source: str) -> catalog.Recipe:
    """A recipe from what a class or function has made: a loss, a loss and a miner, or a recipe."""
    if isinstance(made, catalog.Recipe):
        return made
    loss, miner = made if _is_pair(made) else (made, None)
    if not callable(loss):
        raise BenchmarkError(f"{name} must be a loss of embeddings and labels, got {type(loss).__name__}")
    return catalog.Recipe(name, loss if isinstance(loss, nn.Module) else _FunctionLoss(loss), miner, source)


class _FunctionLoss(nn.Module):
    """A function of embeddings and labels as a loss."""

    def __init__(self, function: Make) -> None:
        super().__init__()
        self.function = function

    def forward(self, embeddings: Any, labels: Any, indices_tuple: Any = None) -> Any:
        if indices_tuple is None:
            return self.function(embeddings, labels)
        return self.function(embeddings, labels, indices_tuple)


def _is_pair(value: Any) -> bool:
    """Whether it is a loss with a miner."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], nn.Module)
        and (value[1] is None or isinstance(value[1], BaseMiner))
    )


def _of_object(spec: Any) -> LossSpec:
    if isinstance(spec, catalog.Recipe):
        return LossSpec(spec.name, lambda classes, size: spec, in_memory=True)
    if isinstance(spec, nn.Module) or _is_pair(spec):
        loss, miner = spec if _is_pair(spec) else (spec, None)
        name = " + ".join(catalog.described(each).removesuffix("()") for each in (loss, miner) if each is not None)
        return LossSpec(name, lambda classes, size: _recipe((loss, miner), name, "an object"), in_memory=True)
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        if inspect.isclass(spec):
            make = _of_class(spec, name, {})
            return LossSpec(name, lambda classes, size: _recipe(make(classes, size), name, name), in_memory=True)
        return LossSpec(name, lambda classes, size: _recipe(spec, name, name), in_memory=True)
    raise BenchmarkError(
        f"a loss must be a name, a loss, a loss with a miner, or a function or class that makes one; got {spec!r}"
    )


def rehearse(spec: Any, *, classes: int, embedding_size: int, images_per_class: int) -> int:
    """Build a loss and take two steps on random embeddings, so that an unusable one is known before the first epoch.

    Two, because some losses keep a graph from one call to the next and fail on the second. A method with a trainer of
    its own takes any labels, and an object has a state that is not ours to change: there is nothing to find out.

    Returns:
        How many weights the loss has that are trained, those of proxies and the like; 0 of a method.
    """
    spec = parse(spec)
    if spec.method is not None:
        return 0
    try:
        recipe = spec.build(classes=classes, embedding_size=embedding_size)
        weights: int = sum(int(weight.numel()) for weight in recipe.loss.parameters() if weight.requires_grad)
        if spec.in_memory:
            return weights
        labels = torch.arange(min(classes, 8)).repeat_interleave(images_per_class)
        for _ in range(2):
            embeddings = torch.randn(len(labels), embedding_size, requires_grad=True)
            indices = None if recipe.miner is None else recipe.miner(embeddings, labels)
            recipe.loss(embeddings, labels, indices).backward()
        return weights
    except BenchmarkError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise BenchmarkError(
            f"{spec.name} cannot be trained on labeled batches: {reason[0] if reason else type(error).__name__}"
        ) from error


def _classes(module: Any, base: type) -> dict[str, Make]:
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if inspect.isclass(value) and issubclass(value, base) and value not in _pml.ABSTRACT
    }


def _known(kind: str, name: str, known: Mapping[str, Make]) -> Make:
    if name not in known:
        raise _unknown(kind, name, known)
    return known[name]


def _unknown(kind: str, name: str, known: Iterable[str]) -> BenchmarkError:
    return BenchmarkError(did_you_mean(kind, name, list(known)))


def _required(cls: Make) -> Sequence[str]:
    """The arguments without a default."""
    if not inspect.isclass(cls):
        parameters = list(inspect.signature(cls).parameters.values())
        return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    # SubCenterArcFaceLoss takes *args and hands them up, so its requirements are those of its base.
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return []
