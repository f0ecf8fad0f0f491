"""A stock loss of PML that computes without tuples, and is the stock loss in everything else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import is_eager
from pml_ext.stock.forms import FORMS, Form
from pml_ext.stock.forms.lse import MultiSimilarity
from pml_ext.stock.forms.triplets import Margin, TripletMargin
from pml_ext.stock.incidence import LABELS, PAIRS, Incidence, are_places, by_labels, by_lists
from pml_ext.stock.mined import Mined
from pml_ext.stock.reduction import KNOWN, Reduction
from pml_ext.stock.run import Value, run
from pml_ext.stock.scores import Scores, has_hooks, is_finite

SILENT = ""  # stock has an error to raise, or is faster on so few


class NotAcceleratedError(ValueError):
    """With `strict=True`: what was given can only be computed by the stock loss."""


class AcceleratedLoss:
    """What an accelerated class has before its stock class; see `pml_ext.accelerate`."""

    stock: Any
    _chunk_size: int | None
    _strict: bool
    _said: set[str]

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """As the stock loss."""
        given = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
        reason = why_stock(self, *given)
        if reason is not None:
            return self._by_stock(reason, given)
        assert isinstance(embeddings, Tensor)
        moved = None if labels is None else labels.to(embeddings.device)
        if ref_emb is None:
            references, its_labels = None, moved
        else:
            assert ref_labels is not None
            references = None if ref_emb is embeddings else ref_emb
            its_labels = ref_labels.to(ref_emb.device)
            if references is not None and references.is_inference() and not torch.is_inference_mode_enabled():
                references = references.clone()  # which a graph may keep
        is_same = its_labels is moved
        try:
            form = self._form(embeddings, moved, indices_tuple, references, its_labels, is_same)
        except ContradictionError:
            return self._by_stock(SILENT, given)
        nothing = torch.sum(embeddings * 0)
        if form.is_empty():
            total = nothing
        else:
            total = self._value(form, embeddings, moved, indices_tuple, references, its_labels)
            if not is_finite(total):
                return self._by_stock("its value is not finite", given)
        if self.embedding_regularizer is not None:  # type: ignore[attr-defined]
            total = total + self.embedding_regularizer(embeddings) * self.embedding_reg_weight  # type: ignore[attr-defined]
        return total

    def _by_stock(self, reason: str, given: tuple[Any, ...]) -> Tensor:
        if reason != SILENT:
            if self._strict:
                raise NotAcceleratedError(f"{type(self).__name__} cannot be accelerated here: {reason}")
            if reason not in self._said:
                self._said.add(reason)
                warnings.warn(f"{type(self).__name__} runs as PML's own: {reason}", stacklevel=4)
        out: Tensor = self.stock.forward(self, *given)
        return out

    def _form(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices: Sequence[Tensor] | None,
        references: Tensor | None,
        ref_labels: Tensor | None,
        is_same: bool,
    ) -> Form:
        kind = FORMS[self.stock]
        n, m = len(embeddings), len(embeddings) if references is None else len(references)
        weights = choice = None
        incidence: Incidence
        if kind.by_labels:
            assert labels is not None
            assert ref_labels is not None
            weights = _sample_weights(indices, n, m, embeddings, with_references=references is not None)
            incidence = by_labels(labels, ref_labels, without_self=references is None, dtype=embeddings.dtype)
        elif indices is None:
            assert labels is not None
            assert ref_labels is not None
            incidence = by_labels(labels, ref_labels, without_self=is_same, dtype=embeddings.dtype)
        else:
            choice = indices.chosen if issubclass(kind, TripletMargin) and isinstance(indices, Mined) else None
            if choice is not None and _fits_masks(indices, n, m, embeddings):
                incidence = choice.pairs
            else:
                choice, incidence = None, _incidence_of(indices, n, m, embeddings)
            if kind.once and incidence.contradicts():
                raise ContradictionError
        sign = -1.0 if self.distance.is_inverted else 1.0  # type: ignore[attr-defined]

        def nothing() -> Tensor:
            return torch.sum(embeddings.detach() * 0)

        reductions = {name: Reduction(_reducer_of(self, name), labels, nothing) for name in kind.names}
        form = kind(self, sign, incidence, reductions)
        form.weights = weights
        if isinstance(form, TripletMargin):
            form.choice = choice
        return form

    def _value(
        self,
        form: Form,
        embeddings: Tensor,
        labels: Tensor | None,
        indices: Sequence[Tensor] | None,
        references: Tensor | None,
        ref_labels: Tensor | None,
    ) -> Tensor:
        names = [name for name in ("beta",) if isinstance(getattr(self, name, None), torch.nn.Parameter)]
        parameters = [getattr(self, name) for name in names]

        def make(
            embeddings: Tensor, references: Tensor | None, needed: tuple[bool, ...]
        ) -> tuple[Tensor, list[Tensor | None]]:
            scores = Scores(self.distance, embeddings, references, (needed[0], needed[1]))  # type: ignore[attr-defined]
            value = run(form, scores, self._chunk_size)
            own = form.parameters()
            of_parameters = [own[name].to(each.dtype) for name, each in zip(names, parameters, strict=True)]
            return value, [*scores.gradients(), *of_parameters]

        def stock(embeddings: Tensor, references: Tensor | None) -> Tensor:
            others = embeddings if references is None else references
            found = self.compute_loss(embeddings, labels, indices, others, ref_labels)  # type: ignore[attr-defined]
            total: Tensor = self.reducer(found, embeddings, labels)  # type: ignore[attr-defined]
            return total

        value: Tensor = Value.apply(make, stock, embeddings, references, *parameters)
        return value

    def extra_repr(self) -> str:
        """The chunk size, and why the stock loss runs if it always does."""
        reason = why_never(self)
        said = f"accelerated, chunk_size={self._chunk_size}" if reason is None else f"not accelerated: {reason}"
        before = self.stock.extra_repr(self)
        return f"{before}, {said}" if before else said

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.stock,), self.__dict__


class ContradictionError(Exception):
    """A pair is positive and negative at once; PML has the words for it."""


def _reducer_of(loss: Any, name: str) -> reducers.BaseReducer:
    reducer = loss.reducer
    if type(reducer) is reducers.MultipleReducers:
        return reducer.reducers[name] if name in reducer.reducers else reducer.default_reducer  # noqa: SIM401
    return reducer


def _incidence_of(indices: Sequence[Tensor], n: int, m: int, like: Tensor) -> Incidence:
    if isinstance(indices, Mined) and _fits_masks(indices, n, m, like):
        return indices.incidence()
    return by_lists(indices, n, m, like)


def _fits_masks(indices: Any, n: int, m: int, like: Tensor) -> bool:
    """Whether the masks behind a miner's tuple are of such a batch."""
    return isinstance(indices, Mined) and indices.shape == (n, m, like.dtype, like.device)


def _sample_weights(
    indices: Sequence[Tensor] | None, n: int, m: int, like: Tensor, *, with_references: bool
) -> Tensor | None:
    """How often each sample stands in the lists, by the most frequent one; None: all alike."""
    if indices is None:
        return None
    found = _incidence_of(indices, n, m, like)
    times = found.counts.sum(1)
    far = found.negatives
    if found.kind == PAIRS:
        times = times + far.per_row
    if not with_references:
        times = times.index_add(0, found.positives.flatten(), found.counts.flatten())
        ones = torch.ones(n, m, dtype=like.dtype, device=like.device)
        times = times + far.weighted(far.blank(ones, 0)).sum(0)
    return times / times.max() if bool(times.any()) else None


def why_never(loss: Any) -> str | None:
    """Why such a loss always runs as PML's own, or None."""
    kind = FORMS[loss.stock]
    if loss.collect_stats:
        return "it collects statistics of tuples"
    if type(loss.reducer) is reducers.DoNothingReducer:
        return "DoNothingReducer gives the losses themselves"
    if any(each.requires_grad for each in _tensors(loss, kind)):
        return "one of its hyperparameters is learned"
    parts = [*loss.distance.modules(), *loss.reducer.modules()]
    if any(each.requires_grad for part in parts for each in _own_tensors(part)):
        return "its distance or its reducer is learned"
    if any(has_hooks(part) for part in loss.reducer.modules()):
        return "its reducer has hooks"
    for name in () if kind.reduced else kind.names:
        reason = _why_not_reduced(_reducer_of(loss, name), kind)
        if reason is not None:
            return reason
    return None


def _own_tensors(module: torch.nn.Module) -> list[Tensor]:
    held = (module.__dict__, module._parameters, module._buffers)
    return [each for names in held for each in names.values() if isinstance(each, Tensor)]


def _tensors(loss: Any, kind: type[Form]) -> list[Tensor]:
    """Hyperparameters that are tensors; MarginLoss has a closed form of the derivative by beta."""
    own = loss.beta if issubclass(kind, Margin) else None
    return [each for each in _own_tensors(loss) if each is not own]


def _why_not_reduced(reducer: Any, kind: type[Form]) -> str | None:
    triplets = issubclass(kind, TripletMargin | Margin)
    if type(reducer) is reducers.DivisorReducer:
        return None if issubclass(kind, Margin) else SILENT
    if type(reducer) not in KNOWN:
        return f"no closed form of {type(reducer).__name__}"
    if reducer.collect_stats:
        return "its reducer collects statistics of tuples"
    if type(reducer) is reducers.PerAnchorReducer:
        if triplets or (kind.column and not kind.once):
            return SILENT
        if reducer.aggregation_func is not reducers.PerAnchorReducer().aggregation_func:
            return "no closed form of an aggregation_func of one's own"
        if type(reducer.reducer) is reducers.PerAnchorReducer:
            return "no closed form of a PerAnchorReducer in a PerAnchorReducer"
        return _why_not_reduced(reducer.reducer, MultiSimilarity)
    return None


def why_stock(
    loss: Any,
    embeddings: Any,
    labels: Any,
    indices: Any,
    ref_emb: Any,
    ref_labels: Any,
) -> str | None:
    """Why PML's own has to run on what is given, or None; SILENT where nobody has to be told."""
    never = why_never(loss)
    if never is not None:
        return never
    kind = FORMS[loss.stock]
    tensors = [each for each in (embeddings, ref_emb) if each is not None]
    if not all(isinstance(each, Tensor) and each.ndim == 2 for each in tensors):
        return SILENT
    if any(each.dtype != embeddings.dtype or each.device != embeddings.device for each in tensors):
        return SILENT
    if embeddings.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(embeddings.device.type):
        return "PML has rules of its own for half precision"
    if not len(embeddings) or not (is_eager() or torch.compiler.is_compiling()):  # under a transform of functions
        return SILENT
    if any(not is_finite(each) for each in tensors):
        return "an embedding is not finite"
    if any(each.ndim or each.dtype != embeddings.dtype for each in _tensors(loss, kind)):
        return "a hyperparameter is a tensor of another type or shape"
    if not _fit(labels, embeddings) or (ref_emb is not None and (ref_labels is None or not _fit(ref_labels, ref_emb))):
        return SILENT
    reducer_labels = any(
        isinstance(getattr(_reducer_of(loss, name), "reducer", _reducer_of(loss, name)), reducers.ClassWeightedReducer)
        for name in kind.names
    )
    per_class = issubclass(kind, Margin) and len(loss.beta) > 1
    if labels is None and (indices is None or kind.by_labels or reducer_labels or per_class):
        return SILENT
    m = len(embeddings) if ref_emb is None else len(ref_emb)
    if indices is not None and not (kind.takes_lists and _is_list_of_tuples(indices)):
        return SILENT
    fits = indices is None or _fits_masks(indices, len(embeddings), m, embeddings)
    if not fits and not are_places(indices, len(embeddings), m):
        return SILENT
    if ref_emb is not None and not kind.takes_references:
        return SILENT
    with_references = ref_emb is not None and ref_emb is not embeddings
    if issubclass(kind, TripletMargin) and isinstance(indices, Mined) and fits:
        return kind.falls_back(loss, PAIRS, with_references)
    of_pairs = not kind.once and not kind.by_labels
    per_anchor = any(type(_reducer_of(loss, name)) is reducers.PerAnchorReducer for name in kind.names)
    if with_references and of_pairs and per_anchor:
        return "PerAnchorReducer knows no references"
    reason = kind.falls_back(loss, LABELS if indices is None else len(indices), with_references)
    small = len(embeddings) * m < kind.pays_from * thresholds.STOCK_PAYS and not isinstance(indices, Mined)
    return SILENT if small and reason is None else reason


def _fit(labels: Any, embeddings: Tensor) -> bool:
    return labels is None or (isinstance(labels, Tensor) and labels.ndim == 1 and len(labels) == len(embeddings))


def _is_list_of_tuples(indices: Any) -> bool:
    return isinstance(indices, Mined) or (
        isinstance(indices, tuple | list)
        and len(indices) in (3, 4)
        and all(isinstance(each, Tensor) and each.ndim == 1 for each in indices)
    )


@cache
def accelerated_class(stock: type) -> type:
    """The class of accelerated losses of a stock class; it has the same name."""
    return type(
        stock.__name__, (AcceleratedLoss, stock), {"stock": stock, "__doc__": stock.__doc__, "__module__": __name__}
    )


def _blank(stock: type) -> Any:
    made: Any = accelerated_class(stock)
    return made.__new__(made)


def accelerated_loss(loss: Any, *, chunk_size: int | None, strict: bool) -> Any:
    """The accelerated twin of a stock loss: same parameters, same modules, its own attributes."""
    made = _blank(loss.stock if isinstance(loss, AcceleratedLoss) else type(loss))
    state = dict(loss.__dict__)
    for name, value in state.items():
        if getattr(value, "__self__", None) is loss:  # GenericPairLoss keeps a method of its own
            state[name] = getattr(made, value.__name__)
        elif name in ("_parameters", "_buffers", "_modules") or "_hooks" in name:
            state[name] = copy.copy(value)
    made.__dict__.update(state)
    made.__dict__.update(_chunk_size=chunk_size, _strict=strict, _said=set())
    return made
