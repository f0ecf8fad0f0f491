"""Negatives that are harder than the hardest positive."""

from functools import partial
from typing import Any, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import MinerArguments
from pml_ext.masked import FAR, compared, has_any, of_rows, only
from pml_ext.miners.base import PairMiner, in_row_blocks


def hard_negative_pair(sim: Tensor, pos: Tensor, neg: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """All positives of anchors with a hard negative, and these: sim, pos, neg [.., n, m] -> narrowed pos, neg."""
    hardest_pos = only(sim, pos, FAR).amin(-1, keepdim=True)  # [.., n, 1]
    neg = neg & compared(torch.gt, sim, hardest_pos - epsilon)
    return of_rows(pos, has_any(neg)), neg


@final
class HardNegativePairMiner(PairMiner):
    r"""Keeps the negatives more similar than the least similar positive minus epsilon, and all positives.

        N'_i = { n in N_i : s_in > min_{p in P_i} s_ip - epsilon }

    An anchor without such negatives drops out, with its positives.

    Args:
        epsilon: how much less similar than the hardest positive a negative may be, at least 0; a difference of two
            scores.
        kwargs: those of `PairMiner`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Defaults:
        CosineSimilarity.

    Source:
        The selection in DM18's BinDeviance and MarginDeviance losses. An anchor without positives, on which
        the reference code raises, drops out.

    Raises:
        TypeError, ValueError: an epsilon that is not a number, not finite or negative.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, _, negatives = HardNegativePairMiner()(embeddings, labels)
        >>> anchors, negatives
        (tensor([1, 2]), tensor([2, 1]))
    """

    is_row_function = True

    def __init__(self, *, epsilon: float = 0.05, **kwargs: Unpack[MinerArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(epsilon=arguments.non_negative("epsilon", epsilon))

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """All positives of anchors with a hard negative, and these."""
        return in_row_blocks(partial(hard_negative_pair, **self.hyperparameters()), sim, pos, neg)
