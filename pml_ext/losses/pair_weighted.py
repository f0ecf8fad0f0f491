"""A loss that is defined by the weight of each pair."""

import inspect
from collections.abc import Callable
from typing import Any, final

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from pml_ext import arguments
from pml_ext.base import RowLoss
from pml_ext.masked import Needs, as_numbers


def pair_weighted(sim: Tensor, pos: Tensor, neg: Tensor, *, weights: Tensor) -> Tensor:
    """Weighted scores of the negatives minus those of the positives: all [.., n, m] -> [.., n]."""
    sign = as_numbers(neg, sim.dtype) - as_numbers(pos, sim.dtype)
    signed = torch.where(pos | neg, weights, 0.0).mul(sign)
    losses: Tensor = torch.linalg.vecdot(sim, signed.detach())
    return losses


@final
class PairWeightedLoss(RowLoss):
    r"""Pulls positives and pushes negatives with weights that are given as a function: a loss defined by its gradient.

        L_i = sum_{n in N_i} sg[w_in] s_in  -  sum_{p in P_i} sg[w_ip] s_ip ,   w = weighting(s, P, N)

    sg[.] is held constant in the backward pass: the derivative with respect to s_ip is -w_ip, that with respect to s_in
    is w_in. So any weighting of pairs can be used for training, even one that is not the gradient of any function. The
    value is not that of a loss with the same gradient, and may grow while the embeddings improve: do not judge training
    by it.

    Args:
        weighting: f(sim, pos, neg, *, hyperparameters) -> w, all [.., n, m], w at least 0: one of
            `pml_ext.weightings`, or one of your own, decorated with `pml_ext.weightings.weighting` if it has levels of
            the distance or does not need both kinds of pairs. Row i of w must depend on row i of the others only.
        hyperparameters: keywords of the weighting, by default its own defaults. They become attributes.
        kwargs: those of `RowLoss`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        CosineSimilarity, MeanReducer (divides by all n anchors); needs what the weighting says, else a positive and a
        negative.

    Source:
        The function F of general pair weighting: Wang et al., "Multi-Similarity Loss with General Pair Weighting for
        Deep Metric Learning", CVPR 2019, arXiv 1904.06627, equation 5. There it is a way to analyze losses.

    Raises:
        TypeError, ValueError: a weighting that is not such a function; a hyperparameter that it does not have, that is
            missing, not finite or out of range; in a call, weights of another shape than the scores.

    Example:
        >>> from pml_ext import weightings
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> PairWeightedLoss(weightings.raw, gamma=0.4)(embeddings, labels)
        tensor(0.2778)
    """

    def __init__(self, weighting: Callable[..., Tensor], **kwargs: Any) -> None:
        if not callable(weighting):
            raise TypeError(f"weighting must be a function of sim, pos and neg, got {weighting!r}")
        parameters = inspect.signature(weighting).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        values = own | {name: kwargs.pop(name) for name in own if name in kwargs}
        super().__init__(**kwargs)
        self.weighting = weighting
        self.record_hyperparameters(**{name: self._checked(name, value) for name, value in values.items()})

    # Of the class in every other loss; here the weighting says.
    @property
    def levels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The hyperparameters of the weighting that are levels of the distance."""
        levels: tuple[str, ...] = getattr(self.weighting, "levels", ())
        return levels

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The pairs without which the weighting has nothing to weigh."""
        needs: Needs = getattr(self.weighting, "needs", "both")
        return needs

    def _checked(self, name: str, value: Any) -> Any:
        if value is inspect.Parameter.empty:
            raise TypeError(f"the weighting needs {name}: give {name}=")
        if hasattr(self, name):
            raise ValueError(f"a hyperparameter of the weighting must not be called {name}, an attribute of every loss")
        if name in getattr(self.weighting, "positive", ()):
            return arguments.positive(name, value)
        if name in getattr(self.weighting, "non_negative", ()):
            return arguments.non_negative(name, value)
        return arguments.finite(name, value) if isinstance(value, float) or name in self.levels else value

    def get_default_distance(self) -> Any:
        """Cosine similarity."""
        return CosineSimilarity()

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Weighted scores of each anchor."""
        with torch.no_grad():
            weights = self.weighting(sim, pos, neg, **self.hyperparameters())
        if weights.shape != sim.shape:
            raise ValueError(f"the weighting must return {tuple(sim.shape)} weights, got {tuple(weights.shape)}")
        return pair_weighted(sim, pos, neg, weights=weights.to(sim.dtype))
