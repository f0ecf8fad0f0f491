"""The parts of hardness-aware deep metric learning as the paper has them: networks, loss, miner and optimizers.

`hardness_aware_trainer` puts them into a trainer of PML 2; `Assembled.loss` is what any other loop needs of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.trainers.generator import FeatureGenerator, output_size
from pml_ext.trainers.hardness_aware_loss import HardnessAwareLoss
from pml_ext.trainers.n_pair_loss import NPairTupleLoss
from pml_ext.trainers.tuples import NPairTupleMiner, RandomTupleMiner

# What a step costs, by name; each trains parts of its own.
LOSSES = ("metric_loss", "synth_loss", "recon_loss", "soft_loss", "classifier_loss")


@dataclass(frozen=True)
class Variant:
    """What the variants of hardness-aware learning differ in.

    Args:
        metric_loss: makes J.
        miner: makes the miner of the tuples, from a seed.
        trainer_args: arguments of `HardnessAwareTrainer`.
        batch_size: that of the paper.
        source: where it comes from.
    """

    metric_loss: Callable[[], nn.Module]
    miner: Callable[[int | None], Any]
    trainer_args: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 120
    source: str = "Zheng et al. 2019, arXiv 1903.05503"


def _triplet_loss() -> TripletMarginLoss:
    """The sum of [d+^2 - d-^2 + 1]+ over the triplets, of embeddings as they are."""
    return TripletMarginLoss(margin=1, distance=LpDistance(normalize_embeddings=False, power=2), reducer=SumReducer())


variants: Mapping[str, Variant] = MappingProxyType(
    {
        "triplet": Variant(_triplet_loss, lambda seed: RandomTupleMiner(seed=seed), {"alpha": 7}),
        "n_pair": Variant(
            NPairTupleLoss, lambda seed: NPairTupleMiner(), {"alpha": 90, "separate_anchors": True}, batch_size=128
        ),
    }
)


@dataclass(frozen=True)
class Assembled:
    """The parts of a variant: networks, losses, miner and optimizers.

    Args:
        models: trunk, embedder, generator and classifier, by name.
        losses: the metric loss, and other losses that were given.
        miner: of the tuples.
        optimizers: by the name of a part and "_optimizer".
        args: of the method, for `HardnessAwareTrainer` or `HardnessAwareLoss`.
        batch_size: that of the paper.
    """

    models: dict[str, nn.Module]
    losses: dict[str, Any]
    miner: Any
    optimizers: dict[str, torch.optim.Optimizer]
    args: Mapping[str, Any]
    batch_size: int

    def loss(self) -> HardnessAwareLoss:
        """The parts as a `HardnessAwareLoss`; they are shared, not copied."""
        return HardnessAwareLoss(
            self.models["embedder"],
            self.models["generator"],
            self.models["classifier"],
            self.losses["metric_loss"],
            synth_loss=self.losses.get("synth_loss"),
            miner=self.miner,
            schedule=self.losses.get("hardness"),
            **self.args,
        )


def checked_variant(name: str) -> Variant:
    """The variant of a name.

    Raises:
        ValueError: no variant has that name.
    """
    if name not in variants:
        raise ValueError(f"variant must be one of {', '.join(variants)}, got {name!r}")
    return variants[name]


def device_of(*modules: nn.Module) -> torch.device | None:
    """The device of the first weights; None without any."""
    return next((weight.device for module in modules for weight in module.parameters()), None)


def assembled(
    variant: str,
    trunk: nn.Module,
    embedder: nn.Module,
    data: Tensor,
    num_classes: int,
    *,
    learning_rate: float = 7e-5,
    trunk_learning_rate: float | None = None,
    generator_learning_rate: float = 1e-2,
    classifier_learning_rate: float = 1e-3,
    weight_decay: float = 5e-3,
    hidden_size: int = 512,
    seed: int | None = None,
    models: Mapping[str, nn.Module] = MappingProxyType({}),
    losses: Mapping[str, Any] = MappingProxyType({}),
) -> Assembled:
    """The parts of a variant.

    Args:
        variant: "triplet" or "n_pair".
        trunk: f, from images to features [n, feature_size].
        embedder: g, from features to embeddings [n, d].
        data: two samples, which are passed through the networks to find their sizes.
        num_classes: number of training classes.
        learning_rate: of Adam, for trunk and embedder. Default 7e-5.
        trunk_learning_rate: of Adam, for the trunk; None is `learning_rate`. Default None.
        generator_learning_rate: of Adam. Default 1e-2.
        classifier_learning_rate: of Adam. Default 1e-3.
        weight_decay: of Adam, for trunk and embedder. Default 5e-3.
        hidden_size: of the generator. Default 512.
        seed: of the miner of the triplets. Default: torch's global random state.
        models: networks, by name, instead of those made here. Default: none.
        losses: losses, by name, instead of those made here. Default: none.

    Raises:
        ValueError: an unknown variant; networks that do not return one vector per sample.
    """
    chosen, device = checked_variant(variant), device_of(trunk, embedder)
    feature_size, features = output_size(trunk, data)
    embedding_size, _ = output_size(embedder, features)
    networks: dict[str, nn.Module] = {
        "trunk": trunk,
        "embedder": embedder,
        "generator": FeatureGenerator(embedding_size, feature_size, hidden_size).to(device, features.dtype),
        "classifier": nn.Linear(feature_size, arguments.count("num_classes", num_classes) or 0).to(
            device, features.dtype
        ),
        **models,
    }
    functions: dict[str, Any] = {"metric_loss": chosen.metric_loss(), **losses}
    additional = {"generator": generator_learning_rate, "classifier": classifier_learning_rate}
    rates = additional | {"trunk": learning_rate if trunk_learning_rate is None else trunk_learning_rate}
    optimizers: dict[str, torch.optim.Optimizer] = {
        f"{name}_optimizer": torch.optim.Adam(
            part.parameters(),
            lr=rates.get(name, learning_rate),
            weight_decay=0 if name in additional else weight_decay,
        )
        for name, part in {**networks, **functions}.items()
        if any(True for _ in part.parameters())
    }
    return Assembled(networks, functions, chosen.miner(seed), optimizers, chosen.trainer_args, chosen.batch_size)
