"""What the features of an untrained trunk give: the data of a frozen trunk, and the head that starts from them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pml_ext.benchmark import features
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.data import Data, Part, VectorPart
from pml_ext.benchmark.device import torch_device
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.models import FeatureTrunk
from pml_ext.benchmark.transforms import test_transform

Say = Callable[[str], None]


def prepared(experiment: Experiment, data: list[Data], say: Say) -> list[Data]:
    """The data of an experiment, of each fold, as its networks will take them.

    Features of a frozen trunk are in the place of images, and the head starts from principal components.

    Raises:
        BenchmarkError: there is no trunk to be frozen, features that are not finite, too few for the head.
    """
    first = data[0]
    if experiment.frozen:
        if first.samples is None or first.samples.vectors is not None:
            raise BenchmarkError(f"frozen needs images and a pretrained trunk, and {first.name} is of vectors")
        if first.trunk.name == "conv4" and not first.trunk.pretrained:
            raise BenchmarkError(
                "frozen needs images and a pretrained trunk: give weights, or another trunk than conv4"
            )
        known = _features(experiment, first, torch.arange(len(first.samples)), say)
        data = [each.with_features(known) for each in data]
    return [_with_head(experiment, each, say) for each in data]


def _with_head(experiment: Experiment, data: Data, say: Say) -> Data:
    of_vectors = isinstance(data.train, VectorPart)
    wanted = experiment.head or ("pca" if of_vectors else "random")
    if wanted == "random":
        return data
    if of_vectors:
        known = data.train.vectors
        if experiment.head is None and experiment.embedding_size > min(known.shape):
            say(f"the head starts random: {experiment.embedding_size} dimensions of {known.shape[1]} features")
            return data
    elif data.split is None:
        raise BenchmarkError("head pca needs a pretrained trunk: give another --trunk or --head random")
    else:
        known = _features(experiment, data, data.split.train, say)
    head = features.principal_head(known.float(), experiment.embedding_size)
    return replace(data, head=dict(head.state_dict()))


def _features(experiment: Experiment, data: Data, index: Tensor, say: Say) -> Tensor:
    """Features [n, f] of some images of the data, from the cache or computed."""
    assert data.samples is not None
    assert data.preprocessing is not None
    images: Dataset[Any] = Part(data.samples, index, test_transform(data.preprocessing))
    where = cache(experiment)
    say(f"features of {len(index)} images by {data.trunk.name}, kept in {where}")
    every = len(index) == len(data.samples)
    return features.cached(
        FeatureTrunk(copy.deepcopy(data.trunk.module)),
        images,
        where,
        {
            "data": data.samples.key or f"{data.name} {id(data.samples)} {os.getpid()}",
            "index": "all" if every else index.tolist(),
            "trunk": data.trunk.name,
            "preprocessing": data.preprocessing.to_dict(),
        },
        workers=experiment.workers,
        device=torch_device(experiment.device),
        say=say,
    )


def cache(experiment: Experiment) -> Path:
    """The folder for features."""
    if experiment.cache is not None:
        return Path(experiment.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pml_ext" / "features"
