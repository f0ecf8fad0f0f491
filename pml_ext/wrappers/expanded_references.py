"""Any loss, with points between the samples of a class as additional negatives of other classes."""

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.hyperparameters import WrapperArguments
from pml_ext.masked import looks_are_free, not_self
from pml_ext.pairs import IndicesTuple, PairMasks, label_masks
from pml_ext.similarity import normalized
from pml_ext.wrappers.base import LossWrapper, handed_on, refuses_indices, refuses_references


def points_between(ends: Tensor, others: Tensor, n: int) -> Tensor:
    """The n inner points at equal steps between vectors [p, d] and others [p, d], as [n p, d]."""
    steps = torch.arange(1, n + 1, dtype=ends.dtype, device=ends.device).view(-1, 1, 1) / (n + 1)
    return torch.lerp(ends, others, steps).flatten(0, 1)


@final
class ExpandedReferences(LossWrapper):
    r"""Compares embeddings also with points between two samples of another class, as additional negatives.

    Between every two samples of a class lie n inner points at equal steps, t = 1, ..., n:

        x_t = ((n + 1 - t) x_i + t x_j) / (n + 1)

    They are normalized to unit length if the distance of the loss normalizes. They are negatives of the samples of
    other classes, and positives of none. Rules that count negatives, such as the k nearest, count several near copies
    of a negative. The method assumes that no other class lies between two samples of a class, which is wrong where
    classes lie inside one another.

    Args:
        loss: a loss that takes `ref_emb` and pairs, ours or PML's.
        n: the number of points between two samples, at least 1.
        kwargs: those of `LossWrapper`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar. Memory is that of n (K - 1) / 2 additional references for each
        sample, with K samples per class; where reading labels would force a synchronization (on a GPU, or in a compiled
        loss), that of points between all pairs of the batch.

    Defaults:
        Distance and reducer of the inner loss.

    Source:
        Ko, Gu, "Embedding Expansion: Augmentation in Embedding Space for Deep Metric Learning", CVPR 2020, arXiv
        2003.02546 (n=2). In the authors' code the points are anchors too, and lie between samples 2i and 2i + 1 of a
        batch that must be sorted by class; in another order they mix classes. Symmetrical synthesis (Gu, Ko, AAAI 2020)
        is not provided: its reflections fall into other classes where classes are wide. Nor is Metrix (Venkataramanan
        et al., ICLR 2022): its points are positives and negatives to a degree, which masks cannot express.

    Raises:
        TypeError, ValueError: a loss that is not a PML loss, or takes no references or no pairs; a number out of
            range; in a call an `indices_tuple`, or no labels.

    Example:
        >>> import torch
        >>> from pml_ext.losses import BatchHardTripletLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> loss = BatchHardTripletLoss(margin=0.2)
        >>> loss(embeddings, labels), ExpandedReferences(loss, n=2)(embeddings, labels)
        (tensor(0.8092), tensor(1.0194))
    """

    takes_indices: ClassVar[bool] = False

    def __init__(self, loss: nn.Module, *, n: int = 2, **kwargs: Unpack[WrapperArguments]) -> None:
        super().__init__(loss, **kwargs)
        for refuses, what in ((refuses_references, "references (ref_emb)"), (refuses_indices, "pairs")):
            if refuses(loss):
                raise TypeError(f"loss must take {what}, {type(loss).__name__} does not")
        self.record_hyperparameters(n=arguments.count("n", n))

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The loss of the samples, their references and the points between these."""
        if labels is None or ref_labels is None:
            raise ValueError("ExpandedReferences needs labels, and ref_labels with ref_emb, got None")
        arguments.without_indices(type(self).__name__, indices_tuple)
        n = len(embeddings)
        if n == 0 or len(ref_emb) == 0:
            return dict(self.zero_losses())
        pos, neg = label_masks(labels, ref_labels)
        if ref_emb is embeddings:
            pos = pos & not_self(0, n, n, embeddings.device)
        samples = normalized(self.distance, ref_emb) if self.distance.normalize_embeddings else ref_emb
        first, second, is_pair = _pairs(ref_labels, looks_are_free(embeddings) and looks_are_free(ref_labels))
        between = points_between(samples[first], samples[second], self.n)
        # Of each pair the negatives are those of either end; what is no pair of a class is nothing.
        apart = neg[:, first] & is_pair
        columns = apart.repeat(1, self.n)
        masks = PairMasks(torch.cat((pos, torch.zeros_like(columns)), 1), torch.cat((neg, columns), 1))
        references = torch.cat((ref_emb.to(samples.dtype), between))
        others = torch.cat((ref_labels, ref_labels[first].repeat(self.n)))
        return self.reduced(self.loss(embeddings, labels, handed_on(masks, self.loss), references, others))


def _pairs(labels: Tensor, may_look: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The two ends of pairs of samples, and whether they are of one class; of those alone where one may look."""
    same = (labels.unsqueeze(1) == labels).triu(1)
    if may_look:
        first, second = same.nonzero(as_tuple=True)
        return first, second, torch.ones_like(first, dtype=torch.bool)
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    return first, second, same[first, second]
