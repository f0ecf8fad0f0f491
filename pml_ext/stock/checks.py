"""Whether a stock loss can be computed without tuples, and why not."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import is_eager
from pml_ext.similarity import is_enabled
from pml_ext.stock.forms import FORMS, Form
from pml_ext.stock.forms.lse import MultiSimilarity
from pml_ext.stock.forms.margin import Margin
from pml_ext.stock.forms.triplets import TripletMargin
from pml_ext.stock.incidence import LABELS, PAIRS, TRIPLETS, are_places
from pml_ext.stock.mined import Mined
from pml_ext.stock.reduction import KNOWN
from pml_ext.stock.scores import has_hooks, is_finite

SILENT = ""  # no warning: PML raises an error of its own, or is faster on so small an input


def reducer_of(loss: Any, name: str) -> reducers.BaseReducer:
    """The reducer of one of the terms of a loss."""
    reducer = loss.reducer
    if type(reducer) is reducers.MultipleReducers:
        return reducer.reducers[name] if name in reducer.reducers else reducer.default_reducer  # noqa: SIM401
    return reducer


def fits_masks(indices: Any, n: int, m: int, like: Tensor) -> bool:
    """Whether the masks of a miner's tuple belong to n x m scores of this dtype and device."""
    return isinstance(indices, Mined) and indices.shape == (n, m, like.dtype, like.device)


def why_never(loss: Any) -> str | None:
    """Why PML's own code always computes this loss, or None."""
    kind = FORMS[loss.stock]
    if loss.collect_stats:
        return "it collects statistics of tuples"
    if type(loss.reducer) is reducers.DoNothingReducer:
        return "DoNothingReducer returns the losses themselves"
    if any(each.requires_grad for each in _tensors(loss, kind)):
        return "one of its hyperparameters is learned"
    parts = [*loss.distance.modules(), *loss.reducer.modules()]
    if any(each.requires_grad for part in parts for each in _own_tensors(part)):
        return "its distance or its reducer is learned"
    if any(has_hooks(part) for part in loss.reducer.modules()):
        return "its reducer has hooks"
    for name in () if kind.reduced else kind.names:
        reason = _why_not_reduced(reducer_of(loss, name), kind)
        if reason is not None:
            return reason
    return None


def _own_tensors(module: torch.nn.Module) -> list[Tensor]:
    held = (module.__dict__, module._parameters, module._buffers)
    return [each for names in held for each in names.values() if isinstance(each, Tensor)]


def _tensors(loss: Any, kind: type[Form]) -> list[Tensor]:
    """Hyperparameters that are tensors, without the beta of MarginLoss, whose derivative has a closed form."""
    own = loss.beta if issubclass(kind, Margin) else None
    return [each for each in _own_tensors(loss) if each is not own]


def _why_not_reduced(reducer: Any, kind: type[Form]) -> str | None:
    triplets = issubclass(kind, TripletMargin | Margin)
    if type(reducer) is reducers.DivisorReducer:
        return None if issubclass(kind, Margin) else SILENT
    if type(reducer) not in KNOWN:
        return f"{type(reducer).__name__} has no closed form"
    if reducer.collect_stats:
        return "its reducer collects statistics of tuples"
    if type(reducer) is reducers.PerAnchorReducer:
        if triplets or (kind.column and not kind.once):
            return SILENT
        if reducer.aggregation_func is not reducers.PerAnchorReducer().aggregation_func:
            return "a custom aggregation_func has no closed form"
        if type(reducer.reducer) is reducers.PerAnchorReducer:
            return "a PerAnchorReducer in a PerAnchorReducer has no closed form"
        return _why_not_reduced(reducer.reducer, MultiSimilarity)
    return None


def is_small(loss: Any, embeddings: Any, indices: Any, ref_emb: Any) -> bool:
    """Whether PML's own code is faster on so few scores, or on such short lists."""
    if isinstance(indices, Mined) or not (isinstance(embeddings, Tensor) and embeddings.ndim == 2):
        return False
    rows = embeddings.shape[0]
    columns = ref_emb.shape[0] if isinstance(ref_emb, Tensor) and ref_emb.ndim == 2 else rows
    kind, number = FORMS[loss.stock], rows * columns
    if number < kind.pays_from * thresholds.STOCK_PAYS:
        return True
    if loss._chunk_size is not None and loss._chunk_size < rows:  # chunks bound the memory; PML's code does not
        return False
    if not _is_list_of_tuples(indices):
        return False
    if kind.listed == "matrix":  # PML computes the whole matrix, whatever the list
        return bool(number < 2 * kind.pays_from * thresholds.STOCK_PAYS)
    near, far = len(indices[0]), len(indices[-1])
    if kind is TripletMargin and len(indices) == TRIPLETS:  # ours goes through the triplets one by one, too
        return thresholds.STOCK_PAYS > 0
    work = {"pairs": near + far, "triplets": near * far / max(rows, 1), "products": near * far}[kind.listed]
    if kind.listed == "triplets" and len(indices) == TRIPLETS:
        work = near
    return bool(work < number * thresholds.STOCK_LISTED * thresholds.STOCK_PAYS)


def why_stock(
    loss: Any,
    embeddings: Any,
    labels: Any,
    indices: Any,
    ref_emb: Any,
    ref_labels: Any,
) -> str | None:
    """Why PML's own code has to compute this input, or None; SILENT where no warning is needed."""
    never = why_never(loss)
    if never is not None:
        return never
    if not is_enabled():
        return SILENT
    kind = FORMS[loss.stock]
    tensors = [each for each in (embeddings, ref_emb) if each is not None]
    if not all(isinstance(each, Tensor) and each.ndim == 2 for each in tensors):
        return SILENT
    if any(each.dtype != embeddings.dtype or each.device != embeddings.device for each in tensors):
        return SILENT
    if embeddings.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(embeddings.device.type):
        return "half precision follows rules of PML's own"
    if not len(embeddings) or not (is_eager() or torch.compiler.is_compiling()):  # inside a transform of torch.func
        return SILENT
    if any(not is_finite(each) for each in tensors):
        return "an embedding is not finite"
    if any(each.ndim or each.dtype != embeddings.dtype for each in _tensors(loss, kind)):
        return "a hyperparameter is a tensor of another type or shape"
    if not _fit(labels, embeddings) or (ref_emb is not None and (ref_labels is None or not _fit(ref_labels, ref_emb))):
        return SILENT
    reducer_labels = any(
        isinstance(getattr(reducer_of(loss, name), "reducer", reducer_of(loss, name)), reducers.ClassWeightedReducer)
        for name in kind.names
    )
    per_class = issubclass(kind, Margin) and len(loss.beta) > 1
    if labels is None and (indices is None or kind.by_labels or reducer_labels or per_class):
        return SILENT
    m = len(embeddings) if ref_emb is None else len(ref_emb)
    if indices is not None and not (kind.takes_lists and _is_list_of_tuples(indices)):
        return SILENT
    fits = indices is None or fits_masks(indices, len(embeddings), m, embeddings)
    if not fits and not are_places(indices, len(embeddings), m):
        return SILENT
    if ref_emb is not None and not kind.takes_references:
        return SILENT
    with_references = ref_emb is not None and ref_emb is not embeddings
    if issubclass(kind, TripletMargin) and isinstance(indices, Mined) and fits:
        return kind.falls_back(loss, PAIRS, with_references)
    of_pairs = not kind.once and not kind.by_labels
    per_anchor = any(type(reducer_of(loss, name)) is reducers.PerAnchorReducer for name in kind.names)
    if with_references and of_pairs and per_anchor:
        return "PerAnchorReducer does not support references"
    reason = kind.falls_back(loss, LABELS if indices is None else len(indices), with_references)
    return SILENT if reason is None and is_small(loss, embeddings, indices, ref_emb) else reason


def _fit(labels: Any, embeddings: Tensor) -> bool:
    return labels is None or (isinstance(labels, Tensor) and labels.ndim == 1 and len(labels) == len(embeddings))


def _is_list_of_tuples(indices: Any) -> bool:
    return isinstance(indices, Mined) or (
        isinstance(indices, tuple | list)
        and len(indices) in (3, 4)
        and all(isinstance(each, Tensor) and each.ndim == 1 for each in indices)
    )
