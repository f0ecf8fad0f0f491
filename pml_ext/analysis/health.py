"""Whether a run is learning, from the loss and the embeddings at hand, and the name of what is wrong if it is not."""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.analysis.pair_weights import NoPairWeightsError, PairWeights, pair_weights
from pml_ext.pairs import label_masks, not_self
from pml_ext.relations import IndicesTuple

# Mean squared distance of the normalised embeddings from their mean, in 0..1: below, all point the same way. Runs that
# collapse fall to 1e-4 and less in a few dozen steps; the least that a healthy one had was 3e-3, of a margin of 0.02.
COLLAPSED_SPREAD = 1e-3
# Of the mean length at the first measurement. Where the distance does not normalise, shorter is collapsed too.
COLLAPSED_LENGTH = 1e-3
# Longer than this, and than this times the mean length at the first measurement: float32 loses the differences.
EXPLODING = 100.0
# A pair is active if its weight is above this share of the largest weight in the batch.
ACTIVE_SHARE = 1e-3
# Of the weights at the first measurement, together: below, nothing is left to learn.
NOTHING_LEFT = 1e-6

NAN = float("nan")


@dataclass(frozen=True)
class Health:
    """What one batch says about a run. A number that the loss does not have is NaN.

    Scores are those of the loss's distance, larger is closer; those of a loss that compares other things than the
    samples, proxies say, are the scores of the samples with one another.

    Args:
        positive_mean: mean score of the positive pairs.
        positive_std: their population standard deviation.
        negative_mean: mean score of the negative pairs.
        negative_std: their population standard deviation.
        active_pairs: share of the pairs with a weight, 0..1.
        effective_pairs: mean over the anchors with a weight of exp(entropy of the anchor's normalised pair weights): on
            how many pairs its gradient rests.
        pull: sum of the weights of the positives.
        push: sum of the weights of the negatives.
        norm_mean: mean length of an embedding, before any normalisation.
        norm_std: its population standard deviation.
        norm_max: the greatest length.
        spread: mean squared distance of the normalised embeddings from their mean, 0 (all alike) .. 1.
        effective_rank: exp(entropy of the normalised singular values) of the centred normalised embeddings
            (Roy and Vetterli 2007): how many dimensions are in use.
        failure: "" or one line that begins with the name of the failure: "not finite", "no negatives",
            "collapsed", "exploding norms", "no positives" or "nothing to learn from".
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
    loss: nn.Module,
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: IndicesTuple | None = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    first: Health | None = None,
) -> Health:
    """The health of one batch. The state of the loss and the random numbers of the run stay as they are.

    Args:
        loss: a PML loss. One without pair weights has scores and lengths only.
        embeddings: [n, d].
        labels: [n].
        indices_tuple: as in every PML loss: what a miner chose for this batch.
        ref_emb: [m, d].
        ref_labels: [m].
        first: a measurement from the beginning of the run, to tell what has grown and what has vanished.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> labels = torch.arange(8) // 2
        >>> measure(RAWLoss(), torch.ones(8, 4), labels).failure
        'collapsed: all embeddings point the same way (spread 0 of 1)'
        >>> measure(RAWLoss(), torch.eye(8), labels).failure
        ''
    """
    embeddings = embeddings.detach()
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    pairs, geometry = None, _geometry(embeddings)
    if math.isfinite(geometry["norm_max"]):
        try:
            pairs = pair_weights(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels)
        except NoPairWeightsError:
            pairs = None
    samples = _samples(loss, embeddings, labels) if pairs is None or not pairs.given else None
    numbers: dict[str, Any] = _scores(samples or pairs) | _budget(pairs) | geometry
    health = Health(**numbers)
    distance = getattr(loss, "distance", None)
    normalises = bool(getattr(distance, "normalize_embeddings", True))
    return replace(health, failure=_failure(health, pairs, labels, len(embeddings), normalises, first))


def _samples(loss: nn.Module, embeddings: Tensor, labels: Tensor | None) -> PairWeights | None:
    """The scores of the samples with one another, without weights."""
    distance = copy.deepcopy(getattr(loss, "distance", None))  # it may keep statistics
    if distance is None or labels is None or not embeddings.isfinite().all():
        return None
    with torch.no_grad():
        sim = distance(embeddings) * (1 if distance.is_inverted else -1)
    pos, neg = label_masks(labels, labels)
    pos = pos & not_self(0, len(labels), len(labels), labels.device)
    none = torch.zeros_like(sim)
    return PairWeights(none.sum(), sim, none, pos, neg, given=True, beyond=torch.zeros_like(embeddings))


def _scores(pairs: PairWeights | None) -> dict[str, float]:
    numbers = {}
    for name in ("positive", "negative"):
        scores = torch.empty(0) if pairs is None else pairs.similarity[pairs.pos if name == "positive" else pairs.neg]
        numbers[f"{name}_mean"] = scores.mean().item() if len(scores) else NAN
        numbers[f"{name}_std"] = scores.std(correction=0).item() if len(scores) else NAN
    return numbers


def _budget(pairs: PairWeights | None) -> dict[str, float]:
    if pairs is None:
        return dict.fromkeys(("active_pairs", "effective_pairs", "pull", "push"), NAN)
    weights = torch.where(pairs.pos | pairs.neg, pairs.weights, 0.0)
    total = weights.sum(-1)
    shares = weights / total.clamp(min=torch.finfo(weights.dtype).tiny).unsqueeze(-1)
    effective = torch.special.entr(shares).sum(-1).exp()[total > 0]
    known = int((pairs.pos | pairs.neg).sum()) if pairs.given else weights.numel()
    active = int((weights > ACTIVE_SHARE * weights.max()).sum()) if weights.numel() else 0
    return {
        "active_pairs": active / known if known else 0.0,
        "effective_pairs": effective.mean().item() if len(effective) else 0.0,
        "pull": pairs.pull.sum().item(),
        "push": pairs.push.sum().item(),
    }


def _geometry(embeddings: Tensor) -> dict[str, float]:
    if len(embeddings) == 0:
        return dict.fromkeys(("norm_mean", "norm_std", "norm_max", "spread", "effective_rank"), 0.0)
    norms = embeddings.norm(dim=1)
    directions = nn.functional.normalize(embeddings)
    centred = directions - directions.mean(0)
    rank = NAN
    if centred.isfinite().all():
        values = torch.linalg.svdvals(centred)
        shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        rank = torch.special.entr(shares).sum().exp().item()
    return {
        "norm_mean": norms.mean().item(),
        "norm_std": norms.std(correction=0).item(),
        "norm_max": norms.max().item(),
        "spread": centred.square().sum(1).mean().item(),
        "effective_rank": rank,
    }


def _failure(
    health: Health,
    pairs: PairWeights | None,
    labels: Tensor | None,
    size: int,
    normalises: bool,
    first: Health | None,
) -> str:
    finite = pairs is None or bool(pairs.loss.isfinite() and pairs.derivative.isfinite().all())
    if not (math.isfinite(health.norm_max) and finite):
        of_loss = "" if pairs is None else f"the loss is {pairs.loss.item():g}, "
        return f"not finite: {of_loss}the longest embedding {health.norm_max:g}"
    length = first.norm_mean if first else health.norm_mean
    positives, negatives = _has_pairs(labels, pairs)
    if not negatives:
        return "no negatives in the batch: use a sampler with several classes in it, PML's MPerClassSampler"
    if size > 1 and health.spread < COLLAPSED_SPREAD:
        return f"collapsed: all embeddings point the same way (spread {health.spread:.2g} of 1)"
    if not normalises and health.norm_mean < COLLAPSED_LENGTH * length:
        return (
            f"collapsed: all embeddings have shrunk to zero (mean length {health.norm_mean:.2g}, it was {length:.2g})"
        )
    if health.norm_mean > EXPLODING * max(1.0, length):
        return f"exploding norms: the mean length of an embedding is {health.norm_mean:.3g}, it was {length:.3g}"
    if not positives:
        return "no positives in the batch: use a sampler with several samples of a class, PML's MPerClassSampler"
    if pairs is not None and pairs.given and not (pairs.pos.any() or pairs.neg.any()):
        return "nothing to learn from: the miner left no pair"
    budget, before = health.pull + health.push, (first.pull + first.push if first else 0.0)
    if budget == 0 or budget < NOTHING_LEFT * before:
        return "nothing to learn from: no pair has a weight, the loss is satisfied with the batch"
    return ""


def _has_pairs(labels: Tensor | None, pairs: PairWeights | None) -> tuple[bool, bool]:
    """Whether there are positives and negatives, in the batch or among what it is compared with."""
    if labels is None and (pairs is None or not pairs.given):
        return True, True
    pos = neg = False
    if labels is not None:
        classes = labels.unique()
        pos, neg = len(classes) < len(labels), len(classes) > 1
    if pairs is not None and pairs.given:
        pos, neg = pos or bool(pairs.pos.any()), neg or bool(pairs.neg.any())
    # A loss of other things, proxies say, finds its positives and negatives there.
    return (True, True) if pairs is not None and not pairs.given else (pos, neg)


class EmbeddingHealth:
    """Measures the health of a run while it trains, and records it. The run is the same with and without it.

    Every `every` iterations it measures the batch that the loss is called with, just before the loss sees it.

    Args:
        loss: the loss that is trained with, called once in an iteration.
        every: iterations between two measurements, at least 1. One costs about as much as the loss itself, forward and
            backward, and a singular value decomposition of the batch.
        last: the number of the last iteration of the run, from 0 on, which is measured too. Default None: unknown.
        record_keeper: PML's record-keeper, or None. The numbers go to the group `embedding_health`, by iteration.

    Attributes:
        history: iteration -> `Health`.

    Raises:
        TypeError, ValueError: a loss that is not a module, `every` not an integer of at least 1.

    Example:
        ::

            health = EmbeddingHealth(loss, every=20, record_keeper=record_keeper)
            hooks = logging_presets.get_hook_container(record_keeper)
            trainer = MetricLossOnly(..., end_of_iteration_hook=health.after(hooks.end_of_iteration_hook))
            trainer.train()
            print(health.failure or "healthy")
    """

    def __init__(self, loss: nn.Module, *, every: int = 20, last: int | None = None, record_keeper: Any = None) -> None:
        if not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a PML loss, got {type(loss).__name__}")
        arguments.count("every", every)
        self.every, self.last = every, last
        self.record_keeper = record_keeper
        self.history: dict[int, Health] = {}
        self._due = True
        self._measured: Health | None = None
        self._handle = loss.register_forward_pre_hook(_Watch(self), with_kwargs=True)
        # Record-keeper records every number in every dictionary of a loss, and fails on one that is named by a number;
        # that the name is there is all that torch asks.
        loss._forward_pre_hooks_with_kwargs[self._handle.id] = None  # type: ignore[assignment]

    @property
    def latest(self) -> Health | None:
        """The last measurement."""
        return next(reversed(self.history.values()), None)

    @property
    def failure(self) -> str:
        """What was wrong at the last measurement, in one line; "" if nothing was."""
        return self.latest.failure if self.latest else ""

    def end_of_iteration_hook(self, trainer: Any) -> None:
        """For PML's trainers."""
        self.step(trainer.get_global_iteration())

    def after(self, hook: Callable[[Any], Any]) -> Callable[[Any], None]:
        """A hook for PML's trainers that calls another one first, and then this one."""

        def both(trainer: Any) -> None:
            hook(trainer)
            self.end_of_iteration_hook(trainer)

        return both

    def step(self, iteration: int) -> Health | None:
        """Say that an iteration has ended: for a training loop of one's own, after the loss was called.

        Returns:
            what was measured in it; None if it was not due, or the loss was not called.
        """
        health, self._measured = self._measured, None
        self._due = self._wanted(iteration + 1)
        # The first call is measured whatever its number is, which nobody knows before.
        if health is None or not self._wanted(iteration):
            return None
        self.history[iteration] = health
        if self.record_keeper is not None:
            numbers = {name: value for name, value in asdict(health).items() if name != "failure"}
            self.record_keeper.update_records(numbers, iteration, parent_name="embedding_health")
        return health

    def _wanted(self, iteration: int) -> bool:
        return iteration % self.every == 0 or iteration == self.last

    def before_call(self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure what the loss is about to be called with, if it is time."""
        if not (self._due and torch.is_grad_enabled()):
            return
        self._due = False
        names = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels")
        parameters = inspect.signature(loss.forward).parameters.values()
        own = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        call = dict(zip((*own, *names[len(own) :]), args, strict=False)) | kwargs
        first = next(iter(self.history.values()), None)
        self._measured = measure(loss, **{name: call[name] for name in names if name in call}, first=first)

    def state_dict(self) -> dict[str, Any]:
        """The history, for a checkpoint."""
        return {"history": {iteration: asdict(health) for iteration, health in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a saved history."""
        self.history = {int(iteration): Health(**numbers) for iteration, numbers in state["history"].items()}

    def close(self) -> None:
        """Stop watching the loss."""
        self._handle.remove()


class _Watch:
    """The hook on the loss. A copy of the loss, or a loss from a file, is not watched."""

    def __init__(self, health: EmbeddingHealth) -> None:
        self.health = health

    def __call__(self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.health.before_call(loss, args, kwargs)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nobody, ()


def _nobody() -> Callable[..., None]:
    return _not_watched


def _not_watched(loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Take the place of the hook in a copy."""
