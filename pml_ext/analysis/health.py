"""Whether a run is learning, from the loss and the embeddings at hand, and the name of what is wrong if it is not."""

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.analysis.pair_weights import PairWeights, pair_weights
from pml_ext.base import IndicesTuple

# Mean squared distance of the normalised embeddings from their mean, in 0..1: below, all point the same way.
COLLAPSED_SPREAD = 0.01
# Length of an embedding, and its growth since the first measurement, above which float32 losses lose their gradient.
EXPLODING_NORM = 1e4
EXPLODING_GROWTH = 100.0
# A pair is active if its weight is above this share of the largest weight in the batch.
ACTIVE_SHARE = 1e-3


@dataclass(frozen=True)
class Health:
    """What one batch says about a run. Scores are those of the loss's distance, larger is closer.

    Args:
        positive_mean: mean score of the positive pairs.
        positive_std: their population standard deviation.
        negative_mean: mean score of the negative pairs.
        negative_std: their population standard deviation.
        active_pairs: share of the pairs with a weight, 0..1.
        effective_pairs: mean over the anchors of exp(entropy of the anchor's normalised pair weights): on how many
            pairs its gradient rests.
        pull: sum of the weights of the positives.
        push: sum of the weights of the negatives.
        norm_mean: mean length of an embedding, before any normalisation.
        norm_std: its population standard deviation.
        norm_max: the greatest length.
        spread: mean squared distance of the normalised embeddings from their mean, 0 (all alike) .. 1.
        effective_rank: exp(entropy of the normalised singular values) of the centred normalised embeddings
            (Roy and Vetterli 2007): how many dimensions are in use.
        failure: "" or one line that begins with the name of the failure.
    """

    positive_mean: float
    positive_std: float
    negative_mean: float
    negative_std: float
    active_pairs: float
    effective_pairs: float
    pull: float
    push: float
    norm_mean: float
    norm_std: float
    norm_max: float
    spread: float
    effective_rank: float
    failure: str = ""


def measure(
    loss: BaseMetricLossFunction,
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: IndicesTuple | None = None,
    *,
    first_norm: float | None = None,
) -> Health:
    """The health of one batch. The loss is copied: its state, and the random numbers of the run, stay as they are.

    Args:
        loss: any loss that `pair_weights` can analyse.
        embeddings: [n, d].
        labels: [n].
        indices_tuple: the pairs the loss was given, if a miner chose them.
        first_norm: the mean length of an embedding early in the run, to tell growing norms.
    """
    embeddings = embeddings.detach().float()
    devices = [embeddings.device] if embeddings.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        weights = pair_weights(copy.deepcopy(loss), embeddings, labels, indices_tuple)
    numbers = _scores(weights) | _budget(weights) | _geometry(embeddings)
    return Health(**numbers, failure=_failure(numbers, weights, first_norm))


def _scores(pairs: PairWeights) -> dict[str, float]:
    numbers = {}
    for name, mask in (("positive", pairs.pos), ("negative", pairs.neg)):
        scores = pairs.similarity[mask]
        numbers[f"{name}_mean"] = scores.mean().item() if len(scores) else 0.0
        numbers[f"{name}_std"] = scores.std(correction=0).item() if len(scores) else 0.0
    return numbers


def _budget(pairs: PairWeights) -> dict[str, float]:
    weights = torch.where(pairs.pos | pairs.neg, pairs.weights, 0.0)
    total = weights.sum(-1)
    shares = weights / total.clamp(min=torch.finfo(weights.dtype).tiny).unsqueeze(-1)
    effective = torch.special.entr(shares).sum(-1).exp()[total > 0]
    known = int((pairs.pos | pairs.neg).sum())
    active = int((weights > ACTIVE_SHARE * weights.max()).sum()) if weights.numel() else 0
    return {
        "active_pairs": active / known if known else 0.0,
        "effective_pairs": effective.mean().item() if len(effective) else 0.0,
        "pull": pairs.pull.sum().item(),
        "push": pairs.push.sum().item(),
    }


def _geometry(embeddings: Tensor) -> dict[str, float]:
    norms = embeddings.norm(dim=1)
    directions = nn.functional.normalize(embeddings)
    centred = directions - directions.mean(0)
    if centred.isfinite().all():
        values = torch.linalg.svdvals(centred)
        shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        rank = torch.special.entr(shares).sum().exp().item()
    else:
        rank = float("nan")
    return {
        "norm_mean": norms.mean().item(),
        "norm_std": norms.std(correction=0).item(),
        "norm_max": norms.max().item(),
        "spread": centred.square().sum(1).mean().item(),
        "effective_rank": rank,
    }


def _failure(numbers: dict[str, float], pairs: PairWeights, first_norm: float | None) -> str:
    norm, spread = numbers["norm_max"], numbers["spread"]
    if not (math.isfinite(norm) and pairs.loss.isfinite() and pairs.derivative.isfinite().all()):
        return f"not finite: the loss is {pairs.loss.item():g}, the longest embedding {norm:g}"
    growth = 1.0 if not first_norm else numbers["norm_mean"] / first_norm
    if norm > EXPLODING_NORM or growth > EXPLODING_GROWTH:
        return f"exploding norms: the longest embedding is {norm:.3g}, the mean has grown {growth:.3g} times"
    if spread < COLLAPSED_SPREAD:
        return f"collapsed: all embeddings point the same way (spread {spread:.2g} of 1)"
    if not pairs.pos.any():
        return "no positives in the batch: use a sampler with several samples of a class, MPerClassSampler"
    if not pairs.neg.any():
        return "no negatives in the batch: use a sampler with several classes, MPerClassSampler"
    if numbers["pull"] + numbers["push"] == 0:
        return "nothing to learn from: no pair has a weight, the loss is satisfied with every one of them"
    return ""


class EmbeddingHealth:
    """Measures the health of a run while PML's trainer trains, and records it.

    It notes what the loss is called with, and every `every` iterations measures the last batch.

    Args:
        loss: the loss that the trainer trains with.
        every: iterations between two measurements, at least 1.
        record_keeper: PML's record-keeper, or None. The numbers go to the group `embedding_health`, by iteration.

    Attributes:
        history: iteration -> `Health`.

    Raises:
        TypeError, ValueError: `every` is not an integer of at least 1.

    Example:
        ::

            health = EmbeddingHealth(loss, every=20, record_keeper=record_keeper)
            hooks = logging_presets.get_hook_container(record_keeper)
            trainer = MetricLossOnly(..., end_of_iteration_hook=health.after(hooks.end_of_iteration_hook))
            trainer.train()
            print(health.failure or "healthy")
    """

    def __init__(self, loss: BaseMetricLossFunction, *, every: int = 20, record_keeper: Any = None) -> None:
        self.every = arguments.count("every", every)
        self.record_keeper = record_keeper
        self.history: dict[int, Health] = {}
        self._loss = loss
        self._first_norm: float | None = None
        last: list[tuple[Any, ...]] = []

        # A plain function in a closure: a copy of the loss must not bring a copy of this object along.
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = ("embeddings", "labels", "indices_tuple")
            call = dict(zip(names, args, strict=False)) | kwargs
            last[:] = [tuple(call.get(name) for name in names)]

        self._last = last
        self._handle = loss.register_forward_pre_hook(note, with_kwargs=True)

    @property
    def latest(self) -> Health | None:
        """The last measurement."""
        return next(reversed(self.history.values()), None)

    @property
    def failure(self) -> str:
        """What was wrong at the last measurement, in one line; "" if nothing was."""
        return self.latest.failure if self.latest else ""

    def end_of_iteration_hook(self, trainer: Any) -> None:
        """For PML's trainers: measure, if it is time."""
        iteration = trainer.get_global_iteration()
        if iteration % self.every == 0 and self._last:
            self.step(iteration)

    def after(self, hook: Any) -> Any:
        """A hook that calls another one first, and then this one."""

        def both(trainer: Any) -> None:
            hook(trainer)
            self.end_of_iteration_hook(trainer)

        return both

    def step(self, iteration: int) -> Health:
        """Measure the last batch that the loss saw. For a training loop of one's own."""
        if not self._last:
            raise ValueError("the loss has not been called yet")
        embeddings, labels, indices_tuple = self._last[0]
        health = measure(self._loss, embeddings, labels, indices_tuple, first_norm=self._first_norm)
        # The copies that `measure` makes carry the note-taking hook, and what they were called with is no news.
        self._last[:] = [(embeddings, labels, indices_tuple)]
        self._first_norm = self._first_norm or health.norm_mean
        self.history[iteration] = health
        if self.record_keeper is not None:
            numbers = {name: value for name, value in asdict(health).items() if name != "failure"}
            self.record_keeper.update_records(numbers, iteration, parent_name="embedding_health")
        return health

    def close(self) -> None:
        """Stop noting what the loss is called with."""
        self._handle.remove()
        self._last.clear()
