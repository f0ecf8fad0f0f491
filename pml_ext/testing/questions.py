"""Questions that the documentation of PML 3 leaves open, and how to answer them with an installed PML 3.

This package works with any of the answers; its tests run with both answers to most questions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, reducers, regularizers
from torch import Tensor

from pml_ext import _pml

NOT_ASKED = "not asked: this is PML 2"


@dataclass(frozen=True)
class Question:
    """One question, and the answers that this package is made for.

    Args:
        name: of the question.
        text: the question.
        answers: the answers that are foreseen.
        ask: asks the PML that is installed, and returns an answer, or what happened instead.
    """

    name: str
    text: str
    answers: tuple[str, ...]
    ask: Callable[[], str]

    def answer(self) -> str:
        """The answer of the PML that is installed."""
        return self.ask() if _pml.HAS_TERMS else NOT_ASKED

    def __str__(self) -> str:
        return f"{self.name}: {self.text} {' / '.join(self.answers)}. {self.answer()}."


def open_questions() -> str:
    """All questions in lines of text, each with the foreseen answers and that of the PML that is installed.

    Example:
        >>> print(open_questions().splitlines()[0])
        reduction_type: Is a term refused that has a key more than losses, indices and divisor? ...
    """
    return "\n".join(map(str, QUESTIONS))


_X, _Y = torch.eye(4, device="cpu"), torch.tensor([0, 0, 1, 1], device="cpu")
REFUSED, TAKEN = "refused", "taken"


class _Asking(_pml.Defaults, losses.BaseMetricLossFunction):  # type: ignore[misc, unused-ignore]
    """A loss that hands over the terms that it is given."""

    def __init__(self, terms: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.terms = terms

    def default_distance(self) -> Any:
        return distances.LpDistance()

    def compute_loss(self, *_: Any) -> dict[str, Any]:
        return self.terms


def _term(**more: Any) -> dict[str, Any]:
    return {"loss": {"losses": torch.ones(4, device="cpu"), "indices": torch.arange(4, device="cpu"), **more}}


def _outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        return f"{REFUSED} ({type(error).__name__})"
    return TAKEN


def _reduction_type() -> str:
    return _outcome(lambda: _Asking(_term(reduction_type="element"))(_X, _Y))


def _facts() -> str:
    names = ("is_inverted", "normalize_embeddings", "p", "power")
    distance = distances.LpDistance()
    there = [name for name in names if hasattr(distance, name)]
    return "it says all" if len(there) == len(names) else "it says none" if not there else f"it says {there}"


def _penalty() -> str:
    loss = _Asking(_term(), embedding_regularizer=regularizers.LpRegularizer())
    values: Any = loss.regularization_terms(_X)
    kinds = {"scalars" if isinstance(value, Tensor) else "terms" for value in values.values()}
    return " and ".join(sorted(kinds))


def _miner_order() -> str:
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    refs = _X.flip(0).clone()
    outcome = _outcome(lambda: MultiSimilarityMiner()(_X, _Y, refs, _Y.flip(0)))
    return "the references" if outcome == TAKEN else "the candidates"


def _zero_divisor() -> str:
    terms = {"loss": {**_term(divisor=torch.tensor(0, device="cpu"))["loss"], "losses": torch.zeros(4, device="cpu")}}
    value = float(_Asking(terms, reducer=reducers.DivisorReducer())(_X, _Y))
    return "not a number" if value != value else str(value)


def _combination() -> str:
    pairs = tuple(torch.tensor([i], device="cpu") for i in (0, 1, 0, 2))
    return _outcome(lambda: _Asking(_term())(_X, None, pairs, _X.clone()))


def _scalar() -> str:
    number = {"loss": {"losses": torch.tensor(2.0, device="cpu"), "indices": None}}
    return _outcome(lambda: _Asking(number)(_X, _Y))


def _masks() -> str:
    masks = tuple(torch.zeros(4, 4, dtype=torch.bool, device="cpu") for _ in range(2))
    return _outcome(lambda: _Asking(_term())(_X, _Y, masks))


def _cosine() -> str:
    is_one = issubclass(distances.CosineSimilarity, distances.DotProductSimilarity)
    return "it is" if is_one else "it is not"


def _nothing() -> str:
    return _outcome(lambda: _Asking({})(_X, _Y))


def _batched_backward() -> str:
    from pml_ext.losses import BinomialDevianceLoss

    backward = getattr(losses, "anchor_batched_backward", None)
    if backward is None:
        return "there is none"
    x = _X.clone().requires_grad_()
    return _outcome(lambda: backward(BinomialDevianceLoss(), x, _Y, 2))


QUESTIONS = (
    Question(
        "reduction_type",
        "Is a term refused that has a key more than losses, indices and divisor?",
        (REFUSED, TAKEN),
        _reduction_type,
    ),
    Question("scalar", "Is a term of one number without indices taken?", (REFUSED, TAKEN), _scalar),
    Question("nothing", "Is a loss without any term, {}, taken?", (TAKEN,), _nothing),
    Question("masks", "Are two masks refused as an indices_tuple?", (REFUSED, TAKEN), _masks),
    Question(
        "facts",
        "Does a distance say is_inverted, p, power and normalize_embeddings of itself?",
        ("it says none", "it says all"),
        _facts,
    ),
    Question("cosine", "Is CosineSimilarity a DotProductSimilarity?", ("it is", "it is not"), _cosine),
    Question("penalty", "What are the values of regularization_terms?", ("scalars", "terms"), _penalty),
    Question(
        "miner_order",
        "What is the third argument of a miner, without a name?",
        ("the candidates", "the references"),
        _miner_order,
    ),
    Question(
        "zero_divisor", "What does DivisorReducer make of a divisor of 0?", ("not a number", "0.0"), _zero_divisor
    ),
    Question(
        "combination",
        "Are references without labels refused, where pairs are given?",
        (REFUSED, TAKEN),
        _combination,
    ),
    Question(
        "batched_backward",
        "Does anchor_batched_backward take a loss of this package?",
        (REFUSED, TAKEN, "there is none"),
        _batched_backward,
    ),
)
