"""A margin between the centers of classes, and one around each of them."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.reducers import SumReducer
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import _pml, arguments
from pml_ext.base import SampleLoss
from pml_ext.centers import first_of_class, group_means
from pml_ext.hyperparameters import LossArguments
from pml_ext.masked import Counted, looks_are_free, masked_max
from pml_ext.pairs import label_masks
from pml_ext.similarity import Similarity, scores_of


def class_center_margin(
    center_sim: Tensor, other: Tensor, farthest: Tensor, *, center_margin: float, sample_margin: float
) -> Tensor:
    """Loss of each class. See `ClassCenterMarginLoss`.

    center_sim [.., c, c] of each center and every center, other [.., c, c] where that is another class, farthest
    [.., c] of each center and the farthest sample of its class -> [.., c].
    """
    nearest = masked_max(center_sim, other).squeeze(-1)
    return (nearest - center_margin).relu() + (sample_margin - farthest).relu()


@final
class ClassCenterMarginLoss(SampleLoss):
    r"""Pushes the centers of the nearest classes apart, and pulls the farthest sample of each class to its center.

    With c_k the mean of class k in the batch, through which the gradient flows too:

        L_k = [center_margin - min_{l != k} D(c_k, c_l)]+ + [max_{i: y_i = k} D(x_i, c_k) - sample_margin]+

    Args:
        center_margin: the distance above which the centers of two classes are not pushed; an absolute distance.
        sample_margin: the distance to its center below which a sample is not pulled; an absolute distance.
        kwargs: those of `SampleLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings; their centers are means of these, and not normalized
        again), SumReducer (the sum over the classes of the batch; `DivisorReducer` gives their mean). The loss dict
        holds the loss of each class at its first sample, 0 at the others.

    Source:
        DM18's CenterLoss, which is not that of Wen et al. (that is `CenterLoss`). Its code minimizes the distance of
        centers that are too close, which pulls them together, and subtracts no margin, so that the value jumps at the
        margin. Neither is reproduced: here both terms are hinges, and centers are pushed. In a batch of one class, on
        which the reference code raises, there is no other center and the first term is 0.

    Raises:
        TypeError, ValueError: a margin that is not a finite number; an `indices_tuple` or `ref_emb`.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> ClassCenterMarginLoss()(embeddings, labels)
        tensor(0.1634)
    """

    levels: ClassVar[tuple[str, ...]] = ("center_margin", "sample_margin")

    def __init__(
        self, *, center_margin: float = 1.0, sample_margin: float = 0.3, **kwargs: Unpack[LossArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            center_margin=arguments.finite("center_margin", center_margin),
            sample_margin=arguments.finite("sample_margin", sample_margin),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def get_default_reducer(self) -> Any:
        """Sum over the classes."""
        return SumReducer()

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor | Counted:
        """The loss of each class at its first sample."""
        n = len(labels)
        if n == 0:
            return embeddings.sum(-1)
        # A class goes by the number of its first sample: the shapes need not depend on the data.
        first = first_of_class(labels)
        is_class = first == torch.arange(n, device=labels.device)
        means = group_means(embeddings, first, n)
        own = self._own_scores(embeddings, means[first])
        farthest = torch.full_like(own, torch.inf).scatter_reduce(0, first, own, "amin")
        if looks_are_free(is_class):
            classes = is_class.nonzero().squeeze(1)
            other = ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
            losses = self._losses(means[classes], other, farthest[classes])
            return Counted(own.new_zeros(n).index_put((classes,), losses), is_class.long())
        other = label_masks(labels, labels).neg & is_class
        losses = self._losses(means[first], other, torch.where(is_class, farthest, 0.0))
        return Counted(torch.where(is_class, losses, 0.0), is_class.long())

    def _losses(self, centers: Tensor, other: Tensor, farthest: Tensor) -> Tensor:
        return class_center_margin(self._scores(centers, centers), other, farthest, **self.hyperparameters())

    def _scores(self, embeddings: Tensor, centers: Tensor) -> Tensor:
        """Larger is closer, and nothing is normalized: the samples are already, and means are not to be."""
        similarity = Similarity.of(self.distance)
        if similarity is not None:
            return scores_of(
                embeddings, None if centers is embeddings else centers, similarity._replace(normalize=False)
            )
        matrix = _pml.matrix_of(self.distance, embeddings, centers)
        return matrix if self.distance.is_inverted else -matrix

    def _own_scores(self, embeddings: Tensor, centers: Tensor) -> Tensor:
        """The score of each embedding with the center in the same row, [n]."""
        similarity = Similarity.of(self.distance)
        if similarity is None:
            return self._scores(embeddings, centers).diagonal()
        if similarity.euclidean:
            distances: Tensor = torch.linalg.vector_norm(embeddings - centers, dim=1)
            return -distances.pow(similarity.power)
        return (embeddings * centers).sum(1)
