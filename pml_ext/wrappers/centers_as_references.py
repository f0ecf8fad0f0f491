"""Any loss, with embeddings compared to class centers instead of to one another."""

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.centers import Centers, CenterSource, leave_one_out
from pml_ext.hyperparameters import WrapperArguments
from pml_ext.masked import looks_are_free
from pml_ext.pairs import ByMasks, IndicesTuple, PairMasks, Pairs, label_masks
from pml_ext.similarity import normalized
from pml_ext.vectors import at_least_single
from pml_ext.wrappers.base import (
    LossWrapper,
    handed_on,
    has_only_directions,
    refuses_indices,
    refuses_references,
    takes_masks,
    takes_pairs,
)


def center_masks(labels: Tensor, centers: Centers) -> PairMasks:
    """The relation of samples to centers: labels [n] -> masks [n, c]."""
    pos, neg = label_masks(labels, centers.labels)
    return PairMasks(pos, neg) if centers.used is None else PairMasks(pos & centers.used, neg & centers.used)


def leave_one_out_masks(labels: Tensor, centers: Centers, has_others: Tensor) -> ByMasks:
    """The relation of samples to references that are the c centers and, after them, a mean for each sample.

    The mean for sample i is that of its group without i; `has_others` [n] says whether the group has other samples.
    Positives are the other centers of the class and, instead of the center of the group, this mean: labels [n] -> masks
    [n, c + 1].
    """
    pos, neg = center_masks(labels, centers)
    own = centers.group.unsqueeze(-1) == torch.arange(len(centers.points), device=labels.device)
    others = has_others.unsqueeze(-1)
    masks = PairMasks(torch.cat((pos & ~own, others), 1), torch.cat((neg, torch.zeros_like(others)), 1))
    return ByMasks(masks, private=True)


@final
class CentersAsReferences(LossWrapper):
    r"""Compares embeddings with class centers: the centers of its class are a sample's positives, the others negatives.

        L = L'(x, y, ref_emb = c, ref_labels = classes of the centers)

        P_i = the centers of class y_i ,   N_i = the centers of the other classes

    with L' the inner loss, x and y the embeddings and their labels, and c the centers.

    Args:
        loss: a loss that takes `ref_emb`, ours or PML's.
        centers: where the centers come from, a source of `pml_ext.centers`.
        leave_one_out: whether a sample is compared not with the mean of its own group, to which it contributes, but
            with the mean of the other samples of the group. The only sample of a group is compared with the other
            centers only. For centers that are means of the batch.
        normalize_embeddings: whether to normalize the embeddings to unit length before centers are computed from them;
            None to do as the distance of the loss does. The centers, which as means of unit vectors are shorter than 1,
            are normalized only by that distance.
        kwargs: those of `LossWrapper`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        Distance and reducer of the inner loss, whose anchors are the samples. A loss of this package that needs
        positives and negatives is 0 for a batch of one class if the centers are those of the batch.

    Source:
        DM18's CenterNCA, CenterTriplet, ClusterNCA, KmeanLoss and MCA: `CenterNCA`, `CenterPair`, `ClusterNCA`,
        `KmeanNCA` and `MCA` in the catalog. ClusterNCA multiplies the squared distance of a sample to the mean of its
        group of size s by (s/(s-1))^2, which gives the squared distance to the mean of the other samples; here that
        mean is used, with any distance. It drops every center closer than 1e-3, where only the center of a group of one
        is dropped here. It is infinite for a sample without a positive center, whose loss is 0 here. The code of
        KmeanLoss raises an error. MCA's centers were normalized after each step of the optimizer, here they are in each
        call; its mask of "dead" centers, which its code never updates, is left out.

    Raises:
        TypeError, ValueError: a loss that is not a PML loss or takes no references, centers that are not a
            `CenterSource`, `leave_one_out` with centers that are not means of the batch or with a loss that takes no
            pairs; in a call an `indices_tuple` or `ref_emb`.

    Example:
        >>> import torch
        >>> from pml_ext.centers import BatchCenters
        >>> from pml_ext.losses import KNNSoftmaxLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> CentersAsReferences(KNNSoftmaxLoss(alpha=1), BatchCenters(detach=True))(embeddings, labels)
        tensor(0.2293)
    """

    takes_references: ClassVar[bool] = False
    takes_indices: ClassVar[bool] = False

    def __init__(
        self,
        loss: nn.Module,
        centers: CenterSource,
        *,
        leave_one_out: bool = False,
        normalize_embeddings: bool | None = None,
        **kwargs: Unpack[WrapperArguments],
    ) -> None:
        super().__init__(loss, **kwargs)
        if refuses_references(loss):
            raise TypeError(f"loss must take references (ref_emb), {type(loss).__name__} does not")
        if not isinstance(centers, CenterSource):
            raise TypeError(f"centers must be a CenterSource, got {type(centers).__name__}")
        if leave_one_out and not centers.of_batch:
            raise ValueError(f"leave_one_out needs centers that are means of the batch, got {type(centers).__name__}")
        self.centers = centers
        if leave_one_out and refuses_indices(loss):
            raise TypeError(f"leave_one_out needs a loss that takes pairs, {type(loss).__name__} does not")
        if normalize_embeddings is not None:
            arguments.flag("normalize_embeddings", normalize_embeddings)
        self.record_hyperparameters(
            leave_one_out=arguments.flag("leave_one_out", leave_one_out), normalize_embeddings=normalize_embeddings
        )

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The loss of the samples and their centers."""
        if labels is None:
            raise ValueError("CentersAsReferences needs labels, got None")
        arguments.without_indices(type(self).__name__, indices_tuple)
        arguments.without_references(type(self).__name__, embeddings, labels, ref_emb, ref_labels)
        given = samples = at_least_single(embeddings)
        if self._normalizes():
            samples = normalized(self.distance, samples)
        centers = self.centers(samples, labels)
        centers = centers._replace(points=centers.points.to(samples.dtype))
        # Not before: in several processes the others wait for the centers of this one.
        if len(samples) == 0:
            return dict(self.zero_losses())
        # Repetitions cost a column each.
        if looks_are_free(centers.group) or not takes_masks(self.loss):
            centers = centers.compact()
        points, classes = centers.points, centers.labels
        pairs: IndicesTuple | Pairs | None = None
        if self.leave_one_out:
            means, has_others = leave_one_out(samples, centers)
            private = leave_one_out_masks(labels, centers, has_others)
            points, classes = torch.cat((points, means)), torch.cat((classes, labels))
            pairs = private if takes_pairs(self.loss) else handed_on(private.wide(), self.loss)
        elif centers.used is not None:
            pairs = handed_on(center_masks(labels, centers), self.loss)
        # Nothing is normalized twice.
        anchors = given if has_only_directions(self.loss) else samples
        return self.reduced(self.loss(anchors, labels, pairs, points, classes))

    def _normalizes(self) -> bool:
        given = self.normalize_embeddings
        return bool(self.distance.normalize_embeddings) if given is None else given
