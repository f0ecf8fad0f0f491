"""The laws, for a loss or a miner by its name or as an object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pytorch_metric_learning.miners import BaseMiner

from pml_ext.benchmark import losses
from pml_ext.benchmark.errors import BenchmarkError

if TYPE_CHECKING:
    from pml_ext.testing import LawTable


def laws(
    loss: Any,
    *,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    dimension: int | None = None,
    examples: int | None = None,
) -> LawTable:
    """Check a loss or a miner against all laws that apply to it; violations are in the table.

    Args:
        loss: a loss or a miner: a name as `Experiment` takes it, "RAW" or "module:name", an object, a class, or a
            function without arguments that makes one. For the name of a loss with its miner, the loss is checked.
        only: names of the laws to try. Default None: all.
        skip: names of laws not to try. Default ().
        dimension: dimension of the embeddings. Default None: that of the loss, or several.
        examples: how many cases of a kind to draw. Default None: as the profile of hypothesis says.

    Raises:
        BenchmarkError: an unknown name, or hypothesis is missing. It is a ValueError.

    Example:
        >>> laws("RAW", only=["it_learns"])
        RAW: 1 law, 1 passed
        passed            it_learns
    """
    try:
        from pml_ext.testing import check_loss, check_miner
        from pml_ext.testing.check import ARGUMENTS
    except ImportError as error:
        raise BenchmarkError(f"the laws need hypothesis: pip install hypothesis ({error})") from None
    subject, name = loss, None
    if isinstance(loss, str):
        is_miner, subject = _named(loss, ARGUMENTS["num_classes"], ARGUMENTS["embedding_size"])
        name = loss
    else:
        is_miner = isinstance(loss, BaseMiner) or (isinstance(loss, type) and issubclass(loss, BaseMiner))
    check = check_miner if is_miner else check_loss
    table = check(subject, on_fail="report", only=only, skip=skip, dimension=dimension, examples=examples)
    return table if name is None else type(table)(name, table.verdicts)


def _named(name: str, classes: int, embedding_size: int) -> tuple[bool, Callable[[], Any]]:
    if name.partition("(")[0].removeprefix("pml:").endswith("Miner"):
        return True, losses.miner(name, classes=classes, embedding_size=embedding_size)

    def make() -> Any:
        return losses.build(name, classes=classes, embedding_size=embedding_size).loss

    make()  # what is wrong with the name is said at once
    return False, make
