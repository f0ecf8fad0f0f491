"""A regularizer that makes the slices of an embedding disagree about neighbors."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from pml_ext import _pml, arguments
from pml_ext.reducer import already_reduced
from pml_ext.similarity import PairModule
from pml_ext.wrappers.base import checked_sizes, slice_sizes


def branch_diversity(sim: Tensor, *, beta: float) -> Tensor:
    """Log 2 minus the mean divergence of the branches, for each anchor: sim [branches, n, m] -> [n].

    See `BranchDiversityRegularizer`.
    """
    log = (beta * sim).log_softmax(-1)
    divergences = [jensen_shannon(a, b) for a, b in combinations(log, 2)]
    return math.log(2) - torch.stack(divergences).mean(0)


def jensen_shannon(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Jensen-Shannon divergence, in 0..log 2, of two distributions, given as logarithms: [.., m], [.., m] -> [..]."""
    log_mean = torch.logaddexp(log_a, log_b) - math.log(2)
    return (log_a.exp() * (log_a - log_mean) + log_b.exp() * (log_b - log_mean)).sum(-1) / 2


@final
class BranchDiversityRegularizer(PairModule, _pml.Regularizer):
    r"""An `embedding_regularizer` that is small if the slices of an embedding have different neighbors.

    Slice b, normalized by the distance, gives every sample i a distribution A^b_i = softmax_{j != i}(-beta D^b_ij)
    over the others, and

        R = mean over i, over pairs of slices a, b, of  log 2 - JS(A^a_i, A^b_i)
        JS(A, B) = 1/2 KL(A || M) + 1/2 KL(B || M),   M = (A + B) / 2,   between 0 and log 2

    Args:
        sizes: the number of columns of each slice, or the number of near-equal slices, as in `BranchLoss`; at least two
            slices.
        beta: steepness of the distributions, above 0.
        kwargs: those of every PML regularizer: `distance`, `reducer`, `collect_stats`.

    Shape:
        embeddings [n, d] -> a scalar; 0 for fewer than two samples.

    Defaults:
        LpDistance (Euclidean distance of normalized slices), MeanReducer (divides by all n samples).

    Source:
        DM18's JSDivKNNSoftmax is `BranchLoss(KNNSoftmaxLoss(...), sizes, embedding_regularizer=this)`. Its divergence
        has the arguments of both KL terms swapped and so is unbounded; its term exp(10 (1 - JS)) is at least e^3 for a
        true JS divergence; and its JSDiv keeps the diagonal, which dominates. None of this is reproduced. Its slices
        are drawn once at random, which for a learned embedding only permutes the columns.

    Raises:
        TypeError, ValueError: arguments of the wrong type or out of range; in a call, sizes that do not fit the
            dimension of the embeddings.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> BranchDiversityRegularizer(2, beta=4)(embeddings)
        tensor(0.3923)
    """

    def __init__(self, sizes: int | Sequence[int], *, beta: float = 40, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes: int | tuple[int, ...] = checked_sizes(sizes)
        if self.sizes == 1 or (isinstance(self.sizes, tuple) and len(self.sizes) < 2):
            raise ValueError(f"sizes must be those of at least two slices, got {sizes!r}")
        self.record_hyperparameters(beta=arguments.positive("beta", beta))

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized slices."""
        return LpDistance()

    def compute_loss(self, embeddings: Tensor) -> dict[str, Any]:
        """PML's loss dict."""
        n = embeddings.shape[0]
        if n < 2:
            return already_reduced(0)
        slices = embeddings.split(slice_sizes(self.sizes, embeddings.shape[1]), dim=1)
        sim = torch.stack([self.similarity(x, None) for x in slices])
        # Without the diagonal: in the flat matrix it is every (n + 1)-th number, from the first on.
        sim = sim.flatten(1)[:, 1:].unflatten(1, (n - 1, n + 1))[..., :-1].reshape(-1, n, n - 1)
        losses = branch_diversity(sim, **self.hyperparameters())
        indices = torch.arange(n, device=losses.device)
        return {"loss": {"losses": losses, "indices": indices, "reduction_type": "element"}}
