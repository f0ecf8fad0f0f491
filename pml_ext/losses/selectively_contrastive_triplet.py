"""The selectively contrastive triplet loss: where a negative is too near, the positive is not pulled."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, in_equal_parts
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_max, softplus


def selectively_contrastive_triplet(
    sim: Tensor, pos: Tensor, neg: Tensor, *, temperature: float, lam: float, level: float | None
) -> Tensor:
    """Selectively contrastive triplet loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    nearest_pos, nearest_neg = masked_max(sim, pos), masked_max(sim, neg)
    hard = _is_hard(nearest_pos, nearest_neg, level)
    easy = softplus((nearest_neg - nearest_pos) / temperature)
    return torch.where(hard, lam * nearest_neg, easy).squeeze(-1)


def _is_hard(nearest_pos: Tensor, nearest_neg: Tensor, level: float | None) -> Tensor:
    hard = nearest_neg > nearest_pos
    # What is no number is not hard: it stays visible.
    return hard if level is None else hard | ((nearest_neg > level) & ~nearest_pos.isnan())


def selectively_contrastive_triplet_weights(
    sides: Sides, *, temperature: float, lam: float, level: float | None
) -> SideWeights:
    """Selectively contrastive triplet loss and its few pair weights of each anchor."""
    near, nearest_neg = sides.near_pos(), sides.hardest_neg()
    nearest_pos = near.amax(1, keepdim=True)
    hard = _is_hard(nearest_pos, nearest_neg, level)
    gap = (nearest_neg - nearest_pos) / temperature
    slope = gap.sigmoid() / temperature
    losses = torch.where(hard, lam * nearest_neg, softplus(gap))
    pos = in_equal_parts(torch.where(hard, 0.0, -slope), near, nearest_pos)
    neg, column = sides.on_hardest_neg(nearest_neg, torch.where(hard, lam, slope))
    return SideWeights(losses.squeeze(1), pos, neg, neg_column=column)


@final
class SelectivelyContrastiveTripletLoss(RowLoss):
    r"""Softmax of the nearest positive against the nearest negative; where the negative is nearer it is only pushed.

    With p and n the scores of the nearest positive and the nearest negative of anchor i:

        L_i = lam n    if n > p or n > level,    else log(1 + exp((n - p) / temperature))

    Where the negative is nearer than the positive, a triplet loss moves its anchor in two nearly opposite directions;
    here only the negative is pushed then, with a constant weight. The value jumps at n = p, and may be negative: do not
    combine it with a reducer that drops losses of 0 or less. Anchors with a hard negative never pull, so clusters need
    not become tight.

    Args:
        temperature: divides the difference of the two scores, above 0.
        lam: the weight with which hard negatives are pushed, above 0.
        level: the score above which a negative is hard in any case; a level of the distance. None for the rule of
            the paper, n > p alone.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Xuan et al., "Hard Negative Examples are Hard, but Useful", ECCV 2020, arXiv 2007.12749. The level and the
        values of the hyperparameters are only in the authors' code. There anchors with n = p or n = level are in
        neither of the two cases and not counted, the divisor is the number of the others, positives with a score above
        0.9999 are left out, and a batch without a triplet is an error. With lam n replaced by the softmax it is the
        loss of `EasyPositiveTripletLoss` with a soft margin.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> SelectivelyContrastiveTripletLoss(level=0.5)(embeddings, labels)
        tensor(0.4020)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(selectively_contrastive_triplet_weights)
    levels: ClassVar[tuple[str, ...]] = ("level",)

    def __init__(
        self, *, temperature: float = 0.1, lam: float = 1, level: float | None = 0.8, **kwargs: Unpack[RowLossArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(
            temperature=arguments.positive("temperature", temperature),
            lam=arguments.positive("lam", lam),
            level=None if level is None else arguments.finite("level", level),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Selectively contrastive triplet loss of each anchor."""
        return selectively_contrastive_triplet(sim, pos, neg, **self.hyperparameters())
