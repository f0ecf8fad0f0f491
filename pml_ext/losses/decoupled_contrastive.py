"""The decoupled contrastive loss: InfoNCE without the positive in its denominator."""

from typing import Any, ClassVar, final

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum, there
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_logsumexp, masked_mean


def decoupled_contrastive(sim: Tensor, pos: Tensor, neg: Tensor, *, temperature: float) -> Tensor:
    """Decoupled contrastive loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    return masked_logsumexp(sim / temperature, neg) - masked_mean(sim, pos) / temperature


def decoupled_contrastive_weights(sides: Sides, *, temperature: float) -> SideWeights:
    """Decoupled contrastive loss and pair weights in closed form."""
    push, neg, total = exponential_sum(sides.neg, 1 / temperature)
    share = 1 / (temperature * sides.pos_count.clamp(min=1))
    is_there = there(sides.pos)
    pull = sides.pos.mul_(is_there).sum(1, keepdim=True) * share
    return SideWeights((push - pull).squeeze(1), is_there.mul_(-share), neg.div_(total * temperature))


@final
class DecoupledContrastiveLoss(RowLoss):
    r"""InfoNCE without the positive in its denominator: the pull never fades, however few the negatives are.

        L_i = log sum_{n in N_i} exp(s_in / temperature) - mean_{p in P_i} s_ip / temperature

    With one positive InfoNCE is log(1 + exp(L_i)), so its gradient is that of L_i times a factor, one minus the softmax
    probability of the positive, which vanishes for easy anchors and in small batches. Here that factor is 1. The loss
    is negative for positives that are well separated: do not combine it with a reducer that drops losses of 0 or less.

    Args:
        temperature: divides the scores, above 0.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, arXiv 2110.06848, for one positive; the mean over
        several is ours. The public code adds the losses of the two directions of two views, where this is the mean over
        all anchors of both, and keeps self-pairs in the sum with a factor of 1e-45. lightly's `DCLLoss` has the sum of
        two logarithms, one for each view, in place of the one in the paper. The paper's weighted form, DCLW, is not
        provided: its weights couple the anchors of a batch and may be negative, and in its authors' table it is below
        the unweighted loss in seven of eight settings. `DecoupledNCALoss` decouples the two steepnesses instead, and
        keeps the factor that is 1 here.

    Raises:
        TypeError, ValueError: a temperature that is not a number, not finite or not above 0.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> DecoupledContrastiveLoss()(embeddings, labels)
        tensor(-2.2979)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(decoupled_contrastive_weights)

    def __init__(self, *, temperature: float = 0.1, **kwargs: Unpack[RowLossArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(temperature=arguments.positive("temperature", temperature))

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Decoupled contrastive loss of each anchor."""
        return decoupled_contrastive(sim, pos, neg, **self.hyperparameters())
