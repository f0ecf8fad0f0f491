"""The base of every miner of this package: a selection that narrows the masks of a pair matrix, as a PML miner."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_ext import _pml, arguments, thresholds
from pml_ext.engine import all_scores
from pml_ext.masked import all_known, looks_are_free
from pml_ext.pairs import IndicesTuple, PairMasks, Pairs, own_set
from pml_ext.similarity import PairModule, has_own_shapes
from pml_ext.vectors import in_full, without_autocast


def in_row_blocks(
    select: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], sim: Tensor, pos: Tensor, neg: Tensor
) -> tuple[Tensor, Tensor]:
    """select(sim, pos, neg) of some rows [n, m] at a time, one after another, so that its temporaries stay in a cache.

    Row i of the result must depend on row i only.
    """
    rows = max(1, thresholds.SELECTION_BLOCK // max(1, sim.shape[-1]))
    if sim.ndim != 2 or len(sim) <= 2 * rows or not looks_are_free(sim):
        return select(sim, pos, neg)
    blocks = zip(*(x.split(rows) for x in (sim, pos, neg)), strict=True)
    kept_pos, kept_neg = zip(*(select(*block) for block in blocks), strict=True)
    return torch.cat(kept_pos), torch.cat(kept_neg)


class PairMiner(PairModule, _pml.Miner):
    """A miner that narrows the masks of a pair matrix. Subclasses implement `select`.

    Called as any PML miner it returns (anchors, positives, anchors, negatives), row by row.

    Attributes:
        embedding_size: the dimension of the embeddings of the last call, for a selection that depends on it.
        is_random: whether the selection draws at random.
        is_row_function: whether `select` is a pure function of each row, so that a loss may call it itself, repeatedly
            and block by block; False unless a class says otherwise.

    Args:
        as_masks: return `PairMasks` instead, which the losses of this package take without a conversion to index
            tensors. Default False.
        kwargs: those of every PML miner: `distance`, `collect_stats`.
    """

    embedding_size: int | None = None
    is_random: bool = False
    is_row_function: bool = False

    def __init__(self, *, as_masks: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.as_masks: bool = arguments.flag("as_masks", as_masks)

    @abstractmethod
    def select(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs to keep: sim, pos, neg [n, m] -> the narrowed pos and neg."""

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
        """The mined pairs of a batch: labels [n], embeddings [n, d], and optionally references [m, d] with [m].

        Args:
            embeddings: [n, d].
            labels: [n].
            ref_emb: [m, d], what the embeddings are compared with. By default the batch, without self-pairs.
            ref_labels: [m].
            indices_tuple: the candidates among which to mine, PML's or `PairMasks`. None: all pairs.
            mat: [n, m], the matrix that the distance computes from embeddings and references. None: it is computed
                here.

        Returns:
            Four index tensors, or `PairMasks` if the miner was made with `as_masks`. Anchors index `embeddings`,
            positives and negatives `ref_emb`.
        """
        any_shape = has_own_shapes(self.distance)
        arguments.batch_to_mine(embeddings, labels, ref_emb, ref_labels, any_shape=any_shape)
        ref_emb = own_set(embeddings, labels, ref_emb, ref_labels)
        mined: IndicesTuple = self.mined(embeddings, labels, ref_emb, ref_labels, indices_tuple=indices_tuple, mat=mat)
        return mined

    def mine(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
        *,
        indices_tuple: IndicesTuple | None = None,
        mat: Tensor | None = None,
    ) -> IndicesTuple:
        """PML's entry point, called under `no_grad`."""
        masks = self.masks(embeddings, labels, ref_emb, ref_labels, indices_tuple, mat=mat)
        return masks if self.as_masks else masks.indices()

    @torch.no_grad()
    def masks(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
        indices_tuple: IndicesTuple | Pairs | None = None,
        *,
        mat: Tensor | None = None,
    ) -> PairMasks:
        """The mined pairs as masks, without an index tensor; `ref_emb is embeddings` means the batch itself.

        The pairs among which to mine are all, or those of `indices_tuple`.
        """
        pairs = Pairs.of(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if len(embeddings) == 0 or len(ref_emb) == 0:
            return pairs.masks(embeddings, 0)
        self.embedding_size = embeddings.shape[1]
        if mat is None:
            sim = self.scores(embeddings, None if ref_emb is embeddings else ref_emb)
        else:
            sim = self.scores_of_matrix(mat, len(embeddings), len(ref_emb))
        return PairMasks(*self.narrow(sim, *pairs.masks(sim, 0)))

    def narrow(self, sim: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        """The selection, under autocast as without; an anchor with a score that is no number keeps all its pairs.

        No comparison with such a score is true, so that it would drop out unseen.
        """
        with without_autocast(sim):
            kept_pos, kept_neg = self.select(sim, pos, neg)
        if all_known(sim):
            return kept_pos, kept_neg
        no_number = (sim.isnan() & (pos | neg)).any(-1, keepdim=True)
        return kept_pos | (pos & no_number), kept_neg | (neg & no_number)

    def scores(self, embeddings: Tensor, ref_emb: Tensor | None) -> Tensor:
        """What `similarity` gives, without a gradient and with less work where the engine knows the distance."""
        similarity = self.known_similarity()
        if similarity is None:
            return self.similarity(embeddings, ref_emb)
        embeddings, ref_emb = in_full(embeddings, ref_emb)
        with without_autocast(embeddings):
            return all_scores(embeddings, ref_emb, similarity)

    def output_assertion(self, output: IndicesTuple) -> None:
        """PML's check of what was mined, with the number of pairs as a statistic for `PairMasks` too."""
        if not isinstance(output, PairMasks):
            super().output_assertion(output)
        elif self.collect_stats:
            self.num_pos_pairs: int = int(output.pos.sum())
            self.num_neg_pairs: int = int(output.neg.sum())
