"""PML's self-supervised loss, for the losses and wrappers of this package too."""

from typing import Any, final

import torch
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.masked import not_self
from pml_ext.pairs import IndicesTuple, PairMasks, Pairs, label_masks
from pml_ext.wrappers.base import handed_on, refuses_indices, takes_references


@final
class SelfSupervisedLoss(nn.Module):
    r"""Treats the views of each sample, its embedding and those of its augmentations, as a class of their own.

        L = L'([x, x', ..], [1..n, 1..n, ..])   if symmetric, else   L'(x, 1..n, references = [x', ..], [1..n, ..])

    Args:
        loss: a loss that takes references: every loss of this package that compares pairs, the losses that PML lists
            for its own wrapper, and wrappers of such a loss.
        symmetric: whether all views are anchors (default), or only the first.

    Shape:
        embeddings [n, d], ref_emb [n, d] and any number of further views [n, d] -> a scalar. Optionally
        `false_negatives`, booleans [n, n]: where (i, j) is true, no view of j is a negative of a view of i.

    Defaults:
        The distance and the reducer of the inner loss.

    Source:
        PML's wrapper of that name, which in PML 2 takes losses by a list of names, and two views. False negatives are
        left out, neither negatives nor positives: the "elimination" of Huynh et al., "Boosting Contrastive
        Self-Supervised Learning with False Negative Cancellation", WACV 2022, arXiv 2011.11765.

    Raises:
        TypeError: a loss that takes no references, a flag that is not one.
        ValueError: in a call, views of different shapes, a mask of another shape or type, or with a loss that takes no
            pairs.

    Example:
        >>> import torch
        >>> from pml_ext.losses import KNNSoftmaxLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> SelfSupervisedLoss(KNNSoftmaxLoss())(embeddings[:2], embeddings[2:])
        tensor(19.6937)
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        if not takes_references(loss, with_indices=False):
            raise TypeError(f"loss must take references, {type(loss).__name__} does not")
        super().__init__()
        self.loss: Any = loss
        self.symmetric: bool = arguments.flag("symmetric", symmetric)

    def forward(
        self, embeddings: Tensor, ref_emb: Tensor, *more: Tensor, false_negatives: Tensor | None = None
    ) -> Tensor:
        """The loss of two or more views of the same samples."""
        views = [ref_emb, *more]
        for number, view in enumerate(views):
            arguments.batch(embeddings, None, view, None)
            if embeddings.shape != view.shape:
                raise ValueError(
                    f"{f'view {number + 2}' if number else 'ref_emb'} must be another view of each of "
                    f"{embeddings.shape[0]} embeddings, got {view.shape[0]}"
                )
        number = len(embeddings)
        if false_negatives is not None:
            self.check_mask(false_negatives, number)
        samples = torch.arange(number, device=embeddings.device)
        rows, columns = (embeddings, samples), (torch.cat(views), samples.repeat(len(views)))
        if self.symmetric:
            rows = columns = torch.cat((embeddings, columns[0])), torch.cat((samples, columns[1]))
        pairs: IndicesTuple | Pairs | None = None
        if false_negatives is not None:
            pos, neg = label_masks(rows[1], columns[1])
            if self.symmetric:
                pos = pos & not_self(0, len(pos), len(pos), pos.device)
            false = false_negatives.to(neg.device).index_select(0, rows[1]).index_select(1, columns[1])
            pairs = handed_on(PairMasks(pos, neg & ~false), self.loss)
        loss: Tensor = self.loss(*rows, pairs, *(() if self.symmetric else columns))
        return loss

    def check_mask(self, false_negatives: Tensor, number: int) -> None:
        """Raise an error for a mask that does not fit the number of samples, or that the loss cannot take."""
        if refuses_indices(self.loss):
            raise ValueError(f"false_negatives need a loss that takes pairs, {type(self.loss).__name__} does not")
        if false_negatives.dtype != torch.bool or false_negatives.shape != (number, number):
            raise ValueError(
                f"false_negatives must be boolean of shape {(number, number)}, got {false_negatives.dtype} of shape "
                f"{tuple(false_negatives.shape)}"
            )
