"""The laws of losses and miners, for any loss or miner: this package's, PML's or your own."""

from pml_ext.testing import (  # noqa: F401 - enter laws
    argument_laws,
    batch_laws,
    closed_form_laws,
    contract_laws,
    edge_laws,
    invariance_laws,
    miner_laws,
    number_laws,
    regime_laws,
    row_laws,
    selection_laws,
    sharding_laws,
    state_laws,
)
from pml_ext.testing.cases import Batch, Rows
from pml_ext.testing.check import check_loss, check_miner
from pml_ext.testing.law import LOSS_LAWS, MINER_LAWS, Law, LawBroken
from pml_ext.testing.parametrize import parametrize_with_laws
from pml_ext.testing.questions import open_questions
from pml_ext.testing.sampling import assert_frequencies, inclusion_probabilities, subset_probabilities
from pml_ext.testing.table import LawTable, Verdict
from pml_ext.testing.threads import run_as_ranks

__all__ = [
    "LOSS_LAWS",
    "MINER_LAWS",
    "Batch",
    "Law",
    "LawBroken",
    "LawTable",
    "Rows",
    "Verdict",
    "assert_frequencies",
    "check_loss",
    "check_miner",
    "inclusion_probabilities",
    "open_questions",
    "parametrize_with_laws",
    "run_as_ranks",
    "subset_probabilities",
]
