"""One run: one loss, one seed, from the first step to the test of the best and of the last epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pml_ext.analysis import EmbeddingHealth
from pml_ext.benchmark import checkpoint, evaluate, models, randomness, records, trunks
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.data import Data, VectorPart
from pml_ext.benchmark.device import torch_device
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.evaluate import CHOSEN_BY, Metrics
from pml_ext.benchmark.events import EpochEnded, Event
from pml_ext.benchmark.learning import Learner, LossLearner, MethodLearner, stateful, trunk_rate
from pml_ext.benchmark.losses import LossSpec
from pml_ext.benchmark.models import Network
from pml_ext.benchmark.processes import ALONE, Team
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.result import BASELINES
from pml_ext.benchmark.sampled import RefreshedBatches, batches_of
from pml_ext.evaluation import Evaluation
from pml_ext.stock import NotAcceleratedError, accelerate
from pml_ext.trainers.methods import methods

# Steps between two looks at the health of a run, which take about a hundredth of the training time; there are at least
# ten looks in a run.
HEALTH_EVERY, HEALTH_LOOKS = 20, 10


class Diverged(Exception):  # noqa: N818 - an outcome of a run, not a mistake of the caller
    """The loss of a run is no longer a finite number."""


@dataclass
class Tested:
    """What a finished run has measured.

    Args:
        history: of each epoch.
        metrics: on the test classes, of the best epoch.
        last: the same, of the last one.
        best_epoch: the number of the best epoch, from 1 on.
        validation: on the validation classes, of the best epoch; {} without them.
        test: the same as `metrics`, with the value of each query.
        embeddings: of the test classes, normalized, of the best epoch.
        network: of the best epoch.
    """

    history: list[Metrics]
    metrics: Metrics
    last: Metrics
    best_epoch: int
    validation: Metrics
    test: Evaluation = field(repr=False)
    embeddings: Tensor = field(repr=False)
    network: Any = field(repr=False)


def new_network(experiment: Experiment, data: Data, seed: int) -> Network:
    """The untrained network of a seed, the same for every loss."""
    example = torch.stack([data.train[i % len(data.train)][0] for i in range(2)])
    randomness.seed_everything(seed)
    if isinstance(data.train, VectorPart):
        network = Network(nn.Identity(), nn.Linear(example.shape[1], experiment.embedding_size))
    else:
        network = models.build(
            # The runs must not train one another's.
            copy.deepcopy(experiment.trunk),
            example,
            experiment.embedding_size,
            weights=str(experiment.weights or trunks.PRETRAINED),
            freeze_batch_norm=experiment.freeze_batch_norm,
            preprocessing=data.preprocessing,
        )
    if data.head is not None:
        network.embedder.load_state_dict(data.head)
    if experiment.trunk_learning_rate == 0:
        network.trunk.requires_grad_(False)
    return network.to(torch_device(experiment.device))


class Run:
    """A loss in training, from scratch or from the checkpoint in its folder.

    Args:
        experiment: the arguments.
        data: the data.
        spec: the loss.
        seed: the seed.
        folder: where the checkpoint and the logs are.
        progress: the bars.
        fold: which of the folds the data are of.
        pace: called with the seconds of every step.
        tell: called with the events of the run.
        team: the processes that train together; the first one writes.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: Data,
        spec: LossSpec,
        seed: int,
        folder: Path,
        progress: Progress,
        *,
        fold: int | None = None,
        pace: Callable[[float], None] = lambda seconds: None,
        tell: Callable[[Event], None] = lambda event: None,
        team: Team = ALONE,
    ) -> None:
        own: dict[str, Any] = dict(spec.rates)
        experiment = replace(experiment, **own) if own else experiment
        self.experiment, self.data, self.folder, self.progress = experiment, data, folder, progress
        self.tell, self.team = tell, team
        self.name, self.seed, self.fold = spec.name, seed, fold
        self.device = torch_device(experiment.device)
        self.steps = data.steps(experiment)
        self.pace = pace
        self.history: list[Metrics] = []
        self.best: dict[str, Any] | None = None
        self.learner = _learner(experiment, data, spec, new_network(experiment, data, seed), team)
        self.batches = batches_of(experiment, data, self.steps, seed)
        # What draws while images are loaded draws the same for every loss, whatever the loss itself draws.
        self.loading = randomness.Stream(seed)
        self.health = self._health()
        # Again, since building a loss may have drawn numbers.
        randomness.seed_everything(seed)

    @property
    def failure(self) -> str:
        """What was wrong with the embeddings at the last health check; "" if nothing was."""
        return "" if self.health is None else self.health.failure

    @property
    def identity(self) -> dict[str, Any]:
        """Which run a checkpoint is of."""
        return identity(self.name, self.seed, self.fold)

    def train(self) -> Tested:
        """Train from the current epoch to the last one, then test.

        Raises:
            Diverged: the loss became infinite or not a number.
            NotFinite: the embeddings did.
        """
        self.fit()
        return self._test()

    def fit(self) -> None:
        """Train from the current epoch to the last one; the test classes are not used.

        Raises:
            Diverged: the loss became infinite or not a number.
            NotFinite: the embeddings did.
        """
        saved = checkpoint.load(self.folder, self.device, self.identity)
        if self.team.is_first:
            records.rewind(self.folder, None if saved is None else saved["records"])
        with records.keeping(self.folder, writes=self.team.is_first) as keeper:
            if self.health is not None:
                self.health.record_keeper = keeper
            if saved is not None:
                self._restore(saved)
            for epoch in range(len(self.history) + 1, self.experiment.epochs + 1):
                self._epoch(epoch, keeper)

    def _epoch(self, epoch: int, keeper: Any) -> None:
        self.progress.who = f"{self.name} seed {self.seed} epoch {epoch}/{self.experiment.epochs}"
        started = time.perf_counter()
        if not self.team.is_first:
            # A checkpoint has the random state of the first process, whatever their number.
            randomness.seed_everything(self.team.seed(self.seed, epoch))
        self._refresh(epoch)
        self.learner.begin(epoch)
        total = torch.zeros((), device=self.device)
        then = time.perf_counter()
        bar = self.progress.steps(self._loaded(self.batches.epoch()), self.steps)
        for i, (images, labels) in enumerate(bar):
            step = (epoch - 1) * self.steps + i
            loss = self.learner.step(images, labels, step)
            if not torch.isfinite(loss):
                raise Diverged(f"the loss is {float(loss)} at epoch {epoch}, step {i + 1}")
            total += loss
            if i % records.EVERY == 0:
                records.record_step(keeper, step, self.learner.values(), self.learner.parts())
                bar.set_postfix_str(f"loss={float(loss):.5f}", refresh=False)
            if self.health is not None:
                self.health.step(step)
            before, then = then, time.perf_counter()
            self.pace(then - before)
        mean_loss = float(total) / self.steps  # waits for the device
        seconds = time.perf_counter() - started
        split, dataset = self.data.watched
        metrics = dict(self._measured(self._embed(dataset), dataset, clusters=False))
        records.record_metrics(keeper, epoch, split, metrics)
        self.history.append({"epoch": epoch, **metrics, "loss": mean_loss, "seconds": seconds})
        if self.data.validation is None and not self.experiment.ema:
            self.best = {"epoch": epoch, "models": {}}  # those of the last epoch, which are there anyway
        elif self.data.validation is None or self._is_best():
            self.best = {"epoch": epoch, "models": _states(self.learner.tested().parts())}
        self._save(keeper)
        self.progress.epoch_done(f"{self.name} recall@1 {metrics['recall_at_1']:.1%}")
        self.tell(EpochEnded(self.name, self.seed, self.fold, epoch, self.experiment.epochs, dict(self.history[-1])))

    def _refresh(self, epoch: int) -> None:
        """Let the sampler look at the embeddings, if it does and it is time."""
        every = self.experiment.refresh
        is_blind = epoch == 1 and not self.data.pretrained
        if isinstance(self.batches, RefreshedBatches) and every and (epoch - 1) % every == 0 and not is_blind:
            plain = self.data.train if self.data.plain is None else self.data.plain
            self.batches.refresh(self._embed(plain))

    def _loaded(self, chosen: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, of several processes the own share of each, on the device."""
        train = self.data.train
        if isinstance(train, VectorPart):
            for indices in chosen:
                vectors, labels = train.batch(indices[self.team.share(len(indices))])
                yield vectors.to(self.device), labels.to(self.device)
            return
        with self.loading.used():
            drawn = randomness.with_seeds(chosen)
        own = [batch[self.team.share(len(batch))] for batch in drawn]
        loader = DataLoader(randomness.Drawn(train), batch_sampler=own, num_workers=self.experiment.workers)
        # Where the samples' seeds leave it depends on how many of them are loaded here.
        seeded = randomness.Stream(self.seed)
        with seeded.used():
            batches = iter(loader)
        while True:
            with seeded.used():
                batch = next(batches, None)
            if batch is None:
                return
            images, labels = batch
            yield images.to(self.device), labels.to(self.device)

    def _is_best(self) -> bool:
        scores = [epoch[CHOSEN_BY] for epoch in self.history]
        *before, now = [-math.inf if math.isnan(score) else score for score in scores]
        return self.best is None or now > max(before, default=-math.inf)

    def _embed(self, dataset: Any) -> Tensor:
        return evaluate.embed(
            self.learner.tested(),
            dataset,
            device=self.device,
            workers=self.experiment.workers,
            amp=self.experiment.amp,
            progress=self.progress,
            team=self.team,
        )

    def _measured(self, embeddings: Tensor, dataset: Any, *, clusters: bool) -> Evaluation:
        return evaluate.measure(
            embeddings,
            dataset,
            recall_at=self.experiment.recall_at,
            device=self.device,
            clusters=clusters,
            team=self.team,
        )

    def _test(self) -> Tested:
        """Test the last epoch and the best one; the network is the best one after that."""
        assert self.best is not None
        test = self.data.test
        last = embeddings = self._embed(test)
        best_epoch = self.best["epoch"]
        if best_epoch < len(self.history):
            for name, part in self.learner.tested().parts().items():
                part.load_state_dict(self.best["models"][name])
            embeddings = self._embed(test)
        measured = self._measured(embeddings, test, clusters=True)
        of_last = measured if best_epoch == len(self.history) else self._measured(last, test, clusters=True)
        chosen = {name: value for name, value in self.history[best_epoch - 1].items() if name in measured}
        return Tested(
            history=self.history,
            metrics=dict(measured),
            last=dict(of_last),
            best_epoch=best_epoch,
            validation={} if self.data.validation is None else chosen,
            test=measured,
            embeddings=embeddings,
            network=self.learner.tested(),
        )

    def _health(self) -> EmbeddingHealth | None:
        # Of several processes each has a part of the batch.
        if self.learner.loss is None or self.team.size > 1:
            return None
        total = self.steps * self.experiment.epochs
        every = max(1, min(HEALTH_EVERY, total // HEALTH_LOOKS))
        return EmbeddingHealth(self.learner.loss, every=every, last=total - 1)

    def _save(self, keeper: Any) -> None:
        if not self.team.is_first:
            return
        states: dict[str, dict[str, Any]] = {}
        for kind, name, part in stateful(self.learner.parts()):
            states.setdefault(kind, {})[name] = part.state_dict()
        rest = {
            "identity": self.identity,
            "history": self.history,
            "best": self.best,
            "random": randomness.state(),
            "batches": self.batches.state_dict(),
            "loading": self.loading.state_dict(),
            "records": records.lengths(self.folder, keeper),
            "health": None if self.health is None else self.health.state_dict(),
        }
        checkpoint.save(self.folder, {"parts": states, **rest})

    def _restore(self, saved: dict[str, Any]) -> None:
        try:
            for kind, name, part in stateful(self.learner.parts()):
                part.load_state_dict(saved["parts"][kind][name])
            self.history, self.best = saved["history"], saved["best"]
            self.batches.load_state_dict(saved["batches"])
            self.loading.load_state_dict(saved["loading"])
            if self.health is not None and saved["health"]:
                self.health.load_state_dict(saved["health"])
            randomness.restore(saved["random"])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise checkpoint.DamagedError(
                f"{self.folder / checkpoint.NAME} does not fit this run; delete it to train it again"
            ) from error


def network_of(
    experiment: Experiment, data: Data, folder: Path, name: str, seed: int, fold: int | None = None
) -> Network:
    """The best network of a finished run, or an untrained one.

    Raises:
        DamagedError: the checkpoint of the run is gone, or not that of the run.
    """
    network = new_network(experiment, data, seed)
    if name not in BASELINES:
        saved = checkpoint.load(folder, torch_device(experiment.device), identity(name, seed, fold))
        if saved is None:
            raise checkpoint.DamagedError(f"{folder / checkpoint.NAME} is gone")
        weights = saved["best"]["models"] or saved["parts"]["models"]
        for part, module in network.parts().items():
            module.load_state_dict(weights[part])
    return network


def embeddings_of(
    experiment: Experiment, data: Data, folder: Path, name: str, seed: int, fold: int | None = None
) -> Tensor:
    """Normalized embeddings of the test images, [n, d], by `network_of`."""
    network = network_of(experiment, data, folder, name, seed, fold)
    device = torch_device(experiment.device)
    return evaluate.embed(network, data.test, device=device, workers=experiment.workers, amp=experiment.amp)


def identity(name: str, seed: int, fold: int | None) -> dict[str, Any]:
    """Which run a checkpoint is of."""
    return {"loss": name, "seed": seed, "fold": fold}


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    """A copy of the weights of some modules."""
    return {
        name: {key: value.detach().clone() for key, value in part.state_dict().items()} for name, part in parts.items()
    }


def _learner(experiment: Experiment, data: Data, spec: LossSpec, network: Network, team: Team) -> Learner:
    """What learns by a loss, or by a method."""
    device = torch_device(experiment.device)
    if spec.method is not None:
        parts = network.parts()
        with torch.random.fork_rng(devices=[]):
            example = torch.stack([data.train[i][0] for i in range(2)])
        assembled = methods[spec.method].assembled(
            parts["trunk"],
            parts["embedder"],
            example.to(device),
            data.train_classes,
            learning_rate=experiment.learning_rate,
            trunk_learning_rate=trunk_rate(experiment, pretrained=data.pretrained),
            weight_decay=experiment.weight_decay,
        )
        return MethodLearner(assembled, network, team=team)
    recipe = spec.build(classes=data.train_classes, embedding_size=experiment.embedding_size)
    # An object is the same one for every seed: it must be as new for each.
    loss, miner = copy.deepcopy((recipe.loss, recipe.miner)) if spec.in_memory else (recipe.loss, recipe.miner)
    if experiment.accelerate:
        try:
            loss, miner = accelerate(loss, miner)
        except NotAcceleratedError as error:
            raise BenchmarkError(f"accelerate cannot be True here: {error}") from None
    return LossLearner(
        network,
        loss.to(device),
        None if miner is None else miner.to(device),
        experiment,
        pretrained=data.pretrained,
        total=data.steps(experiment) * experiment.epochs,
        device=device,
        team=team,
    )
