"""Which loss for which data: a batch, two or three losses, what to set, what to avoid, and why."""

from __future__ import annotations

import html
import shlex
from dataclasses import dataclass

from pml_ext.benchmark.advice_rules import LOSSES, SETTINGS, WARNINGS, Advice, Situation
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.kinds import Whole
from pml_ext.shown import Html, on_a_screen, table


@dataclass(frozen=True, repr=False)
class Choice:
    """The recommendation of `choose`.

    Args:
        situation: the data and batches that it is for.
        losses: losses to try; their order is not a rank.
        settings: what to set.
        avoid: what to avoid.
        command: the command line that compares them.
    """

    situation: Situation
    losses: tuple[Advice, ...]
    settings: tuple[Advice, ...]
    avoid: tuple[Advice, ...]
    command: str

    def further(self) -> list[tuple[str, Advice]]:
        """What is said besides of losses: "consider" what to set, then "avoid" what to avoid, each with its advice."""
        said = (("consider", self.settings), ("avoid", self.avoid))
        return [(f"{verb} {advice.what}", advice) for verb, each in said for advice in each]

    def __str__(self) -> str:
        s = self.situation
        lines = [
            f"{s.classes:,} classes with {s.images_per_class:,} images each, batches of {s.batch}:",
            f"sampler: {s.per_batch} classes x {s.per_class} images, {s.seen:.1%} of the classes in a batch",
            "",
        ]
        for number, advice in enumerate(self.losses, 1):
            lines += [f"{number}. {advice.what}: {advice.why}", f"   cost: {advice.cost}", f"   {advice.evidence}"]
        lines += [""] + [f"{what}: {advice.why} ({advice.evidence})" for what, advice in self.further()]
        return "\n".join([*lines, "", self.command]).rstrip()

    def __repr__(self) -> str:
        return on_a_screen(str(self), "print() shows them")

    def _repr_html_(self) -> str:
        # The evidence is HTML, because any other cell is cut as the name of a stranger is.
        rows = [(a.what, a.why, a.cost, Html(html.escape(a.evidence))) for a in self.losses]
        rows += [(what, a.why, "", Html(html.escape(a.evidence))) for what, a in self.further()]
        head = ("loss", "why", "cost", "evidence")
        return table(head, rows, caption=str(self).splitlines()[1], notes=[self.command])


def choose(
    *,
    classes: int | None = None,
    images_per_class: int | None = None,
    batch: int = 128,
    embedding_size: int = 128,
    data: str | None = None,
) -> Choice:
    """Which losses to start with, and how to fill a batch.

    Args:
        classes: number of training classes. Default None: counted in `data`, as a run cuts it by default.
        images_per_class: images of a typical class. Default None: the median in `data`.
        batch: images in a training step. Default 128.
        embedding_size: dimension of the embeddings. Default 128.
        data: anything that `pml_ext.datasets.open` reads. Default None.

    Returns:
        The advice, with the command that compares these losses on the data, with a pretrained trunk if it is images.

    Raises:
        BenchmarkError: neither numbers nor data, or a number out of range.

    Example:
        >>> choice = choose(classes=11000, images_per_class=5, batch=256)
        >>> [advice.what for advice in choice.losses]
        ['MultiSimilarity', 'XBM(memory_size=4096)', 'SmoothAP']
        >>> choice.situation.per_batch, choice.situation.per_class
        (64, 4)
    """
    given, trunk = data or "photos/", True
    if data is not None:
        counted, typical, trunk = _look(data)
        classes = counted if classes is None else classes
        images_per_class = typical if images_per_class is None else images_per_class
    if classes is None or images_per_class is None:
        raise BenchmarkError("give classes and images_per_class, or data in which they are counted")
    for name, value, least in (
        ("classes", classes, 2),
        ("images_per_class", images_per_class, 1),
        ("batch", batch, 4),
        ("embedding_size", embedding_size, 1),
    ):
        Whole(least).check(name, value)
    situation = Situation(classes, images_per_class, batch, embedding_size)
    losses = tuple(rule.advice(situation) for rule in LOSSES if rule.when(situation))
    settings = tuple(rule.advice(situation) for rule in SETTINGS if rule.when(situation))
    avoid = tuple(rule.advice(situation) for rule in WARNINGS if rule.when(situation))
    return Choice(situation, losses, settings, avoid, _command(situation, losses, given, pretrained=trunk))


def _look(data: str) -> tuple[int, int, bool]:
    """Number of training classes, images of a typical one, and whether these are images for a pretrained trunk."""
    import torch

    from pml_ext import datasets
    from pml_ext.benchmark.config import Experiment
    from pml_ext.benchmark.data import Data

    try:
        cut = Data.of(Experiment(data=data))
        labels, samples = cut.train.labels, cut.samples
    except BenchmarkError:  # too few classes to train on some of them and to test on others
        samples = datasets.open(data)
        labels = samples.labels
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    return len(counts), int(counts.median()), samples is not None and samples.vectors is None


def _command(situation: Situation, losses: tuple[Advice, ...], data: str, *, pretrained: bool) -> str:
    words = ["pml-ext", "train", "--data", data, *(["--trunk", "efficientnet_lite0"] if pretrained else [])]
    words += ["--batch-size", str(situation.batch), "--classes-per-batch", str(situation.per_batch)]
    words += ["--losses", *(advice.what for advice in losses)]
    return shlex.join([*words, "--seeds", "0", "1", "2"]) if losses else ""
