"""The tests of the tests: every law catches a loss or a miner that breaks it, and lets those pass that keep it."""

import pytest
import torch
from mistakes import MISTAKES
from mutants import (
    LOSS_MUTANTS,
    MINER_MUTANTS,
    Sound,
    SoundClosedForm,
    SoundMiner,
    SoundSampler,
    SoundWrapper,
)
from oracles import OF_ANCHORS, OF_MINERS
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from pml_ext.losses import RAWLoss
from pml_ext.masked import masked_max, masked_min, softplus
from pml_ext.miners import InverseDensityMiner
from pml_ext.testing import (
    LOSS_LAWS,
    MINER_LAWS,
    LawBroken,
    Rows,
    assert_frequencies,
    check_loss,
    check_miner,
    inclusion_probabilities,
    subset_probabilities,
)


@pytest.fixture(autouse=True)
def _as_found(monkeypatch):
    """Cases are not made smaller, which takes longer than to find them: `test_check` has a test of it."""
    monkeypatch.setattr("pml_ext.testing.check._Cases.smallest", lambda cases, kind, broken, check: broken)


def cases(mutants):
    """Each mutant with each law that it breaks."""
    of_pml = pytest.mark.pml2("faults of its own classes")
    no_fault = pytest.mark.pml2("beside PML 3 the reducer adds 0 times all embeddings")
    return [
        pytest.param(
            name, law, marks=[of_pml] if name.startswith("pml_") else [no_fault] if name == "NaNIsNothing" else []
        )
        for name, (_, laws) in mutants.items()
        for law in laws
    ]


LOSS_CASES, MINER_CASES = cases(LOSS_MUTANTS), cases(MINER_MUTANTS)


@pytest.mark.parametrize(("name", "law"), LOSS_CASES)
def test_law_catches_the_loss(name, law):
    with pytest.raises(LawBroken) as broken:
        check_loss(LOSS_MUTANTS[name][0], only=[law], examples=50)
    assert broken.value.law == law
    assert str(broken.value).startswith(law)


@pytest.mark.parametrize(("name", "law"), MINER_CASES)
def test_law_catches_the_miner(name, law):
    with pytest.raises(LawBroken) as broken:
        check_miner(MINER_MUTANTS[name][0], only=[law], examples=50)
    assert broken.value.law == law


# The mutants of these are in test_distributed.py: not of losses, but of how they are divided.
SHARDED = {"sharding_changes_nothing", "sharding_changes_no_pair"}


def test_every_law_has_a_mutant():
    assert {case.values[1] for case in LOSS_CASES} | {law for _, law in MISTAKES.values()} | SHARDED == set(
        LOSS_LAWS
    ) | SHARDED
    assert {case.values[1] for case in MINER_CASES} | SHARDED == set(MINER_LAWS) | SHARDED


CAUSES = {
    "SignOfTheClosedForm": "pair_weights_are_derivatives_by_the_score",
    "HalfTheClosedForm": "closed_form_is_the_loss",
    "LastRowOfALongBlockLost": "blocks_of_any_height_are_alike",
    "SidesExchanged": "positives_are_pulled_and_negatives_pushed",
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_first_law_reported_is_the_cause(name):
    with pytest.raises(LawBroken) as broken:
        check_loss(LOSS_MUTANTS[name][0], examples=20)
    assert broken.value.law == CAUSES[name]


def test_what_is_sound_keeps_all_laws():
    check_loss(Sound, examples=10, skip=["compiles_as_one_graph"])
    check_loss(SoundClosedForm, examples=10)
    check_loss(
        lambda: SoundWrapper(Sound()), only=["what_a_wrapper_is_given_is_used", "hyperparameters_may_be_set_later"]
    )
    check_miner(SoundMiner, examples=10)
    check_miner(SoundSampler, examples=10)


@pytest.mark.pml2("its TripletMarginLoss, whose default distance normalizes")
def test_losses_and_miners_of_pml_can_be_checked():
    # PML leaves bfloat16 to torch, whose distances on the CPU do not know it, divides by the length of a zero vector,
    # and leaves what is NaN out of its mean.
    broken = ["half_precision_is_close", "one_zero_vector_moves_no_mountains", "what_is_no_number_makes_the_loss_none"]
    check_loss(TripletMarginLoss, skip=broken, examples=20)
    check_miner(MultiSimilarityMiner, examples=20)


def raw_of_the_published_code(sim, pos, neg, alpha, beta, gamma, epsilon):
    """The exponential of a sum for the sum of exponentials."""
    pos, neg = pos & (sim < masked_max(sim, neg) + epsilon), neg & (sim > masked_min(sim, pos) - epsilon)
    pull = softplus(torch.where(pos, -alpha * (sim - gamma), 0.0).sum(-1)) / alpha
    return pull + softplus(torch.where(neg, beta * (sim - gamma), 0.0).sum(-1)) / beta


def raw_with_ties(sim, pos, neg, alpha, beta, gamma, epsilon):
    """Not strictly: pairs on the threshold count."""
    pos, neg = pos & (sim <= masked_max(sim, neg) + epsilon), neg & (sim >= masked_min(sim, pos) - epsilon)
    pull = torch.where(pos, (-alpha * (sim - gamma)).exp(), 0.0).sum(-1).log1p() / alpha
    return pull + torch.where(neg, (beta * (sim - gamma)).exp(), 0.0).sum(-1).log1p() / beta


@pytest.mark.parametrize(
    ("mutant", "case"),
    [
        (raw_of_the_published_code, Rows(1, 8, density=1.0)),
        (raw_with_ties, Rows(1, 8, scores="equal", density=1.0)),
    ],
)
def test_oracle_tells_the_formulas_apart(mutant, case):
    hyper = {"alpha": 2.0, "beta": 3.0, "gamma": 0.5, "epsilon": 0.0}
    sim, pos, neg = case.matrix
    assert pos.sum() > 1
    assert neg.sum() > 1
    expected = OF_ANCHORS[RAWLoss](sim[pos].tolist(), sim[neg].tolist(), **hyper)
    assert RAWLoss(**hyper).per_anchor(sim, pos, neg).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert mutant(sim, pos, neg, **hyper).item() != pytest.approx(expected, rel=1e-3)


def test_frequencies_catch_the_density_for_its_inverse():
    distances, k = [0.2, 0.9, 1.0, 1.6], 2
    draw = OF_MINERS[InverseDensityMiner]([], distances, num_negatives=k, per_positive=None, max_z=None)
    right, wrong = subset_probabilities(draw.weights, k), subset_probabilities([1 / w for w in draw.weights], k)
    generator = torch.Generator().manual_seed(0)

    def drawn(probabilities):
        sets, weights = zip(*probabilities.items(), strict=True)
        chosen = torch.multinomial(torch.tensor(weights), 4000, replacement=True, generator=generator)
        return [sets[i] for i in chosen.tolist()]

    assert_frequencies(drawn(right), right)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_frequencies(drawn(wrong), right)


def test_frequencies_catch_draws_with_replacement():
    with pytest.raises(AssertionError, match="impossible"):
        assert_frequencies([frozenset({0})] * 100, subset_probabilities([1.0, 1.0, 1.0], 2))


def test_too_few_draws_are_no_test():
    with pytest.raises(ValueError, match="too few"):
        assert_frequencies(["a"] * 10, {"a": 0.9, "b": 0.1})


def test_inclusion_probabilities_add_up():
    probabilities = inclusion_probabilities([1.0, 2.0, 3.0, 4.0], 2)
    assert sum(probabilities) == pytest.approx(2)
    assert probabilities == sorted(probabilities)
    # The last of four with weights 1..4: drawn first, or second after each other one.
    assert probabilities[3] == pytest.approx(0.4 + 0.1 * 4 / 9 + 0.2 * 4 / 8 + 0.3 * 4 / 7)
