"""A regularizer that makes embeddings fill the space: the rate that is needed to code them."""

import math
from typing import Any, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from pml_ext import _pml, arguments
from pml_ext.reducer import already_reduced
from pml_ext.similarity import PairModule, normalized
from pml_ext.vectors import at_least_single


def coding_rate(x: Tensor, *, distortion: float) -> Tensor:
    """The rate 1/2 log det(I + d / (n distortion) X^T X) of vectors [n, d]; 0 for none."""
    n, d = x.shape
    if n == 0:
        return x.sum()
    # The smaller of the two products has the same determinant.
    product = x.T @ x if d < n else x @ x.T
    matrix = torch.eye(len(product), dtype=x.dtype, device=x.device) + d / (n * distortion) * product
    rate: Tensor = torch.linalg.cholesky_ex(matrix).L.diagonal().log().sum()
    return rate


def largest_coding_rate(n: int, d: int, *, distortion: float) -> float:
    """The largest rate of n vectors of unit length in d dimensions, reached if they use all directions equally."""
    r = min(n, d)
    return r / 2 * math.log1p(d / (r * distortion)) if r else 1.0


@final
class CodingRateRegularizer(PairModule, _pml.Regularizer):
    r"""An `embedding_regularizer` that is small if embeddings use all directions equally.

    With the embeddings X [n, d], normalized to unit length, and r = min(n, d),

        R(X) = 1/2 log det(I + d / (n distortion) X^T X) ,     reg = 1 - R(X) / R_max ,
        R_max = r/2 log(1 + d / (r distortion))

    between 0, for vectors that are orthogonal or spread equally over all directions, and 1. It does not use labels:
    samples of one class are pushed to be orthogonal too, so its weight must be small. Unlike uniformity, it is
    sensitive to dimensional collapse, embeddings that use only some of the dimensions.

    Args:
        distortion: the squared coding error that is allowed, above 0. The smaller it is, the more directions of small
            variance count.
        kwargs: those of every PML regularizer: `distance`, which says whether to normalize, `reducer`, `collect_stats`.

    Shape:
        embeddings [n, d] -> a scalar.

    Defaults:
        CosineSimilarity (embeddings of unit length), and PML's `embedding_reg_weight` of 1, which is too large: begin
        with 0.1.

    Source:
        The coding rate of Yu et al., MCR^2, NeurIPS 2020, arXiv 2006.08558, as in the Anti-Collapse loss of Jiang et
        al., 2024, arXiv 2407.03106. The latter adds exp(-R), which is 0 in float32 for a batch of 90, and for proxies
        uses the inverse ratio by mistake. Here the term is linear in R and relative to its maximum, so its gradient
        does not vanish.

    Raises:
        TypeError, ValueError: a distortion that is not a number, not finite or not above 0.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> CodingRateRegularizer()(embeddings)
        tensor(0.0040)
    """

    def __init__(self, *, distortion: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(distortion=arguments.positive("distortion", distortion))

    def get_default_distance(self) -> Any:
        """Embeddings of unit length."""
        return CosineSimilarity()

    def compute_loss(self, embeddings: Tensor) -> dict[str, Any]:
        """PML's loss dict."""
        x = at_least_single(embeddings)
        with torch.autocast(x.device.type, enabled=False):
            if self.distance.normalize_embeddings:
                x = normalized(self.distance, x)
            rate = coding_rate(x, distortion=self.distortion)
        n, d = x.shape
        loss = rate if n == 0 else 1 - rate / largest_coding_rate(n, d, distortion=self.distortion)
        return already_reduced(loss)
