"""General pair weighting: what any pair loss does to each pair of a batch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.base import IndicesTuple, PairMatrixLoss, pair_relation
from pml_ext.pairs import PairMasks


@dataclass(frozen=True)
class PairWeights:
    """The pair weights of a loss on a batch of n anchors and m references.

    A loss that compares several times, branch by branch, has one matrix for each comparison: [b, n, m].

    Args:
        loss: the reduced loss.
        similarity: scores S [.., n, m], larger is closer.
        derivative: dL/dS [.., n, m], exact through the reducer, S_ij and S_ji taken as independent.
        pos: the positives that the loss was given, [.., n, m].
        neg: the negatives that the loss was given, [.., n, m].
    """

    loss: Tensor
    similarity: Tensor
    derivative: Tensor
    pos: Tensor
    neg: Tensor

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


def pair_weights(
    loss: BaseMetricLossFunction,
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: IndicesTuple | None = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> PairWeights:
    """The derivative of any pair loss by its similarities: W_ij = |dL/dS_ij|.

    The matrix that the loss's distance returns is made the leaf of the graph, so this works for PML's losses and ours,
    wrapped or not, and for every reducer. The gradient of the loss is that of
    F = sum_ij sg[W_ij] S_ij over negatives minus the same over positives.

    Args:
        loss: a PML loss; its state (statistics, running centres, memory) moves as in any forward pass.
        embeddings: [n, d].
        labels: [n].
        indices_tuple: as in every PML loss, or `PairMasks`.
        ref_emb: [m, d].
        ref_labels: [m].

    Raises:
        ValueError: the loss never compares embeddings through its distance, or compares sets of different sizes.

    Source:
        Wang et al., "Multi-Similarity Loss with General Pair Weighting", CVPR 2019, arXiv 1904.06627.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> pair_weights(RAWLoss(), embeddings, labels).pull
        tensor([0.0000, 0.1125, 0.0886, 0.0000])
    """
    if not isinstance(loss, nn.Module):
        raise TypeError(f"loss must be a PML loss, got {type(loss).__name__}")
    arguments.batch(embeddings, labels, ref_emb, ref_labels)
    with _recorded(loss) as calls, torch.enable_grad():
        value = loss(embeddings.detach(), labels, indices_tuple, ref_emb, ref_labels)
        leaves = [leaf for leaf, _, _ in calls]
        name = type(loss).__name__
        if not leaves:
            raise ValueError(f"{name} never compares embeddings through its distance, so it has no pair weights")
        shapes = sorted({tuple(leaf.shape) for leaf in leaves})
        if len(shapes) > 1:
            raise ValueError(f"{name} compares sets of different sizes, {shapes}: take the weights of its parts")
        if not isinstance(value, Tensor) or value.ndim:
            raise ValueError(f"{name} must be reduced to a scalar, got {getattr(value, 'shape', type(value).__name__)}")
        if value.requires_grad:
            gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        else:
            gradients = tuple(torch.zeros_like(leaf) for leaf in leaves)
    # A distance is minus a score, and so is its derivative.
    signs = [1 if inverted else -1 for _, inverted, _ in calls]
    masks = [mask for _, _, mask in calls]
    return PairWeights(
        loss=value.detach(),
        similarity=_stacked([sign * leaf.detach() for sign, leaf in zip(signs, leaves, strict=True)]),
        derivative=_stacked([sign * gradient for sign, gradient in zip(signs, gradients, strict=True)]),
        pos=_stacked([mask.pos for mask in masks]),
        neg=_stacked([mask.neg for mask in masks]),
    )


def _stacked(matrices: list[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.stack(matrices)


Call = tuple[Tensor, bool, PairMasks]


@contextmanager
def _recorded(loss: nn.Module) -> Iterator[list[Call]]:
    """Make every matrix that a distance of the loss returns a leaf, and note it with the relation of its pairs."""
    calls: list[Call] = []
    inputs: list[dict[str, Any]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels")
        inputs.append(dict(zip(names, args, strict=False)) | kwargs)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs.pop()

    def compare(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():  # a miner, or a weight that the loss takes as constant
            return None
        leaf = output.detach().requires_grad_()
        calls.append((leaf, bool(module.is_inverted), _relation(inputs[-1], leaf.shape)))
        return leaf

    with ExitStack() as stack:
        for module in loss.modules():
            if isinstance(module, BaseDistance):
                stack.callback(module.register_forward_hook(compare).remove)
            elif isinstance(module, BaseMetricLossFunction):
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
            if isinstance(module, PairMatrixLoss) and module.chunk_size is not None:
                stack.callback(setattr, module, "chunk_size", module.chunk_size)
                module.chunk_size = None
        yield calls


def _relation(inputs: dict[str, Any], shape: torch.Size) -> PairMasks:
    embeddings, labels, indices = (inputs.get(name) for name in ("embeddings", "labels", "indices_tuple"))
    assert isinstance(embeddings, Tensor)
    ref_emb, ref_labels = inputs.get("ref_emb"), inputs.get("ref_labels")
    if ref_emb is None:
        ref_emb, ref_labels = embeddings, labels
    if shape != (embeddings.shape[0], ref_emb.shape[0]):
        raise ValueError(
            f"the loss compares {tuple(shape)}, not its {embeddings.shape[0]} embeddings with "
            f"{ref_emb.shape[0]} references"
        )
    return pair_relation(embeddings, labels, indices, ref_emb, ref_labels)(0, shape[0])
