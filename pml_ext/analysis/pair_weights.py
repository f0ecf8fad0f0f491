"""General pair weighting: the weight that any pair loss gives to each pair of a batch."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.base import RowLoss
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.pairs import IndicesTuple, PairMasks, Pairs, own_set
from pml_ext.shown import framed, picture, table
from pml_ext.stock import as_stock


class NoPairWeightsError(ValueError):
    """The loss has no pair weights; the message says why."""


@dataclass(frozen=True, repr=False)
class PairWeights:
    """The pair weights of a loss on a batch of n anchors and m references.

    A loss with several comparisons, for example one for each slice, has one matrix for each: [b, n, m]. Together with
    `beyond` they are the whole gradient: with S the scores as a function of the embeddings x,

        dL/dx = sum_ij derivative_ij dS_ij/dx + beyond

    Args:
        loss: the reduced loss, a scalar.
        similarity: scores S [.., n, m], larger is closer.
        derivative: dL/dS [.., n, m], exact through the reducer, S_ij and S_ji taken as independent.
        pos: the positives that the loss was given, [.., n, m].
        neg: the negatives that the loss was given, [.., n, m].
        given: False if the loss does not compare its embeddings with its references, but for example with proxies.
            Which of those are positives is then unknown: `pos` are the pairs that it pulls, `neg` those that it pushes.
        beyond: the part of the gradient with respect to the embeddings that does not come through S, [n, d]: that of a
            regularizer.
    """

    loss: Tensor
    similarity: Tensor
    derivative: Tensor
    pos: Tensor
    neg: Tensor
    given: bool
    beyond: Tensor

    @property
    def weights(self) -> Tensor:
        """W = |dL/dS| [.., n, m]: how strongly each positive is pulled and each negative pushed."""
        return self.derivative.abs()

    @property
    def pull(self) -> Tensor:
        """The sum of the weights of each anchor's positives, [.., n]."""
        return torch.where(self.pos, self.weights, 0.0).sum(-1)

    @property
    def push(self) -> Tensor:
        """The sum of the weights of each anchor's negatives, [.., n]."""
        return torch.where(self.neg, self.weights, 0.0).sum(-1)

    def __repr__(self) -> str:
        return "\n".join([self._about(), *(f"{name:10} {value}" for name, value in self._numbers())])

    def _repr_html_(self) -> str:
        drawn = ""
        with suppress(ImportError):  # matplotlib is an extra
            from pml_ext.analysis.plots import weight_scatter
            from pml_ext.figures import png

            drawn = picture(png(weight_scatter(self), dpi=72), "pair weights against scores")
        return framed(table(("pair weights", ""), self._numbers(), caption=self._about()) + drawn)

    def _about(self) -> str:
        *several, n, m = self.weights.shape
        of = f", {several[0]} comparisons" if several else ""
        return f"pair weights |dL/dS| of {n} anchors and {m} references{of}; loss {float(self.loss):.4g}"

    def _numbers(self) -> list[tuple[str, str]]:
        positive, negative = ("positives", "negatives") if self.given else ("pulled", "pushed")
        found = []
        for name, mask in ((positive, self.pos), (negative, self.neg)):
            weights = self.weights[mask]
            active = int((weights > 0).sum())
            top = float(weights.max()) if len(weights) else 0.0
            words = f"{len(weights)} pairs, {active} with a weight, sum {float(weights.sum()):.4g}, largest {top:.4g}"
            found.append((name, words))
        if bool(self.beyond.any()):
            found.append(
                ("beyond", f"a gradient of length {float(self.beyond.norm()):.4g} does not come through scores")
            )
        return found


def pair_weights(
    loss: nn.Module,
    embeddings: Array,
    labels: Array | None = None,
    indices_tuple: IndicesTuple | None = None,
    ref_emb: Array | None = None,
    ref_labels: Array | None = None,
) -> PairWeights:
    """The derivative of any pair loss with respect to its similarities: W_ij = |dL/dS_ij|.

    The matrix that the loss's distance returns is made the leaf of the graph, so this works for PML's losses and ours,
    wrapped or not, with any distance and any reducer. The loss has the gradient of
    F = sum_ij sg[W_ij] S_ij over negatives minus the same over positives.

    The result is that of the next call of the loss, but nothing changes: the loss is copied, so that a memory, running
    centers, statistics and the position of a seeded miner stay as they are, and torch's generators are restored.

    Args:
        loss: a PML loss. Matrices of its miners and regularizers, and of weights that it holds constant, are ignored.
        embeddings: [n, d], a tensor of any device, an array or lists.
        labels: [n], numbers, or strings if they are not a tensor.
        indices_tuple: as in every PML loss, or `PairMasks`.
        ref_emb: [m, d].
        ref_labels: [m].

    Returns:
        `PairWeights`: [n, m], or [b, n, m] for b comparisons; m is the number of references of the distance: the batch,
        `ref_emb`, class centers, or the filled part of a memory.

    Raises:
        TypeError: not a loss, or arguments that are not tensors of the right kind.
        NoPairWeightsError: a ValueError; the loss never compares embeddings through its distance, compares sets of
            different sizes, or is not reduced to a scalar.
        ValueError: arguments that do not fit one another.

    Source:
        Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, arXiv
        1904.06627.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> pair_weights(RAWLoss(), embeddings, labels).pull
        tensor([0.0000, 0.1125, 0.0886, 0.0000])
    """
    if not isinstance(loss, nn.Module):
        raise TypeError(f"loss must be a PML loss, got {type(loss).__name__}")
    x = _vectors(embeddings)
    references = x if ref_emb is embeddings else _vectors(ref_emb)
    y, reference_labels = _numbered(labels, ref_labels, x, references)
    arguments.batch(x, y, references, reference_labels)
    # Whether the caller wants gradients or not: these are numbers like any other.
    with torch.inference_mode(False), torch.enable_grad():
        return _pair_weights(loss, x, y, indices_tuple, references, reference_labels)


def _pair_weights(
    loss: nn.Module,
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: IndicesTuple | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> PairWeights:
    x = _ordinary(embeddings).detach().requires_grad_()
    references = x if ref_emb is embeddings else None if ref_emb is None else _ordinary(ref_emb).detach()
    same_labels = ref_labels is labels
    labels, indices_tuple = _ordinary(labels), _ordinary(indices_tuple)
    ref_labels = labels if same_labels else _ordinary(ref_labels)
    given_first, named = [x, labels, indices_tuple], {"ref_emb": references, "ref_labels": ref_labels}
    # Not every loss takes all five, a memory for example.
    while given_first[-1] is None:
        given_first.pop()
    named = {name: value for name, value in named.items() if value is not None}
    name = type(loss).__name__
    loss = _copied(loss)
    devices = [embeddings.device] if embeddings.is_cuda else []
    with torch.random.fork_rng(devices=devices), _recorded(loss) as calls:
        value = loss(*given_first, **named)
    if not calls:
        raise NoPairWeightsError(f"{name} never compares embeddings through its distance, so it has no pair weights")
    if not isinstance(value, Tensor) or value.numel() != 1:
        of = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise NoPairWeightsError(f"{name} must be reduced to a scalar, its result has {of}")
    shapes = sorted({tuple(call.leaf.shape) for call in calls})
    if len(shapes) > 1:
        sizes = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise NoPairWeightsError(f"{name} compares sets of different sizes, {sizes}: use pair_weights on its parts")
    leaves = [call.leaf for call in calls]
    if value.requires_grad:
        *by_leaf, beyond = torch.autograd.grad(value.sum(), [*leaves, x], allow_unused=True, materialize_grads=True)
    else:
        *by_leaf, beyond = (torch.zeros_like(leaf) for leaf in (*leaves, x))
    # A distance is minus a score, and so is its derivative.
    derivatives = [call.sign * gradient for call, gradient in zip(calls, by_leaf, strict=True)]
    given = all(call.masks is not None for call in calls)
    masks = [
        call.masks if given and call.masks is not None else PairMasks(derivative < 0, derivative > 0)
        for call, derivative in zip(calls, derivatives, strict=True)
    ]
    return PairWeights(
        loss=value.detach().reshape(()),
        similarity=_stacked([call.sign * call.leaf.detach() for call in calls]),
        derivative=_stacked(derivatives),
        pos=_stacked([mask.pos for mask in masks]),
        neg=_stacked([mask.neg for mask in masks]),
        given=given,
        beyond=beyond,
    )


def _vectors(given: Any) -> Any:
    """A tensor of arrays and lists of numbers; anything else as it is, to be refused."""
    if isinstance(given, (np.ndarray, list)):
        x = torch.as_tensor(np.asarray(given))
        return x if x.is_floating_point() else x.float()
    return given


def _numbered(labels: Any, ref_labels: Any, embeddings: Any, ref_emb: Any) -> tuple[Any, Any]:
    """Labels as tensors on the device of what they are of; strings as numbers."""
    same = ref_labels is labels
    if not any(isinstance(given, (np.ndarray, list)) for given in (labels, ref_labels)):
        return labels, ref_labels
    both = [(labels, embeddings), *([] if same or ref_labels is None else [(ref_labels, ref_emb)])]
    if any(given is None or not isinstance(of, Tensor) for given, of in both):
        return labels, ref_labels
    ids = class_ids(*(checked_labels("labels", given, len(given)) for given, _ in both))
    placed = [each.to(of.device) for each, (_, of) in zip(ids, both, strict=True)]
    return placed[0], placed[0] if same else placed[1] if len(placed) > 1 else None


def _ordinary(given: Any) -> Any:
    """What was given, without tensors of inference mode: no gradient may pass those."""
    if isinstance(given, Tensor):
        return given.clone() if given.is_inference() else given
    if isinstance(given, PairMasks):
        return type(given)(*(_ordinary(mask) for mask in given))
    return tuple(_ordinary(index) for index in given) if isinstance(given, tuple) else given


def _stacked(matrices: list[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.stack(matrices)


def _copied(loss: nn.Module) -> nn.Module:
    """A copy whose state may move, without chunks: those would compute the matrix again in the backward pass."""
    loss = getattr(loss, "_orig_mod", loss)  # what torch.compile was given
    memo: dict[int, Any] = {}
    for module in loss.modules():
        # Some losses keep a tensor of their last graph, which cannot be copied.
        for value in (*vars(module).values(), *module.buffers(recurse=False)):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(loss, memo)
    for module in copied.modules():
        if isinstance(module, RowLoss):
            module.chunk_size = None
        as_stock(module)  # an accelerated gradient does not go through the matrix that a distance returns
    return copied


class Call(NamedTuple):
    """One comparison: the matrix of the distance as a leaf, 1 for scores or -1 for distances, its pairs if known."""

    leaf: Tensor
    sign: int
    masks: PairMasks | None


@contextmanager
def _recorded(loss: nn.Module) -> Iterator[list[Call]]:
    """Make every matrix that a distance of the loss returns a leaf, and note it with the relation of its pairs."""
    calls: list[Call] = []
    inputs: list[dict[str, Any]] = [{}]
    in_regularizer: list[bool] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels")
        inputs.append(dict(zip(names, args, strict=False)) | kwargs)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs.pop()

    def compare(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if in_regularizer or not torch.is_grad_enabled():  # without a gradient: a miner, or a constant weight
            return None
        compared = dict(zip(("query_emb", "ref_emb"), args, strict=False)) | kwargs
        leaf = output.detach().requires_grad_()
        calls.append(Call(leaf, 1 if module.is_inverted else -1, _relation(inputs[-1], **compared)))
        return leaf

    with ExitStack() as stack:
        for module in loss.modules():
            if isinstance(module, BaseDistance):
                _pml.describe(module)
                stack.callback(module.register_forward_hook(compare, with_kwargs=True).remove)
            elif isinstance(module, BaseMetricLossFunction):
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
            elif isinstance(module, BaseRegularizer):
                stack.callback(module.register_forward_pre_hook(lambda *_: in_regularizer.append(True)).remove)
                stack.callback(module.register_forward_hook(lambda *_: in_regularizer.clear(), always_call=True).remove)
        yield calls


def _relation(inputs: dict[str, Any], query_emb: Tensor, ref_emb: Tensor | None = None) -> PairMasks | None:
    """The pairs that the loss was given, if it compares its embeddings with its references."""
    embeddings, labels, indices = (inputs.get(name) for name in ("embeddings", "labels", "indices_tuple"))
    if not isinstance(embeddings, Tensor):
        return None
    references, reference_labels = inputs.get("ref_emb"), inputs.get("ref_labels")
    references = own_set(embeddings, labels, references, reference_labels)
    if references is None:
        references, reference_labels = embeddings, labels
    if not _same(query_emb, embeddings):
        return None
    if not isinstance(references, Tensor) or not _same(query_emb if ref_emb is None else ref_emb, references):
        return None
    if indices is None and (labels is None or reference_labels is None):
        return None
    scores = torch.empty(len(embeddings), len(references), device="meta")
    return Pairs.of(embeddings, labels, indices, references, reference_labels).masks(scores, 0)


def _same(compared: Tensor, given: Tensor) -> bool:
    # By value: a loss may compute in another precision.
    return compared is given or (compared.shape == given.shape and torch.equal(compared, given.to(compared)))
