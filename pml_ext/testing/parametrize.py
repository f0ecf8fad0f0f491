"""One pytest test for each law that applies to each of some losses and miners."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pytorch_metric_learning.miners import BaseMiner

from pml_ext.testing.check import check_loss, check_miner, made
from pml_ext.testing.law import LOSS_LAWS, MINER_LAWS, check_names, chosen

if TYPE_CHECKING:
    import pytest


def parametrize_with_laws(
    subjects: Iterable[Any],
    *,
    expected_failures: Callable[[Any], Mapping[str, str]] | None = None,
    dimension: int | None = None,
    examples: int | None = None,
) -> "pytest.MarkDecorator":
    """A decorator for a test of `subject` and `check`, which is then run once for each law of each subject.

    Args:
        subjects: losses and miners, of this package, of PML or others; or their classes, or functions that make them.
        expected_failures: None, or a function from a subject to the laws that it is known to break, each with the
            reason. They are marked as strict `xfail`: a law that holds nevertheless is a failure.
        dimension: dimension of the embeddings; by default that of the loss, or several.
        examples: how many cases to draw for each; by default as the hypothesis profile says.

    Raises:
        ValueError: no law has the name of an expected failure.

    Example:
        >>> from pytorch_metric_learning.losses import TripletMarginLoss
        >>> @parametrize_with_laws([TripletMarginLoss()])
        ... def test_loss(subject, check):
        ...     check(subject)
    """
    import pytest

    cases = []
    for given in subjects:
        subject = made(given)
        is_miner = isinstance(subject, BaseMiner)
        laws, check = (MINER_LAWS, check_miner) if is_miner else (LOSS_LAWS, check_loss)
        expected = {} if expected_failures is None else expected_failures(subject)
        check_names(laws, expected)
        for law in chosen(laws, (), None):
            if not law.applies(subject):
                continue
            # The mark says what is expected: to the check itself it is a failure.
            marks = [pytest.mark.xfail(reason=expected[law.name], strict=True)] if law.name in expected else []
            one = partial(check, only=[law.name], dimension=dimension, examples=examples)
            cases.append(pytest.param(subject, one, marks=marks, id=f"{type(subject).__name__}-{law.name}"))
    return pytest.mark.parametrize(("subject", "check"), cases)
