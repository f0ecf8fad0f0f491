"""The shell: everything PML expects of a loss or a miner, written once, around a pure function of a pair matrix.

`RowLoss` runs losses whose row i depends on row i of the matrix only, `BatchLoss` the few that look at
all pairs at once. Both turn labels, PML's index tuples or `PairMasks` into masks,
drop self-pairs by index, accept any PML distance, and hand the pure function a score that is larger for closer pairs.
`SampleLoss` is for losses of samples and class centres, which have no pairs.
"""

import warnings
from abc import ABC, abstractmethod
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from pytorch_metric_learning.losses.base_metric_loss_function import BaseMetricLossFunction
from pytorch_metric_learning.reducers import DivisorReducer
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_ext import arguments
from pml_ext.blocks import (
    BatchRows,
    ClosedForm,
    GatheredSides,
    LossRows,
    MaskSides,
    Sided,
    label_sides,
)
from pml_ext.engine import disabled, is_enabled, row_losses
from pml_ext.hyperparameters import Configured
from pml_ext.masked import Counted, Needs, all_known, is_eager, substitute, unknown
from pml_ext.pairs import (
    IndicesTuple,
    PrivateMasks,
    RowMasks,
    Selected,
    own_set,
    pair_relation,
    relation_of,
    wide,
)
from pml_ext.similarity import Similarity, has_own_shapes, normalized, scores_by
from pml_ext.vectors import at_least_single, without_autocast


class StaticDivisorReducer(DivisorReducer):
    """PML's `DivisorReducer`, without the host synchronisation of its `if divisor != 0`. Same values."""

    def sum_and_divide(self, losses: Tensor, embeddings: Tensor, divisor: Tensor | float) -> Tensor:
        """Sum of the losses over the divisor; 0 where the divisor is 0."""
        divisor = torch.as_tensor(divisor, device=losses.device)
        return losses.sum() / torch.where(divisor == 0, 1, divisor) * (divisor != 0)


class PairModule(Configured, ABC):
    """What losses and miners share: hyperparameters and the matrix of scores."""

    def known_similarity(self) -> Similarity | None:
        """How the engine computes the scores, or None if it cannot: they are of one's own making, say."""
        usual = type(self).similarity is PairModule.similarity and is_eager()
        return Similarity.of(self.distance) if usual else None

    def similarity(self, embeddings: Tensor, ref_emb: Tensor | None) -> Tensor:
        """Scores [n, m], larger is closer; None for the references means the embeddings themselves.

        Half precision is computed in float32, also under autocast: exponents follow, and PML's `LpDistance` would
        build n * m * d numbers for float16. A distance that the engine knows is not asked, for it has no second
        derivative, and no small distances far from the origin.
        """
        embeddings, ref_emb = in_full(embeddings, ref_emb)
        with without_autocast(embeddings):
            return scores_by(self.distance, embeddings, ref_emb)


def in_full(embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both sets of vectors in the precision in which they are computed, that of the embeddings but at least float32."""
    full = at_least_single(embeddings)
    if ref_emb is embeddings:
        return full, full
    return full, None if ref_emb is None else ref_emb.to(full.dtype)


class MatrixLoss(PairModule, BaseMetricLossFunction):
    """The part of the shell that does not depend on whether a loss is taken per anchor or per batch.

    Half precision: every loss and wrapper of this package takes embeddings of float16 and bfloat16 to float32 as they
    come in, and computes and returns float32, with any distance, reducer and regularizer, under autocast, and for an
    empty batch. The gradient is of the type of the embeddings. Losses of PML's own return what they were given.

    Attributes:
        needs: the pairs without which there is no loss: "both", "positives", "negatives" or "either".
    """

    needs: ClassVar[Needs] = "both"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: [n, d].
            labels: [n]. May be None if `indices_tuple` is given.
            indices_tuple: the pairs to use, instead of all: (a, p, n) or (a1, p, a2, n) as PML's miners return them,
                or `PairMasks`. A pair named twice counts once, and a loss over triplets uses every combination of an
                anchor's positives with its negatives.
            ref_emb: [m, d], what the embeddings are compared with. By default the batch, without self-pairs. Given
                references are a set of their own, whatever they share with the batch, unless embeddings and labels are
                both the same tensors.
            ref_labels: [m].

        Returns:
            A scalar, or what the reducer makes of one loss per anchor.
        """
        arguments.batch(embeddings, labels, ref_emb, ref_labels, any_shape=has_own_shapes(self.distance))
        embeddings, ref_emb = in_full(embeddings, own_set(embeddings, labels, ref_emb, ref_labels))
        loss: Tensor = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return loss

    def lacks_pairs(self, anchors: int, embeddings: Tensor, ref_emb: Tensor) -> bool:
        """Whether so many anchors cannot have the pairs in `needs`: two for both kinds, else one."""
        pairs = anchors * (len(ref_emb) - int(ref_emb is embeddings))
        return pairs < (2 if self.needs == "both" else 1)


class RowLoss(MatrixLoss):
    """A loss that is a function of each row of the pair matrix. Subclasses implement `per_anchor`.

    The loss dict is `element`, one loss per anchor of the batch, so that PML's `MeanReducer` divides by n. An anchor
    that lacks the pairs in `needs` has a loss of exactly 0 and a zero gradient.

    Attributes:
        needs: the pairs without which an anchor is not defined: "both", "positives", "negatives" or "either".
        closed_form: None, or losses and pair weights of the two sides of a block (`pml_ext.closed_form`), which spares
            autograd where that pays. Same values and derivatives as `per_anchor`, as a law checks.

    Args:
        chunk_size: None, or the number of anchors computed at a time, their matrices being computed again in the
            backward pass: memory then grows with chunk_size * m instead of n * m. Same value, same gradient.
        kwargs: those of every PML loss: `distance`, `reducer`, `embedding_regularizer`, `embedding_reg_weight`,
            `collect_stats`.
    """

    closed_form: ClassVar[ClosedForm | None] = None

    def __init__(self, *, chunk_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chunk_size = arguments.count("chunk_size", chunk_size, optional=True)

    @abstractmethod
    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor | Counted:
        """One loss per anchor: sim, pos, neg [..., n, m] -> [..., n]; `Counted` to set the divisor too."""

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | Selected | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """PML's loss dict."""
        masks = pair_relation(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if self.lacks_pairs(min(len(embeddings), 1), embeddings, ref_emb):
            return dict(self.zero_losses())
        refs = None if ref_emb is embeddings else ref_emb
        similarity = self.known_similarity()
        if similarity is None:
            losses, counts = self.plain(embeddings, refs, masks, indices_tuple)
        else:
            losses, counts = self.fast(embeddings, refs, masks, similarity, labels, indices_tuple, ref_labels)
        return {
            "loss": {
                "losses": losses,
                "indices": torch.arange(len(embeddings), device=embeddings.device),
                "reduction_type": "element",
                "divisor": counts.sum(),
            }
        }

    def plain(
        self, embeddings: Tensor, ref_emb: Tensor | None, masks: RowMasks, indices_tuple: IndicesTuple | Selected | None
    ) -> Counted:
        """Losses and counts by ordinary autograd, for any distance; in chunks under checkpointing."""
        n = embeddings.shape[0]
        relation = relation_of(wide(masks, n), indices_tuple)
        # A chunk is computed again in the backward pass, in the same way.
        switch = nullcontext if is_enabled() else disabled

        def block(rows: Tensor, refs: Tensor | None, start: int) -> Counted:
            with switch():
                sim = self.similarity(rows, refs)
            return self.anchors(sim, *relation(sim, start))

        if self.chunk_size is None or self.chunk_size >= n:
            return block(embeddings, ref_emb, 0)

        refs = embeddings if ref_emb is None else ref_emb
        blocks = [
            checkpoint(block, rows, refs, start, use_reentrant=False, preserve_rng_state=False)
            for rows, start in zip(embeddings.split(self.chunk_size), range(0, n, self.chunk_size), strict=True)
        ]
        return Counted(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))

    def fast(
        self,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        masks: RowMasks,
        similarity: Similarity,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | Selected | None,
        ref_labels: Tensor | None,
    ) -> Counted:
        """Losses and counts through the engine: the same values and gradients as `plain`."""
        embeddings, refs = in_full(embeddings, ref_emb)
        relation = relation_of(masks, indices_tuple)
        sides: Sided | None = None
        if self.closed_form is not None and indices_tuple is None and labels is not None and ref_labels is not None:
            sides = label_sides(labels, ref_labels, ref_emb is None, embeddings.dtype)
        elif self.closed_form is not None:
            sides = MaskSides(relation)
        rows = LossRows(
            relation=relation,
            sides=sides,
            closed_form=self.closed_form and partial(self.closed_form, **self.hyperparameters()),
            per_anchor=self.anchors,
            plain=lambda x, ref: self.plain(x, ref, masks, indices_tuple).losses,
            needs=self.needs,
            private=isinstance(indices_tuple, PrivateMasks),
        )
        with torch.autocast(embeddings.device.type, enabled=False):
            return Counted(
                *row_losses(
                    embeddings,
                    refs,
                    similarity,
                    rows.weigh,
                    rows.plain,
                    chunk_size=self.chunk_size,
                    private=rows.private,
                )
            )

    def anchors(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Counted:
        """Losses and counts of some anchors from their scores and masks. Undefined anchors have 0 and 0."""
        sim, pos, neg, defined = substitute(sim, pos, neg, self.needs)
        known = all_known(sim)
        if not known:  # the gradient of a pair that is not selected is 0 times its score somewhere
            sim = torch.where(pos | neg, sim, 0.0)
        result = self.per_anchor(sim, pos, neg)
        losses, counts = result if isinstance(result, Counted) else (result, defined.long())
        losses, counts = torch.where(defined, losses, 0.0), torch.where(defined, counts, 0)
        return Counted(losses if known else losses + unknown(sim), counts)


class BatchLoss(MatrixLoss):
    """A loss that looks at all pairs of the batch at once. Subclasses implement `per_batch`.

    The loss dict is `already_reduced`. A batch that lacks the pairs in `needs` has a loss of exactly 0.

    Attributes:
        needs: the pairs without which the batch has no loss: "both", "positives", "negatives" or "either".
        closed_form: None, or the loss and the pair weights from the two sides of a batch compared with itself and the
            columns of its positives; pairs (i, j) and (j, i) may share their weight in any way.
    """

    closed_form: ClassVar[ClosedForm | None] = None

    @abstractmethod
    def per_batch(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """One loss for all pairs: sim, pos, neg [..., n, m] -> [...]."""

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """PML's loss dict."""
        masks = pair_relation(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if self.lacks_pairs(len(embeddings), embeddings, ref_emb):
            return dict(self.zero_losses())
        masks, refs = wide(masks, len(embeddings)), None if ref_emb is embeddings else ref_emb
        similarity = self.known_similarity()
        if similarity is None:
            loss = self.plain(embeddings, refs, masks)
        else:
            of_batch = refs is None and indices_tuple is None
            loss = self.fast(embeddings, refs, masks, similarity, labels if of_batch else None)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def plain(self, embeddings: Tensor, ref_emb: Tensor | None, masks: RowMasks) -> Tensor:
        """The loss by ordinary autograd, for any distance."""
        return self.of_scores(self.similarity(embeddings, ref_emb), *masks(0, len(embeddings)))

    def fast(
        self, embeddings: Tensor, ref_emb: Tensor | None, masks: RowMasks, similarity: Similarity, labels: Tensor | None
    ) -> Tensor:
        """The loss through the engine; with labels if it compares all pairs of a batch."""
        embeddings, refs = in_full(embeddings, ref_emb)
        sides = None
        if self.closed_form is not None and labels is not None:
            sides = label_sides(labels, labels, True, embeddings.dtype)
        rows = BatchRows(
            masks=masks,
            sides=sides if isinstance(sides, GatheredSides) else None,
            closed_form=self.closed_form and partial(self.closed_form, **self.hyperparameters()),
            per_batch=self.of_scores,
            plain=lambda x, ref: self.plain(x, ref, masks),
        )
        with torch.autocast(embeddings.device.type, enabled=False):
            losses, _ = row_losses(embeddings, refs, similarity, rows.weigh, rows.plain, together=True)
        return losses.sum()

    def of_scores(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """The loss of all pairs from their scores and masks [n, m]; 0 if it is not defined."""
        # All pairs are one row here: a batch that is not defined keeps (0, 0) as its positive, (0, 1) as its negative.
        flat, *masks, defined = substitute(sim.flatten(), pos.flatten(), neg.flatten(), self.needs)
        known = all_known(flat)
        if not known:
            flat = torch.where(masks[0] | masks[1], flat, 0.0)
        loss = torch.where(defined, self.per_batch(*(x.view(sim.shape) for x in (flat, *masks))), 0.0)
        return loss if known else loss + unknown(flat)


class SampleLoss(PairModule, BaseMetricLossFunction):
    """A loss of samples and their labels that compares no pairs of samples. Subclasses implement `per_sample`.

    The loss dict is `element`, one loss per sample of the batch. The samples are normalised as the distance says, and
    half precision is computed in float32. Neither an `indices_tuple` nor `ref_emb` is taken.

    Args:
        kwargs: those of every PML loss: `distance`, `reducer`, `embedding_regularizer`, `embedding_reg_weight`,
            `collect_stats`.
    """

    @abstractmethod
    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor | Counted:
        """One loss per sample: embeddings [n, d], labels [n] -> [n]; `Counted` to set the divisor too."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        """The loss of a batch: embeddings [n, d], labels [n]; the other arguments of PML's losses must be None."""
        arguments.batch(embeddings, labels, ref_emb, ref_labels, any_shape=has_own_shapes(self.distance))
        embeddings = at_least_single(embeddings)
        loss: Tensor = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return loss

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """PML's loss dict."""
        if labels is None:
            raise ValueError(f"{type(self).__name__} needs labels, got None")
        c_f.indices_tuple_not_supported(indices_tuple)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        samples, _ = in_full(embeddings, None)
        with torch.autocast(samples.device.type, enabled=False):
            # An empty batch too: in several processes the others wait for this one.
            if self.distance.normalize_embeddings:
                samples = normalized(self.distance, samples)
            result = self.per_sample(samples, labels)
        if embeddings.shape[0] == 0:
            return dict(self.zero_losses())
        losses, counts = result if isinstance(result, Counted) else (result, torch.ones_like(labels))
        return {
            "loss": {
                "losses": losses,
                "indices": torch.arange(len(losses), device=losses.device),
                "reduction_type": "element",
                "divisor": counts.sum(),
            }
        }


_RENAMED = {"PairMatrixLoss": "RowLoss", "BatchMatrixLoss": "BatchLoss"}


def __getattr__(name: str) -> Any:
    """Classes under the names that they had before, until the next version."""
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"{name} is called {new} now: from pml_ext.extend import {new}", DeprecationWarning, stacklevel=2)
        return globals()[new]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
