"""A limit on the number of pairs, or triplets, of each anchor, for any miner."""

from typing import Any, ClassVar, final

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.hyperparameters import Configured
from pml_ext.pairs import IndicesTuple, PairMasks, own_set
from pml_ext.sampling import sample
from pml_ext.seeded import Seeded


def capped(anchors: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Places of at most k entries of each anchor, drawn uniformly, in their order: anchors [t] -> [at most t]."""
    order = torch.randperm(len(anchors), device=anchors.device, generator=generator)
    ordered, shuffled = anchors[order].sort(stable=True)
    rank = torch.arange(len(anchors), device=anchors.device) - torch.searchsorted(ordered, ordered)
    kept: Tensor = order[shuffled[rank < k]].sort().values
    return kept


@final
class CappedMiner(Seeded, Configured, _pml.Miner):
    r"""Keeps at most a given number of positives and negatives per anchor of what another miner finds, drawn uniformly.

        (P_i, N_i) = miner(x, y);   P'_i = per_anchor of P_i,  N'_i = per_anchor of N_i,  or all if there are fewer

    If the miner finds triplets, `per_anchor` triplets of each anchor are kept. So no anchor outweighs the others by the
    number of its pairs, and memory and time of the loss are bounded.

    Args:
        miner: any PML miner, of this package or not. The distance is its distance.
        per_anchor: how many of each kind to keep, at least 1.
        kwargs: `seed` as in `Seeded`; `collect_stats` as in every PML miner.

    Shape:
        embeddings [n, d], labels [n] -> what the miner returns, with fewer entries.

    Defaults:
        The distance of the miner, torch's global generator.

    Source:
        Ours.

    Raises:
        TypeError, ValueError: a miner that is not a PML miner, a number that is not an integer or below 1.

    Example:
        >>> import torch
        >>> from pml_ext.miners import HardNegativePairMiner
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> miner = CappedMiner(HardNegativePairMiner(epsilon=2), 1, seed=0)
        >>> anchors, positives, others, negatives = miner(embeddings, labels)
        >>> others, len(negatives)
        (tensor([0, 1, 2, 3]), 4)
    """

    has_own_distance: ClassVar[bool] = False

    def __init__(self, miner: nn.Module, per_anchor: int, **kwargs: Any) -> None:
        if not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a PML miner (a BaseMiner), got {type(miner).__name__}")
        super().__init__(distance=miner.distance, **kwargs)
        self.miner: Any = miner
        self.record_hyperparameters(per_anchor=arguments.count("per_anchor", per_anchor))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        indices_tuple: IndicesTuple | None = None,
        mat: Tensor | None = None,
    ) -> IndicesTuple:
        """Some of the pairs, or triplets, that the miner finds; the arguments are those of the miner."""
        arguments.batch_to_mine(embeddings, labels, ref_emb, ref_labels)
        ref_emb = own_set(embeddings, labels, ref_emb, ref_labels)
        mined: IndicesTuple = self.mined(embeddings, labels, ref_emb, ref_labels, indices_tuple=indices_tuple, mat=mat)
        return mined

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, **more: Any
    ) -> IndicesTuple:
        """Some of the pairs, or triplets, that the miner finds."""
        # PML knows the batch by the references not being given.
        references = (None, None) if ref_emb is embeddings else (ref_emb, ref_labels)
        found = _pml.mine(self.miner, embeddings, labels, *references, **more)
        generator = self.generator(embeddings.device)
        if isinstance(found, PairMasks):
            # Of equal weight.
            k = torch.full((len(embeddings), 1), self.per_anchor, device=embeddings.device)
            pos, neg = (sample(torch.zeros(mask.shape, device=mask.device), mask, k, generator) for mask in found)
            return PairMasks(pos, neg)
        sides = (found,) if len(found) == 3 else (found[:2], found[2:])
        places = [capped(side[0], self.per_anchor, generator) for side in sides]
        return tuple(index[place] for side, place in zip(sides, places, strict=True) for index in side)

    def output_assertion(self, output: IndicesTuple) -> None:
        """PML's check of what was mined, with the number of pairs as a statistic for `PairMasks` too."""
        if not isinstance(output, PairMasks):
            super().output_assertion(output)
        elif self.collect_stats:
            super().output_assertion(output.indices())
