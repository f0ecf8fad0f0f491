"""The center loss: samples are pulled to the center of their class."""

from typing import Any, ClassVar, Literal, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import SampleLoss
from pml_ext.centers import CenterSource, LearnedCenters, RunningCenters
from pml_ext.hyperparameters import LossArguments


def center(embeddings: Tensor, own_centers: Tensor) -> Tensor:
    """Half the squared distance of each sample to its center: embeddings, own_centers [.., n, d] -> [.., n]."""
    return (embeddings - own_centers).square().sum(-1) / 2


@final
class CenterLoss(SampleLoss):
    r"""Pulls each sample to the center of its class, which follows the samples or is learned.

        L_i = 1/2 ||x_i - c_{y_i}||^2

    With centers="running", the default, the centers are not parameters but buffers: after the loss of each batch in
    training mode, with n_k samples of class k,

        c_k <- c_k - alpha / (1 + n_k)  sum_{i: y_i = k} (c_k - x_i)

    It pushes nothing apart. Use it beside another loss, with a small weight: alone it lets all embeddings collapse to
    one point.

    Args:
        num_classes: the number of classes; labels are in 0..num_classes - 1.
        embedding_size: the dimension of the embeddings.
        centers: "running"; "learned", where the centers are parameters and the loss needs an optimizer; or any source
            of `pml_ext.centers`, for example `BatchCenters()`, for which the other arguments have no effect.
        alpha: the rate at which running centers follow, in (0, 1].
        kwargs: those of `SampleLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance(power=2, normalize_embeddings=False) (squared Euclidean distance; of its arguments only
        `normalize_embeddings` may differ: True normalizes the samples and learned centers), MeanReducer (divides by all
        n samples).

    Source:
        Wen, Zhang, Li, Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016 (weight
        0.003 beside a softmax loss), with the sum over the batch, which `SumReducer` gives. Running centers start at
        zero, and in several processes follow the samples of all processes; the loss uses the centers as they were
        before the batch. DM18's loss of this name is `ClassCenterMarginLoss` here.

    Raises:
        TypeError, ValueError: an argument or a label out of range, a distance other than the squared Euclidean,
            embeddings of another dimension, an `indices_tuple` or `ref_emb`. On a GPU labels are checked without a
            synchronization, by an assertion on the device.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss = CenterLoss(num_classes=2, embedding_size=2)
        >>> loss(embeddings, labels), loss(embeddings, labels)
        (tensor(0.5000), tensor(0.2639))
    """

    fixed: ClassVar[tuple[str, ...]] = ("num_classes", "embedding_size", "alpha")

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        centers: Literal["running", "learned"] | CenterSource = "running",
        alpha: float = 0.5,
        **kwargs: Unpack[LossArguments],
    ) -> None:
        super().__init__(**kwargs)
        distance = self.distance
        if not (isinstance(distance, LpDistance) and distance.p == 2 and distance.power == 2):
            raise ValueError(f"distance must be LpDistance(p=2, power=2), got {distance}")
        if centers == "running":
            centers = RunningCenters(num_classes, embedding_size, alpha=alpha)
        elif centers == "learned":
            centers = LearnedCenters(num_classes, embedding_size, normalize=distance.normalize_embeddings)
        elif not isinstance(centers, CenterSource):
            raise ValueError(f"centers must be 'running', 'learned' or a CenterSource, got {centers!r}")
        self.centers = centers
        self.record_hyperparameters(
            num_classes=arguments.count("num_classes", num_classes),
            embedding_size=arguments.count("embedding_size", embedding_size),
            alpha=arguments.positive("alpha", alpha),
        )

    def get_default_distance(self) -> Any:
        """Squared Euclidean distance."""
        return LpDistance(power=2, normalize_embeddings=False)

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Half the squared distance of each sample to its center; 0 if it has none."""
        centers = self.centers(embeddings, labels)
        has_center = centers.group >= 0
        own = centers.points.to(embeddings.dtype)[torch.where(has_center, centers.group, 0)]
        return torch.where(has_center, center(embeddings, own), 0.0)
