"""One run: one loss, one seed, on PML's trainer, sampler, tester and hooks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.trainers import BaseTrainer, MetricLossOnly

from pml_ext.analysis import EmbeddingHealth
from pml_ext.benchmark import checkpoint, losses, randomness, records
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.experiment import Experiment
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.testing import Metrics, metrics_of, new_network, new_tester
from pml_ext.trainers.methods import methods

# Steps between two looks at the health of a run: they take about a hundredth of the training time.
HEALTH_EVERY = 20


class Diverged(Exception):  # noqa: N818 - an outcome of a run, not a mistake of the caller
    """The loss of a run is no longer a finite number."""


class Run:
    """A loss in training, from scratch or from the checkpoint in its folder.

    Args:
        experiment: the arguments.
        data: the dataset.
        name: the name of the loss.
        seed: the seed.
        folder: where the checkpoint and the logs are; without a checkpoint it must be empty.
        progress: the bars.
    """

    def __init__(
        self, experiment: Experiment, data: Data, name: str, seed: int, folder: Path, progress: Progress
    ) -> None:
        self.name, self.seed, self.folder, self.progress = name, seed, folder, progress
        self.epochs = experiment.epochs
        self.device = experiment.torch_device()
        self.data = data
        self.history: list[Metrics] = []
        self.tester = new_tester(experiment)

        steps, batch_size = data.steps(experiment), data.batch_size(experiment)
        # The sampler's list is one epoch long, so that nothing of it is left over at a checkpoint.
        self.sampler = MPerClassSampler(
            data.train.labels, data.images_per_class(experiment), batch_size, steps * batch_size
        )
        self.trainer = _trainer(
            experiment,
            data,
            name,
            new_network(experiment, data, seed).parts(),
            iterations_per_epoch=steps,
            data_device=self.device,
            sampler=self.sampler,
            dataloader_num_workers=0,
            set_min_label_to_zero=True,  # as proxies want it
            dataset_labels=data.train.labels.numpy(),
            end_of_iteration_hook=self._end_of_iteration,
            end_of_epoch_hook=self._end_of_epoch,
        )
        # The loss of a method of its own is not called with embeddings and labels.
        loss = None if name in methods else self.trainer.loss_funcs["metric_loss"]
        self.health = None if loss is None else EmbeddingHealth(loss, every=HEALTH_EVERY)
        # Again, since building a loss may have drawn numbers: every loss gets the same batches.
        randomness.seed_everything(seed)

    @property
    def failure(self) -> str:
        """What was wrong with the embeddings when they were last looked at; "" if nothing was."""
        return "" if self.health is None else self.health.failure

    def train(self) -> list[Metrics]:
        """Train from where the run stands to its last epoch; return what was measured after each epoch.

        Raises:
            Diverged: the loss became infinite or not a number.
        """
        saved = checkpoint.load(self.folder, self.device)
        if saved is not None:
            records.rewind(self.folder, saved["records"])
        with records.keeping(self.folder) as self.keeper:
            self.hooks = records.hooks(self.keeper)
            if self.health is not None:
                self.health.record_keeper = self.keeper
            self.tester.end_of_testing_hook = self.hooks.end_of_testing_hook
            self.test_and_record = self.hooks.end_of_epoch_hook(self.tester, {"test": self.data.test}, self.folder)
            if saved is not None:
                self._restore(saved)
            start = len(self.history) + 1
            with self.progress.bars_of_pml():
                self._start_of_epoch(start)
                self.trainer.train(start, self.epochs)
        return self.history

    def _start_of_epoch(self, epoch: int) -> None:
        self.progress.who = f"{self.name} seed {self.seed} epoch {epoch}/{self.epochs}"
        self.started = time.perf_counter()

    def _end_of_iteration(self, trainer: BaseTrainer) -> None:
        total = torch.as_tensor(trainer.losses["total_loss"]).detach()
        if not torch.isfinite(total):
            where = f"epoch {trainer.epoch}, step {trainer.iteration + 1}"
            raise Diverged(f"{self.name}, seed {self.seed}: the loss is {float(total)} at {where}")
        self.hooks.end_of_iteration_hook(trainer)
        if self.health is not None:
            self.health.end_of_iteration_hook(trainer)
        # PML formats it for its bar, and torch warns of formatting a tensor that requires a gradient.
        trainer.losses["total_loss"] = total

    def _end_of_epoch(self, trainer: BaseTrainer) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.started
        self.test_and_record(trainer)
        self.history.append({**metrics_of(self.tester), "seconds": seconds})
        self._save()
        self.progress.epoch_done(f"{self.name} recall@1 {self.history[-1]['recall_at_1']:.1%}")
        self._start_of_epoch(trainer.epoch + 1)

    def _parts(self) -> dict[str, dict[str, Any]]:
        return {
            "models": self.trainer.models,
            "optimizers": self.trainer.optimizers,
            "losses": self.trainer.loss_funcs,
            "miners": self.trainer.mining_funcs,
        }

    def _save(self) -> None:
        parts = {kind: {name: part.state_dict() for name, part in d.items()} for kind, d in self._parts().items()}
        rest = {
            "history": self.history,
            "random": randomness.state(),
            # MPerClassSampler shuffles its labels in place, epoch after epoch.
            "sampler": [int(label) for label in self.sampler.labels],
            "records": records.lengths(self.folder, self.keeper),
            "health": None if self.health is None else self.health.state_dict(),
        }
        checkpoint.save(self.folder, parts | rest)

    def _restore(self, saved: dict[str, Any]) -> None:
        for kind, parts in self._parts().items():
            for name, part in parts.items():
                part.load_state_dict(saved[kind][name])
        self.history = saved["history"]
        self.sampler.labels = saved["sampler"]
        if self.health is not None and saved.get("health"):  # a checkpoint of before there was one has none
            self.health.load_state_dict(saved["health"])
        randomness.restore(saved["random"])


def _trainer(
    experiment: Experiment, data: Data, name: str, models: dict[str, torch.nn.Module], **shared: Any
) -> BaseTrainer:
    """The trainer of a name: a method's own, or PML's for one loss."""
    batch_size, device = data.batch_size(experiment), experiment.torch_device()
    if name in methods:
        return methods[name].trainer(
            models["trunk"],
            models["embedder"],
            data.train,
            data.train_classes,
            batch_size=batch_size,
            learning_rate=experiment.learning_rate,
            weight_decay=0,
            milestones=(),
            **shared,
        )
    recipe = losses.build(name, classes=data.train_classes, embedding_size=experiment.embedding_size)
    loss = recipe.loss.to(device)
    optimizers = {
        f"{part}_optimizer": torch.optim.Adam(module.parameters(), lr=experiment.learning_rate)
        for part, module in models.items()
    }
    if any(True for _ in loss.parameters()):
        optimizers["metric_loss_optimizer"] = torch.optim.Adam(loss.parameters(), lr=experiment.loss_learning_rate)
    return MetricLossOnly(
        models,
        optimizers,
        batch_size,
        {"metric_loss": loss},
        data.train,
        mining_funcs={} if recipe.miner is None else {"tuple_miner": recipe.miner.to(device)},
        **shared,
    )
