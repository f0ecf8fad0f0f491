"""The best models, of each run and of an experiment, kept so that `pml_ext.benchmark.saved.load` can use them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from pml_ext.benchmark.data import Data
from pml_ext.benchmark.evaluate import CHOSEN_BY
from pml_ext.benchmark.models import Network
from pml_ext.benchmark.result import Result
from pml_ext.benchmark.saved import Description, save
from pml_ext.benchmark.table import by_loss

BEST = "best"


def keep(
    where: Path, network: Any, data: Data, metrics: Mapping[str, float], arguments: Mapping[str, Any], *, out: Path
) -> None:
    """Write a network into the folder `best` of a run or of an experiment, with all that it takes to use it.

    Args:
        where: the folder of the run or of the experiment.
        network: the one that was chosen.
        data: what it was trained on; where these are features, the trunk that gave them is kept too.
        metrics: on the test classes.
        arguments: of the experiment, with loss and seed.
        out: the folder of the experiment, where a frozen trunk is kept for all its models.
    """
    trained = [str(name) for name in _names(data.train.classes)]
    if data.frozen:
        assert data.samples is not None
        trunk = copy.deepcopy(data.trunk.module).cpu()
        network = Network(trunk, copy.deepcopy(network.embedder).cpu(), data.preprocessing)
    embedder: nn.Linear = network.embedder
    save(
        where / BEST,
        network,
        Description(
            trunk=data.trunk.name,
            rebuildable=data.trunk.rebuildable,
            image_shape=_input_shape(data),
            features=embedder.in_features,
            embedding_size=embedder.out_features,
            preprocessing=data.preprocessing,
            classes=tuple(trained),
            metrics=dict(metrics),
            arguments=dict(arguments),
        ),
        trunks_in=out if data.frozen else None,
    )


def choose(results: Sequence[Result]) -> Result | None:
    """The run whose model is the experiment's: the best of the loss with the best mean MAP@R on validation classes.

    None if nothing was validated: test classes do not choose.
    """
    done = by_loss([one for one in results if one.trained and one.validation and not one.error])
    scores = {name: mean(one.validation[CHOSEN_BY] for one in runs) for name, runs in done.items()}
    known = {name: score for name, score in scores.items() if score == score}
    if not known:
        return None
    return max(done[max(known, key=lambda name: known[name])], key=lambda one: one.validation[CHOSEN_BY])


def _names(classes: Any) -> list[Any]:
    return list(classes.values()) if isinstance(classes, Mapping) else list(classes)


def _input_shape(data: Data) -> tuple[int, ...]:
    if data.preprocessing is not None:
        return (data.preprocessing.channels, *data.preprocessing.image_size)
    example: torch.Tensor = data.train[0][0]
    return tuple(example.shape)
