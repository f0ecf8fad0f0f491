"""The part that every loss made of another loss shares."""

from typing import Any

from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from torch import Tensor

from pml_ext import arguments
from pml_ext.base import IndicesTuple


class LossWrapper(BaseMetricLossFunction):
    """A loss made of another loss, ours or PML's. Subclasses implement `compute_loss`.

    The inner loss keeps its own distance, reducer and regularizers; the wrapper shares its distance.

    Args:
        loss: a PML loss, that is a `BaseMetricLossFunction`.
        kwargs: `embedding_regularizer`, `embedding_reg_weight`, `collect_stats` of the wrapper itself.
    """

    def __init__(self, loss: BaseMetricLossFunction, **kwargs: Any) -> None:
        if not isinstance(loss, BaseMetricLossFunction):
            raise TypeError(f"loss must be a PML loss (a BaseMetricLossFunction), got {type(loss).__name__}")
        super().__init__(distance=loss.distance, **kwargs)
        self.loss = loss

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; the arguments are those of every PML loss."""
        arguments.batch(embeddings, labels, ref_emb, ref_labels)
        loss: Tensor = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return loss

    @staticmethod
    def reduced(loss: Tensor) -> dict[str, Any]:
        """PML's loss dict of a value that the inner loss has reduced already."""
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}
