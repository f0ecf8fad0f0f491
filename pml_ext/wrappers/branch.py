"""A loss on each of several slices of the embedding."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import WrapperArguments
from pml_ext.pairs import IndicesTuple
from pml_ext.similarity import unit
from pml_ext.wrappers.base import LossWrapper, checked_sizes, has_only_directions, slice_sizes


@final
class BranchLoss(LossWrapper):
    r"""Cuts the embedding into slices of its columns and takes the mean of a loss on each of them.

        L = 1/B sum_b L'(x[:, slice b])

    where each slice is normalized to unit length and B is the number of slices. To mine within each slice, wrap a
    `MinedLoss`.

    Args:
        loss: the loss of every slice. It is one object: its parameters, if any, are shared by the slices.
        sizes: the number of columns of each slice, which add up to all d columns; or one number B for B near-equal
            slices, of which slice b ends at column floor(b d / B).
        normalize: whether slices are normalized, even if the distance of the loss does not normalize. False does not
            switch off the normalization of the distance: use one with `normalize_embeddings=False`.
        kwargs: those of `LossWrapper`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        The distance and the reducer of the inner loss.

    Source:
        The slicing of DM18's BinBranch, DistWeightDevBranch and BDWNeighbour, after Opitz et al., "BIER: Boosting
        Independent Embeddings Robustly", ICCV 2017, whose boosting weights and diversity terms are not included (see
        `BranchDiversityRegularizer`). DM18 does not normalize its slices, so that their similarities hardly reach its
        thresholds; `normalize=False` and `DotProductSimilarity(normalize_embeddings=False)` reproduce this.

    Raises:
        TypeError, ValueError: a loss that is not a PML loss, sizes that are not positive integers; in a call, sizes
            that do not fit the dimension of the embeddings.

    Example:
        >>> import torch
        >>> from pml_ext.losses import BinomialDevianceLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> BranchLoss(BinomialDevianceLoss(), sizes=2)(embeddings, labels)
        tensor(1.0633)
    """

    def __init__(
        self, loss: nn.Module, sizes: int | Sequence[int], *, normalize: bool = True, **kwargs: Unpack[WrapperArguments]
    ) -> None:
        super().__init__(loss, **kwargs)
        self.record_hyperparameters(sizes=checked_sizes(sizes), normalize=arguments.flag("normalize", normalize))

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The mean of the losses of the slices."""
        slices = self.slices(embeddings)
        if ref_emb is embeddings:
            losses = [self.loss(x, labels, indices_tuple) for x in slices]
        else:
            refs = self.slices(ref_emb)
            losses = [self.loss(x, labels, indices_tuple, ref, ref_labels) for x, ref in zip(slices, refs, strict=True)]
        return self.reduced(torch.stack(losses).mean())

    def slices(self, embeddings: Tensor) -> list[Tensor]:
        """The slices of embeddings [n, d] as the loss takes them, each [n, its size]."""
        slices = embeddings.split(slice_sizes(self.sizes, embeddings.shape[1]), dim=1)
        return [unit(x) for x in slices] if self.normalize and not has_only_directions(self.loss) else list(slices)
