"""Negatives that a guide, another model's embeddings of the same samples, confirms as negatives."""

from typing import Any, final

import torch
from torch import Tensor

from pml_ext import _pml, arguments
from pml_ext.hyperparameters import Configured
from pml_ext.miners.base import PairMiner
from pml_ext.miners.positive_aware import PositiveAwareMiner, Reference
from pml_ext.pairs import IndicesTuple, PairMasks, own_set


@final
class GuidedMiner(Configured, _pml.Miner):
    r"""Keeps the negatives that a guide finds less similar than the positives, and of these what another miner selects.

        N'_i = { n in N_i : g_in < min(r_i - absolute_margin, r_i - relative_margin |r_i|) },  r_i = max_{p in P_i} g_ip

    where g are the scores of the guide, the embeddings of the same samples by a good, frozen model. Then the inner
    miner selects by the scores of the embeddings, so that the hardest of the negatives that the guide allows are kept.
    It is for labels that are incomplete; where classes were split at random it was no gain (`docs/mining.md`), and a
    guide that is less reliable than the labels does harm. An anchor without kept negatives drops out, with its
    positives.

    Args:
        miner: a miner of this package that mines among the pairs that the guide allows, with a distance of its own;
            None (default) for all that the guide allows.
        absolute_margin: how much less similar than r_i a negative must be, at least 0, default 0; None for no such
            margin.
        relative_margin: the same as a share of |r_i|, at least 0; None (default) for none.
        reference: which positive gives r_i: the nearest ("max", default) or the farthest ("min"), or "mean" for the
            mean of their scores.
        as_masks: return `PairMasks` instead of index tensors.
        kwargs: `distance`, that of the guide's embeddings, and `collect_stats`.

    Shape:
        embeddings [n, d], labels [n], guide [n, e] -> (anchors, positives, anchors, negatives). References ref_emb [m,
        d] need guide_refs [m, e]. Without a guide the embeddings are their own guide: then no negative nearer than the
        positives is kept, and such errors are never corrected.

    Defaults:
        CosineSimilarity.

    Source:
        Solatorio 2024, GISTEmbed, arXiv 2402.16829, where an anchor has one positive, and a negative with a score equal
        to the limit is kept.

    Raises:
        TypeError, ValueError: a miner that is not one of this package's, arguments out of range; in a call, a guide of
            another number of samples or that is not finite, references without guide_refs.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> guide = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.9, 0.1], [-1.0, 0.0]])
        >>> anchors, positives, others, negatives = GuidedMiner()(embeddings, labels, guide=guide)
        >>> others, negatives
        (tensor([0, 1, 3]), tensor([3, 3, 0]))
    """

    def __init__(
        self,
        *,
        miner: PairMiner | None = None,
        absolute_margin: float | None = 0.0,
        relative_margin: float | None = None,
        reference: Reference = "max",
        as_masks: bool = False,
        **kwargs: Any,
    ) -> None:
        if miner is not None and not isinstance(miner, PairMiner):
            raise TypeError(f"miner must be a miner of this package (a PairMiner), got {type(miner).__name__}")
        margins: dict[str, Any] = {
            "absolute_margin": absolute_margin,
            "relative_margin": relative_margin,
            "reference": reference,
        }
        rule = PositiveAwareMiner(**margins, distance=kwargs.get("distance"))
        super().__init__(**kwargs | {"distance": rule.distance})
        self.miner = miner
        self.as_masks: bool = arguments.flag("as_masks", as_masks)
        self.record_hyperparameters(**{name: getattr(rule, name) for name in margins})

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        guide: Tensor | None = None,
        guide_refs: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        mat: Tensor | None = None,
    ) -> IndicesTuple:
        """The pairs that the guide allows; the other arguments are those of every miner, `mat` is for the inner miner.

        Args:
            embeddings: [n, d].
            labels: [n].
            ref_emb: [m, d]. By default the batch, without self-pairs.
            ref_labels: [m].
            guide: [n, e], other embeddings of the same samples. By default the embeddings.
            guide_refs: [m, e], of the references.
            indices_tuple: the candidates among which to mine, PML's or `PairMasks`. None: all pairs.
            mat: [n, m], the matrix that the distance of the inner miner computes from embeddings and references. None:
                it is computed here.
        """
        self.reset_stats()
        more: dict[str, Any] = {"guide": guide, "guide_refs": guide_refs, "indices_tuple": indices_tuple, "mat": mat}
        pairs = self.masks(embeddings, labels, ref_emb, ref_labels, **more)
        mined: IndicesTuple = pairs if self.as_masks else _pml.named(pairs.indices())
        self.output_assertion(mined)
        return mined

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> IndicesTuple:
        """PML's entry point: the pairs that the embeddings themselves allow."""
        return self.masks(embeddings, labels, ref_emb, ref_labels).indices()

    @torch.no_grad()
    def masks(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        guide: Tensor | None = None,
        guide_refs: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        mat: Tensor | None = None,
    ) -> PairMasks:
        """The pairs that the guide allows, as masks."""
        arguments.batch_to_mine(embeddings, labels, ref_emb, ref_labels)
        ref_emb = own_set(embeddings, labels, ref_emb, ref_labels)
        is_batch = ref_emb is None or ref_emb is embeddings
        if guide is None:
            if guide_refs is not None:
                raise ValueError("guide_refs needs guide, got None")
            guide, guide_refs = embeddings, ref_emb
        else:
            _check("guide", guide, labels)
            if is_batch != (guide_refs is None):
                only = "ref_emb" if guide_refs is None else "guide_refs"
                raise ValueError(f"guide_refs and ref_emb must be given together, got {only} only")
            if guide_refs is not None:
                _check("guide_refs", guide_refs, ref_labels)
        if is_batch or ref_emb is None or guide_refs is None:
            own, refs, of_refs = embeddings, guide, labels
        else:
            own, refs, of_refs = ref_emb, guide_refs, ref_labels if ref_labels is not None else labels
        rule = PositiveAwareMiner(**self.hyperparameters(), distance=self.distance)
        allowed = rule.masks(guide, labels, refs, of_refs, indices_tuple)
        if self.miner is None:
            if mat is not None:
                raise ValueError("mat is for the inner miner, but miner is None")
            return allowed
        return self.miner.masks(embeddings, labels, own, of_refs, allowed, mat=mat)

    def output_assertion(self, output: IndicesTuple) -> None:
        """PML's check of what was mined, with the number of pairs as a statistic for `PairMasks` too."""
        if not isinstance(output, PairMasks):
            super().output_assertion(output)
        elif self.collect_stats:
            super().output_assertion(output.indices())


def _check(name: str, guide: Any, labels: Any) -> None:
    if not isinstance(guide, Tensor) or guide.ndim != 2 or len(guide) != len(labels):
        shape = tuple(guide.shape) if isinstance(guide, Tensor) else type(guide).__name__
        raise ValueError(f"{name} must be a tensor [n, e], one row for each of {len(labels)} samples, got {shape}")
    arguments.holds(guide.isfinite(), f"{name} must be finite", guide)
