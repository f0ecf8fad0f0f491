"""A loss on each of several random slices of the embedding."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext.hyperparameters import SeededWrapperArguments
from pml_ext.pairs import IndicesTuple
from pml_ext.seeded import Seeded
from pml_ext.wrappers.base import LossWrapper
from pml_ext.wrappers.branch import BranchLoss


@final
class RandomSliceLoss(Seeded, LossWrapper):
    r"""`BranchLoss` on columns that are shuffled anew in every call, an ensemble of random slices of the embedding.

        L = 1/B sum_b L'(x[:, part b of a random permutation of the columns])

    Args:
        loss: the loss of every slice; its parameters, if any, are shared by the slices.
        sizes: the number of columns of each slice, which add up to all columns; or one number B, for B near-equal
            slices.
        normalize: whether slices are normalized, as in `BranchLoss`.
        seed: None for torch's global generator, an integer, or a `torch.Generator`, as in `Seeded`.
        kwargs: those of `LossWrapper`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        The distance and the reducer of the inner loss, torch's global generator.

    Source:
        DM18's EnsembleDWNeighbour. The bounds of the third slice are wrong in its code: of 512 columns, 170 are used
        twice and 170 never. Here every column is in exactly one slice.

    Raises:
        TypeError, ValueError: a loss that is not a PML loss, sizes that are not positive integers, a seed that is not
            one; in a call, sizes that do not fit the dimension of the embeddings.

    Example:
        >>> import torch
        >>> from pml_ext.losses import BinomialDevianceLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> RandomSliceLoss(BinomialDevianceLoss(), sizes=2, seed=0)(embeddings, labels)
        tensor(1.0633)
    """

    fixed: ClassVar[tuple[str, ...]] = ("sizes", "normalize")

    def __init__(
        self,
        loss: nn.Module,
        sizes: int | Sequence[int],
        *,
        normalize: bool = True,
        **kwargs: Unpack[SeededWrapperArguments],
    ) -> None:
        super().__init__(loss=BranchLoss(loss, sizes, normalize=normalize), **kwargs)
        self.record_hyperparameters(sizes=self.loss.sizes, normalize=self.loss.normalize)

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The loss on shuffled columns, the same order for embeddings and references."""
        device = embeddings.device
        order = torch.randperm(embeddings.shape[1], generator=self.generator(device), device=device)
        refs = (None, None) if ref_emb is embeddings else (ref_emb[:, order], ref_labels)
        return self.reduced(self.loss(embeddings[:, order], labels, indices_tuple, *refs))
