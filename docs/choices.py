"""Which loss for which data, as Markdown: the rules of `pml_ext.choose`, looked at in several situations."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from markdown.extensions.toc import slugify
from measured import RESULTS

from pml_ext import catalog, choose
from pml_ext.benchmark.advice import Choice
from pml_ext.benchmark.advice_rules import Advice


class Case(NamedTuple):
    """A situation: what one would call it, and what `choose` is given."""

    name: str
    given: Mapping[str, int]

    @property
    def choice(self) -> Choice:
        """What the rules say of it."""
        return choose(**self.given)


CASES = (
    Case("100 classes, 50 images each", {"classes": 100, "images_per_class": 50}),
    Case("1,000 classes, 20 images each", {"classes": 1_000, "images_per_class": 20}),
    Case("10,000 classes, 5 images each", {"classes": 10_000, "images_per_class": 5}),
    Case("10,000 classes, 2 images each", {"classes": 10_000, "images_per_class": 2}),
    Case("10,000 classes, 1 image each", {"classes": 10_000, "images_per_class": 1}),
    Case("100 classes, batches of 16", {"classes": 100, "images_per_class": 50, "batch": 16}),
)


def at_a_glance() -> str:
    """A row for each situation, a column for each loss: a star where the loss is recommended."""
    found = [[_name(advice.what) for advice in case.choice.losses] for case in CASES]
    names = list(dict.fromkeys(name for recommended in found for name in recommended))
    rows = ["| your data | " + " | ".join(_linked(name) for name in names) + " | a batch |"]
    rows += ["|---" * (len(names) + 2) + "|"]
    for case, recommended in zip(CASES, found, strict=True):
        stars = " | ".join("★" if name in recommended else "" for name in names)
        batch = _batch(case.choice) if recommended else "no positive pair"
        rows.append(f"| [{case.name}](#{slugify(case.name, '-')}) | {stars} | {batch} |")
    return "\n".join(rows)


def situations() -> str:
    """A section for each situation: what to start with and what to avoid, why, and on what evidence."""
    return "\n\n".join(block for case in CASES for block in _situation(case))


def _situation(case: Case) -> Iterator[str]:
    choice = case.choice
    yield f"## {case.name}"
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in case.given.items())
    seen = f"; it holds {choice.situation.seen:.1%} of the classes" if choice.situation.seen < 1 else ""
    yield f"`pml-ext choose {given}`. A batch: {_batch(choice)}{seen}."
    rows = ["| | why | evidence | a step costs |", "|---|---|---|---|"]
    rows += [f"| ★ {_linked(advice.what)} | {_row(advice)} | {advice.cost} |" for advice in choice.losses]
    rows += [f"| {what} | {_row(advice)} | |" for what, advice in choice.further()]
    yield "\n".join(rows)
    if choice.command:
        yield f"To compare them on your data:\n\n```\n{choice.command}\n```"


def _batch(choice: Choice) -> str:
    situation = choice.situation
    return f"{situation.per_batch} classes x {situation.per_class}"


def _row(advice: Advice) -> str:
    return f"{advice.why} | {_evidence(advice.evidence)}"


def _evidence(text: str) -> str:
    def link(found: re.Match[str]) -> str:
        return f"[{found[1]}](results/{found[1]}.md)" if (RESULTS / f"{found[1]}.md").exists() else found[0]

    return re.sub(r"benchmarks/results/(\w+)\.md", link, text)


def _name(what: str) -> str:
    return what.partition("(")[0]


def _linked(what: str) -> str:
    name = _name(what)
    return f"[`{what}`](methods.md#{slugify(name, '-')})" if name in catalog.recipes else f"`{what}`"
