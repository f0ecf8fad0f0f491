"""Which loss for which data: a batch, two or three losses with values to start from, what to avoid, and why.

The rules are in one table, `RULES`. Each says when it holds, what follows, and on what evidence.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.kinds import Whole
from pml_ext.shown import on_a_screen, table

# Images of a class in a batch, unless there is a reason for others: the literature takes 4 (Musgrave et al. 2020) or 5
# (Deep_metric).
PER_CLASS = 4


@dataclass(frozen=True)
class Situation:
    """The known facts about data and batches.

    Args:
        classes: number of training classes.
        images_per_class: images of a typical class.
        batch: images in a training step.
        embedding_size: dimension of the embeddings.
    """

    classes: int
    images_per_class: int
    batch: int
    embedding_size: int

    @property
    def per_class(self) -> int:
        """Images of a class in a batch: with few classes there are more of each."""
        fill = -(-self.batch // self.classes)
        return max(1, min(self.images_per_class, max(PER_CLASS, fill), max(self.batch // 2, 1)))

    @property
    def per_batch(self) -> int:
        """Classes of a batch."""
        return max(1, min(self.classes, self.batch // self.per_class))

    @property
    def seen(self) -> float:
        """Share of the classes that a batch holds."""
        return self.per_batch / self.classes


@dataclass(frozen=True)
class Advice:
    """What follows from a rule.

    Args:
        what: a loss as the command and `Experiment` take it, or a thing to avoid.
        why: the reason, in a sentence.
        evidence: where this was measured or derived.
        cost: cost of a step, without that of the network; "" for a thing to avoid.
    """

    what: str
    why: str
    evidence: str
    cost: str = ""


@dataclass(frozen=True)
class Rule:
    """A row of the table: when it holds, and what follows then."""

    when: Callable[[Situation], bool]
    advice: Callable[[Situation], Advice]


_FROZEN = "benchmarks/results/frozen_cub.md"
_SINCE = "benchmarks/results/since_2018.md"
_REALITY = "benchmarks/results/reality.md"
_FEW_TO_COMPARE = 0.02  # share of the classes in a batch below which hard negatives are rare
_MEMORY = 4096

LOSSES = (
    Rule(
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "MultiSimilarity",
            "weights pairs by their similarity, relative to their anchor's other pairs; RAW is the same with its miner",
            f"{_SINCE}: nothing is ahead of it on four data sets, RAW is behind it on one; {_REALITY}: CUB, all tuned "
            "alike, MAP@R 39.1 as RAW, none of 83 is ahead, the frozen trunk 36.4; Omniglot 33.2, none ahead; Cars196 "
            "2.9, the best 3.3; emoji 24.3, the best 24.9; glyphs, on features that it had trained, 25.0, the best "
            "27.7; fine-tuned, CUB, 18.2, none of six ahead, Cars196 2.0, the best of six 2.6; Musgrave et al. 2020, "
            "CUB, with the miner: 26.5, the best of 13 26.7",
            _cost(s, s.batch, 0.78),
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2 and s.seen >= _FEW_TO_COMPARE,
        lambda s: Advice(
            "SemiHard",
            "the nearest negative beyond each positive: steady where the batch holds many of the classes",
            f"{_FROZEN}: at their defaults MAP@R 38.0, with Lifted2020 the highest means of 65; {_REALITY}: tuned "
            "38.6, .5 behind MultiSimilarity; 530 classes of 5 to 9: 24.3 as it; glyphs 27.1, ahead of it; fine-tuned "
            "17.5, not told apart from it, on Cars196 2.5, ahead of it",
            _cost(s, s.batch, 0.54),
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2 and s.seen < _FEW_TO_COMPARE,
        lambda s: Advice(
            f"XBM(memory_size={_MEMORY})",
            f"a batch holds {s.seen:.1%} of the classes, a queue of {_MEMORY} embeddings more: more hard negatives",
            f"{_REALITY}: no gain over the same pairs without a queue with 57 classes (MAP@R 38.6, 38.5) nor with 530 "
            "(23.9, 23.8) nor with a trunk fine-tuned on CUB (18.0, 18.4), behind on glyphs (24.8, 27.1) "
            "and with a trunk fine-tuned on Cars196 (2.3, 2.6); Wang et al. 2020, arXiv 1912.06798",
            _cost(s, _MEMORY, 1.9),
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "BatchHard",
            "the farthest positive and the nearest negative of each anchor: the cheapest",
            f"{_REALITY}: CUB, tuned, MAP@R 38.4, recall@1 80.4; the frozen trunk 36.4 and 82.1; glyphs 25.2",
            _cost(s, s.batch, 0.53),
        ),
    ),
)
WARNINGS = (
    Rule(
        lambda s: s.images_per_class < 2,
        lambda s: Advice(
            "every loss of the catalog by itself",
            "a class of one image has no positive pair: make a second view of each image and wrap a loss in "
            "pml_ext.wrappers.SelfSupervisedLoss",
            "by definition of a pair",
        ),
    ),
    Rule(
        lambda s: s.classes > 20 * s.per_batch,
        lambda s: Advice(
            "losses with a learned center or proxy of each class (MCA, SoftTriple, CenterNCA with learned centers)",
            f"with {s.per_batch} of {s.classes:,} classes in a batch, a center is moved by samples of its own once in "
            f"{-(-s.classes // s.per_batch)} steps; all of them take {4 * s.classes * s.embedding_size / 1e6:.2g} MB",
            f"arithmetic; with 57 classes and 200 steps {_REALITY} has ProxyAnchor at MAP@R 37.5, SoftTriple and MCA "
            "at 37.9, MultiSimilarity at 39.1",
        ),
    ),
    Rule(
        lambda s: 2 <= s.per_class < 3,
        lambda s: Advice(
            "losses that need several positives of an anchor (HardMining2020, MarginPositive, ranked pulls)",
            f"with {s.per_class} images of a class in a batch each anchor has one",
            "their definitions",
        ),
    ),
    Rule(
        lambda s: s.batch < 32,
        lambda s: Advice(
            "batches this small, if memory allows",
            f"{s.per_batch} classes in a batch leave few hard negatives; --losses XBM keeps a queue",
            "Wang et al. 2020",
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "batches of near classes or of mined tuples (--sampler) unless your validation classes want them",
            "of five samplers none was ahead of random classes by more than chance, and some were behind",
            f"{_SINCE}: frozen features of four data sets, clean and with a quarter of the classes split",
        ),
    ),
    Rule(
        lambda s: True,
        lambda s: Advice(
            "LiftedStructure, GeneralizedLiftedStructure and GaussianMetric at their defaults",
            "they were below the frozen trunk that they started from",
            f"{_FROZEN}: MAP@R 35.7, 35.7 and 35.8, the frozen trunk 36.4; {_REALITY}: tuned 35.7, 35.7 and 37.1",
        ),
    ),
)


def _cost(s: Situation, columns: int, floors: float) -> str:
    megabytes = 4 * s.batch * columns / 1e6
    return f"{s.batch} x {columns} scores, {megabytes:.2g} MB; with large batches {floors} of the matrix products' time"


@dataclass(frozen=True, repr=False)
class Choice:
    """The recommendation of `choose`.

    Args:
        situation: the data and batches that it is for.
        losses: losses to try, the most promising first.
        avoid: what to avoid.
        command: the command line that compares them.
    """

    situation: Situation
    losses: tuple[Advice, ...]
    avoid: tuple[Advice, ...]
    command: str

    def __str__(self) -> str:
        s = self.situation
        lines = [
            f"{s.classes:,} classes with {s.images_per_class:,} images each, batches of {s.batch}:",
            f"sampler: {s.per_batch} classes x {s.per_class} images, {s.seen:.1%} of the classes in a batch",
            "",
        ]
        for number, advice in enumerate(self.losses, 1):
            lines += [f"{number}. {advice.what}: {advice.why}", f"   cost: {advice.cost}", f"   {advice.evidence}"]
        lines += [""] + [f"avoid {advice.what}: {advice.why} ({advice.evidence})" for advice in self.avoid]
        return "\n".join([*lines, "", self.command]).rstrip()

    def __repr__(self) -> str:
        return on_a_screen(str(self), "print() shows them")

    def _repr_html_(self) -> str:
        rows = [(a.what, a.why, a.cost, a.evidence) for a in self.losses]
        rows += [(f"avoid {a.what}", a.why, "", a.evidence) for a in self.avoid]
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
        ['MultiSimilarity', 'XBM(memory_size=4096)', 'BatchHard']
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
    avoid = tuple(rule.advice(situation) for rule in WARNINGS if rule.when(situation))
    return Choice(situation, losses, avoid, _command(situation, losses, given, pretrained=trunk))


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
