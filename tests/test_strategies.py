"""The strategies reach every regime that the laws must hold in."""

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from pml_ext.pairs import label_masks
from pml_ext.testing.cases import all_pairs
from pml_ext.testing.strategies import batches, rows

# Finding one example is enough, making it small is not asked for.
SEARCH = settings(
    max_examples=2000,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def sizes(batch):
    return batch.labels.unique(return_counts=True)[1].tolist()


def ref_classes(batch):
    return set(batch.ref_labels.tolist()) if batch.ref_sizes else set()


BATCH_REGIMES = {
    "one sample": lambda b: len(b.labels) == 1,
    "two samples of a class": lambda b: sizes(b) == [2],
    "two samples of two classes": lambda b: sizes(b) == [1, 1],
    "one class": lambda b: len(sizes(b)) == 1 and len(b.labels) > 2,
    "all labels different": lambda b: len(b.labels) > 2 and max(sizes(b)) == 1,
    "balanced": lambda b: len(sizes(b)) > 1 and len(set(sizes(b))) == 1 and sizes(b)[0] > 1,
    "unbalanced": lambda b: len(set(sizes(b))) > 1,
    "lonely samples beside a class": lambda b: 1 in sizes(b) and max(sizes(b)) > 2,
    "as many as 12 samples": lambda b: len(b.labels) == 12,
    "labels that are not sorted": lambda b: (b.labels.diff() < 0).any(),
    "equal embeddings of a class": lambda b: _equal(b, all_pairs(b.labels).pos),
    "equal embeddings of two classes": lambda b: _equal(b, all_pairs(b.labels).neg),
    "a collapsed batch": lambda b: len(b.labels) > 3 and (b.embeddings == b.embeddings[0]).all(),
    "a zero vector beside others": lambda b: len(b.labels) > 2 and _zeros(b).any() and not _zeros(b).all(),
    "short embeddings": lambda b: b.embeddings.abs().max() < 0.01 and not _zeros(b).any(),
    "long embeddings": lambda b: b.embeddings.norm(dim=1).min() > 30,
    "more dimensions than samples": lambda b: b.dimension > len(b.labels) > 2,
    "more samples than dimensions": lambda b: len(b.labels) > b.dimension,
    "more references than samples": lambda b: b.ref_sizes and len(b.ref_labels) > len(b.labels) > 1,
    "fewer references than samples": lambda b: b.ref_sizes and 1 < len(b.ref_labels) < len(b.labels),
    "a single reference": lambda b: b.ref_sizes and len(b.ref_labels) == 1,
    "references of new classes": lambda b: ref_classes(b) - set(b.labels.tolist()),
    "references without a class of the batch": lambda b: b.ref_sizes and set(b.labels.tolist()) - ref_classes(b),
    "no ties, references, several classes": lambda b: not b.has_ties and b.ref_sizes and len(sizes(b)) > 2,
}


def _equal(batch, pairs):
    return (pairs & (batch.embeddings.unsqueeze(0) == batch.embeddings.unsqueeze(1)).all(-1)).any()


def _zeros(batch):
    return (batch.embeddings == 0).all(1)


def parts(case):
    sim, pos, neg = case.matrix
    return sim, pos, neg, pos.any(1), neg.any(1)


ROW_REGIMES = {
    "one anchor": lambda sim, pos, neg, p, n: len(sim) == 1,
    "two references": lambda sim, pos, neg, p, n: sim.shape[1] == 2,
    "every pair selected": lambda sim, pos, neg, p, n: (pos | neg).all() and p.all() and n.all(),
    "no pair selected": lambda sim, pos, neg, p, n: not (p | n).any(),
    "positives only": lambda sim, pos, neg, p, n: p.all() and not n.any(),
    "negatives only": lambda sim, pos, neg, p, n: n.all() and not p.any(),
    "an undefined anchor beside a defined one": lambda sim, pos, neg, p, n: (p & n).any() and not (p & n).all(),
    "an anchor without pairs beside one with": lambda sim, pos, neg, p, n: (p | n).any() and not (p | n).all(),
    "one positive, one negative": lambda sim, pos, neg, p, n: ((pos.sum(1) == 1) & (neg.sum(1) == 1)).any(),
    "many of both": lambda sim, pos, neg, p, n: ((pos.sum(1) > 2) & (neg.sum(1) > 2)).any(),
    "a hard anchor": lambda sim, pos, neg, p, n: (_worst(sim, pos, 9) < -_worst(-sim, neg, 9)).any(),
    "an easy anchor": lambda sim, pos, neg, p, n: ((_worst(sim, pos, 9) > -_worst(-sim, neg, 9)) & p & n).any(),
    "equal scores of a positive and a negative": lambda sim, pos, neg, p, n: (
        (sim.unsqueeze(1) == sim.unsqueeze(2)) & pos.unsqueeze(2) & neg.unsqueeze(1)
    ).any(),
    "all scores equal": lambda sim, pos, neg, p, n: sim.shape[1] > 2 and (sim == sim[0, 0]).all() and (p & n).any(),
}


def _worst(sim, mask, otherwise):
    return sim.masked_fill(~mask, otherwise).amin(1)


@pytest.mark.parametrize("regime", BATCH_REGIMES)
def test_batches_reach(regime):
    find(batches(), lambda batch: bool(BATCH_REGIMES[regime](batch)), settings=SEARCH)


@pytest.mark.parametrize("regime", ROW_REGIMES)
@pytest.mark.parametrize("inverted", [True, False])
def test_rows_reach(regime, inverted):
    find(rows(inverted), lambda case: bool(ROW_REGIMES[regime](*parts(case))), settings=SEARCH)


def test_a_case_is_named_by_its_numbers():
    batch = find(batches(), lambda b: bool(b.ref_sizes), settings=SEARCH)
    again = type(batch)(batch.sizes, batch.dimension, batch.layout, batch.scale, batch.ref_sizes, batch.seed)
    assert again == batch
    assert (again.embeddings == batch.embeddings).all()
    assert (again.ref_labels == batch.ref_labels).all()
    assert label_masks(again.labels, batch.ref_labels).pos.shape == (len(batch.labels), len(batch.ref_labels))
