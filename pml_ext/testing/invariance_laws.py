"""Laws of what does not change a loss, and of the several ways to say the same thing to it.

They hold up to rounding, and so on batches without ties only: where a threshold meets equal distances, rounding
decides. Which motions of the embeddings change nothing follows from the distance.
"""

from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from torch import Tensor

from pml_ext import _pml
from pml_ext.pairs import label_masks
from pml_ext.similarity import normalizable
from pml_ext.testing.cases import Batch, all_pairs, as_pairs, as_triplets
from pml_ext.testing.law import (
    Outcome,
    assert_close,
    assert_same,
    by_autograd,
    evaluate,
    fresh,
    is_matrix_loss,
    is_ours,
    is_row_loss,
    labels_are_names,
    law,
    needs_both,
    outcome,
    outcome_by_references,
    reseed,
    seeded,
    takes_pairs,
    with_attributes,
)


class NegatedDistance(BaseDistance):  # type: ignore[misc, unused-ignore]
    """Minus another distance, with the opposite answer to `is_inverted`: the same thing, said the other way round."""

    def __init__(self, distance: Any) -> None:
        super().__init__()
        self.normalize_embeddings, self.is_inverted = False, not distance.is_inverted
        self.distance = distance

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        """The negated matrix [n, m]."""
        # Whoever wraps a distance that normalizes has to say what has no direction.
        references = None if ref_emb is query_emb else normalizable(self.distance, ref_emb)
        matrix: Tensor = self.distance(normalizable(self.distance, query_emb), references)
        return -matrix


@law("loss", "batch", stage="invariance")
def batch_order_is_irrelevant(loss: Any, case: Batch) -> None:
    """A permuted batch has the same loss and the permuted gradient."""
    if case.has_ties:
        return
    order = torch.randperm(len(case.labels), generator=seeded(1))
    expected = outcome(loss, case)
    actual = evaluate(loss, case.embeddings[order], case.labels[order])
    assert_same(actual, Outcome(expected.value, expected.gradient[order]), f"batch in the order {order.tolist()}")


@law("loss", "batch", labels_are_names, stage="invariance")
def label_names_are_irrelevant(loss: Any, case: Batch) -> None:
    """Renamed classes, negative and large names among them, have the same loss and the same gradient."""
    expected = outcome(loss, case)
    actual = evaluate(loss, case.embeddings, 1000 - 337 * case.labels)
    assert_same(actual, expected, "labels renamed")


@law("loss", "batch", labels_are_names, stage="invariance")
def rotation_changes_nothing(loss: Any, case: Batch) -> None:
    """An orthogonal map of all embeddings, under a distance that it preserves, keeps the loss."""
    if case.has_ties or not _is_rotation_invariant(loss):
        return
    normal = torch.randn(case.dimension, case.dimension, generator=seeded(2), dtype=torch.float64)
    rotation = torch.linalg.qr(normal).Q
    expected = outcome(loss, case)
    actual = evaluate(loss, case.embeddings @ rotation, case.labels)
    assert_same(actual, Outcome(expected.value, expected.gradient @ rotation), "embeddings rotated")


@law("loss", "batch", stage="invariance")
def length_changes_nothing(loss: Any, case: Batch) -> None:
    """Each embedding times a positive number of its own, under a distance that normalizes, keeps the loss."""
    distance = getattr(loss, "distance", None)
    if case.has_ties or not isinstance(distance, BaseDistance) or not _pml.facts(distance).normalize_embeddings:
        return
    factor = 0.1 + 3 * torch.rand(len(case.labels), 1, generator=seeded(3), dtype=torch.float64)
    expected = outcome(loss, case)
    actual = evaluate(loss, case.embeddings * factor, case.labels)
    assert_close(actual.value, expected.value, "embeddings scaled one by one")
    assert_close(actual.gradient * factor, expected.gradient, "gradient, embeddings scaled one by one")


def _may_be_translated(loss: Any) -> bool:
    """A loss over distances of vectors, to which labels are names."""
    return labels_are_names(loss) and isinstance(getattr(loss, "distance", None), LpDistance)


def _of_vectors_as_they_are(loss: Any) -> Any:
    loss = with_attributes(loss)
    distance = loss.distance
    plain = _pml.with_facts(distance, normalize_embeddings=False)
    for module in list(loss.modules()):
        for name, part in list(module.named_children()):
            if part is distance:
                setattr(module, name, plain)
    return loss


@law("loss", "batch", _may_be_translated, stage="invariance")
def translation_changes_nothing(loss: Any, case: Batch) -> None:
    """The same vector added to all embeddings, under a distance that does not normalize, keeps the loss."""
    if case.has_ties:
        return
    loss = _of_vectors_as_they_are(loss)
    shift = case.scale * torch.randn(case.dimension, generator=seeded(4), dtype=torch.float64)
    expected = evaluate(loss, case.embeddings, case.labels)
    assert_same(evaluate(loss, case.embeddings + shift, case.labels), expected, "embeddings translated")


@law("loss", "batch", takes_pairs, stage="invariance")
def all_pairs_equal_labels(loss: Any, case: Batch) -> None:
    """Every pair of the batch, given as index tensors, has the loss of the labels."""
    pairs = as_pairs(all_pairs(case.labels))
    expected = outcome(loss, case)
    assert_same(evaluate(loss, case.embeddings, case.labels, pairs), expected, "all pairs as indices_tuple")


@law("loss", "batch", is_matrix_loss, stage="invariance")
def pairs_need_no_labels(loss: Any, case: Batch) -> None:
    """Every pair of the batch, without labels, has the loss of the labels."""
    masks = all_pairs(case.labels)
    expected = outcome(loss, case)
    assert_same(evaluate(loss, case.embeddings, None, as_pairs(masks)), expected, "all pairs without labels")
    assert_same(evaluate(loss, case.embeddings, None, masks), expected, "the relation matrix without labels")


@law("loss", "batch", needs_both, stage="invariance")
def all_triplets_equal_labels(loss: Any, case: Batch) -> None:
    """Every triplet of the batch has the loss of the labels, if an anchor needs a positive and a negative anyway."""
    triplets = as_triplets(all_pairs(case.labels))
    expected = outcome(loss, case)
    assert_same(evaluate(loss, case.embeddings, case.labels, triplets), expected, "all triplets as indices_tuple")


@law("loss", "batch", is_matrix_loss, stage="invariance")
def only_the_relation_counts(loss: Any, case: Batch) -> None:
    """A relation matrix with self-pairs in it has the loss of the labels: self-pairs are dropped by index."""
    masks = label_masks(case.labels, case.labels)
    expected = outcome(loss, case)
    assert_same(evaluate(loss, case.embeddings, case.labels, masks), expected, "labels as PairMasks")


@law("loss", "batch", takes_pairs, stage="invariance")
def references_equal_to_the_batch_agree(loss: Any, case: Batch) -> None:
    """The batch compared with a copy of itself, on every pair but those of a sample with itself, has its own loss."""
    if case.has_ties:
        return
    pairs = as_pairs(all_pairs(case.labels))
    expected = outcome(loss, case)
    reseed()
    rows, columns = (case.embeddings.clone().requires_grad_() for _ in range(2))
    value = fresh(loss)(rows, case.labels, pairs, ref_emb=columns, ref_labels=case.labels.clone())
    assert_close(value.detach(), expected.value, "references equal to the batch")
    by_rows, by_columns = torch.autograd.grad(value, (rows, columns), allow_unused=True, materialize_grads=True)
    assert by_columns.any() or not expected.gradient.any(), "no gradient reaches the references"
    assert_close(by_rows + by_columns, expected.gradient, "gradient, references equal to the batch")


@law("loss", "batch", takes_pairs, stage="invariance")
def references_are_a_set(loss: Any, case: Batch) -> None:
    """References of another number than the batch give a finite loss, which does not depend on their order."""
    if case.ref_emb is None or case.ref_labels is None:
        return
    expected = outcome_by_references(loss, case)
    if not case.has_ties:
        order = torch.randperm(len(case.ref_labels), generator=seeded(5))
        refs = case.ref_emb[order], case.ref_labels[order]
        assert_same(evaluate(loss, case.embeddings, case.labels, None, *refs), expected, "references permuted")


@law("loss", "batch", is_matrix_loss, stage="invariance")
def negated_distance_agrees(loss: Any, case: Batch) -> None:
    """Minus the distance, taken as a similarity, with negated levels has the same loss."""
    negated = with_attributes(loss, distance=NegatedDistance(loss.distance))
    for name in negated.levels:
        level = getattr(negated, name)
        setattr(negated, name, None if level is None else -level)
    # Of equal distances, rounding chooses: there the two must be computed in the same way.
    expected = outcome(by_autograd(loss) if case.has_ties else loss, case)
    actual = evaluate(negated, case.embeddings, case.labels)
    assert_close(actual.value, expected.value, "value, distance negated")
    # A vector of no direction has no gradient where this package knows that a distance normalizes.
    rows = case.embeddings.any(1)
    assert_close(actual.gradient[rows], expected.gradient[rows], "gradient, distance negated")


@law("loss", "batch", is_ours, stage="engine")
def hand_written_gradients_agree_with_autograd(loss: Any, case: Batch) -> None:
    """The engine, and the closed form of a loss, have the value and the gradient of ordinary autograd."""
    if case.has_ties:
        return
    plain, pairs = by_autograd(loss), as_pairs(all_pairs(case.labels))
    assert_same(outcome(loss, case), outcome(plain, case), "labels")
    if not is_matrix_loss(loss):
        return
    actual, expected = (evaluate(each, case.embeddings, None, pairs) for each in (loss, plain))
    assert_same(actual, expected, "pairs")
    if case.ref_sizes:
        assert_same(outcome_by_references(loss, case), outcome_by_references(plain, case), "references")


@law("loss", "batch", is_row_loss, stage="invariance")
def chunk_size_changes_nothing(loss: Any, case: Batch) -> None:
    """Blocks of 1, 3, n - 1, n or n + 1 anchors have the loss of the whole batch, and its gradient."""
    if case.has_ties:
        return
    n = len(case.labels)
    expected = outcome_by_references(loss, case)
    size = (1, 3, max(1, n - 1), n, n + 1)[case.seed % 5]
    chunked = with_attributes(loss, chunk_size=size)
    actual = evaluate(chunked, case.embeddings, case.labels, None, case.ref_emb, case.ref_labels)
    assert_same(actual, expected, f"chunk_size={size}")


def _is_rotation_invariant(loss: Any) -> bool:
    distance = getattr(loss, "distance", None)
    kinds = (LpDistance, CosineSimilarity, DotProductSimilarity)
    return isinstance(distance, kinds) and _pml.facts(distance).p == 2
