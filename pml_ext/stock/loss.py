"""A stock loss of PML that computes without tuples, and is like the stock loss in everything else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pml_ext.stock.checks import SILENT, fits_masks, is_small, reducer_of, why_never, why_stock
from pml_ext.stock.forms import FORMS, Form
from pml_ext.stock.forms.listed_triplets import ListedTriplets
from pml_ext.stock.forms.triplets import TripletMargin
from pml_ext.stock.incidence import PAIRS, TRIPLETS, Incidence, blocks, by_labels, by_lists
from pml_ext.stock.mined import Mined
from pml_ext.stock.miner_scores import MinerScores
from pml_ext.stock.reduction import Reduction
from pml_ext.stock.run import Value, run
from pml_ext.stock.scores import Scores, is_finite


class NotAcceleratedError(ValueError):
    """With `strict=True`: only PML's own code can compute this loss, miner or input."""


class AcceleratedLoss:
    """The base of an accelerated class that comes before its stock class; see `pml_ext.accelerate`."""

    stock: Any
    _chunk_size: int | None
    _strict: bool
    _said: set[str]
    _leaves_small = False

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
        small = is_small(self, embeddings, indices_tuple, ref_emb)
        if small and self._leaves_small:
            return self._by_stock(SILENT, given)
        reason = why_stock(self, *given)
        if reason is not None:
            self._leaves_small = small and (reason == SILENT or not self._strict)  # the warning, if any, has been given
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
                references = references.clone()  # an inference tensor cannot be saved for backward
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
                return self._by_stock("the value is not finite", given)
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
            weights = _sample_weights(self, indices, n, m, embeddings, with_references=references is not None)
            incidence = by_labels(labels, ref_labels, without_self=references is None, dtype=embeddings.dtype)
        elif indices is None:
            assert labels is not None
            assert ref_labels is not None
            incidence = by_labels(labels, ref_labels, without_self=is_same, dtype=embeddings.dtype)
        else:
            choice = indices.chosen if issubclass(kind, TripletMargin) and isinstance(indices, Mined) else None
            if choice is not None and fits_masks(indices, n, m, embeddings):
                incidence = choice.pairs
            else:
                choice, incidence = None, _incidence_of(self, indices, n, m, embeddings)
            if kind.once and incidence.contradicts():
                raise ContradictionError
        sign = -1.0 if self.distance.is_inverted else 1.0  # type: ignore[attr-defined]

        def nothing() -> Tensor:
            return torch.sum(embeddings.detach() * 0)

        reductions = {name: Reduction(reducer_of(self, name), labels, nothing) for name in kind.names}
        listed = kind is TripletMargin and incidence.kind == TRIPLETS
        form = (ListedTriplets if listed else kind)(self, sign, incidence, reductions)
        form.weights = weights
        if isinstance(form, ListedTriplets):
            assert indices is not None
            form.take(indices, embeddings)
        elif isinstance(form, TripletMargin):
            form.choice = choice
            form.by_own_distances = choice is not None and _known(self, indices, embeddings, references) is not None
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
        known = _known(self, indices, embeddings, references)

        def make(
            embeddings: Tensor, references: Tensor | None, needed: tuple[bool, ...]
        ) -> tuple[Tensor, list[Tensor | None]]:
            scores = Scores(self.distance, embeddings, references, (needed[0], needed[1]), known)  # type: ignore[attr-defined]
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
        """The chunk size, or why PML's own code always runs."""
        reason = why_never(self)
        said = f"accelerated, chunk_size={self._chunk_size}" if reason is None else f"not accelerated: {reason}"
        before = self.stock.extra_repr(self)
        return f"{before}, {said}" if before else said

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.stock,), self.__dict__


class ContradictionError(Exception):
    """A pair is positive and negative at once; PML's own code then decides what happens."""


def _known(loss: Any, indices: Any, embeddings: Tensor, references: Tensor | None) -> MinerScores | None:
    """The scores by which a miner chose, if the loss would compute the same ones."""
    found = indices.scores if isinstance(indices, Mined) and references is None else None
    return found if found is not None and found.are_of(loss.distance, embeddings) else None


def _incidence_of(loss: Any, indices: Sequence[Tensor], n: int, m: int, like: Tensor) -> Incidence:
    if isinstance(indices, Mined) and fits_masks(indices, n, m, like):
        return indices.incidence()
    return by_lists(indices, n, m, like, by_rows=loss._chunk_size is not None and loss._chunk_size < n)


def _sample_weights(
    loss: Any, indices: Sequence[Tensor] | None, n: int, m: int, like: Tensor, *, with_references: bool
) -> Tensor | None:
    """How often each sample occurs in the lists, relative to the most frequent one; None: all weights are 1."""
    if indices is None:
        return None
    found = _incidence_of(loss, indices, n, m, like)
    times = found.counts.sum(1)
    far = found.negatives
    if found.kind == PAIRS:
        times = times + far.per_row
    if not with_references:
        times = times.index_add(0, found.positives.flatten(), found.counts.flatten())
        for start, stop in blocks(n, m):
            part, ones = far.rows(start, stop), torch.ones(stop - start, m, dtype=like.dtype, device=like.device)
            times = times + part.weighted(part.blank(ones, 0)).sum(0)
    return times / times.max() if bool(times.any()) else None


@cache
def accelerated_class(stock: type) -> type:
    """The accelerated class of a stock loss; it has the same name."""
    return type(
        stock.__name__, (AcceleratedLoss, stock), {"stock": stock, "__doc__": stock.__doc__, "__module__": __name__}
    )


def _blank(stock: type) -> Any:
    made: Any = accelerated_class(stock)
    return made.__new__(made)


def accelerated_loss(loss: Any, *, chunk_size: int | None, strict: bool) -> Any:
    """An accelerated copy of a stock loss that shares its parameters and modules, but not its attributes."""
    made = _blank(loss.stock if isinstance(loss, AcceleratedLoss) else type(loss))
    state = dict(loss.__dict__)
    for name, value in state.items():
        if getattr(value, "__self__", None) is loss:  # GenericPairLoss keeps one of its methods as an attribute
            state[name] = getattr(made, value.__name__)
        elif name in ("_parameters", "_buffers", "_modules") or "_hooks" in name:
            state[name] = copy.copy(value)
    made.__dict__.update(state)
    made.__dict__.update(_chunk_size=chunk_size, _strict=strict, _said=set())
    return made


def as_stock(module: Any) -> None:
    """Make an accelerated loss one of its stock class, in place; nothing happens to another module.

    Args:
        module: any module; those in it stay as they are.

    Example:
        >>> from pytorch_metric_learning.losses import NTXentLoss
        >>> from pml_ext import accelerate
        >>> loss = accelerate(NTXentLoss())
        >>> as_stock(loss)
        >>> type(loss) is NTXentLoss
        True
    """
    if isinstance(module, AcceleratedLoss):
        module.__class__ = module.stock
