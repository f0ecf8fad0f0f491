"""The base classes of losses: everything PML expects of a loss, around a pure function of a pair matrix.

`RowLoss` runs losses whose row i depends on row i of the matrix only, `BatchLoss` the few that look at all pairs at
once: with the pairs that were given (`Pairs.of`) and scores that are larger for closer pairs, whatever the distance.
`SampleLoss` is for losses of samples and class centers, which have no pairs.
"""

from abc import abstractmethod
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor

from pml_ext import _pml, arguments
from pml_ext.by_autograd import PerAnchor, plain_batch, plain_rows
from pml_ext.closed_form import ClosedForm
from pml_ext.engine import Form, batch_weighed, row_losses, rows_weighed
from pml_ext.masked import Counted, Needs
from pml_ext.pairs import IndicesTuple, Pairs, own_set, pairs_from_host
from pml_ext.reducer import LossDict, already_reduced, by_element
from pml_ext.reducer import StaticDivisorReducer as StaticDivisorReducer
from pml_ext.renamed import renamed
from pml_ext.similarity import PairModule, has_own_shapes, normalized
from pml_ext.vectors import at_least_single, in_full, without_autocast


class MatrixLoss(PairModule, _pml.Loss):
    """The part of the base classes that is common to losses per anchor and losses per batch.

    Half precision: every loss and wrapper of this package converts float16 and bfloat16 embeddings to float32 first,
    and computes and returns float32, with any distance, reducer and regularizer, under autocast, and for an empty
    batch. The gradient has the dtype of the embeddings. PML's own losses return the dtype that they were given.

    Attributes:
        needs: the pairs without which there is no loss: "both", "positives", "negatives" or "either".
        closed_form: None, or losses and pair weights of the two sides of a block (`pml_ext.closed_form`), used instead
            of autograd where that is faster. Values and derivatives are those of the pure function, which a law checks.
    """

    needs: ClassVar[Needs] = "both"
    closed_form: ClassVar[ClosedForm | None] = None

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        mat: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch: a scalar, or what the reducer makes of one loss per anchor.

        Args:
            embeddings: [n, d].
            labels: [n]. May be None if `indices_tuple` is given.
            indices_tuple: the pairs to use, instead of all: (a, p, n) or (a1, p, a2, n) as PML's miners return them,
                or `PairMasks`. A pair named twice counts once, and a loss over triplets uses every combination of an
                anchor's positives with its negatives.
            ref_emb: [m, d], what the embeddings are compared with. By default the batch, without self-pairs. References
                that are given are a separate set, unless embeddings and labels are both the same tensors.
            ref_labels: [m].
            mat: [n, m], the matrix that the distance computes from embeddings and references, for losses and miners
                that share it; the gradient flows through it. None: it is computed here.
        """
        any_shape = getattr(embeddings, "ndim", 2) > 2 and has_own_shapes(self.distance)
        arguments.batch(embeddings, labels, ref_emb, ref_labels, any_shape=any_shape)
        if ref_emb is None:
            embeddings = at_least_single(embeddings)
            if indices_tuple is None and labels is not None and labels.device != embeddings.device:
                indices_tuple = pairs_from_host(labels, embeddings.device)
        else:
            embeddings, ref_emb = in_full(embeddings, own_set(embeddings, labels, ref_emb, ref_labels))
        with nullcontext() if mat is None else self.given(mat, embeddings, ref_emb):
            return cast(Tensor, super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels))

    def loss_dict(self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Any, ref_labels: Any) -> Any:
        """PML's loss dict."""
        pairs = Pairs.of(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return self.of_pairs(pairs, embeddings, None if ref_emb is embeddings else ref_emb)

    @abstractmethod
    def of_pairs(self, pairs: Pairs, x: Tensor, ref: Tensor | None) -> LossDict:
        """PML's loss dict of embeddings x [n, d] and references [m, d], None for the batch itself."""

    def form(self) -> Form | None:
        """The closed form with the hyperparameters, a function of two sides; None if there is none."""
        return self.closed_form and partial(self.closed_form, **self.hyperparameters())

    def lacks_pairs(self, anchors: int, x: Tensor, ref: Tensor | None) -> bool:
        """Whether this number of anchors cannot have the pairs in `needs`: two for both kinds, else one."""
        return anchors * (len(x) - 1 if ref is None else len(ref)) < (2 if self.needs == "both" else 1)


class RowLoss(MatrixLoss):
    """A loss that is a function of each row of the pair matrix. Subclasses implement `per_anchor`.

    The loss dict is `element`, one loss per anchor of the batch, so that PML's `MeanReducer` divides by n. An anchor
    that lacks the pairs in `needs` has a loss of exactly 0 and a zero gradient.

    Args:
        chunk_size: how many anchors are computed at a time, and again in the backward pass, so that memory grows with
            chunk_size * m, not n * m. Value and gradient are the same. None (default) for all anchors at once.
        kwargs: those of every PML loss: `distance`, `reducer`, `embedding_regularizer`, `embedding_reg_weight`,
            `collect_stats`.
    """

    def __init__(self, *, chunk_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chunk_size: int | None = arguments.count("chunk_size", chunk_size, optional=True)

    @abstractmethod
    def per_anchor(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor | Counted:
        """One loss per anchor: sim, pos, neg [..., n, m] -> [..., n]; `Counted` to set the divisor too."""

    def of_pairs(self, pairs: Pairs, x: Tensor, ref: Tensor | None, *made: Any) -> LossDict:
        """PML's loss dict, one loss per anchor: its own, or what somebody makes of it, as for `counted`."""
        if self.lacks_pairs(min(len(x), 1), x, ref):
            return dict(self.zero_losses())
        return by_element(*self.counted(pairs, x, ref, *(made or (self.per_anchor, self.form()))))

    def counted(
        self, pairs: Pairs, x: Tensor, ref: Tensor | None, per_anchor: PerAnchor, form: Form | None
    ) -> tuple[Tensor, Tensor | int]:
        """Losses [n], and what each adds to the divisor, [n] or one number."""
        chunk_size = self.chunk_size if self._given is None else None  # scores that are given are all there
        plain = partial(plain_rows, self.similarity, pairs, per_anchor, self.needs, chunk_size)
        similarity = self.known_similarity()
        if similarity is None:
            return plain(x, ref)
        weigh = partial(rows_weighed, pairs=pairs, form=form, per_anchor=per_anchor, needs=self.needs)
        return row_losses(x, ref, similarity, weigh, plain, pairs, chunk_size)


class BatchLoss(MatrixLoss):
    """A loss that looks at all pairs of the batch at once. Subclasses implement `per_batch`.

    The loss dict is `already_reduced`. A batch that lacks the pairs in `needs` has a loss of exactly 0.
    """

    @abstractmethod
    def per_batch(self, sim: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """One loss for all pairs: sim, pos, neg [..., n, m] -> [...]."""

    def of_pairs(self, pairs: Pairs, x: Tensor, ref: Tensor | None) -> LossDict:
        """PML's loss dict, one loss."""
        if self.lacks_pairs(len(x), x, ref):
            return dict(self.zero_losses())
        plain = partial(plain_batch, self.similarity, pairs, self.per_batch, self.needs)
        similarity = self.known_similarity()
        if similarity is None:
            losses, _ = plain(x, ref)
        else:
            weigh = partial(batch_weighed, pairs=pairs, form=self.form(), per_batch=self.per_batch, needs=self.needs)
            losses, _ = row_losses(x, ref, similarity, weigh, plain, pairs, together=True)
        return already_reduced(losses.sum())


class SampleLoss(PairModule, _pml.Loss):
    """A loss of samples and their labels that compares no pairs of samples. Subclasses implement `per_sample`.

    The loss dict is `element`, one loss per sample. The samples are normalized as the distance says, and half precision
    is computed in float32. Neither an `indices_tuple` nor `ref_emb` is taken.

    Args:
        kwargs: those of every PML loss, as of `RowLoss`.
    """

    @abstractmethod
    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor | Counted:
        """One loss per sample: embeddings [n, d], labels [n] -> [n]; `Counted` to set the divisor too."""

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None, ref_emb: Any = None, ref_labels: Any = None
    ) -> Tensor:
        """The loss of a batch: embeddings [n, d], labels [n]; the other arguments of PML's losses must be None."""
        arguments.batch(embeddings, labels, ref_emb, ref_labels, any_shape=has_own_shapes(self.distance))
        loss: Tensor = super().forward(at_least_single(embeddings), labels, indices_tuple, ref_emb, ref_labels)
        return loss

    def loss_dict(self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Any, ref_labels: Any) -> Any:
        """PML's loss dict."""
        if labels is None:
            raise ValueError(f"{type(self).__name__} needs labels, got None")
        arguments.without_indices(type(self).__name__, indices_tuple)
        arguments.without_references(type(self).__name__, embeddings, labels, ref_emb, ref_labels)
        samples = at_least_single(embeddings)
        with without_autocast(samples):
            # An empty batch too: in several processes the others wait for this one.
            if self.distance.normalize_embeddings:
                samples = normalized(self.distance, samples)
            result = self.per_sample(samples, labels)
        if embeddings.shape[0] == 0:
            return dict(self.zero_losses())
        return by_element(*(result if isinstance(result, Counted) else (result, 1)))


__getattr__ = renamed(__name__, PairMatrixLoss="RowLoss", BatchMatrixLoss="BatchLoss")
