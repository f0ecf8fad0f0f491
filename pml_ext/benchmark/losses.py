"""From a name to a loss: the catalog of this package, its trainers and, by class name, PML's own losses."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytorch_metric_learning.losses as pml_losses
import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction, GenericPairLoss

from pml_ext import catalog
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.trainers.methods import methods


def catalog_names() -> tuple[str, ...]:
    """Every name of the catalog."""
    return tuple(catalog.recipes)


def names() -> list[str]:
    """Every name that an experiment accepts."""
    return [*catalog_names(), *methods, *(name for name in _pml_classes() if name not in catalog.recipes)]


def build(name: str, *, classes: int, embedding_size: int) -> catalog.Recipe:
    """Build a loss and its miner with their defaults.

    A loss that must know the number of classes or the dimension of the embeddings is told; one that has another
    argument without a default cannot be built.
    """
    known = {"num_classes": classes, "embedding_size": embedding_size, "descriptors_dim": embedding_size}
    ours = name in catalog.recipes
    needs = catalog.needs(name) if ours else _required(_pml_classes()[name])
    unknown = [argument for argument in needs if argument not in known]
    if unknown:
        raise BenchmarkError(f"{name} has no default for {', '.join(unknown)}, so it cannot be run by name")
    told = {argument: known[argument] for argument in needs}
    if ours:
        return catalog.build(name, **told)
    return catalog.Recipe(name, _pml_classes()[name](**told), None, f"pytorch_metric_learning.losses.{name}")


def rehearse(name: str, *, classes: int, embedding_size: int, images_per_class: int) -> None:
    """Build a loss and take two steps on random embeddings, so that an unusable one is known before the first epoch.

    Two, because some losses keep a graph from one call to the next and fail on the second. A method with a trainer of
    its own takes any labels, so there is nothing to find out.
    """
    if name in methods:
        return
    try:
        recipe = build(name, classes=classes, embedding_size=embedding_size)
        labels = torch.arange(min(classes, 8)).repeat_interleave(images_per_class)
        for _ in range(2):
            embeddings = torch.randn(len(labels), embedding_size, requires_grad=True)
            indices = None if recipe.miner is None else recipe.miner(embeddings, labels)
            recipe.loss(embeddings, labels, indices).backward()
    except BenchmarkError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise BenchmarkError(
            f"{name} cannot be trained on labelled batches: {reason[0] if reason else type(error).__name__}"
        ) from error


def _pml_classes() -> dict[str, type]:
    abstract = (BaseMetricLossFunction, GenericPairLoss)
    return {
        name: value
        for name, value in sorted(vars(pml_losses).items())
        if inspect.isclass(value) and issubclass(value, BaseMetricLossFunction) and value not in abstract
    }


def _required(cls: type) -> Sequence[str]:
    # SubCenterArcFaceLoss takes *args and hands them up, so its requirements are those of its base.
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return []
