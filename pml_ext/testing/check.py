"""Hold a loss or a miner against all laws that apply to it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from pml_ext.testing.cases import Batch, Rows
from pml_ext.testing.law import LOSS_LAWS, MINER_LAWS, Law, chosen


def check_loss(
    loss: Any,
    *,
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    dimension: int | None = None,
    examples: int | None = None,
) -> None:
    """Hold a PML loss, ours or another, against the laws of losses.

    Laws that need the contract of this package's shell apply to losses on it only. Cases are drawn by hypothesis.

    Args:
        loss: a loss, or a function without arguments that makes one, the class itself for example.
        skip: names of laws that it need not keep; all are the keys of `LOSS_LAWS`.
        only: names of the laws to try; by default all.
        dimension: of the embeddings; by default several.
        examples: how many cases of a kind to draw; by default as the hypothesis profile says.

    Raises:
        LawBroken: an AssertionError with the name of the law, the case and the numbers.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> check_loss(RAWLoss, only=["it_learns", "nothing_waits_for_the_device"])
    """
    subject = _made(loss)
    laws = chosen(LOSS_LAWS, subject, skip, only)
    _check(subject, laws, dimension, examples)


def check_miner(
    miner: Any,
    *,
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    dimension: int | None = None,
    examples: int | None = None,
) -> None:
    """Hold a PML miner, ours or another, against the laws of miners.

    Args:
        miner: a miner, or a function without arguments that makes one, the class itself for example. Laws that say
            what is drawn anew, and what again, apply to those that draw at random: subclasses of `SamplingMiner`, and
            miners with an attribute `is_random` that is true.
        skip: names of laws that it need not keep; all are the keys of `MINER_LAWS`.
        only: names of the laws to try; by default all.
        dimension: of the embeddings; by default several.
        examples: how many cases of a kind to draw; by default as the hypothesis profile says.

    Raises:
        LawBroken: an AssertionError with the name of the law, the case and the numbers.

    Example:
        >>> from pytorch_metric_learning.miners import MultiSimilarityMiner
        >>> check_miner(MultiSimilarityMiner)
    """
    subject = _made(miner)
    laws = chosen(MINER_LAWS, subject, skip, only)
    _check(subject, laws, dimension, examples)


def _made(subject: Any) -> Any:
    made = subject if isinstance(subject, nn.Module) else subject()
    if not isinstance(made, nn.Module):
        raise TypeError(f"not a loss or a miner, nor a function that makes one: {subject!r}")
    return made


def _check(subject: Any, laws: list[Law], dimension: int | None, examples: int | None) -> None:
    with torch.random.fork_rng(devices=[]):
        for law in laws:
            if law.kind == "once":
                law(subject, Batch((3, 4, 2), dimension or 4, seed=7))
        for kind in ("rows", "batch"):
            drawn = [law for law in laws if law.kind == kind]
            if drawn:
                _try_on_drawn_cases(subject, drawn, kind, dimension, examples)


def _try_on_drawn_cases(subject: Any, laws: list[Law], kind: str, dimension: int | None, examples: int | None) -> None:
    """One draw serves all laws of a kind: drawing costs about as much as a law."""
    try:
        import hypothesis
    except ImportError as error:
        raise ImportError("the cases are drawn by hypothesis: pip install hypothesis, or pml_ext[test]") from error
    from pml_ext.testing.strategies import batches, rows

    cases: Any = rows(subject.distance.is_inverted) if kind == "rows" else batches(dimension)

    def keep_laws(case: Rows | Batch) -> None:
        for law in laws:
            law(subject, case)

    # The first failure is raised as it is, with the name of its law; explaining it takes longer than finding it.
    settings: dict[str, Any] = {"report_multiple_bugs": False, "deadline": None, "database": None}
    settings["phases"] = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
    if examples is not None:
        settings["max_examples"] = examples
    run: Callable[[], None] = hypothesis.settings(**settings)(hypothesis.given(cases)(keep_laws))
    run()
