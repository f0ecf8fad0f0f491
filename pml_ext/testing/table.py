"""The results of checking a loss or a miner: one verdict per law, and their table."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pml_ext.shown import on_a_screen, table

Result = Literal["passed", "failed", "expected failure", "unexpected pass", "not applicable"]


@dataclass(frozen=True)
class Verdict:
    """The result of one law for one subject.

    Args:
        law: its name.
        result: "passed"; "failed"; "expected failure", one that was announced; "unexpected pass", an announced failure
            that does not occur; or "not applicable".
        tried: the number of cases that were tried.
        case: the smallest case found that breaks the law, or None.
        text: what was wrong, why it was expected, or what the law is for that does not apply.
        regime: the regime in which it was broken.
    """

    law: str
    result: Result
    tried: int = 0
    case: Any = None
    text: str = ""
    regime: str = ""

    @property
    def applies(self) -> bool:
        """Whether the law applies to the subject."""
        return self.result != "not applicable"

    @property
    def is_bad(self) -> bool:
        """Whether it is a failure, or a success that was announced as a failure."""
        return self.result in ("failed", "unexpected pass")


@dataclass(frozen=True)
class LawTable:
    """The verdicts on one subject, from cause to symptom: the first bad one is the one to look at.

    Example:
        >>> LawTable("MyLoss", (Verdict("it_learns", "passed", 1), Verdict("copies_are_equal", "failed", 1, text="no")))
        MyLoss: 2 laws, 1 passed, 1 failed
        failed            copies_are_equal: no
        passed            it_learns
    """

    subject: str
    verdicts: tuple[Verdict, ...]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    def __getitem__(self, law: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.law == law)

    @property
    def bad(self) -> tuple[Verdict, ...]:
        """Those that failed, or passed although they were expected not to; the cause first."""
        return tuple(verdict for verdict in self.verdicts if verdict.is_bad)

    def __repr__(self) -> str:
        lines = [self._summary()]
        lines += [
            f"{verdict.result:<18}{textwrap.shorten(f'{verdict.law}: {verdict.text}', 300)}"
            for verdict in self.verdicts
            if verdict.text and verdict.applies
        ]
        groups: dict[tuple[str, str], list[str]] = {}
        for result in ("passed", "not applicable"):
            for verdict in self.verdicts:
                if verdict.result == result:
                    groups.setdefault((result, verdict.text), []).append(verdict.law)
        for (result, why), names in groups.items():
            said = f"{why}: {', '.join(names)}" if why else ", ".join(names)
            lines.append(textwrap.fill(f"{result:<18}{said}", 118, subsequent_indent=" " * 18))
        return on_a_screen("\n".join(lines), "they are a sequence")

    def _summary(self) -> str:
        numbers = Counter[str](verdict.result for verdict in self.verdicts)
        kinds = ("passed", "failed", "unexpected pass", "expected failure", "not applicable")
        counts = [f"{numbers[kind]} {kind}" for kind in kinds if numbers[kind]]
        return ", ".join([f"{self.subject}: {len(self)} {'law' if len(self) == 1 else 'laws'}", *counts])

    def _repr_html_(self) -> str:
        head = ("law", "result", "tried", "smallest input", "why")
        return table(head, map(self._cells, self.verdicts), caption=self._summary())

    @staticmethod
    def _cells(verdict: Verdict) -> tuple[Any, ...]:
        return verdict.law, verdict.result, verdict.tried, "" if verdict.case is None else verdict.case, verdict.text
