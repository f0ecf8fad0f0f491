"""A regularizer that makes embeddings fill the space: the rate at which they would have to be coded."""

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
    """The greatest rate of n vectors of unit length in d dimensions: of those that use all directions alike."""
    r = min(n, d)
    return r / 2 * math.log1p(d / (r * distortion)) if r else 1.0


@final
class CodingRateRegularizer(PairModule, _pml.Regularizer):
    r"""An `embedding_regularizer` that is small where embeddings use all directions alike.

    With the embeddings X [n, d], brought to unit length, and r = min(n, d),

        R(X) = 1/2 log det(I + d / (n distortion) X^T X) ,     reg = 1 - R(X) / R_max ,
        R_max = r/2 log(1 + d / (r distortion))

    between 0, for vectors that are orthogonal or spread alike over all directions, and 1. It knows no labels: samples
    of one class are pushed to be orthogonal too, so its weight must be small. It sees the collapse of dimensions,
    which uniformity does not.

    Args:
        distortion: the squared error that is allowed, above 0: the smaller, the more small directions count.
        kwargs: those of every PML regularizer: `distance`, which says whether to normalize, `reducer`, `collect_stats`.

    Shape:
        embeddings [n, d] -> a scalar.

    Defaults:
        CosineSimilarity (embeddings of unit length), and an `embedding_reg_weight` of 1, which is too much: begin with
        0.1.

    Source:
        The coding rate of Yu et al., MCR^2, NeurIPS 2020, arXiv 2006.08558, as in the Anti-Collapse loss of Jiang et
        al., 2024, arXiv 2407.03106. That adds exp(-R), which is 0 in float32 for a batch of 90, and of proxies takes
        the inverse ratio by mistake; linear in R, and on the scale of its maximum, the force does not die.

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
