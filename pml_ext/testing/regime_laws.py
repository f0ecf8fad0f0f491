"""Laws of how a result is computed: engine or autograd, in blocks or at once, small or large, it is the same."""

from typing import Any

from pml_ext import thresholds
from pml_ext.miners.base import PairMiner
from pml_ext.testing.cases import Batch
from pml_ext.testing.law import (
    assert_same,
    by_autograd,
    evaluate,
    is_matrix_loss,
    is_ours,
    is_ours_and_repeatable,
    law,
    outcome,
    outcome_by_references,
)
from pml_ext.testing.miner_laws import mine, pairs_of

# Just above the shipped thresholds: two blocks of rows, mirrored scores, groups of columns, a histogram and triplets in
# blocks. Classes of very different sizes, of which the largest has too many positives to go through one by one; and
# small ones, whose pair weights are few.
LARGE = {
    "large and small classes": (90, 30, 30, 25, 25, *(20,) * 5, 15, 15, 10, 10, 9, 5, 3, 2, 1, 1),
    "small classes": (5, 4, 4, 3, 2, 1, 1) * 18 + (11,),
}


@law("loss", "batch", is_ours, stage="engine", as_shipped_only=True)
def thresholds_change_nothing(loss: Any, case: Batch) -> None:
    """In small blocks and groups, and as on an asynchronous device, value and gradient are the same."""
    if case.has_ties:
        return
    references = (None, case.ref_emb, case.ref_labels) if case.ref_sizes and is_matrix_loss(loss) else ()
    expected = outcome_by_references(loss, case) if references else outcome(loss, case)
    for regime in (thresholds.tiny, thresholds.as_on_a_device):
        with regime():
            actual = evaluate(loss, case.embeddings, case.labels, *references)
        assert_same(actual, expected, regime.__name__)


@law("loss", "once", is_ours, stage="engine", as_shipped_only=True)
def large_batches_agree_with_autograd(loss: Any, case: Batch) -> None:
    """A few hundred samples of unequal classes have the value and the gradient of ordinary autograd."""
    for name, sizes in LARGE.items():
        batch = Batch(sizes, case.dimension, seed=3)
        labels = batch.labels % getattr(loss, "num_classes", len(sizes))
        expected = evaluate(by_autograd(loss), batch.embeddings, labels)
        assert_same(evaluate(loss, batch.embeddings, labels), expected, f"{len(labels)} samples, {name}")


@law("miner", "batch", is_ours_and_repeatable, as_shipped_only=True)
def thresholds_change_no_pair(miner: PairMiner, case: Batch) -> None:
    """In small blocks and groups, as on an asynchronous device, and without the engine, the same pairs are mined."""
    if case.has_ties:
        return
    references = (case.ref_emb, case.ref_labels) if case.ref_sizes else ()
    expected = pairs_of(mine(miner, case.embeddings, case.labels, *references))
    for regime in (thresholds.tiny, thresholds.as_on_a_device):
        with regime():
            actual = pairs_of(mine(miner, case.embeddings, case.labels, *references))
        assert actual == expected, f"other pairs, {regime.__name__}"
    actual = pairs_of(mine(by_autograd(miner), case.embeddings, case.labels, *references))
    assert actual == expected, "other pairs without the engine"
