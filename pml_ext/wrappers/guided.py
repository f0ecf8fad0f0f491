"""Any loss, on the pairs that a guide allows."""

from typing import Any, final

from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn

from pml_ext.miners import GuidedMiner
from pml_ext.wrappers.base import refuses_indices, takes_masks


@final
class GuidedLoss(nn.Module):
    r"""Computes a loss on the pairs that another model's embeddings of the same samples allow.

        L = L'(x, y, indices_tuple = miner(x, y, guide=g))

    where g are the embeddings of the guide. They may be computed once for the whole data set; pass the rows of the
    samples in the batch. For pairs of texts, put both texts into the batch with the number of the pair as label; each
    text is then compared with all others.

    Args:
        loss: a PML loss that takes an `indices_tuple`.
        miner: a `GuidedMiner`; None (default) for one with its defaults.

    Shape:
        embeddings [n, d], labels [n], guide [n, e] -> what the loss gives. References ref_emb [m, d] and ref_labels [m]
        need guide_refs [m, e].

    Defaults:
        Distance and reducer of the inner loss, cosine similarity of the guide's embeddings.

    Source:
        After Solatorio 2024, GISTEmbed, arXiv 2402.16829. The value is not that of its code, which uses only the
        queries as anchors, and adds the similarities among the positives to their rows.

    Raises:
        TypeError: a loss that is not a PML loss or takes no pairs, a miner that is not a `GuidedMiner`. In a call, no
            guide.

    Example:
        >>> import torch
        >>> from pml_ext.losses import BinomialDevianceLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> guide = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
        >>> GuidedLoss(BinomialDevianceLoss())(embeddings, labels, guide=guide)
        tensor(0.6678)
    """

    def __init__(self, loss: nn.Module, *, miner: GuidedMiner | None = None) -> None:
        super().__init__()
        if not isinstance(loss, BaseMetricLossFunction):
            raise TypeError(f"loss must be a PML loss (a BaseMetricLossFunction), got {type(loss).__name__}")
        if refuses_indices(loss):
            raise TypeError(f"loss must take an indices_tuple, {type(loss).__name__} does not")
        if miner is not None and not isinstance(miner, GuidedMiner):
            raise TypeError(f"miner must be a GuidedMiner, got {type(miner).__name__}")
        self.loss: Any = loss
        self.miner: GuidedMiner = GuidedMiner() if miner is None else miner

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        guide: Tensor,
        guide_refs: Tensor | None = None,
    ) -> Tensor:
        """The loss of the pairs of a batch that the guide allows."""
        if guide is None:
            raise TypeError("guide must be embeddings of the same samples, got None")
        pairs = self.miner.masks(embeddings, labels, ref_emb, ref_labels, guide=guide, guide_refs=guide_refs)
        self.miner.output_assertion(pairs)
        given = pairs if takes_masks(self.loss) else pairs.indices()
        loss: Tensor = self.loss(embeddings, labels, given, ref_emb, ref_labels)
        return loss
