"""The PNP losses: a penalty on the negatives ranked before each positive, and on nothing else."""

from functools import partial
from typing import Any, ClassVar, Literal, final, get_args

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import masked_mean
from pml_ext.rank_counts import Step, rank_losses, rank_weights

Variant = Literal["O", "Iu", "Ib", "Ds", "Dq"]


def pnp(
    sim: Tensor, pos: Tensor, neg: Tensor, *, b: float, alpha: float, temperature: float, variant: Variant
) -> Tensor:
    """PNP loss of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    head = partial(penalized, b=b, alpha=alpha, variant=variant)
    return rank_losses(sim, pos, neg, Step(temperature), True, head)


def pnp_weights(sides: Sides, *, b: float, alpha: float, temperature: float, variant: Variant) -> SideWeights | None:
    """PNP loss and pair weights in closed form."""
    return rank_weights(sides, Step(temperature), True, partial(penalized, b=b, alpha=alpha, variant=variant))


def penalized(ahead: Tensor, before: Tensor, there: Tensor, *, b: float, alpha: float, variant: Variant) -> Tensor:
    """Mean penalty of the negatives before each positive; the rank among the positives costs nothing."""
    match variant:
        case "O":
            cost = before
        case "Iu":
            cost = (1 + before) * before.log1p()
        case "Ib":
            cost = (b * before - (b * before).log1p()) / b**2
        case "Ds":
            cost = before.log1p()
        case "Dq":
            cost = 1 - (1 + before) ** -alpha
    return masked_mean(cost, there)


@final
class PNPLoss(RowLoss):
    r"""Penalizes the negatives ranked before each positive, and nothing else.

    With sigma(x) = 1 / (1 + exp(-x / temperature)) and B_p the smoothed number of negatives before positive p:

        L_i = mean_{p in P_i} phi(B_p) ,    B_p = sum_{n in N_i} sigma(s_in - s_ip)

        phi(B) = B                                     variant="O"
        phi(B) = (1 + B) log(1 + B)                    variant="Iu", for hard positives
        phi(B) = (b B - log(1 + b B)) / b^2            variant="Ib", likewise, with a bound on the slope
        phi(B) = log(1 + B)                            variant="Ds", for easy positives
        phi(B) = 1 - (1 + B)^-alpha                    variant="Dq", likewise, more so

    Time n * m * p for p positives of each anchor, memory n * m numbers.

    Args:
        b: bounds the slope of "Ib", above 0.
        alpha: how strongly "Dq" reduces the weight of hard positives, above 0.
        temperature: the width of the steps, a difference of two scores, above 0.
        variant: "O", "Iu", "Ib", "Ds" or "Dq".
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Li et al., "Rethinking the Optimization of Average Precision: Only Penalizing Negative Instances before Positive
        Ones is Enough", AAAI 2022, arXiv 2102.04640; the best published setting of its authors is variant="Dq",
        alpha=4. PML's class of this name, which calls the temperature `anneal`, has the same formula but counts the
        anchor among its own positives, takes the mean over anchors that have another positive, needs memory that grows
        with n^3, and takes neither references nor miners. With one positive, "Dq" with alpha=1 is `SmoothAPLoss`.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range, an unknown variant.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> PNPLoss()(embeddings, labels)
        tensor(0.3750)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(pnp_weights)

    def __init__(
        self,
        *,
        b: float = 2,
        alpha: float = 1,
        temperature: float = 0.01,
        variant: Variant = "O",
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        if variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
        self.record_hyperparameters(
            b=arguments.positive("b", b),
            alpha=arguments.positive("alpha", alpha),
            temperature=arguments.positive("temperature", temperature),
            variant=variant,
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """PNP loss of each anchor."""
        return pnp(sim, pos, neg, **self.hyperparameters())
