"""The lifted structure loss: every positive pair against the negatives of both of its ends."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import BatchLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum
from pml_ext.hyperparameters import LossArguments
from pml_ext.masked import masked_logsumexp, masked_mean


def lifted_structure(sim: Tensor, pos: Tensor, neg: Tensor, *, neg_margin: float, pos_margin: float) -> Tensor:
    """Lifted structure loss of all pairs: sim, pos, neg [.., n, m] -> [..]. See `LiftedStructureLoss`."""
    push = sim - neg_margin
    of_anchor = masked_logsumexp(push, neg).unsqueeze(-1)  # [.., n, 1]
    of_positive = masked_logsumexp(push.mT, neg.mT).unsqueeze(-2)  # [.., 1, m]
    terms = torch.relu(pos_margin - sim + torch.logaddexp(of_anchor, of_positive)).square() / 2
    return masked_mean(terms.flatten(-2), pos.flatten(-2))


def lifted_structure_weights(sides: Sides, *, neg_margin: float, pos_margin: float) -> SideWeights | None:
    """Lifted structure loss of a batch and its pair weights in closed form.

    The negatives of a column are those of the row of the same number, so a row gets what both of its ends owe to them.
    """
    if sides.columns is None:
        return None
    number = sides.pos_count.sum()
    log_sum, terms, total = exponential_sum(sides.neg, 1, level=neg_margin)
    of_positive = log_sum.squeeze(1)[sides.columns]  # [n, k]
    violation = torch.relu(pos_margin - sides.pos + torch.logaddexp(log_sum, of_positive))
    pull = violation / number.clamp(min=1)
    push = 2 * pull.mul(torch.sigmoid(log_sum - of_positive)).sum(1, keepdim=True)
    loss = violation.square().sum() / (2 * number.clamp(min=1))
    return SideWeights(loss, pull.neg_(), terms.mul_(push / total))


@final
class LiftedStructureLoss(BatchLoss):
    r"""Compares the distance of each positive pair with a soft minimum over the negatives of both of its ends.

    With Omega the positive pairs, each unordered pair of a batch once:

        L = 1/(2 |Omega|)  sum_{(i, j) in Omega} [J_ij]+^2
        J_ij = D_ij - pos_margin + log( sum_{k in N_i} exp(neg_margin - D_ik) + sum_{l in N_j} exp(neg_margin - D_lj) )

    Memory n * m numbers.

    Args:
        neg_margin: the level from which the distances of negatives are subtracted; a level of the distance.
        pos_margin: the level that is subtracted from the distances of positives; a level of the distance.
        kwargs: those of every PML loss.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        LpDistance (Euclidean distance of normalized embeddings); the reducer has no effect (`already_reduced`); needs a
        positive and a negative pair in the batch.

    Source:
        Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, arXiv 1511.06452. Equal
        to PML's `LiftedStructureLoss`, whose arguments and defaults it has, on labels, and with an `indices_tuple` that
        holds every pair and its mirror image once each. The negatives of a pair's other end j are here the anchors
        whose negative is j: with references other than the batch, or pairs that are not symmetric, PML takes the
        negatives of the anchor of the same number instead. Where neither end has a negative the sum is empty and the
        term is 0; PML takes the logarithm of the empty sum as 0.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number or not finite.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> LiftedStructureLoss()(embeddings, labels)
        tensor(1.9703)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(lifted_structure_weights)
    levels: ClassVar[tuple[str, ...]] = ("neg_margin", "pos_margin")

    def __init__(self, *, neg_margin: float = 1, pos_margin: float = 0, **kwargs: Unpack[LossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            neg_margin=arguments.finite("neg_margin", neg_margin),
            pos_margin=arguments.finite("pos_margin", pos_margin),
        )

    def get_default_distance(self) -> Any:
        """Euclidean distance of normalized embeddings."""
        return LpDistance()

    def per_batch(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Lifted structure loss of all pairs."""
        return lifted_structure(sim, pos, neg, **self.hyperparameters())
