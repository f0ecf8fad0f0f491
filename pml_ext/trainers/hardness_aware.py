"""Hardness-aware deep metric learning as a trainer of PML 2, and its assembly in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from pml_ext import arguments
from pml_ext.trainers.assembly import LOSSES, assembled, checked_variant, device_of
from pml_ext.trainers.hardness_aware_loss import HardnessAwareLoss, HardnessAwareTerms
from pml_ext.trainers.schedule import HardnessSchedule

try:
    from pytorch_metric_learning.trainers import BaseTrainer
except ImportError as error:
    raise ImportError(
        "HardnessAwareTrainer needs the trainers of PML 2, which are not there: HardnessAwareLoss is the same method "
        "for any training loop"
    ) from error


@final
class HardnessAwareTrainer(BaseTrainer):
    r"""PML 2 trainer for hardness-aware deep metric learning; the method is described in `HardnessAwareLoss`.

    Losses that are recorded, and weighted by `loss_weights`, with the parameters that each trains:

        metric_loss      w J(T)          trunk, embedder, and those of the metric loss
        synth_loss       (1 - w) J(T~)   trunk, embedder, and those of the synth loss
        recon_loss       J_recon         generator
        soft_loss        J_soft          generator
        classifier_loss  J_ce            classifier

    The weights of the first two are multiplied by w and 1 - w at each step. PML's record-keeper finds the values
    before weighting - J_m, J_syn, J_gen, J_recon, J_soft, J_ce, lambda, the mixing weight and the hardness of the
    negatives - under `hardness_HardnessSchedule`. The tuples come from `mining_funcs["tuple_miner"]`; without one, T is
    whatever the metric loss takes, and T~ all triplets of the batch.

    To resume: the running averages are buffers of `loss_funcs["hardness"]`, a `HardnessSchedule` which this trainer
    makes unless it is given one, so that saving and loading `models`, `optimizers`, `lr_schedulers`, `loss_funcs` and
    `mining_funcs`, as PML's `HookContainer` does, continues with the very same step. Random states (of a sampler, of a
    miner without a seed) are not saved: save them yourself.

    Args:
        args, kwargs: those of PML's `BaseTrainer`. `models` are trunk, embedder, generator and classifier, the trunk
            returning [n, feature_size] and the classifier taking that; `loss_funcs` are metric_loss and optionally
            synth_loss (see `HardnessAwareLoss`) and hardness. Labels must be 0..classes-1: `set_min_label_to_zero`.
        alpha, beta, period, soft_factor, soft_share, separate_anchors: see `HardnessAwareLoss`.
        distributed: see `HardnessAwareLoss`; the gradients of all models are to be averaged, as models in
            `DistributedDataParallel` have them. Default False.
        synthesis: whether to train on synthetic negatives. False trains trunk and embedder with the metric loss alone,
            step by step as PML's `MetricLossOnly` does; generator and classifier need not be given, and do not change.
            Default True.

    Raises:
        AssertionError: from PML, for a model or a loss that is missing or has another name.
        TypeError, ValueError: as `HardnessAwareLoss`; in `train`, a data set that is smaller than a batch.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 7,
        beta: float = 1e4,
        period: int = 64,
        soft_factor: float = 1e4,
        soft_share: float = 0.5,
        separate_anchors: bool = False,
        distributed: Any = False,
        synthesis: bool = True,
        **kwargs: Any,
    ) -> None:
        # PML's constructor calls the methods below, so these come first.
        self.soft_factor: float = arguments.non_negative("soft_factor", soft_factor)
        self.soft_share: float = arguments.fraction("soft_share", soft_share)
        self.separate_anchors: bool = arguments.flag("separate_anchors", separate_anchors)
        self.synthesis: bool = arguments.flag("synthesis", synthesis)
        self.distributed: Any = distributed
        self._schedule = HardnessSchedule(alpha, beta, period)
        self.loss_funcs: dict[str, Any]
        self.loss_weights: dict[str, float]
        super().__init__(*args, **kwargs)
        self.original_loss_weights: dict[str, float] = dict(self.loss_weights)
        self.hardness_aware_loss()  # which checks its parts

    def custom_setup(self) -> None:
        """Name the losses, before PML checks the names."""
        self.loss_funcs = {"hardness": self._schedule, **self.loss_funcs}
        self.loss_names: list[str] = list(LOSSES)

    def modify_schema(self) -> None:
        """The names that this trainer adds to those of PML's base class."""
        networks = ["generator", "classifier"]
        self.schema["models"].keys += networks
        self.schema["loss_funcs"].keys += ["synth_loss", "hardness"]
        self.schema["loss_funcs"].essential = ["metric_loss"]
        self.schema["loss_funcs"].important = []
        if self.synthesis:
            self.schema["models"].essential += networks

    def initialize_dataloader(self) -> None:
        """PML's data loader, which drops an incomplete batch; so a data set smaller than a batch is refused."""
        super().initialize_dataloader()
        if len(self.dataloader) == 0:
            number = len(self.dataset if self.sampler is None else self.sampler)
            raise ValueError(
                f"batch_size must be at most the number of samples of an epoch, got {self.batch_size} and {number}"
            )

    @property
    def schedule(self) -> HardnessSchedule:
        """The running averages, and what happened in the last step."""
        schedule: HardnessSchedule = self.loss_funcs["hardness"]
        return schedule

    def hardness_aware_loss(self) -> HardnessAwareLoss:
        """The models and losses of this trainer as a `HardnessAwareLoss`; they are shared, not copied."""
        absent = nn.Identity()
        return HardnessAwareLoss(
            self.models["embedder"],
            self.models.get("generator", absent),
            self.models.get("classifier", absent),
            self.loss_funcs["metric_loss"],
            synth_loss=self.loss_funcs.get("synth_loss"),
            soft_factor=self.soft_factor,
            soft_share=self.soft_share,
            separate_anchors=self.separate_anchors,
            schedule=self.schedule,
            miner=self.mining_funcs.get("tuple_miner"),
            distributed=self.distributed,
            synthesis=self.synthesis,
        )

    def calculate_loss(self, curr_batch: tuple[Any, Tensor]) -> None:
        """The losses of a batch, and their weights."""
        data, labels = curr_batch
        features = self.get_trunk_output(data)
        embeddings = self.get_final_embeddings(features)
        # Several processes mine the batch of all.
        indices_tuple = None if self.distributed is not False else self.maybe_mine_embeddings(embeddings, labels)
        terms: HardnessAwareTerms = self.hardness_aware_loss()(features, embeddings, labels, indices_tuple)
        values = (terms.j_m, terms.j_syn, terms.j_recon, terms.j_soft, terms.j_ce)
        self.losses.update(zip(LOSSES, values, strict=True))
        weight = float(terms.mixing_weight)
        weights = self.original_loss_weights
        self.loss_weights = weights | {
            "metric_loss": weights["metric_loss"] * weight,
            "synth_loss": weights["synth_loss"] * (1 - weight),
        }

    def backward(self) -> None:
        """Back-propagate, then keep the values without their graphs; PML prints one of them."""
        super().backward()
        self.losses.update({name: _detached(value) for name, value in self.losses.items()})


def _detached(value: Tensor | float) -> Tensor:
    """A loss without its graph; PML's zero loss is a number."""
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def hardness_aware_trainer(
    variant: str,
    trunk: nn.Module,
    embedder: nn.Module,
    dataset: Any,
    num_classes: int,
    *,
    batch_size: int | None = None,
    learning_rate: float = 7e-5,
    trunk_learning_rate: float | None = None,
    generator_learning_rate: float = 1e-2,
    classifier_learning_rate: float = 1e-3,
    weight_decay: float = 5e-3,
    milestones: Sequence[int] = (5632, 6848),
    hidden_size: int = 512,
    seed: int | None = None,
    **kwargs: Any,
) -> HardnessAwareTrainer:
    r"""Assemble a `HardnessAwareTrainer` with the paper's parts: generator, classifier, loss, miner and optimizers.

    - "triplet": J = sum [|a - p|^2 - |a - n|^2 + 1]+ over one random triplet per image, alpha 7.
    - "n_pair": J = `NPairTupleLoss` over the N-pairs of the batch, alpha 90, with the anchors separate in J_soft.

    Neither normalizes the embeddings.

    Args:
        variant: "triplet" or "n_pair".
        trunk: f, from images to features [n, feature_size].
        embedder: g, from features to embeddings [n, d].
        dataset: the training set; two of its samples are passed through the networks to find their sizes.
        num_classes: number of training classes, with labels 0..num_classes-1, or any with `set_min_label_to_zero` and
            `dataset_labels`.
        batch_size: default 120 for triplets, 128 for N-pairs.
        learning_rate: of Adam, for trunk and embedder. Default 7e-5.
        trunk_learning_rate: of Adam, for the trunk; None is `learning_rate`. Default None.
        generator_learning_rate: of Adam. Default 1e-2.
        classifier_learning_rate: of Adam. Default 1e-3.
        weight_decay: of Adam, for trunk and embedder. Default 5e-3.
        milestones: steps at which the learning rate of trunk and embedder is halved. Default (5632, 6848), of 8000.
        hidden_size: of the generator. Default 512.
        seed: of the miner of the triplets (see `RandomTupleMiner`), so that a resumed training draws the same.
            Default: torch's global random state.
        kwargs: those of `HardnessAwareTrainer`, in particular `sampler`; entries of `models`, `optimizers`,
            `loss_funcs`, `mining_funcs` and `lr_schedulers` replace those made here.

    Returns:
        the trainer, on the device of the trunk, if it has one, and otherwise PML's default.

    Source:
        Zheng et al. 2019, arXiv 1903.05503, with the settings of its reference code for Cars196. That code puts weight
        decay into J_m; here it is Adam's, so that it neither enters J_avg nor is weighted by w.

    Raises:
        ValueError: an unknown variant; networks that do not return one vector per sample.

    Example:
        >>> from pml_ext.datasets import Digits
        >>> trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        >>> trainer = hardness_aware_trainer("n_pair", trunk, nn.Linear(32, 8), Digits(), 5, milestones=())
        >>> sorted(trainer.optimizers)
        ['classifier_optimizer', 'embedder_optimizer', 'generator_optimizer', 'trunk_optimizer']
    """
    checked_variant(variant)
    device = device_of(trunk, embedder)
    getter = kwargs.get("data_and_label_getter") or (lambda sample: sample)
    with torch.random.fork_rng(devices=[]):
        data, _ = getter((kwargs.get("collate_fn") or default_collate)([dataset[0], dataset[1]]))
    parts = assembled(
        variant,
        trunk,
        embedder,
        data.to(device=device, dtype=kwargs.get("dtype")),
        num_classes,
        learning_rate=learning_rate,
        trunk_learning_rate=trunk_learning_rate,
        generator_learning_rate=generator_learning_rate,
        classifier_learning_rate=classifier_learning_rate,
        weight_decay=weight_decay,
        hidden_size=hidden_size,
        seed=seed,
        models=kwargs.pop("models", {}),
        losses=kwargs.pop("loss_funcs", {}),
    )
    optimizers = parts.optimizers | kwargs.pop("optimizers", {})
    lr_schedulers = {
        f"{name}_scheduler_by_iteration": torch.optim.lr_scheduler.MultiStepLR(
            optimizers[f"{name}_optimizer"], list(milestones), gamma=0.5
        )
        for name in ("trunk", "embedder")
        if milestones and f"{name}_optimizer" in optimizers
    } | kwargs.pop("lr_schedulers", {})
    return HardnessAwareTrainer(
        parts.models,
        optimizers,
        parts.batch_size if batch_size is None else batch_size,
        parts.losses,
        dataset,
        mining_funcs={"tuple_miner": parts.miner} | kwargs.pop("mining_funcs", {}),
        lr_schedulers=lr_schedulers,
        **({"data_device": device} | dict(parts.args) | kwargs),
    )
