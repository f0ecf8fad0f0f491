"""Whether a run is learning, from the loss and the embeddings at hand, and the name of what is wrong if it is not."""

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.analysis import stuck
from pml_ext.analysis.geometry import NAN, geometry, pairs_of_classes, possible_rank
from pml_ext.analysis.pair_weights import NoPairWeightsError, PairWeights, pair_weights
from pml_ext.masked import not_self
from pml_ext.pairs import IndicesTuple, label_masks
from pml_ext.shown import framed, picture, preformatted, table
from pml_ext.vectors import at_least_single

# Mean squared distance of the normalized embeddings from their mean, in 0..1: below, all point the same way. Runs that
# collapse fall to 1e-4 and less in a few dozen steps; the least that a healthy one had was 3e-3, of a margin of 0.02.
COLLAPSED_SPREAD = 1e-3
# Of the mean length at the first measurement. Where the distance does not normalize, shorter is collapsed too.
COLLAPSED_LENGTH = 1e-3
# Longer than this, and than this times the mean length at the first measurement: float32 loses the differences.
EXPLODING = 100.0
# A pair is active if its weight is above this share of the largest weight in the batch.
ACTIVE_SHARE = 1e-3
# Of the weights at the first measurement, together: below, nothing is left to learn.
NOTHING_LEFT = 1e-6


@dataclass(frozen=True, repr=False)
class Health:
    """Statistics of one batch of a run. A statistic that does not exist for the loss is NaN.

    Scores are those of the loss's distance, where larger is closer. For a loss that does not compare samples with each
    other, for example one with proxies, they are the scores of the samples with each other.

    Args:
        positive_mean: mean score of the positive pairs.
        positive_std: their population standard deviation.
        negative_mean: mean score of the negative pairs.
        negative_std: their population standard deviation.
        active_pairs: share of the pairs with a weight, in 0..1.
        effective_pairs: mean, over the anchors with a weight, of exp(entropy of the anchor's normalized pair weights):
            the effective number of pairs in the gradient of an anchor.
        pull: sum of the weights of the positives.
        push: sum of the weights of the negatives.
        norm_mean: mean length of an embedding, before any normalization.
        norm_std: its population standard deviation.
        norm_max: the largest length.
        spread: mean squared distance of the normalized embeddings from their mean, from 0 (all equal) to 1.
        effective_rank: exp(entropy of the normalized singular values) of the centered normalized embeddings (Roy and
            Vetterli 2007): the effective number of dimensions in use.
        failure: "" or one line that begins with the name of the failure: "not finite", "no negatives", "collapsed",
            "exploding norms", "no positives" or "nothing to learn from"; for a run that is watched also "no gradient
            reaches the embeddings", "nothing moves", "positives no closer than negatives", "repeated images", "few
            dimensions" or "loss above its start".
        separation: the probability that a positive pair of the batch has a larger cosine than a negative one; chance
            is 1/2.
        repeated: share of the positive pairs with equal embeddings: those of one image that was drawn twice.
        uniformity: log of the mean of exp(-2 squared distance) over all pairs of normalized embeddings: 0 if all are
            equal, about -4 if they are spread evenly (Wang and Isola 2020).
        loss: the value of the loss in the run.
        gradient: mean length of the gradient of an embedding in the run.
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
    separation: float = NAN
    repeated: float = NAN
    uniformity: float = NAN
    loss: float = NAN
    gradient: float = NAN

    def __repr__(self) -> str:
        shown = self._numbers()
        width = max(len(name) for name, _ in shown)
        return "\n".join([self.failure or "healthy", *(f"  {name:{width}}  {value}" for name, value in shown)])

    def _repr_html_(self) -> str:
        return table(("", "value"), self._numbers(), caption=self.failure or "healthy")

    def _numbers(self) -> list[tuple[str, str]]:
        """The numbers that the loss has."""
        named = ((name, value) for name, value in vars(self).items() if name != "failure")
        return [(name, f"{value:.4g}") for name, value in named if not math.isnan(value)]


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
    """The health of one batch. The state of the loss and the random numbers of the run do not change.

    Args:
        loss: a PML loss. For one without pair weights, only scores and lengths are measured.
        embeddings: [n, d].
        labels: [n].
        indices_tuple: as in every PML loss: the pairs that a miner selected for this batch.
        ref_emb: [m, d].
        ref_labels: [m].
        first: a measurement from the beginning of the run, to compare with.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> labels = torch.arange(8) // 2
        >>> measure(RAWLoss(), torch.ones(8, 4), labels).failure
        'collapsed: all embeddings point the same way (spread 0 of 1)'
        >>> measure(RAWLoss(), torch.eye(8), labels).failure
        ''
    """
    embeddings = at_least_single(embeddings.detach())
    pairs, lie = None, geometry(embeddings)
    if math.isfinite(lie["norm_max"]):
        try:
            pairs = pair_weights(loss, embeddings, labels, indices_tuple, ref_emb, ref_labels)
        except NoPairWeightsError:
            pairs = None
    samples = _samples(loss, embeddings, labels) if pairs is None or not pairs.given else None
    numbers: dict[str, Any] = _scores(samples or pairs) | _budget(pairs) | lie | pairs_of_classes(embeddings, labels)
    health = Health(**numbers)
    distance = getattr(loss, "distance", None)
    normalizes = not isinstance(distance, BaseDistance) or _pml.facts(distance).normalize_embeddings
    return replace(health, failure=_failure(health, pairs, labels, len(embeddings), normalizes, first))


def _samples(loss: nn.Module, embeddings: Tensor, labels: Tensor | None) -> PairWeights | None:
    """The scores of the samples with one another, without weights."""
    distance = copy.deepcopy(getattr(loss, "distance", None))  # it may keep statistics
    if distance is None or labels is None or not embeddings.isfinite().all():
        return None
    with torch.no_grad():
        sim = distance(embeddings) * _pml.sign(distance)
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


def _failure(
    health: Health,
    pairs: PairWeights | None,
    labels: Tensor | None,
    size: int,
    normalizes: bool,
    first: Health | None,
) -> str:
    finite = pairs is None or bool(pairs.loss.isfinite() and pairs.derivative.isfinite().all())
    if not (math.isfinite(health.norm_max) and finite):
        of_loss = "" if pairs is None else f"the loss is {pairs.loss.item():g}, "
        return f"not finite: {of_loss}the longest embedding {health.norm_max:g}"
    length = first.norm_mean if first else health.norm_mean
    positives, negatives = _has_pairs(labels, pairs)
    if not negatives:
        return "no negatives in the batch: use a sampler with several classes in it, such as BalancedBatchSampler"
    if size > 1 and health.spread < COLLAPSED_SPREAD:
        return f"collapsed: all embeddings point the same way (spread {health.spread:.2g} of 1)"
    if not normalizes and health.norm_mean < COLLAPSED_LENGTH * length:
        return (
            f"collapsed: all embeddings have shrunk to zero (mean length {health.norm_mean:.2g}, it was {length:.2g})"
        )
    if not normalizes and health.norm_mean > EXPLODING * max(1.0, length):
        return f"exploding norms: the mean length of an embedding is {health.norm_mean:.3g}, it was {length:.3g}"
    if not positives:
        return "no positives in the batch: use a sampler with several samples of a class, such as BalancedBatchSampler"
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


@dataclass
class _Call:
    """What is seen of one call of the loss; the health of its batch is measured when it is asked for."""

    look: Callable[[], Health]
    possible_rank: int
    dimension: int
    requires_grad: bool
    behind: list[nn.Parameter]
    own: list[nn.Parameter]
    loss: Tensor | None = None
    gradient: Tensor | None = None

    def take_gradient(self, gradient: Tensor) -> None:
        """A hook on the embeddings."""
        self.gradient = gradient.detach().norm(dim=1).mean()

    def measured(self) -> Health:
        """The health of the batch, with the loss and the gradient of the run."""
        loss, gradient = (NAN if value is None else float(value) for value in (self.loss, self.gradient))
        return replace(self.look(), loss=loss, gradient=gradient)


class EmbeddingHealth:
    """Measures the health of a run while it trains, and records it. The run is the same with and without it.

    It measures the batch of the loss just before the loss is computed, every `every` iterations, and more often at the
    beginning, so that a short run is measured ten times too. At the end of the iteration it also records the loss and
    the gradient, and whether parameters change.

    Args:
        loss: the loss of the training, called once in an iteration; if it is compiled, the compiled one.
        every: the largest number of iterations between two measurements, at least 1. One measurement costs about as
            much as the loss, forward and backward, plus a singular value decomposition of the batch.
        last: the number of the last iteration of the run, from 0. It is measured too, and there are at least ten
            equally spaced measurements. Default None: unknown; then `latest` and `failure` measure the last batch if it
            was not measured, for a loss without a state.
        record_keeper: PML's record-keeper, or None. The statistics are recorded in the group `embedding_health`, by
            iteration.

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
        self.every: int = every
        self.last: int | None = last
        self.record_keeper = record_keeper
        self.history: dict[int, Health] = {}
        self._due = True
        self._call: _Call | None = None
        self._last_call: tuple[int, _Call] | None = None
        self._motion = stuck.Motion()
        self._handle = loss.register_forward_pre_hook(_Watch(self), with_kwargs=True)
        # Record-keeper records every number in every dictionary of a loss, and fails on one that is named by a number;
        # that the name is there is all that torch asks.
        loss._forward_pre_hooks_with_kwargs[self._handle.id] = None  # type: ignore[assignment]
        self._after = loss.register_forward_hook(_WatchOutput(self))

    def __repr__(self) -> str:
        latest = "nothing was measured yet" if self.latest is None else repr(self.latest)
        return f"{len(self.history)} measurements, one every {self.every} steps; the last one: {latest}"

    def _repr_html_(self) -> str:
        drawn = ""
        with suppress(ImportError):  # matplotlib is an extra
            from pml_ext.analysis.plots import budget
            from pml_ext.figures import png

            drawn = picture(png(budget(self.history), dpi=72), "pull, push, ranks and spread") if self.history else ""
        return framed(preformatted(repr(self)) + drawn)

    @property
    def latest(self) -> Health | None:
        """The last measurement."""
        if self._last_call is not None:
            self._measure(*self._last_call)
        return next(reversed(self.history.values()), None)

    @property
    def failure(self) -> str:
        """What was wrong at the last measurement, in one line; "" if nothing was."""
        latest = self.latest
        return latest.failure if latest else ""

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
        """Signal the end of an iteration: for your own training loop, after the optimizer's step.

        Returns:
            the measurement; None if none was due, or the loss was not called.
        """
        call, self._call = self._call, None
        self._due = self._wanted(iteration + 1)
        self._last_call = None if call is None else (iteration, call)
        # The first call is measured whatever its number is, which nobody knows before.
        return self._measure(iteration, call) if call is not None and self._wanted(iteration) else None

    def _measure(self, iteration: int, call: _Call) -> Health:
        self._last_call = None
        health = call.measured()
        still = self._motion.still("the network", call.behind, iteration)
        still = still or self._motion.still("the loss", call.own, iteration)
        health = replace(health, failure=health.failure or self._why(health, call, iteration, still))
        self.history[iteration] = health
        if self.record_keeper is not None:
            numbers = {name: value for name, value in asdict(health).items() if name != "failure"}
            self.record_keeper.update_records(numbers, iteration, parent_name="embedding_health")
        return health

    def _why(self, health: Health, call: _Call, iteration: int, still: str) -> str:
        """Why the run does not get on, if the batch itself looks right."""
        measured = [*self.history.values(), health]
        if call.loss is not None and not math.isfinite(health.loss):
            return f"not finite: the loss is {health.loss:g}"
        late = iteration >= stuck.STEPS and len(measured) > stuck.IN_A_ROW
        recent = measured[-stuck.IN_A_ROW :]
        return (
            stuck.without_gradient(call.requires_grad, health.gradient, health.loss)
            or still
            or (stuck.mixed([each.separation for each in recent], iteration) if late else "")
            or stuck.repeats([each.repeated for each in recent])
            or (stuck.thin(health.effective_rank, call.possible_rank, call.dimension) if late else "")
            or (stuck.risen([each.loss for each in measured if not math.isnan(each.loss)]) if late else "")
        )

    def _wanted(self, iteration: int) -> bool:
        if self.last is not None:
            stride = max(1, (self.last + 1) // 10)
        else:
            # From 16 on, eight times while the run doubles.
            stride = 1 << max(0, (iteration // 8).bit_length() - 1)
        return iteration % min(self.every, stride) == 0 or iteration == self.last

    def before_call(self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the arguments of the next call of the loss, if a measurement is due."""
        wanted = self._due or self.last is None
        if not torch.is_grad_enabled() or not wanted or self._call is not None:
            return
        names = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels")
        parameters = inspect.signature(loss.forward).parameters.values()
        own = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = dict(zip((*own, *names[len(own) :]), args, strict=False)) | kwargs
        call = {name: given[name] for name in names if name in given}
        embeddings, labels = call["embeddings"], call.get("labels")
        first = next(iter(self.history.values()), None)
        if self._due:
            health = measure(loss, **call, first=first)
            look, behind = (lambda: health), stuck.parameters_behind(embeddings)
        elif any(True for _ in loss.buffers()):
            return  # it moves, and later is another one
        else:
            call["embeddings"] = embeddings.detach()
            look, behind = partial(measure, loss, **call, first=first), []
        self._due = False
        self._call = seen = _Call(
            look,
            possible_rank(len(embeddings), embeddings.shape[1], labels),
            embeddings.shape[1],
            embeddings.requires_grad,
            behind,
            [*loss.parameters()],
        )
        if embeddings.requires_grad:
            embeddings.register_hook(seen.take_gradient)

    def after_call(self, value: Any) -> None:
        """Take the loss of a call that is measured."""
        if self._call is not None and self._call.loss is None and isinstance(value, Tensor):
            self._call.loss = value.detach().mean()

    def state_dict(self) -> dict[str, Any]:
        """The history, for a checkpoint."""
        return {"history": {iteration: asdict(health) for iteration, health in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a saved history."""
        self.history = {int(iteration): Health(**numbers) for iteration, numbers in state["history"].items()}

    def close(self) -> None:
        """Stop watching the loss."""
        self._handle.remove()
        self._after.remove()


class _Watch:
    """The hook on the loss. A copy of the loss, or a loss from a file, is not watched."""

    def __init__(self, health: EmbeddingHealth) -> None:
        self.health = health

    def __call__(self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Of a loss that is watched and then compiled, nothing is seen: the hooks must not break its graph.
        if not torch.compiler.is_compiling():
            self.health.before_call(loss, args, kwargs)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nobody, ()


class _WatchOutput(_Watch):
    """The hook after the loss."""

    def __call__(self, loss: nn.Module, args: tuple[Any, ...], value: Any) -> None:
        if not torch.compiler.is_compiling():
            self.health.after_call(value)


def _nobody() -> Callable[..., None]:
    return _not_watched


def _not_watched(loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Take the place of the hook in a copy."""
