"""The surrogate of recall at k, with soft ranks and a soft shortlist."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.closed_form import ClosedForm, Sides, SideWeights
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.rank_counts import Step, rank_losses, rank_weights

Ranks = Literal["smooth", "upper"]


def recall_at_k(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    k: tuple[int, ...],
    temperature: float,
    k_temperature: float,
    ranks: Ranks,
) -> Tensor:
    """One minus the surrogate of recall of each anchor: sim, pos, neg [.., n, m] -> [.., n]."""
    step, exact, head = _parts(k, temperature, k_temperature, ranks)
    return rank_losses(sim, pos, neg, step, exact, head)


def recall_at_k_weights(
    sides: Sides, *, k: tuple[int, ...], temperature: float, k_temperature: float, ranks: Ranks
) -> SideWeights | None:
    """The same and its signed pair weights in closed form."""
    step, exact, head = _parts(k, temperature, k_temperature, ranks)
    return rank_weights(sides, step, exact, head)


def _parts(k: tuple[int, ...], temperature: float, k_temperature: float, ranks: Ranks) -> tuple[Step, bool, Any]:
    if ranks == "smooth":
        return Step(temperature), False, partial(shortlisted, k=k, temperature=k_temperature, capped=True)
    step = Step.rising(temperature, rho=100.0, delta=0.05, start=0.5, offset=None)
    return step, True, partial(shortlisted, k=k, temperature=k_temperature, capped=False)


def shortlisted(
    ahead: Tensor, before: Tensor, there: Tensor, *, k: tuple[int, ...], temperature: float, capped: bool
) -> Tensor:
    """One minus the mean over k of how many positives are among the first k, over as many as can be."""
    number, total = there.sum(-1), torch.zeros_like(ahead[..., 0])
    for each in k:
        found = torch.where(there, torch.sigmoid((each - 1 - ahead - before) / temperature), 0.0).sum(-1)
        total = total + (found.clamp(max=each) if capped else found) / number.clamp(1, each)
    return 1 - total / len(k)


@final
class RecallAtKLoss(RowLoss):
    r"""One minus the recall among the first k of each anchor's list, with soft ranks and a soft end of the list.

    With sigma(x, t) = 1 / (1 + exp(-x / t)) and R_p = A_p + B_p the smoothed rank of positive p as in `SmoothAPLoss`:

        L_i = 1 - mean_k min(k, sum_{p in P_i} sigma(k - R_p, k_temperature)) / min(k, |P_i|)

    Its minimum is not 0: a perfect list costs 0.10 with three positives and the five default values of k. Positives
    compete for ranks: one near the end of the list pushes others, so derivatives with respect to positives have either
    sign, unless ranks="upper". Only ranks within a few k_temperature of some k have a gradient, so the loss is meant
    for large batches, memory banks and references.

    Args:
        k: the length of the list, at least 1: one integer, or several of which the mean is taken.
        temperature: the width of the steps of the ranks, a difference of two scores, above 0.
        k_temperature: the width of the end of the list, a difference of two ranks, above 0.
        ranks: "smooth", or "upper" for the ranks of `SupAPLoss` with its defaults (exact among positives, an upper
            bound on the number of negatives), without the first min(k, .): then positives never push each other.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive and a negative.

    Source:
        Patel, Tolias, Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022, arXiv
        2108.11179. In the reference code the anchor is in its own list, so that every rank is one too large; classes
        are groups by position, and k is limited by the batch. Its similarity mixup is not provided: masks do not say
        which references share a class. ranks="upper" is SupRecall, of "Optimization of Rank Losses for Image
        Retrieval", arXiv 2309.08250, without the anchor in its list.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range, unknown `ranks`.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> RecallAtKLoss()(embeddings, labels)
        tensor(0.2032)
    """

    closed_form: ClassVar[ClosedForm | None] = staticmethod(recall_at_k_weights)

    def __init__(
        self,
        *,
        k: int | Sequence[int] = (1, 2, 4, 8, 16),
        temperature: float = 0.01,
        k_temperature: float = 1,
        ranks: Ranks = "smooth",
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        if ranks not in ("smooth", "upper"):
            raise ValueError(f"ranks must be 'smooth' or 'upper', got {ranks!r}")
        lengths = tuple(k) if isinstance(k, (list, tuple)) else (k,)
        if not lengths:
            raise ValueError(f"k must have at least one length, got {k!r}")
        self.record_hyperparameters(
            k=tuple(arguments.count("k", each) for each in lengths),
            temperature=arguments.positive("temperature", temperature),
            k_temperature=arguments.positive("k_temperature", k_temperature),
            ranks=ranks,
        )

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """One minus the surrogate of recall of each anchor."""
        return recall_at_k(sim, pos, neg, **self.hyperparameters())
