"""The tuples of hardness-aware learning: the triplets and the N-pairs of the paper, as miners."""

from __future__ import annotations

from typing import Any, final

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from typing_extensions import Unpack

from pml_ext import _pml, arguments
from pml_ext.hyperparameters import SeededMinerArguments
from pml_ext.index_tuples import Triplets, all_triplets, to_triplets
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import IndicesTuple, PairMasks
from pml_ext.seeded import Seeded


def as_triplets(indices_tuple: IndicesTuple | None, labels: Tensor, ref_labels: Tensor | None = None) -> Triplets:
    """The triplets (a, p, n) of an `indices_tuple`: every positive of an anchor with every negative of it.

    Without one, all triplets of the labels [n], whose number grows with the cube of the batch size.
    """
    if isinstance(indices_tuple, PairMasks):
        indices_tuple = indices_tuple.indices()
    if indices_tuple is None:
        return all_triplets(labels, ref_labels)
    return to_triplets(indices_tuple)


def n_pair_tuples(labels: Tensor) -> Triplets:
    """The N-pairs of a batch as triplets (a_i, p_i, p_j), for all i and j != i, ordered by i.

    The first two samples of every class are its anchor and its positive; the positives of the other classes are the
    negatives. Classes with one sample, and the third and later samples of a class, are not used.
    """
    order = labels.argsort(stable=True)
    ordered = labels[order]
    changes = ordered[1:] != ordered[:-1]
    always = torch.ones(min(len(labels), 1), dtype=torch.bool, device=labels.device)
    is_first = torch.cat([always, changes])
    is_last = torch.cat([changes, always])
    first = (is_first & ~is_last).nonzero().squeeze(1)
    anchors, positives = order[first], order[first + 1]
    i, j = (~torch.eye(len(first), dtype=torch.bool, device=labels.device)).nonzero(as_tuple=True)
    return anchors[i], positives[i], positives[j]


@final
class NPairTupleMiner(_pml.Miner):
    r"""Mines the N-pairs of a batch: one anchor and one positive of each class, against the other classes' positives.

        (a_i, p_i, p_j)  for all classes i and j != i ;  a_i, p_i = the first two samples of class i

    Args:
        kwargs: those of every PML miner: `distance`, which the pairs do not depend on, and in PML 2 `collect_stats`.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, negatives), C (C - 1) triplets of C classes.

    Source:
        Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016. The pairs are those of
        PML's `NPairsLoss`, which does not return its negatives.

    Raises:
        ValueError: references, or candidates as `indices_tuple`.

    Example:
        >>> NPairTupleMiner()(torch.zeros(5, 2), torch.tensor([0, 1, 0, 1, 0]))
        TripletIndices(anchors=tensor([0, 1]), positives=tensor([2, 3]), negatives=tensor([3, 2]))
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def get_default_distance(self) -> Any:
        """Euclidean distance; the pairs do not depend on it."""
        return LpDistance()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        indices_tuple: IndicesTuple | None = None,
    ) -> _pml.TripletIndices:
        """The triplets of a batch: labels [n], embeddings [n, d]."""
        arguments.without_indices("NPairTupleMiner", indices_tuple)
        arguments.batch_to_mine(embeddings, labels, ref_emb, ref_labels)
        if ref_emb is not None:
            arguments.without_references("NPairTupleMiner", embeddings, labels, ref_emb, ref_labels)
        mined: _pml.TripletIndices = self.mined(embeddings, labels)
        return mined

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> _pml.TripletIndices:
        """PML's entry point."""
        return _pml.TripletIndices(*n_pair_tuples(labels))


@final
class RandomTupleMiner(Seeded, PairMiner):
    r"""Draws one positive and k negatives for each anchor, uniformly.

        p ~ uniform on P_i ;  n_1 ... n_k ~ uniform on N_i, without replacement

    Args:
        negatives: k, how many negatives each anchor gets, at least 1; all if there are fewer.
        kwargs: those of `Seeded`, with `seed` for pairs that do not depend on the global random state.

    Shape:
        embeddings [n, d], labels [n] -> (anchors, positives, anchors, negatives).

    Source:
        Ours, for batches of PML's samplers. The triplets of Zheng et al. 2019 use every image of a batch of their own
        sampler once, as anchor, positive or negative; here every image is an anchor once.

    Raises:
        TypeError, ValueError: negatives that are not an integer or below 1.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> anchors, positives, _, negatives = RandomTupleMiner(seed=0)(torch.zeros(4, 2), labels)
        >>> anchors, positives, len(negatives)
        (tensor([0, 1, 2, 3]), tensor([1, 0, 3, 2]), 4)
    """

    def __init__(self, *, negatives: int = 1, **kwargs: Unpack[SeededMinerArguments]) -> None:
        super().__init__(**kwargs)
        self.record_hyperparameters(negatives=arguments.count("negatives", negatives))

    def get_default_distance(self) -> Any:
        """Euclidean distance; the draw does not look at it."""
        return LpDistance()

    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """One random positive and k random negatives of each anchor that has both."""
        generator = self.generator(sim.device)
        usable = pos.any(-1, keepdim=True) & neg.any(-1, keepdim=True)
        return _some(pos & usable, 1, generator), _some(neg & usable, self.negatives, generator)


def _some(mask: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """The mask narrowed to k random members of each row."""
    noise = torch.rand(mask.shape, device=mask.device, generator=generator).masked_fill(~mask, -1)
    chosen = noise.topk(min(k, mask.shape[-1]), dim=-1).indices
    return torch.zeros_like(mask).scatter_(-1, chosen, True) & mask
