"""Check a loss or a miner against all laws that apply to it."""

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import torch
from pytorch_metric_learning.distances import BaseDistance
from torch import nn

from pml_ext import _pml, thresholds
from pml_ext.similarity import PairModule
from pml_ext.testing.cases import Batch, Rows
from pml_ext.testing.law import LOSS_LAWS, MINER_LAWS, Kind, Law, LawBroken, check_names, chosen
from pml_ext.testing.table import LawTable, Verdict
from pml_ext.wrappers.base import LossWrapper

OnFail = Literal["raise", "report"]
# Each law is tried as the package computes a small batch, as it computes a large one, and as it does on a GPU.
REGIMES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "as shipped": nullcontext,
    "with tiny thresholds": thresholds.tiny,
    "as on a device": thresholds.as_on_a_device,
}
# What a class is made with if it needs arguments of these names.
ARGUMENTS: dict[str, int] = {"num_classes": 12, "embedding_size": 4}
# So many cases a law must hold on, before a failure that was expected is said to be none.
_ENOUGH = 200


def check_loss(
    loss: Any,
    *,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: OnFail = "raise",
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    dimension: int | None = None,
    examples: int | None = None,
    regimes: Iterable[str] | None = None,
) -> LawTable:
    """Check a PML loss, ours or any other, against the laws of losses.

    Laws about the base classes of this package apply only to losses derived from them. Cases are drawn by hypothesis,
    and tried in several regimes: as shipped; with all thresholds so small that a dozen samples are split into blocks
    and groups and reach every fallback; and as on a device that computes asynchronously. Laws are tried from cause to
    symptom, so that the first failure names the cause.

    Args:
        loss: a loss, or a function without arguments that makes one, or its class.
        expected_failures: laws that it is known to break, each with the reason. If it keeps one of them, that is a
            failure too.
        on_fail: "raise" an error at the first law that is broken, or "report" all in the table.
        skip: names of laws that are not to be tried; all are the keys of `LOSS_LAWS`.
        only: names of the laws to try; by default all.
        dimension: dimension of the embeddings; by default that of the loss, or several.
        examples: how many cases of a kind to draw; by default as the hypothesis profile says.
        regimes: names of those to try beside "as shipped"; by default all, the keys of `REGIMES`.

    Returns:
        The verdict on each law, which is shown as a table.

    Raises:
        LawBroken: an AssertionError with the name of the law, the smallest case found and the numbers.
        ValueError: an unknown law or regime, or another value of `on_fail`.

    Example:
        >>> from pml_ext.losses import RAWLoss
        >>> check_loss(RAWLoss, only=["it_learns", "nothing_waits_for_the_device"])
        RAWLoss: 2 laws, 2 passed
        passed            nothing_waits_for_the_device, it_learns
    """
    return _table(loss, LOSS_LAWS, expected_failures or {}, on_fail, skip, only, dimension, examples, regimes)


def check_miner(
    miner: Any,
    *,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: OnFail = "raise",
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    dimension: int | None = None,
    examples: int | None = None,
    regimes: Iterable[str] | None = None,
) -> LawTable:
    """Check a PML miner, ours or any other, against the laws of miners, as `check_loss` does with a loss.

    Args:
        miner: a miner, or a function without arguments that makes one, or its class. Laws about random draws apply to
            miners that draw at random: subclasses of `Seeded`, and miners with an attribute `is_random` that is true.
        expected_failures: laws that it is known to break, each with the reason. If it keeps one of them, that is a
            failure too.
        on_fail: "raise" an error at the first law that is broken, or "report" all in the table.
        skip: names of laws that are not to be tried; all are the keys of `MINER_LAWS`.
        only: names of the laws to try; by default all.
        dimension: dimension of the embeddings; by default several.
        examples: how many cases of a kind to draw; by default as the hypothesis profile says.
        regimes: names of those to try beside "as shipped"; by default all, the keys of `REGIMES`.

    Returns:
        The verdict on each law, which is shown as a table.

    Raises:
        LawBroken: an AssertionError with the name of the law, the smallest case found and the numbers.
        ValueError: an unknown law or regime, or another value of `on_fail`.

    Example:
        >>> from pytorch_metric_learning.miners import MultiSimilarityMiner
        >>> check_miner(MultiSimilarityMiner, on_fail="report").bad
        ()
    """
    return _table(miner, MINER_LAWS, expected_failures or {}, on_fail, skip, only, dimension, examples, regimes)


def _table(
    subject: Any,
    known: dict[str, Law],
    expected: Mapping[str, str],
    on_fail: OnFail,
    skip: Iterable[str],
    only: Iterable[str] | None,
    dimension: int | None,
    examples: int | None,
    regimes: Iterable[str] | None,
) -> LawTable:
    if on_fail not in ("raise", "report"):
        raise ValueError(f"on_fail must be 'raise' or 'report', got {on_fail!r}")
    names = tuple(REGIMES if regimes is None else regimes)
    if not REGIMES.keys() >= {*names}:
        raise ValueError(f"regimes must be of {', '.join(REGIMES)}, got {', '.join(names)}")
    check_names(known, expected)
    laws, subject = chosen(known, skip, only), made(subject)
    cases = _Cases(subject, dimension or dimension_of(subject), examples, names)
    verdicts = []
    with torch.random.fork_rng(devices=[]):
        for law in laws:
            verdict, error = _verdict(subject, law, cases, expected.get(law.name))
            if verdict.is_bad and on_fail == "raise":
                raise error or LawBroken(law.name, f"{law.name}: {verdict.text}")
            verdicts.append(verdict)
    return LawTable(type(subject).__name__, tuple(verdicts))


def made(subject: Any) -> Any:
    """The loss or miner itself, of one or of what makes one: a class is given `ARGUMENTS` that it needs."""
    if inspect.isclass(subject) and issubclass(subject, nn.Module):
        # Also what a class hands on to its base by *args.
        signatures = [inspect.signature(cls.__init__) for cls in subject.__mro__ if issubclass(cls, nn.Module)]
        needed = {p.name for each in signatures for p in each.parameters.values() if p.default is p.empty}
        subject = subject(**{name: value for name, value in ARGUMENTS.items() if name in needed})
    elif not isinstance(subject, nn.Module):
        subject = subject()
    if not isinstance(subject, nn.Module):
        raise TypeError(f"not a loss or a miner, nor a function that makes one: {subject!r}")
    return subject


def dimension_of(subject: nn.Module) -> int | None:
    """The dimension of the embeddings that a loss can take, or None if it takes any."""
    size = getattr(subject, "embedding_size", None)
    if isinstance(size, int) and size > 0:  # PML's losses have one that counts what they have been given so far
        return size
    sizes = {size for parameter in subject.parameters() for size in parameter.shape}
    return next((size for size in sorted(sizes) if _takes(subject, size)), None) if sizes else None


def _takes(subject: nn.Module, dimension: int) -> bool:
    batch = Batch((2, 2), dimension)
    try:
        subject(batch.embeddings, batch.labels)
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


@dataclass
class _Cases:
    """The cases of each kind, drawn once for all laws: drawing costs about as much as a law.

    Args:
        subject: for which they are.
        dimension: of the embeddings, or None for several.
        examples: how many to draw, or None for as many as the hypothesis profile says.
        regimes: to try beside "as shipped".
    """

    subject: Any
    dimension: int | None
    examples: int | None
    regimes: tuple[str, ...]

    def tries(self, law: Law) -> Iterable[tuple[Any, str]]:
        """Cases for a law, each with a regime: as shipped and, if it is ours that computes, some in the others too."""
        once = law.kind == "once"
        others = [name for name in self.regimes if name != "as shipped"]
        if law.as_shipped_only or not self._is_computed_here:
            others = []
        for i, case in enumerate(self._of_kind(law.kind)):
            # Of drawn cases every other one, in one of the regimes in turn.
            extra = others if once or not others else others[i // 2 % len(others) :][: 1 - i % 2]
            for regime in ("as shipped", *extra):
                yield self._in_regime(case, regime), regime

    def _of_kind(self, kind: Kind) -> list[Any]:
        if kind == "once":
            return [self._one]
        return self._rows if kind == "rows" else self._batches

    def _in_regime(self, case: Any, regime: str) -> Any:
        """The case, with all that laws have computed on it in this regime."""
        return self._copies.setdefault((case, regime), replace(case))

    @cached_property
    def _copies(self) -> dict[tuple[Any, str], Any]:
        return {}

    @cached_property
    def _is_computed_here(self) -> bool:
        return any(isinstance(module, (PairModule, LossWrapper)) for module in self.subject.modules())

    @cached_property
    def _one(self) -> Batch:
        return Batch((3, 4, 2), self.dimension or 4, seed=7)

    @cached_property
    def _rows(self) -> list[Rows]:
        return self._drawn("rows")

    @cached_property
    def _batches(self) -> list[Batch]:
        return self._drawn("batch")

    def _drawn(self, kind: Kind) -> list[Any]:
        examples = self.examples or int(_hypothesis().settings().max_examples)
        # Copies: what a case has noted of a loss goes with that loss.
        return [copy.copy(case) for case in _drawn(kind, self._is_inverted, self.dimension, examples, self._seed)]

    def smallest(self, kind: Kind, broken: LawBroken, check: Callable[[Any], None]) -> LawBroken:
        """The law broken on the smallest case that hypothesis finds, beginning with the case that is known."""
        if kind == "once":
            return broken
        try:
            self.run(kind, check)
        except LawBroken as smaller:
            return smaller
        except Exception:  # broken now and then, which hypothesis calls flaky
            return broken
        return broken

    def are_enough(self, kind: Kind, check: Callable[[Any], None]) -> bool:
        """Whether a check that passed on the cases passes on many more, too."""
        if kind == "once":
            return True
        try:
            self.run(kind, check, _ENOUGH)
        except LawBroken:
            return False
        return True

    def run(self, kind: Kind, check: Callable[[Any], None], examples: int | None = None) -> None:
        """Try a check on drawn cases, the same in every call as long as it passes."""
        _run(check, kind, self._is_inverted, self.dimension, examples or self.examples, self._seed)

    @property
    def _is_inverted(self) -> bool:
        distance = getattr(self.subject, "distance", None)
        return not isinstance(distance, BaseDistance) or bool(_pml.facts(distance).is_inverted)

    @cached_property
    def _seed(self) -> int:
        return 0 if _hypothesis().settings().derandomize else random.randrange(2**32)


@lru_cache(maxsize=64)
def _drawn(kind: Kind, is_inverted: bool, dimension: int | None, examples: int, seed: int) -> tuple[Any, ...]:
    """All the cases of a seed, which are the same for many losses."""
    found: list[Any] = []
    _run(found.append, kind, is_inverted, dimension, examples, seed)
    return tuple(found)


def _run(
    check: Callable[[Any], None],
    kind: Kind,
    is_inverted: bool,
    dimension: int | None,
    examples: int | None,
    seed: int,
) -> None:
    hypothesis = _hypothesis()
    from pml_ext.testing.strategies import batches, rows

    cases: Any = rows(is_inverted) if kind == "rows" else batches(dimension)

    def keeps(case: Rows | Batch) -> None:
        check(case)

    # The first failure is raised as it is; explaining it takes longer than finding it.
    settings: dict[str, Any] = {"report_multiple_bugs": False, "deadline": None, "database": None}
    settings["phases"] = (hypothesis.Phase.generate, hypothesis.Phase.shrink)
    settings["suppress_health_check"] = list(hypothesis.HealthCheck)
    settings["derandomize"] = False  # in favor of the seed
    if examples:
        settings["max_examples"] = examples
    run: Callable[[], None] = hypothesis.given(cases)(keeps)
    hypothesis.settings(**settings)(hypothesis.seed(seed)(run))()


def _hypothesis() -> Any:
    try:
        import hypothesis
    except ImportError as error:
        raise ImportError("the cases are drawn by hypothesis: pip install hypothesis, or pml_ext[test]") from error
    return hypothesis


def _verdict(subject: Any, law: Law, cases: _Cases, reason: str | None) -> tuple[Verdict, LawBroken | None]:
    """What comes of one law, and the error if it is broken without having been expected."""
    if not law.applies(subject):
        return Verdict(law.name, "not applicable", text=f"only for {law.scope}"), None
    tried = 0
    for case, regime in cases.tries(law):
        tried += 1
        try:
            _hold(subject, law, case, regime)
        except LawBroken as error:
            if reason is not None:
                return Verdict(law.name, "expected failure", tried, case, reason, regime), None
            smallest = cases.smallest(law.kind, error, partial(_hold, subject, law, regime=regime))
            text = str(smallest).removeprefix(f"{law.name}: ")
            return Verdict(law.name, "failed", tried, smallest.case, text, regime), smallest
    if reason is not None and not cases.are_enough(law.kind, partial(_hold, subject, law, regime="as shipped")):
        return Verdict(law.name, "expected failure", tried, None, reason, "as shipped"), None
    if reason is not None:
        text = f"the law holds, though a failure was expected: {reason}"
        return Verdict(law.name, "unexpected pass", tried, None, text), None
    return Verdict(law.name, "passed", tried), None


def _hold(subject: Any, law: Law, case: Any, regime: str) -> None:
    with REGIMES[regime]():
        try:
            law(subject, case)
        except LawBroken as error:
            if regime == "as shipped":
                raise
            raise LawBroken(error.law, f"{error}; {regime}", case) from error
