"""Every loss equals its formula in plain Python, value and gradient; every miner its rule, or its distribution."""

import inspect

import pytest
import torch
from oracles import OF_ANCHORS, OF_MINERS, OF_PAIRS, OF_SAMPLES, Draw
from pytorch_metric_learning.reducers import DivisorReducer
from registry import make

from pml_ext.catalog import all_losses, all_miners
from pml_ext.losses import SigmoidPairLoss
from pml_ext.miners.base import PairMiner
from pml_ext.testing import Batch, assert_frequencies, subset_probabilities
from pml_ext.testing.cases import all_pairs

# Balanced, unbalanced, with a lonely sample, one pair of each kind, and many: (class sizes, length of embeddings).
BATCHES = [
    Batch(sizes, 4, scale=scale, seed=seed)
    for seed, (sizes, scale) in enumerate(
        (((3, 3, 3), 1.0), ((4, 2, 3), 1.0), ((5, 1, 2), 1.0), ((2, 1), 0.5), ((1, 1, 1), 1.0), ((7, 5), 2.0))
    )
]
# Settings whose formula is another than that of the defaults.
ALSO = {
    "AnchorContrastiveLoss": ({"average": False, "step": 0.5},),
    "BatchHardTripletLoss": ({"margin": None},),
    "BinomialDevianceLoss": ({"balance": 3, "scale": 1, "base": 0.1},),
    "DecoupledNCALoss": ({"k": 3, "alpha": 2, "beta": 0}, {"k": None, "alpha": 1, "beta": 0.5}),
    "HardNegativeContrastiveLoss": (
        {"beta": 0},
        {"tau_plus": 0.1, "detach": False},
        {"tau_plus": 0.5, "temperature": 0.2, "beta": 0.5},
        {"beta": 3, "detach": False},
    ),
    "HardnessWeightedContrastiveLoss": ({"temperature": 0.5, "alpha": 0}, {"temperature": 0.5, "alpha": 2}),
    "HistogramLoss": ({"n_bins": 5},),
    "KNNSoftmaxLoss": ({"k": 1}, {"k": 3}, {"k": None, "alpha": 1, "negative_weight": 0.5}),
    "LargeMarginNearestNeighborLoss": ({"k": 2, "margin": 0.5}, {"k": None}),
    "LogSumExpPairLoss": ({"bounded": True},),
    "MeanGapLoss": ({"fraction": 0.5}, {"fraction": 1.0}),
    "PNPLoss": tuple({"variant": each, "temperature": 0.1, "alpha": 4, "b": 3} for each in ("Iu", "Ib", "Ds", "Dq")),
    "RAWLoss": ({"alpha": 0.5, "beta": 0.5, "epsilon": 0.0},),
    "RankedPullDevianceLoss": ({"sharp": True}, {"margins": (0.1,), "alphas": (2,)}),
    "RecallAtKLoss": ({"ranks": "upper"}, {"k": (1, 3), "temperature": 0.2, "k_temperature": 0.5}),
    "SelectivelyContrastiveTripletLoss": ({"level": None}, {"temperature": 0.5, "lam": 0.3, "level": 0.2}),
    "SigmoidPairLoss": (
        {"bias": -10},
        {"temperature": 3, "reduction": "mean"},
        {"temperature": 30, "max_temperature": 5, "reduction": "positives"},
    ),
    "SmoothAPLoss": ({"temperature": 0.1},),
    "SoftTripletLoss": ({"normalization": "triplet", "threshold": 0.0}, {"normalization": "legacy"}),
    "SupAPLoss": ({"temperature": 0.1, "rho": 10, "delta": 0.2}, {"start": 0, "offset": 1}),
}
SETTINGS = {
    f"{cls.__name__}({', '.join(f'{k}={v}' for k, v in arguments.items())})": (cls, arguments)
    for cls in all_losses()
    for arguments in ({}, *ALSO.get(cls.__name__, ()))
}


def _lists(matrix, pos, neg):
    values = matrix.tolist()
    return [
        ([v for v, p in zip(row, ps, strict=True) if p], [v for v, n in zip(row, ns, strict=True) if n])
        for row, ps, ns in zip(values, pos.tolist(), neg.tolist(), strict=True)
    ]


def oracle_value(loss, embeddings, labels, frozen):
    """The loss of a batch by its oracle; what is held constant is computed from the embeddings `frozen`."""
    cls, hyper = type(loss), {name: getattr(loss, name) for name in loss._hyperparameter_names}
    if cls in OF_SAMPLES:
        return OF_SAMPLES[cls](embeddings.tolist(), labels.tolist(), **hyper)
    pos, neg = all_pairs(labels)
    matrix = loss.distance(embeddings)
    if cls in OF_PAIRS:
        sides = [[tuple(pair) for pair in side.nonzero().tolist()] for side in (pos, neg)]
        return OF_PAIRS[cls](matrix.tolist(), *sides, **hyper) if all(sides) else 0.0
    oracle, total, count = OF_ANCHORS[cls], 0.0, 0
    wants_frozen = "frozen" in inspect.signature(oracle).parameters
    for row, frozen_row in zip(_lists(matrix, pos, neg), _lists(loss.distance(frozen), pos, neg), strict=True):
        enough = any(row) if loss.needs == "either" else all(row)
        if not enough:
            result = (0.0, 0)
        elif wants_frozen:
            result = oracle(*row, **hyper, frozen=frozen_row)
        else:
            result = oracle(*row, **hyper)
        of_anchor, counted = result if isinstance(result, tuple) else (result, 0)
        total, count = total + of_anchor, count + counted
    if isinstance(loss.reducer, DivisorReducer):
        return total / count if count else 0.0
    return total / len(labels)


def test_every_exported_loss_has_an_oracle():
    assert set(all_losses()) == set(OF_ANCHORS) | set(OF_PAIRS) | set(OF_SAMPLES)


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_is_its_formula(name):
    step, (cls, arguments) = 1e-6, SETTINGS[name]
    # Two scalars that are learned are kept in single precision.
    rel = 1e-7 if cls is SigmoidPairLoss else 1e-10
    for batch in BATCHES:
        x, labels = batch.embeddings, batch.labels
        loss = make(cls, **arguments)
        embeddings = x.clone().requires_grad_()
        value = loss(embeddings, labels)
        assert value.item() == pytest.approx(oracle_value(loss, x, labels, x), rel=rel, abs=1e-10), batch
        (gradient,) = torch.autograd.grad(value, embeddings)
        for seed in range(2):
            direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
            there, back = (oracle_value(loss, x + h * direction, labels, x) for h in (step, -step))
            # Central differences with a step of 1e-6 are good to about 1e-9 of the slope and 1e-10 of a value of 1.
            slope = (there - back) / (2 * step)
            assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-6), batch


MINERS = {
    "AmbiguousNegativeMiner": ({}, {"k": 2, "a": 3.0, "b": -0.3, "reference": "mean"}),
    "ChainedMiner": ({},),
    "DistanceWeightedMiner": ({"dimension": 5}, {"dimension": 2, "cutoff": 1.0, "nonzero_loss_cutoff": None}),
    "ExponentialPositiveMiner": ({"num_positives": 2, "scale": 1.5}, {"num_positives": 9}),
    "HardNegativePairMiner": ({}, {"epsilon": 0.5}),
    "InverseDensityMiner": (
        {},
        {"num_negatives": 3, "max_z": 1.0},
        {"num_negatives": 1},
        {"num_negatives": 1, "per_positive": 1},
    ),
    "KNearestNegativeMiner": ({"k": 2}, {"k": 32}),
    "KNearestPositiveMiner": ({"k": 1}, {"k": 32}),
    "PositiveAwareMiner": (
        {},
        {"reference": "min", "absolute_margin": 0.1, "k": 2},
        {"reference": "mean", "range_min": 1, "range_max": 3, "max_score": 1.0, "min_score": 0.4},
    ),
}
# A miner around any other has the rule of that one.
PAIR_MINERS = [cls for cls in all_miners() if issubclass(cls, PairMiner)]
MINER_SETTINGS = [(cls, arguments) for cls in PAIR_MINERS for arguments in MINERS.get(cls.__name__, ({},))]
DRAWS = 4000


def test_every_exported_miner_has_an_oracle():
    assert set(PAIR_MINERS) == set(OF_MINERS)


@pytest.mark.parametrize(("cls", "arguments"), MINER_SETTINGS)
def test_miner_keeps_its_rule(cls, arguments):
    miner, oracle = make(cls, **arguments), OF_MINERS[cls]
    hyper = {name: getattr(miner, name) for name in miner._hyperparameter_names}
    values = torch.tensor([0.3, 0.9, 0.62, 0.5, 0.7, 1.1, 0.8], dtype=torch.float64)
    pos = torch.tensor([True, True, False, False, False, False, True])
    neg = torch.tensor([False, False, True, True, True, True, False])
    sim = values if miner.distance.is_inverted else -values
    rule = oracle(values[pos].tolist(), values[neg].tolist(), **hyper)
    if not isinstance(rule, Draw):
        kept = miner.select(*(x.unsqueeze(0) for x in (sim, pos, neg)))
        assert [side[0][mask].nonzero().flatten().tolist() for side, mask in zip(kept, (pos, neg), strict=True)] == [
            *rule
        ]
        return
    # Equal rows are independent draws.
    kept_pos, kept_neg = miner.select(*(x.expand(DRAWS, -1) for x in (sim, pos, neg)))
    drawn, all_kept = (kept_pos[:, pos], kept_neg) if rule.side == "pos" else (kept_neg[:, neg], kept_pos)
    assert torch.equal(all_kept, (neg if rule.side == "pos" else pos).expand(DRAWS, -1))
    sets = [frozenset(row.nonzero().flatten().tolist()) for row in drawn]
    assert_frequencies(sets, subset_probabilities(rule.weights, rule.k))


@pytest.mark.parametrize("cls", PAIR_MINERS)
def test_miner_keeps_its_rule_on_batches(cls):
    miner, oracle = make(cls, **MINERS.get(cls.__name__, ({},))[0]), OF_MINERS[cls]
    hyper = {name: getattr(miner, name) for name in miner._hyperparameter_names}
    miner.as_masks = True
    for batch in BATCHES:
        pos, neg = all_pairs(batch.labels)
        kept_pos, kept_neg = miner(batch.embeddings, batch.labels)
        rows = _lists(miner.distance(batch.embeddings), pos, neg)
        for i, row in enumerate(rows):
            kept = [kept_pos[i][pos[i]].nonzero().flatten().tolist(), kept_neg[i][neg[i]].nonzero().flatten().tolist()]
            if not all(row):
                # What it does not draw, a sampling miner leaves; where there is nothing to draw from, nothing is drawn.
                assert all(not side or given for side, given in zip(kept, row, strict=True))
                continue
            rule = oracle(*row, **hyper)
            if isinstance(rule, Draw):
                drawn, left, all_left = (*kept, row[1]) if rule.side == "pos" else (*kept[::-1], row[0])
                assert len(drawn) == min(rule.k, sum(w > 0 for w in rule.weights)), batch
                assert len(left) == len(all_left), batch
            else:
                assert kept == [*rule], batch
