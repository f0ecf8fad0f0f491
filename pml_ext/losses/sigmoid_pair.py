"""The sigmoid pair loss: every pair is classified on its own, with a learned slope and bias."""

import math
from typing import Any, ClassVar, Literal, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.hyperparameters import RowLossArguments
from pml_ext.masked import Needs, is_eager, looks_are_free, masked_sum, softplus
from pml_ext.pairs import Pairs
from pml_ext.reducer import LossDict

Reduction = Literal["sum", "positives", "mean"]


def sigmoid_pair(logits: Tensor, pos: Tensor, neg: Tensor, *, reduction: Reduction) -> Tensor:
    """Minus the log-likelihood of each anchor's pairs: logits, pos, neg [.., n, m] -> [.., n]."""
    pull, push = masked_sum(softplus(-logits), pos), masked_sum(softplus(logits), neg)
    count = pos.sum(-1).clamp(min=1)
    match reduction:
        case "sum":
            return pull + push
        case "positives":
            return (pull + push) / count
        case "mean":
            return pull / count + push


@final
class SigmoidPairLoss(RowLoss):
    r"""Classifies each pair as positive or negative on its own, with a sigmoid whose slope and bias are learned.

    With the logits l_ij = t s_ij + b of the scores,

        L_i = sum_{p in P_i} log(1 + exp(-l_ip)) + sum_{n in N_i} log(1 + exp(l_in))

    A missing side contributes 0. No pair depends on another, so the loss is exact in chunks, with queues and over
    several processes. t = exp(t') and b are parameters: give them to an optimizer, without weight decay.

    Args:
        temperature: initial value of t, above 0; it multiplies the scores, as in the paper.
        bias: initial value of b; "prior" for the logarithm of the ratio of positives to negatives in the first training
            batch that has both. With a value far below it, every positive of a small batch is pulled without end.
        max_temperature: upper limit to which t is clamped, above 0; t has no gradient above it. None for no limit.
        reduction: "sum"; "positives" divides by the number of positives, at least 1; "mean" divides the term of the
            positives only. With one positive all three are equal. Only with "sum" are the logits log-odds of a pair to
            be positive.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors), needs a positive or a negative.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), ICCV 2023, arXiv 2303.15343, to which it
        is equal for one positive, two sets of vectors and bias=-10; several positives, labels and "prior" are ours,
        after open_clip's log(p / (1 - p)) for small batches. There t is clamped after each step of the optimizer, here
        in the formula. With t and b held fixed, on classes of equal size, it is `BinomialDevianceLoss(alpha=t, beta=t,
        base=-b/t, scale=t |P|, balance=|N|/|P|)`.

    Raises:
        TypeError, ValueError: a hyperparameter that is not a number, not finite or out of range, an unknown
            `reduction`.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> SigmoidPairLoss(bias=-10)(embeddings, labels).item() > 3
        True
    """

    needs: ClassVar[Needs] = "either"
    fixed: ClassVar[tuple[str, ...]] = ("temperature", "bias")
    is_known: Tensor
    prior: Tensor

    def __init__(
        self,
        *,
        temperature: float = 10,
        bias: float | Literal["prior"] = "prior",
        max_temperature: float | None = 100,
        reduction: Reduction = "sum",
        **kwargs: Unpack[RowLossArguments],
    ) -> None:
        super().__init__(**kwargs)
        if reduction not in ("sum", "positives", "mean"):
            raise ValueError(f"reduction must be 'sum', 'positives' or 'mean', got {reduction!r}")
        self.record_hyperparameters(
            temperature=arguments.positive("temperature", temperature),
            bias=bias if bias == "prior" else arguments.finite("bias", bias),
            max_temperature=None if max_temperature is None else arguments.positive("max_temperature", max_temperature),
            reduction=reduction,
        )
        self.log_slope: nn.Parameter = nn.Parameter(torch.tensor(math.log(self.temperature)))
        self.offset: nn.Parameter = nn.Parameter(torch.tensor(0.0 if bias == "prior" else float(self.bias)))
        self.register_buffer("is_known", torch.tensor(bias != "prior"))
        self.register_buffer("prior", torch.tensor(0.0), persistent=False)

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def similarity(self, embeddings: Tensor, ref_emb: Tensor | None) -> Tensor:
        """The logits [n, m]."""
        log_slope: Tensor = self.log_slope
        if self.max_temperature is not None:
            log_slope = log_slope.clamp(max=math.log(self.max_temperature))
        scores = super().similarity(embeddings, ref_emb)
        # A look at a batch before the first one in training has the level of that batch.
        offset = torch.where(self.is_known, self.offset, self.prior)
        return scores * log_slope.exp().to(scores.dtype) + offset.to(scores.dtype)

    def of_pairs(self, pairs: Pairs, x: Tensor, ref: Tensor | None, *made: Any) -> LossDict:
        """PML's loss dict."""
        # Where nobody may look, the pairs are counted in every call.
        may_look = looks_are_free(x) and looks_are_free(self.is_known)
        if not (may_look and bool(self.is_known)):
            self._take_prior(pairs, len(x), len(x if ref is None else ref))
        return super().of_pairs(pairs, x, ref, *made)

    def _take_prior(self, pairs: Pairs, n: int, m: int) -> None:
        """The level at which as many pairs are expected to be positive as are, unless it is known already."""
        with torch.no_grad():
            pos, neg = (self.offset.new_zeros((), dtype=torch.float64) for _ in range(2))
            for start in range(0, n, _ROWS):
                masks = pairs.masks(torch.empty(min(_ROWS, n - start), m, device="meta"), start)
                pos, neg = pos + masks.pos.sum(), neg + masks.neg.sum()
            is_new = ~self.is_known & (pos > 0) & (neg > 0)
            prior = torch.where(is_new, (pos / neg).log(), 0.0)
            traced = torch.compiler.is_compiling()
            if traced:
                self.prior.copy_(prior)
            else:  # a transform of functions lets nobody write into what it did not make
                self.prior = prior.to(self.prior.dtype)
            if self.training and (traced or is_eager()):
                self.offset.copy_(torch.where(is_new, self.prior, self.offset))
                self.is_known.logical_or_(is_new)

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Minus the log-likelihood of each anchor's pairs, from the logits."""
        return sigmoid_pair(sim, pos, neg, reduction=self.reduction)


# Of the masks so many rows are looked at, at a time.
_ROWS = 1024
