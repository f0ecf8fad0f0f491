"""InfoNCE whose mean over the negatives is tilted to the hard ones, and may be corrected for hidden positives."""

import math
from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights, exponential_sum
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.info_nce import info_nce, info_nce_sides
from pml_ext.masked import masked_logsumexp


def hard_negative_contrastive(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    temperature: float,
    beta: float,
    tau_plus: float,
    detach: bool,
    farthest: float,
) -> Tensor:
    """Hard-negative contrastive loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    logits = sim / temperature
    tilt = beta * (logits.detach() if detach else logits)

    def tilted_mean(side: Tensor) -> Tensor:
        return masked_logsumexp(logits + tilt, side) - masked_logsumexp(tilt, side)

    count, mean = neg.sum(-1, dtype=sim.dtype).log(), tilted_mean(neg)
    if not tau_plus:
        return info_nce(logits, pos, count + mean)
    log_share = math.log(tau_plus) + tilted_mean(pos) - mean
    true = mean - math.log1p(-tau_plus) + _log_rest(log_share)
    return info_nce(
        logits,
        pos,
        count + torch.where(_is_clamped(log_share, true, farthest / temperature), farthest / temperature, true),
    )


def _log_rest(log_share: Tensor) -> Tensor:
    """log(1 - exp(log_share)) where that is a number, and any number elsewhere."""
    return (-torch.expm1(torch.where(log_share >= 0, -1.0, log_share))).log()


def _is_clamped(log_share: Tensor, true: Tensor, floor: float) -> Tensor:
    """Where the positives leave less to the negatives than the least that a mean can be. Not where NaN is."""
    return (log_share >= 0) | (true < floor)


def hard_negative_contrastive_weights(
    sides: Sides, *, temperature: float, beta: float, tau_plus: float, detach: bool, farthest: float
) -> SideWeights:
    """Hard-negative contrastive loss and pair weights in closed form."""
    count = sides.neg_count.clamp(min=1).log()
    mean, by_neg = _tilted_mean(sides.neg, sides.neg_count, temperature, beta, detach)
    if not tau_plus:
        losses, by_pos, push = info_nce_sides(sides.pos.div_(temperature), sides.pos_count, count + mean)
        return SideWeights(losses.squeeze(1), by_pos.div_(temperature), by_neg.mul_(push / temperature))
    own, of_pos = _tilted_mean(sides.near_pos(), sides.pos_count, temperature, beta, detach)
    log_share = math.log(tau_plus) + own - mean
    true = mean - math.log1p(-tau_plus) + _log_rest(log_share)
    floor = farthest / temperature
    clamped = _is_clamped(log_share, true, floor)
    log_negatives = count + torch.where(clamped, floor, true)
    losses, by_pos, push = info_nce_sides(sides.pos.div_(temperature), sides.pos_count, log_negatives)
    # By how much more than itself the mean over the negatives moves what is left of it.
    rate = torch.where(clamped, 0.0, 1 / -torch.expm1(torch.where(clamped, -1.0, log_share)))
    back = torch.where(clamped, 0.0, push * (rate - 1))
    by_pos.sub_(of_pos.mul_(back))
    return SideWeights(losses.squeeze(1), by_pos.div_(temperature), by_neg.mul_(push * rate / temperature))


def _tilted_mean(scores: Tensor, count: Tensor, temperature: float, beta: float, detach: bool) -> tuple[Tensor, Tensor]:
    """Log of the tilted mean of exp(score / temperature) [b, 1], and its derivative by the logits; overwrites scores.

    Absent scores are infinitely low.
    """
    if not beta:
        log_sum, terms, total = exponential_sum(scores, 1 / temperature)
        return log_sum - count.clamp(min=1).log(), terms.div_(total)
    log_weight, weights, weight = exponential_sum(scores.clone(), beta / temperature)
    log_sum, terms, total = exponential_sum(scores, (1 + beta) / temperature)
    mean = log_sum - log_weight
    if detach:
        return mean, terms.div_(total)
    return mean, terms.mul_((1 + beta) / total).sub_(weights.mul_(beta / weight))


@final
class HardNegativeContrastiveLoss(RowLoss):
    r"""InfoNCE on a mean over the negatives that is tilted to the hard ones and can be corrected for hidden positives.

    With x = s / temperature, and means that are tilted by the scores themselves,

        L_i = mean_{p in P_i} log(1 + G_i / exp(x_ip)) ,
        G_i = |N_i| max( (E- - tau_plus E+) / (1 - tau_plus), exp(farthest / temperature) ) ,
        E- = sum_{n in N_i} exp((1 + beta) x_in) / sum_{n in N_i} exp(beta x_in) ,    E+ the same over P_i

    beta=0 and tau_plus > 0: the debiased contrastive loss; beta > 0 and tau_plus=0: the supervised hard-negative loss
    (H-SCL); both above 0: HCL; both 0: InfoNCE. Unlike a lower temperature, beta changes the negatives only, and moves
    weight from some of them to others.

    Args:
        temperature: divides the scores, above 0.
        beta: how strongly the mean is tilted to near negatives, at least 0; it multiplies s / temperature.
        tau_plus: the share of the negatives that are in truth positives, in [0, 1). 0 if labels are correct: with a
            larger value, anchors with near positives then stop pushing at all. About one over the true number of
            classes if each sample is labeled as a class of its own, as with two views.
        detach: whether the tilt is held constant in the backward pass. If not, as published, negatives that are easier
            than the mean are pulled instead of pushed.
        farthest: the value of the distance for the farthest possible pair (-1 for cosines), a lower bound on the mean
            over the true negatives; a level of the distance. It has an effect only if tau_plus is above 0.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Debiased: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020, arXiv 2007.00224 (tau_plus=0.1, beta=0).
        HCL: Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021, arXiv 2010.04592
        (tau_plus=0.1, beta=1). H-SCL: Jiang et al., "Supervised Contrastive Learning with Hard Negative Samples", arXiv
        2209.00078 (tau_plus=0). Their codes have one positive, or several for H-SCL, and do not detach: the recipes of
        these names in the catalog are set so. For several positives E+ is over all of them with the same tilt; H-SCL's
        code multiplies by n - 2 instead of |N_i| and takes the mean over pairs, so that large classes count more. All
        of these codes take exponentials before logarithms, which overflow in float32 at a temperature of 0.02.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> HardNegativeContrastiveLoss()(embeddings, labels)
        tensor(0.7859)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(hard_negative_contrastive_weights)
    levels: ClassVar[tuple[str, ...]] = ("farthest",)

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        beta: float = 1,
        tau_plus: float = 0,
        detach: bool = True,
        farthest: float = -1,
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        if arguments.non_negative("tau_plus", tau_plus) >= 1:
            raise ValueError(f"tau_plus must be below 1, got {tau_plus!r}")
        self.record_hyperparameters(
            temperature=arguments.positive("temperature", temperature),
            beta=arguments.non_negative("beta", beta),
            tau_plus=arguments.non_negative("tau_plus", tau_plus),
            detach=arguments.flag("detach", detach),
            farthest=arguments.finite("farthest", farthest),
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Hard-negative contrastive loss of each anchor."""
        return hard_negative_contrastive(sim, pos, neg, **self.hyperparameters())
