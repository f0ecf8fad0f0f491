"""PML's self-supervised loss, for the losses and wrappers of this package too."""

from typing import final

import pytorch_metric_learning.losses as pml
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.wrappers.base import takes_references


@final
class SelfSupervisedLoss(pml.SelfSupervisedLoss):  # type: ignore[misc, unused-ignore]
    r"""Takes two views of each sample as a class of its own: embeddings and those of augmented samples.

        L = L'([x, x'], [1..n, 1..n])   if symmetric, else   L'(x, 1..n, references = x', 1..n)

    Args:
        loss: a loss that takes references: all of this package do, of PML's those that it lists, of the wrappers
            those whose inner loss does.
        symmetric: whether both views are anchors.

    Shape:
        embeddings [n, d], ref_emb [n, d] -> a scalar.

    Defaults:
        The distance and the reducer of the inner loss.

    Source:
        A subclass of PML's wrapper of that name, which takes losses by a list of names.

    Raises:
        TypeError: a loss that takes no references.
        ValueError: in a call, views of different shapes.

    Example:
        >>> import torch
        >>> from pml_ext.losses import KNNSoftmaxLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> SelfSupervisedLoss(KNNSoftmaxLoss())(embeddings[:2], embeddings[2:])
        tensor(19.6937)
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        if not takes_references(loss, self.supported_losses(), with_indices=False):
            raise TypeError(f"loss must take references, {type(loss).__name__} does not")
        super().__init__(loss, symmetric)

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """PML's check by name; the loss itself was checked before."""

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of two views of the same samples."""
        arguments.batch(embeddings, None, ref_emb, None)
        if embeddings.shape != ref_emb.shape:
            raise ValueError(
                f"ref_emb must be a second view of each of {embeddings.shape[0]} embeddings, got {ref_emb.shape[0]}"
            )
        loss: Tensor = super().forward(embeddings, ref_emb)
        return loss
