"""What does it take to write a pair loss that PML accepts and that is proved correct? A formula, and one call.

The loss is the circle loss of Sun et al. 2020, without its weights: log(1 + sum exp(scale (s_n - s_p + margin))).
"""

from typing import Any

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from pml_ext import arguments
from pml_ext.extend import RowLoss, masked_logsumexp, softplus
from pml_ext.testing import check_loss


def pair_margin(sim: Tensor, pos: Tensor, neg: Tensor, *, scale: float, margin: float) -> Tensor:
    """One loss for each row: sim, pos, neg [.., n, m] -> [.., n]."""
    nearest_negative = masked_logsumexp(scale * sim, neg)
    farthest_positive = masked_logsumexp(-scale * sim, pos)
    return softplus(nearest_negative + farthest_positive + scale * margin)


class PairMarginLoss(RowLoss):
    """Every positive closer than every negative by a margin, smoothly."""

    def __init__(self, *, scale: float = 16, margin: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            scale=arguments.positive("scale", scale), margin=arguments.non_negative("margin", margin)
        )

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        return pair_margin(sim, pos, neg, **self.hyperparameters())


def main() -> None:
    check_loss(PairMarginLoss)
    print("PairMarginLoss passes every law: gradient signs, invariances, degenerate batches, chunks, compilation")


if __name__ == "__main__":
    main()
