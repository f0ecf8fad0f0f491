"""The N-pair loss of given tuples, which may have negatives of their own."""

from __future__ import annotations

from typing import Any, final

import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from torch import Tensor

from pml_ext import _pml, arguments
from pml_ext.pairs import IndicesTuple
from pml_ext.trainers.tuples import as_triplets, n_pair_tuples
from pml_ext.vectors import at_least_single


@final
class NPairTupleLoss(_pml.Loss):
    r"""Softmax cross entropy of each pair's score against the scores of the pair's own negatives.

    For the pair i of an anchor a_i and a positive p_i with negatives N_i, and s the inner product:

        L_i = log(1 + sum_{n in N_i} exp(s(a_i, n) - s(a_i, p_i)))
              + regularization / 4 (|a_i|^2 + mean_{c in {p_i} + N_i} |c|^2)

    Args:
        regularization: weight of the squared norms, at least 0. Default 3e-3.
        kwargs: those of every PML loss: `distance`, `reducer`, `embedding_regularizer`, `embedding_reg_weight`,
            `collect_stats`.

    Shape:
        embeddings [n, d], labels [n] -> a scalar. Given triplets, those with the same anchor and positive are one
        pair; without an `indices_tuple` the pairs are those of `NPairTupleMiner`. `ref_emb` needs an `indices_tuple`.

    Defaults:
        DotProductSimilarity without normalization, MeanReducer (divides by the number of pairs), `element`.

    Source:
        Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, as used by Zheng et
        al. 2019, arXiv 1903.05503. PML's `NPairsLoss` is the same without the norms, but its negatives are always the
        positives of the other pairs, so that it cannot be given synthetic ones.

    Raises:
        TypeError, ValueError: a regularization that is not a number, not finite or negative; references without an
            `indices_tuple`.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> NPairTupleLoss()(embeddings, labels)
        tensor(0.4797)
    """

    def __init__(self, *, regularization: float = 3e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.regularization: float = arguments.non_negative("regularization", regularization)
        _pml.record(self, ["regularization"])

    def get_default_distance(self) -> Any:
        """Inner product of the embeddings as they are."""
        return DotProductSimilarity(normalize_embeddings=False)

    def loss_dict(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """PML's loss dict."""
        if indices_tuple is None:
            if labels is None:
                raise ValueError("NPairTupleLoss needs labels or an indices_tuple, got None for both")
            arguments.without_references("NPairTupleLoss without pairs", embeddings, labels, ref_emb, ref_labels)
            a, p, n = n_pair_tuples(labels)
        else:
            a, p, n = as_triplets(indices_tuple, labels, ref_labels)  # type: ignore[arg-type]
        if len(a) == 0:
            return dict(self.zero_losses())
        embeddings, ref_emb = at_least_single(embeddings), at_least_single(ref_emb)
        scores = self.distance(embeddings, ref_emb)  # [n, m]
        scores = scores if self.distance.is_inverted else -scores
        pairs, pair = torch.unique(torch.stack([a, p]), dim=1, return_inverse=True)  # [2, u], [t]
        losses = _cross_entropy(scores[a, n] - scores[pairs[0], pairs[1]][pair], pair, pairs.shape[1])
        if self.regularization:
            norms = ref_emb.square().sum(-1)
            candidates = norms[pairs[1]].index_add(0, pair, norms[n]) / (1 + pair.bincount(minlength=len(losses)))
            anchors = embeddings[pairs[0]].square().sum(-1)
            losses = losses + self.regularization / 4 * (anchors + candidates)
        return {"loss": {"losses": losses, "indices": pairs[0], "reduction_type": "element"}}


def _cross_entropy(gaps: Tensor, group: Tensor, groups: int) -> Tensor:
    """log(1 + the sum of exp(gap) over each group): gaps [t], group [t] -> [groups]."""
    top = gaps.new_zeros(groups).scatter_reduce(0, group, gaps.detach(), "amax")  # at least 0
    return top + (-top).exp().index_add(0, group, (gaps - top[group]).exp()).log()
