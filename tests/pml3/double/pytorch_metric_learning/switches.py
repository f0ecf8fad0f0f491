"""The open questions, each with the answer that is assumed; the environment names those with the other one."""

import os
from typing import NamedTuple


class Switch(NamedTuple):
    """What is asked, and the two answers: the one assumed first is the harder for a plug-in."""

    question: str
    assumed: str
    other: str


SWITCHES = {
    "reduction_type": Switch(
        "Is a term refused that has a key more than losses, indices and divisor?", "it is refused", "it is ignored"
    ),
    "facts": Switch(
        "Does a distance say of itself is_inverted, p, power and normalize_embeddings?", "it does not", "it does"
    ),
    "penalty": Switch("What are the values of regularization_terms?", "scalar tensors", "terms with losses"),
    "miner_order": Switch(
        "What is the third argument of a miner without a name?", "indices_tuple", "ref_emb, as in version 2"
    ),
    "zero_divisor": Switch("What does DivisorReducer make of a divisor of 0?", "not a number", "0"),
    "combination": Switch(
        "Are references without labels refused, where pairs are given?", "they are refused", "they are taken"
    ),
}
FLIPPED = frozenset(os.environ.get("PML3_DOUBLE", "").split(",")) - {""}
if FLIPPED - SWITCHES.keys():
    raise ValueError(f"PML3_DOUBLE names {sorted(FLIPPED - SWITCHES.keys())}, there are {', '.join(SWITCHES)}")


def assumed(name: str) -> bool:
    """Whether the answer is the one that is assumed."""
    assert name in SWITCHES
    return name not in FLIPPED
