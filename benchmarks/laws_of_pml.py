"""Hold every loss and miner of pytorch-metric-learning against the laws: `python benchmarks/laws_of_pml.py`.

Writes `benchmarks/results/laws_of_pml.md`: how many laws each class keeps, which it breaks on which smallest input, and
the worst findings reduced to a few numbers, computed anew.
"""

import argparse
import contextlib
import inspect
import io
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytorch_metric_learning
import torch
from laws_of_pml_findings import FINDINGS
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner

from pml_ext.testing import LOSS_LAWS, MINER_LAWS, LawTable, Verdict, check_loss, check_miner
from pml_ext.testing.check import made

REPORT = Path(__file__).parent / "results" / "laws_of_pml.md"
# What classes need, beyond the numbers of classes and dimensions.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "P2SGradLoss": {"descriptors_dim": 4, "num_classes": 12},
    "RankedListLoss": {"margin": 0.4, "Tn": 10},
}
# They draw at random.
RANDOM = ("DistanceWeightedMiner", "UniformHistogramMiner")
LEFT_OUT = {
    "BaseLossWrapper": "abstract",
    "BaseMetricLossFunction": "abstract",
    "GenericPairLoss": "abstract",
    "CrossBatchMemory": "a wrapper with a queue",
    "BaseMiner": "abstract",
    "ManifoldLoss": "takes no labels",
    "EmbeddingsAlreadyPackagedAsTriplets": "needs batches made of triplets",
    "MultipleLosses": "a container",
    "SelfSupervisedLoss": "takes two views instead of labels",
    "VICRegLoss": "takes two views instead of labels",
}


def classes(module: Any, base: type) -> Iterator[type]:
    """The classes of a module that can be held against the laws."""
    for name, cls in sorted(vars(module).items()):
        if inspect.isclass(cls) and issubclass(cls, base) and name not in LEFT_OUT:
            yield cls


def instance(cls: type) -> Any:
    """One with its defaults, and with what it needs."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy, of numpy
        subject = _constructed(cls)
    if cls.__name__ in RANDOM:
        subject.is_random = True
    return subject


def _constructed(cls: type) -> Any:
    return cls(**ARGUMENTS[cls.__name__]) if cls.__name__ in ARGUMENTS else made(cls)


def tables(only: list[str], examples: int) -> Iterator[tuple[str, LawTable]]:
    """Class by class, its kind and its table."""
    pairs: list[tuple[str, Callable[..., LawTable], type]] = []
    pairs += [("loss", check_loss, cls) for cls in classes(losses, BaseMetricLossFunction)]
    pairs += [("miner", check_miner, cls) for cls in classes(miners, BaseMiner)]
    for kind, check, cls in pairs:
        if not only or cls.__name__ in only:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a law that is broken is the finding, not what PML warns of
                yield kind, check(instance(cls), on_fail="report", examples=examples)


def report(found: list[tuple[str, LawTable]], examples: int) -> str:
    """The page in Markdown."""
    lines = ["# The laws of losses and miners, and pytorch-metric-learning", "", _introduction(examples), ""]
    for kind in ("loss", "miner"):
        of_kind = [table for each, table in found if each == kind]
        lines += [f"| {kind} | laws that apply | kept | broken | refused |", "|---|---:|---:|---:|---:|"]
        for table in of_kind:
            applied, broken, refused = sum(v.applies for v in table), len(_broken(table)), len(_refused(table))
            lines.append(f"| {table.subject} | {applied} | {applied - broken - refused} | {broken} | {refused} |")
        lines.append("")
    lines += ["## The worst findings, in a few numbers", "", *findings()]
    lines += ["## Which laws are broken most", "", "| law | by | it says |", "|---|---:|---|"]
    numbers = Counter(verdict.law for _, table in found for verdict in _broken(table))
    for name, number in numbers.most_common():
        says = (inspect.getdoc((LOSS_LAWS.get(name) or MINER_LAWS[name]).check) or "").split("\n")[0]
        lines.append(f"| `{name}` | {number} | {says} |")
    lines += ["", "## Class by class, with the smallest input that was found", ""]
    for _, table in found:
        if _broken(table):
            lines += [f"### {table.subject}", ""]
            lines += [f"- `{verdict.law}`, {_case(verdict.case)}: {_shown(verdict.text)}" for verdict in _broken(table)]
            lines.append("")
    left = ", ".join(f"{name} ({reason})" for name, reason in sorted(LEFT_OUT.items()) if reason != "abstract")
    return "\n".join([*lines, f"Not held against the laws: {left}.", ""])


def _introduction(examples: int) -> str:
    return (
        "Made by `python benchmarks/laws_of_pml.py` with pytorch-metric-learning "
        f"{pytorch_metric_learning.__version__} and PyTorch {torch.__version__.split('+')[0]}: every loss and miner of "
        f"PML with its defaults, {examples} drawn cases for each law. A law says what `pml_ext` promises of its own "
        "classes (`pml_ext.testing`); a class of PML that breaks one need not be wrong, as PML does not promise all of "
        "it, but whoever uses it should know. Laws that need the contract of this package do not apply. Refused is "
        "what a class answers with a ValueError, mostly that it takes neither pairs nor references. There are "
        f"{len(LOSS_LAWS)} laws of losses and {len(MINER_LAWS)} of miners."
    )


def findings() -> Iterator[str]:
    """Each with its code, and what it prints today."""
    for title, code, right in FINDINGS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(textwrap.dedent(code), {})
        yield from (f"**{title}**", "", "```python", textwrap.dedent(code).strip())
        yield from (*(f"# {line}" for line in printed.getvalue().strip().splitlines()), "```", "", right, "")


def _refused(table: LawTable) -> list[Verdict]:
    return [verdict for verdict in table.bad if "ValueError: " in verdict.text]


def _broken(table: LawTable) -> list[Verdict]:
    return [verdict for verdict in table.bad if verdict not in _refused(table)]


_DEFAULTS = re.compile(r", (layout='random'|scale=1\.0|ref_sizes=\(\)|scores='random'|inverted=True)")


def _case(case: Any) -> str:
    return f"`{_DEFAULTS.sub('', repr(case))}`"


def _shown(text: str) -> str:
    text = text.split(": ", 1)[-1] if " on Batch(" in text or " on Rows(" in text else text
    return textwrap.shorten(re.sub(r"\s+", " ", text).replace("|", "\\|"), 220, placeholder=" ...")


def main() -> None:
    """Hold all classes, or those that are named, against the laws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="classes; by default all")
    parser.add_argument("--examples", type=int, default=50, help="drawn cases for each law")
    parser.add_argument("--out", type=Path, default=REPORT, help="the page")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("laws of PML", derandomize=True)
    before = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile("laws of PML")
    found = []
    try:
        for kind, table in tables(chosen.only, chosen.examples):
            print(table, flush=True)
            found.append((kind, table))
    finally:
        hypothesis.settings.load_profile(before)
    chosen.out.write_text(report(found, chosen.examples), encoding="utf-8")


if __name__ == "__main__":
    main()
