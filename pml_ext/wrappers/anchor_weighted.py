"""Any loss, with every anchor weighted by how far its nearest negative is ahead of its nearest positive."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pml_ext import _pml, arguments
from pml_ext.base import BatchLoss, RowLoss
from pml_ext.by_autograd import PerAnchor
from pml_ext.closed_form import Sides, SideWeights, exponential_sum
from pml_ext.engine import Form
from pml_ext.hyperparameters import WrapperArguments
from pml_ext.losses import ClassCenterMarginLoss
from pml_ext.masked import Counted, masked_logsumexp
from pml_ext.pairs import IndicesTuple, Pairs
from pml_ext.wrappers.base import LossWrapper, has_proxies, runs_by_rows


def anchor_weight(sim: Tensor, pos: Tensor, neg: Tensor, *, alpha: float) -> Tensor:
    """Weight of each anchor, without a gradient: sim, pos, neg [.., n, m] -> [.., n]. See `AnchorWeightedLoss`."""
    scores = alpha * sim.detach()
    return torch.sigmoid(masked_logsumexp(scores, neg) - masked_logsumexp(scores, pos))


def weighted_sides(sides: Sides, *, loss: Callable[[Sides], SideWeights | None], alpha: float) -> SideWeights | None:
    """The closed form of a loss with each row times the weight of its anchor."""
    log_neg, *_ = exponential_sum(sides.neg.clone(), alpha)
    log_pos, *_ = exponential_sum(sides.near_pos(), alpha)
    weight = torch.where(sides.has_pos & sides.has_neg, torch.sigmoid(log_neg - log_pos), 0.0)  # [b, 1]
    found = loss(sides)
    if found is None:
        return None
    losses, pos, neg = found.losses * weight.squeeze(1), found.pos * weight, found.neg * weight
    return found._replace(losses=losses, pos=pos, neg=neg)


def weighted_anchors(
    sim: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor | Counted],
    alpha: float,
) -> Counted:
    """The loss of each anchor times its weight, from the same scores, and the divisor that the loss counts."""
    result = loss(sim, pos, neg)
    there = pos.any(-1) & neg.any(-1)
    losses, counts = result if isinstance(result, Counted) else (result, torch.ones_like(there, dtype=torch.long))
    weight = torch.where(there, anchor_weight(sim, pos, neg, alpha=alpha), 0.0)
    return Counted(losses * weight, counts)


def gives_no_loss_of_anchors(loss: nn.Module) -> bool:
    """Whether a loss is known to reduce its anchors itself, or to give the losses of classes."""
    reduces = isinstance(loss, LossWrapper) and not isinstance(loss, AnchorWeightedLoss)
    return reduces or isinstance(loss, (BatchLoss, ClassCenterMarginLoss, *_OF_CLASSES_OR_BATCH))


_OF_CLASSES_OR_BATCH = _pml.losses_named(
    "DynamicSoftMarginLoss",
    "HistogramLoss",
    "P2SGradLoss",
    "PNPLoss",
    "ProxyAnchorLoss",
    "ThresholdConsistentMarginLoss",
)


@final
class _AnchorWeights(RowLoss):
    """The weights as a row loss, for what the shell does with labels, pairs, references and chunks."""

    def __init__(self, *, alpha: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(alpha=arguments.positive("alpha", alpha))

    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Weight of each anchor."""
        return anchor_weight(sim, pos, neg, **self.hyperparameters())


@final
class AnchorWeightedLoss(LossWrapper):
    r"""Multiplies the loss of each anchor by a weight in (0, 1), near 1 where the nearest pairs are negatives.

        L_i = a_i L'_i ,   a_i = S-_i / (S+_i + S-_i)
        S+_i = sum_{p in P_i} exp(-alpha D_ip) ,   S-_i = sum_{n in N_i} exp(-alpha D_in)

    L' is the inner loss and D its distance. The weight is held constant in the backward pass. An anchor without
    positives or without negatives has weight 0. The reducer of the inner loss is applied to the weighted losses; a
    divisor that it counts is not weighted.

    Args:
        loss: a loss with one value for each anchor, pair or triplet, ours or PML's. Its regularizers are not weighted.
        alpha: steepness of the weight, the inverse temperature, above 0.
        reducer: None (default) for the reducer of the inner loss.
        kwargs: those of `LossWrapper`. Give an embedding regularizer to the wrapper or to the inner loss, not to both.

    Shape:
        embeddings [n, d], labels [n] -> a scalar.

    Defaults:
        The distance, the reducer, the sub-losses and the `chunk_size` of the inner loss. Needs a positive and a
        negative.

    Source:
        The "dynamic learning rate" of DM18's ABatchAll, AHardPair and ATriplet: a detached weight of the
        anchor, not a learning rate. The reference code divides sums of exponentials, which become 0/0 for embeddings
        that are not normalized; here the weight is computed from logarithms.

    Raises:
        TypeError, ValueError: a loss that is not a PML loss, or one of classes or of the whole batch; an alpha that is
            not a number, not finite or not above 0; two embedding regularizers; in a call, a loss that turns out to
            reduce its anchors itself, or to give one value for each proxy.

    Example:
        >>> import torch
        >>> from pml_ext.losses import BatchAllTripletLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> AnchorWeightedLoss(BatchAllTripletLoss())(embeddings, labels)
        tensor(0.1460)
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        alpha: float = 40,
        reducer: nn.Module | None = None,
        **kwargs: Unpack[WrapperArguments],
    ) -> None:
        super().__init__(loss, **kwargs)
        if gives_no_loss_of_anchors(loss):
            raise TypeError(
                f"loss must give a loss for each anchor, pair or triplet, in which an anchor can be weighted: "
                f"{type(loss).__name__} does not"
            )
        if self.embedding_regularizer is not None and loss.embedding_regularizer is not None:
            raise ValueError("embedding_regularizer was given to the wrapper, but the inner loss has one already")
        chunk_size = getattr(loss, "chunk_size", None)
        self.weights: _AnchorWeights = _AnchorWeights(alpha=alpha, distance=loss.distance, chunk_size=chunk_size)
        self.set_reducer(getattr(loss, "reducer", None) if reducer is None else reducer)
        self.record_hyperparameters(alpha=self.weights.alpha)

    @property
    def alpha(self) -> float:
        """The steepness of the weight."""
        alpha: float = self.weights.alpha
        return alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.weights.alpha = value

    def sub_loss_names(self) -> list[str]:
        """Those of the inner loss and of a regularizer of the wrapper. PML reads them once without an inner loss."""
        loss = getattr(self, "loss", None)
        names: list[str] = super().sub_loss_names()
        return names if loss is None else loss.sub_loss_names() + self.all_regularization_loss_names()

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The loss dict of the inner loss, weighted."""
        batch = embeddings, labels, indices_tuple, ref_emb, ref_labels
        _pml.reset_stats(self.loss)
        if runs_by_rows(self.loss):
            # From the same scores: they are computed once.
            ref = None if ref_emb is embeddings else ref_emb
            loss_dict: dict[str, Any] = self.loss.of_pairs(Pairs.of(*batch), embeddings, ref, *self.of_rows(self.loss))
            _pml.add_penalties(self.loss, loss_dict, embeddings)
            return loss_dict
        with torch.no_grad():
            # There are none where there is nothing to compute.
            weights = _pml.entries(self.weights, *batch).get("loss", {"losses": 0})["losses"]
        loss_dict = {
            # The names of PML's regularizers; they belong to no anchor.
            name: part if name.endswith("_reg_loss") else self.weighted(name, part, weights)
            for name, part in _pml.entries(self.loss, *batch).items()
        }
        _pml.add_penalties(self.loss, loss_dict, embeddings)
        return loss_dict

    def of_rows(self, loss: RowLoss) -> tuple[PerAnchor, Form | None]:
        """The weighted losses of the anchors of a row loss, and their closed form."""
        form = loss.form()
        weighted = form and partial(weighted_sides, loss=form, alpha=self.alpha)
        return partial(weighted_anchors, loss=loss.per_anchor, alpha=self.alpha), weighted

    def weighted(self, name: str, part: dict[str, Any], weights: Tensor | int) -> dict[str, Any]:
        """One entry of the loss dict with its losses times the weights of their anchors [n]."""
        losses, indices = part["losses"], part["indices"]
        if not isinstance(losses, Tensor):  # PML's zero loss is the number 0
            return part
        if part["reduction_type"] == "already_reduced":
            raise ValueError(
                f"loss must give a loss for each anchor, pair or triplet: {type(self.loss).__name__} reduces its "
                f"{name!r} to one number, in which no anchor can be weighted"
            )
        if isinstance(weights, Tensor):
            # Of PML's, NCA leaves out the samples whose likelihood is 0.
            drops = isinstance(self.loss, _pml.losses_named("NCALoss"))
            if has_proxies(self.loss) and not drops and len(losses) != len(weights):
                raise ValueError(
                    f"loss must give a loss for each anchor, pair or triplet: {type(self.loss).__name__} gives "
                    f"{len(losses)} for {len(weights)} samples"
                )
            anchors = indices if isinstance(indices, Tensor) else indices[0]
            weight = weights[anchors].to(losses.dtype)
            weights = weight.view(-1, *[1] * (losses.ndim - 1))  # some of PML's losses are [.., 1]
        return part | {"losses": losses * weights}
