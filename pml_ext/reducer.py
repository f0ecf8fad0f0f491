"""How losses of anchors become PML's loss dict, and the reducer of losses that count for themselves."""

from typing import Any

import torch
from pytorch_metric_learning.reducers import DivisorReducer
from torch import Tensor

from pml_ext.masked import looks_are_free

LossDict = dict[str, Any]


def by_element(losses: Tensor, counts: Tensor | int) -> LossDict:
    """PML's loss dict of one loss per anchor [n], and of what each adds to the divisor [n], or one number for each."""
    divisor: Tensor | int
    if isinstance(counts, int):
        divisor = counts * len(losses)
    else:
        divisor = counts.sum()
        if looks_are_free(divisor):
            divisor = int(divisor)
    indices = torch.arange(len(losses), device=losses.device)
    return {"loss": {"losses": losses, "indices": indices, "reduction_type": "element", "divisor": divisor}}


def already_reduced(loss: Tensor | float) -> LossDict:
    """PML's loss dict of one value, with which a reducer has nothing to do."""
    return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


class StaticDivisorReducer(DivisorReducer):
    """PML's `DivisorReducer`, without the host synchronization of its `if divisor != 0`. Same values."""

    def reset_stats(self) -> None:
        """Forget the statistics of the last call, if there are any."""
        if "_record_these_stats" in self.__dict__:  # for which PML looks in a slow way
            super().reset_stats()

    def sum_and_divide(self, losses: Tensor, embeddings: Tensor, divisor: Tensor | float) -> Tensor:
        """Sum of the losses over the divisor; 0 where the divisor is 0."""
        if not isinstance(divisor, Tensor):
            return losses.sum() / divisor if divisor else losses.sum() * 0
        divisor = divisor.to(losses.device)
        return losses.sum() / torch.where(divisor == 0, 1, divisor) * (divisor != 0)
