"""What a training step is: of a loss, or of a method that trains more than an embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.processes import ALONE, Team
from pml_ext.trainers import Cached
from pml_ext.trainers.assembly import LOSSES, Assembled
from pml_ext.trainers.batch_norm import batch_norm_of_all
from pml_ext.wrappers import DistributedLoss

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
Parts = dict[str, dict[str, Any]]


class Learner(Protocol):
    """Something that learns from batches.

    Attributes:
        network: what is trained.
    """

    network: Any

    @property
    def loss(self) -> nn.Module | None:
        """The loss that is called with embeddings and labels, None if there is none."""

    def tested(self) -> Any:
        """The network that is to be tested: what is trained, or its average."""

    def begin(self, epoch: int) -> None:
        """Get ready for an epoch."""

    def step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Learn from a batch, the `step`-th of the run from 0 on; return the loss, detached."""

    def parts(self) -> Parts:
        """All that has a state, by kind and name: models, optimizers, losses, miners."""

    def values(self) -> dict[str, Any]:
        """The losses of the last step, by name."""


class LossLearner:
    """One loss and its miner: plain PyTorch. Several processes learn from a batch together, each given its share.

    Args:
        network: with `parts()`, trunk and embedder.
        loss: called with embeddings, labels and what the miner chose.
        miner: None for all pairs.
        experiment: optimizer, rates, schedule, clipping, precision, average.
        pretrained: whether the trunk is, so that it learns more slowly.
        total: steps of the whole run.
        device: where the network is.
        team: the processes.
    """

    def __init__(
        self,
        network: Any,
        loss: nn.Module,
        miner: Any,
        experiment: Experiment,
        *,
        pretrained: bool,
        total: int,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.network, self.miner, self.team = network, miner, team
        self.loss: nn.Module = loss
        self._steps, self._accumulate = total // experiment.epochs, experiment.accumulate
        self._sees_chunks = experiment.cached_chunk is not None
        model = network if experiment.cached_chunk is None else Cached(network, experiment.cached_chunk)
        self._model: nn.Module = model if team.size == 1 else DistributedDataParallel(model)
        self._of_all = None if team.size == 1 else DistributedLoss(loss, miner)
        self.device, self.clip = device, experiment.clip
        self.optimizers = optimizers(network, loss, experiment, pretrained=pretrained)
        self._rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        self._factor = schedule(experiment.schedule, experiment.warmup, total)
        self._dtype = AMP.get(experiment.amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=experiment.amp == "fp16")
        self.average: AveragedModel | None = None
        if experiment.ema:
            average = get_ema_multi_avg_fn(experiment.ema)
            self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self._value: Tensor | float = math.nan

    def tested(self) -> Any:
        """The network, or the average of its weights."""
        return self.network if self.average is None else self.average.module

    def begin(self, epoch: int) -> None:
        """Set everything to training."""
        self._model.train()
        self.loss.train()

    def step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Learn from a batch; the loss may come back infinite or not a number, and nothing was learned then."""
        place = step % self._steps
        before = place % self._accumulate
        together = min(self._accumulate, self._steps - place + before)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * self._factor(step)
            if before == 0:
                optimizer.zero_grad()
        is_last = before == together - 1
        with self._without_reduction(is_last):
            loss = self._loss(images, labels)
            self._value = loss.detach()
            if not torch.isfinite(self._value):
                return self._value
            self.scaler.scale(loss / together).backward()
        if not is_last:
            return self._value
        if self._within_range():
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return self._value

    def _without_reduction(self, is_last: bool) -> AbstractContextManager[Any]:
        """Only the last of the batches of a step adds up the gradients of the processes, of all of them."""
        if is_last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        left_out: AbstractContextManager[Any] = self._model.no_sync()
        return left_out

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the batch, of all processes."""
        group = None if self._sees_chunks else self.team.group
        precision = nullcontext() if self._dtype is None else torch.autocast(self.device.type, self._dtype)
        with precision, nullcontext() if group is None else batch_norm_of_all(self.network, group):
            embeddings = self._model(images)
        embeddings = embeddings.float() if self._dtype is not None else embeddings
        if self._of_all is not None:
            return torch.as_tensor(self._of_all(embeddings, labels))
        pairs = None if self.miner is None else self.miner(embeddings, labels)
        return torch.as_tensor(self.loss(embeddings, labels, pairs))

    def _within_range(self) -> bool:
        """Clip the gradients; False if the scale was too large for half precision, and no optimizer is to step.

        What has overflown in one part of the network would reach the others by the norm that all are divided by.
        """
        if self.clip is None and not self.scaler.is_enabled():
            return True
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), math.inf if self.clip is None else self.clip)
        return not self.scaler.is_enabled() or bool(norm.isfinite())

    def parts(self) -> Parts:
        """Trunk and embedder, optimizers, the loss, the miner, and scaler and average where there are any."""
        return {
            "models": self.network.parts(),
            "optimizers": self.optimizers,
            "losses": {"metric_loss": self.loss},
            "miners": {} if self.miner is None else {"tuple_miner": self.miner},
            "scaler": {"scaler": self.scaler} if self.scaler.is_enabled() else {},
            "average": {} if self.average is None else {"average": self.average},
        }

    def values(self) -> dict[str, Any]:
        """The loss of the last step."""
        return {"metric_loss": self._value, "total_loss": self._value}


class MethodLearner:
    """A method that trains more than the network, with optimizers of its own.

    Args:
        assembled: its parts, of which trunk and embedder are those of the network.
        network: the network.
        team: the processes, each given its share of a batch.
    """

    def __init__(self, assembled: Assembled, network: Any, *, team: Team = ALONE) -> None:
        self.assembled, self.network, self.group = assembled, network, team.group
        self.loss: nn.Module | None = None
        self.terms = assembled.loss()
        self._values: dict[str, Any] = {}
        if self.group is not None:
            self.terms.distributed = self.group
            for part in (*assembled.models.values(), *assembled.losses.values()):
                for parameter in part.parameters():
                    parameter.register_post_accumulate_grad_hook(self._average)

    def tested(self) -> Any:
        """The network."""
        return self.network

    def begin(self, epoch: int) -> None:
        """Set everything to training."""
        for part in self.assembled.models.values():
            part.train()
        self.terms.train()

    def step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Learn from a batch; each loss has a gradient for its own parts only."""
        for part in self.assembled.models.values():
            part.zero_grad()
        for optimizer in self.assembled.optimizers.values():
            optimizer.zero_grad()
        trunk, group = self.assembled.models["trunk"], self.group
        # What comes after the trunk has the batch of all on every process.
        with nullcontext() if group is None else batch_norm_of_all(trunk, group):
            features = trunk(images)
        terms = self.terms(features, self.assembled.models["embedder"](features), labels)
        real = terms.mixing_weight
        weighted = (real * terms.j_m, (1 - real) * terms.j_syn, terms.j_recon, terms.j_soft, terms.j_ce)
        total = torch.as_tensor(sum(weighted))
        total.backward()
        for optimizer in self.assembled.optimizers.values():
            optimizer.step()
        values = dict(zip(LOSSES, weighted, strict=True)) | {"total_loss": total}
        self._values = {name: value.detach() for name, value in values.items()}
        return total.detach()

    def _average(self, parameter: Tensor) -> None:
        assert self.group is not None
        assert parameter.grad is not None
        parameter.grad.copy_(self.group.all_reduce(parameter.grad) / self.group.size)

    def parts(self) -> Parts:
        """Networks, optimizers, the metric loss, the running averages, and the miner of the tuples."""
        return {
            "models": dict(self.assembled.models),
            "optimizers": dict(self.assembled.optimizers),
            "losses": {"hardness": self.terms.schedule, **self.assembled.losses},
            "miners": {"tuple_miner": self.assembled.miner},
        }

    def values(self) -> dict[str, Any]:
        """The losses of the last step, by name, as they are weighted."""
        return self._values


def optimizers(
    network: Any, loss: nn.Module, experiment: Experiment, *, pretrained: bool
) -> dict[str, torch.optim.Optimizer]:
    """An optimizer each for trunk, embedder and a loss with weights, by PML's names; none for what has no weights."""
    parts: dict[str, nn.Module] = {**network.parts(), "metric_loss": loss}
    rates = {
        "trunk": trunk_rate(experiment, pretrained=pretrained),
        "embedder": experiment.learning_rate,
        "metric_loss": experiment.loss_learning_rate,
    }
    found = {}
    for name, part in parts.items():
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        if weights and rates[name]:
            decay = 0.0 if name == "metric_loss" else experiment.weight_decay
            found[f"{name}_optimizer"] = _optimizer(experiment, weights, rates[name], decay)
    return found


def trunk_rate(experiment: Experiment, *, pretrained: bool) -> float:
    """The learning rate of the trunk: a tenth of the head's if it is pretrained, unless it is given."""
    if experiment.trunk_learning_rate is not None:
        return experiment.trunk_learning_rate
    return experiment.learning_rate * (0.1 if pretrained else 1)


def schedule(name: str, warmup: int, total: int) -> Callable[[int], float]:
    """The factor of the learning rates at each step, from 0 on.

    >>> [round(schedule("cosine", 2, 6)(step), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        if name == "steps":
            return 0.1 ** sum(step >= share * total for share in (0.6, 0.85))
        return 1.0

    return factor


def stateful(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """The kind, the name and the part itself of all parts."""
    for kind, each in parts.items():
        for name, part in each.items():
            yield kind, name, part


def _optimizer(experiment: Experiment, weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    if experiment.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=experiment.momentum)
    if experiment.optimizer == "rmsprop":
        return torch.optim.RMSprop(weights, lr=rate, weight_decay=decay, momentum=experiment.momentum)
    kind = torch.optim.AdamW if experiment.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, lr=rate, weight_decay=decay)
