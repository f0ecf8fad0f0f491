"""What `check_loss` and `check_miner` say about a loss or a miner, and how they are used with pytest."""

import re

import pytest
import torch
from mutants import LOSS_MUTANTS, Sound, SoundMiner
from of_pml import ArcFaceLoss, TripletMarginLoss
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners

from pml_ext import thresholds
from pml_ext.testing import (
    LOSS_LAWS,
    MINER_LAWS,
    LawBroken,
    LawTable,
    Verdict,
    check_loss,
    check_miner,
    parametrize_with_laws,
)
from pml_ext.testing.law import STAGES

WRONG = LOSS_MUTANTS["SidesExchanged"][0]
SLOW = "compiles_as_one_graph"
SIGNS = "positives_are_pulled_and_negatives_pushed"


@pytest.fixture(scope="module")
def table():
    return check_loss(WRONG, on_fail="report", examples=5, skip=[SLOW])


def test_the_table_has_every_law_from_cause_to_symptom(table):
    assert {verdict.law for verdict in table} == set(LOSS_LAWS) - {SLOW}
    stages = [STAGES.index(LOSS_LAWS[verdict.law].stage) for verdict in table]
    assert stages == sorted(stages)
    first = table.bad[0]
    assert (first.law, first.result, first.regime) == (SIGNS, "failed", "as shipped")
    assert "a positive is pushed" in first.text or "a negative is pulled" in first.text
    assert not first.text.startswith(first.law)
    assert table["it_learns"].is_bad
    assert table["copies_are_equal"].result == "passed"
    # Once in each of three regimes.
    assert table["copies_are_equal"].tried == 3


def test_the_smallest_case_is_found():
    case = check_loss(WRONG, only=[SIGNS], on_fail="report", examples=50)[SIGNS].case
    assert (case.n, case.m) == (1, 2)


def test_what_is_broken_in_blocks_only_is_found_and_says_so():
    class OfTheBlock(Sound):
        @property
        def level(self):
            return super().level + (thresholds.TINY["BLOCK_ROWS"] == thresholds.BLOCK_ROWS)

    oracle = "thresholds_change_nothing"
    assert check_loss(OfTheBlock, only=[oracle], on_fail="report", examples=50).bad

    class LosesABlock(Sound):
        def per_anchor(self, sim, pos, neg):
            losses = super().per_anchor(sim, pos, neg)
            return losses / 0 if len(losses) < 4 and thresholds.BLOCK_ROWS < 32 else losses

    with pytest.raises(LawBroken, match=r"with tiny thresholds|as on a device"):
        check_loss(LosesABlock, only=["any_batch_has_a_finite_loss"], examples=50)


def test_a_failure_that_is_expected_is_no_failure():
    laws = [SIGNS, "it_learns", "copies_are_equal"]
    expected = {SIGNS: "it is exchanged", "it_learns": "so it cannot"}
    table = check_loss(WRONG, only=laws, expected_failures=expected)
    assert [verdict.result for verdict in table] == ["expected failure", "passed", "expected failure"]
    assert table[SIGNS].text == "it is exchanged"


@pytest.mark.parametrize("law", ["copies_are_equal", "matrix_is_not_written_to"])
def test_an_expected_failure_that_does_not_show_is_one(law):
    expected = {law: "somebody said so"}
    table = check_loss(Sound, only=[law], expected_failures=expected, on_fail="report", examples=5)
    assert table[law].result == "unexpected pass"
    with pytest.raises(LawBroken, match=f"{law}: the law holds, though a failure was expected: somebody said so"):
        check_loss(Sound, only=[law], expected_failures=expected, examples=5)


def test_an_expected_failure_may_be_rare():
    class Rare(Sound):
        def per_anchor(self, sim, pos, neg):
            losses = super().per_anchor(sim, pos, neg)
            return losses * (torch.nan if pos.shape[-1] == 7 else 1.0)

    law = "one_finite_number_per_anchor"
    assert check_loss(Rare, only=[law], examples=2, expected_failures={law: "rare"})[law].result == "expected failure"


@pytest.mark.parametrize("argument", ["skip", "only", "expected_failures"])
def test_a_law_that_does_not_exist_is_an_error(argument):
    value = {"gravity": "it is heavy"} if argument == "expected_failures" else ["gravity"]
    with pytest.raises(ValueError, match="no law is called gravity"):
        check_loss(Sound, **{argument: value})


def test_regimes_beside_the_shipped_one_may_be_chosen():
    def tried(*regimes):
        table = check_loss(Sound, only=["copies_are_equal", "no_anchor_no_loss"], examples=8, regimes=regimes)
        return table["copies_are_equal"].tried, table["no_anchor_no_loss"].tried

    assert tried() == (1, 8)
    assert tried("as shipped", "as on a device") == (2, 12)
    assert tried("as on a device", "with tiny thresholds") == (3, 12)
    with pytest.raises(ValueError, match=r"regimes must be of as shipped, .*, got in haste"):
        tried("in haste")


def test_on_fail_is_one_of_two():
    with pytest.raises(ValueError, match="on_fail must be 'raise' or 'report', got 'warn'"):
        check_loss(Sound, on_fail="warn")


@pytest.mark.parametrize(
    "given", [ArcFaceLoss, lambda: ArcFaceLoss(7, 5), ArcFaceLoss(7, 5)], ids=["class", "function", "loss"]
)
def test_a_loss_with_weights_is_given_embeddings_that_fit(given):
    table = check_loss(given, only=["any_batch_has_a_finite_loss", "label_names_are_irrelevant"], examples=5)
    assert [verdict.result for verdict in table] == ["passed", "not applicable"]


def test_losses_and_miners_of_pml_are_made_without_help():
    for cls in (pml_losses.ProxyAnchorLoss, pml_losses.SoftTripleLoss, pml_losses.CosFaceLoss):
        check_loss(cls, only=["batch_is_not_written_to"], examples=3)
    check_miner(pml_miners.BatchHardMiner, only=["indices_are_in_range"], examples=3)


def test_what_makes_nothing_is_refused():
    with pytest.raises(TypeError, match="not a loss or a miner, nor a function that makes one"):
        check_loss(dict)


def test_the_table_shows_itself():
    verdicts = (
        Verdict("first", "passed", 3),
        Verdict("second", "failed", 2, "<case>", "1 < 2", "as shipped"),
        Verdict("third", "expected failure", 1, None, "known"),
        Verdict("fourth", "unexpected pass", 1, None, "it holds"),
        Verdict("fifth", "not applicable", text="only for a miner"),
        Verdict("sixth", "not applicable", text="only for a wrapper"),
        Verdict("seventh", "not applicable", text="only for a miner"),
    )
    table = LawTable("Loss", verdicts)
    assert repr(table).splitlines() == [
        "Loss: 7 laws, 1 passed, 1 failed, 1 unexpected pass, 1 expected failure, 3 not applicable",
        "failed            second: 1 < 2",
        "expected failure  third: known",
        "unexpected pass   fourth: it holds",
        "passed            first",
        "not applicable    only for a miner: fifth, seventh",
        "not applicable    only for a wrapper: sixth",
    ]
    assert [verdict.law for verdict in table.bad] == ["second", "fourth"]
    page = table._repr_html_()
    assert "&lt;case&gt;" in page
    assert "1 &lt; 2" in page
    assert page.count("<tr>") == 8


def test_a_law_that_is_left_out_says_what_it_is_for(table):
    for verdict in table:
        if not verdict.applies:
            assert re.fullmatch(r"only for (a|what|every|one) .{8,}", verdict.text), verdict
    for law in (*LOSS_LAWS.values(), *MINER_LAWS.values()):
        assert law.applies.__name__ != "<lambda>", law.name
        assert law.scope, law.name


def test_a_table_of_all_laws_fits_a_screen(table):
    assert len(repr(table).splitlines()) < 40


MARK = parametrize_with_laws(
    [TripletMarginLoss(), WRONG, SoundMiner],
    expected_failures=lambda subject: {SIGNS: "exchanged"} if type(subject) is WRONG else {},
    examples=5,
)


def test_parametrized_tests_are_the_laws_that_apply():
    names = [case.id for case in MARK.args[1]]
    assert len(names) == len(set(names))
    assert "TripletMarginLoss-it_learns" in names
    assert "TripletMarginLoss-levels_are_declared" not in names
    assert "SoundMiner-labels_agree" in names
    (marked,) = (case for case in MARK.args[1] if case.marks)
    assert marked.id == f"SidesExchanged-{SIGNS}"
    assert marked.marks[0].kwargs == {"reason": "exchanged", "strict": True}
    with pytest.raises(LawBroken):
        marked.values[1](marked.values[0])


@parametrize_with_laws([SoundMiner], examples=5)
def test_a_parametrized_test_holds_a_subject_against_one_law(subject, check):
    assert len(check(subject)) == 1
