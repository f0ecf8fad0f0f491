"""Which loss for which data, as rules in three tables, `LOSSES`, `SETTINGS` and `WARNINGS`.

Each says when it holds, what follows, and on what evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        what: a loss as the command and `Experiment` take it, or a thing to set or to avoid.
        why: the reason, in a sentence.
        evidence: where this was measured or derived.
        cost: cost of a step with a loss, without that of the network; "" for anything else.
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
_CONDITIONS = "benchmarks/results/conditions.md"
_CARS = "benchmarks/results/fine_tuned_cars196.md"
_FEW_TO_COMPARE = 0.02  # share of the classes in a batch below which hard negatives are rare
_MEMORY = 4096

LOSSES = (
    Rule(
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "MultiSimilarity",
            "weights pairs by their similarity, relative to their anchor's other pairs; RAW is the same with its miner",
            f"{_SINCE}: nothing is ahead of it on four data sets, RAW is behind it on one; {_REALITY}, all tuned "
            "alike, MAP@R: CUB 39.1 as RAW, none of 83 ahead by more than chance, the frozen trunk 36.4; Omniglot "
            "33.2, the highest; Cars196 2.9, the best 3.3; emoji 24.3, the best 24.9; glyphs 25.0, the best 27.7; "
            f"{_REALITY}, six losses fine-tuned: CUB 18.2, none ahead by more than chance, Cars196 2.0, the best 2.6; "
            f"{_REALITY}, twenty from scratch: glyphs 3.2, the highest, Omniglot 22.6, behind "
            "BinDeviance2018, RAW and NCA; "
            f"{_CARS}, trained longer: the highest mean recall@1, 32.9, not told from the next two",
            _cost(s, s.batch, 0.78),
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2 and s.seen >= _FEW_TO_COMPARE,
        lambda s: Advice(
            "SemiHard",
            "the nearest negative beyond each positive; it needs a batch that has such negatives",
            f"{_REALITY}, beside MultiSimilarity: CUB 38.6, .5 behind, Omniglot 32.1, 1.0 behind, Cars196 .2 ahead, "
            "glyphs 27.1, 2.1 ahead, emoji 24.3, not told apart; fine-tuned, CUB 17.5, not told apart, Cars196 2.5, "
            "ahead; from scratch, Omniglot not told apart, glyphs behind",
            _cost(s, s.batch, 0.54),
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2 and s.seen < _FEW_TO_COMPARE,
        lambda s: Advice(
            f"XBM(memory_size={_MEMORY})",
            f"a batch holds {s.seen:.1%} of the classes, a queue of {_MEMORY} embeddings more: more hard negatives",
            f"Wang et al. 2020, arXiv 1912.06798, for many classes; {_REALITY}, where a batch held 6 % of them or "
            "more, beside the same pairs without a queue: ahead on Cars196 by .2, no gain on CUB (38.6, 38.5), "
            "Omniglot, emoji and fine-tuned on CUB (18.0, 18.4), behind on glyphs (24.8, 27.1), fine-tuned on "
            "Cars196, and from scratch; queues of 300 to 2,600 as the search found them (fine-tuned 1,024), "
            "4,096 was not measured",
            _cost(s, _MEMORY, 1.9),
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "SmoothAP",
            "a smooth average precision of each anchor: it looks at the whole order of a batch",
            f"{_REALITY}: the best mean place on five sets of frozen features; CUB 39.0, none ahead by more than "
            "chance; beside RAW not told apart on three, .6 behind on Omniglot, 2.1 ahead on glyphs; from "
            "scratch not told apart on Omniglot, 1.0 behind on glyphs; not fine-tuned yet",
            _cost(s, s.batch, 1.2),
        ),
    ),
)
SETTINGS = (
    Rule(
        lambda s: s.embedding_size < 512,
        lambda s: Advice(
            "512 dimensions, if your index can hold them",
            "on frozen features they gain as much as most choices of a loss",
            f"{_CONDITIONS}: 512 for 128 gain .5 to 1.5 points of MAP@R with five of six losses on CUB and four on "
            "Omniglot, 64 cost .8 to 1.5",
        ),
    ),
    Rule(
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "a search for rates and hyperparameters, once two or three losses are left (pml-ext tune --rates)",
            "a search gains as much as most choices of a loss, and a rate that is too high loses the trunk's features",
            f"{_FROZEN}: MultiSimilarity at its defaults 37.8; {_REALITY}: 39.1 tuned, at 4 times the rate; "
            "fine-tuned on Cars196 with small batches the rate that suited CUB was too high",
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
            f"arithmetic; after 200 steps {_REALITY} has, with 57 classes, ProxyAnchor at MAP@R 37.5, SoftTriple and "
            "MCA at 37.9, MultiSimilarity at 39.1, with 530 classes 21.8, 21.3, 19.9 and 24.3",
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
        lambda s: s.per_batch < min(32, s.classes),
        lambda s: Advice(
            "batches of fewer than 32 classes, if memory allows",
            f"{s.per_batch} classes in a batch leave few hard negatives; --losses XBM keeps a queue",
            f"{_CONDITIONS}: 8 classes for 32 cost .5 to 1.2 points of MAP@R on CUB and 1.7 to 4.6 on Omniglot, 16 up "
            "to .6 and 1.7; the queue on the word of Wang et al. 2020",
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
        lambda s: s.per_class >= 2,
        lambda s: Advice(
            "BatchHard to begin with",
            "the hardest pairs of an anchor alone: all embeddings can end in one point, and a trunk lose its features",
            f"{_REALITY}: MAP@R 2.4 on Cars196, the best 3.3; behind MultiSimilarity on CUB (38.4, 39.1) and Omniglot, "
            "not told apart on emoji and glyphs; collapsed in all twenty runs from scratch; "
            f"{_CARS}: the trunk's features lost after one epoch (recall@1 of 8.8 % on the validation classes)",
        ),
    ),
    Rule(
        lambda s: True,
        lambda s: Advice(
            "LiftedStructure and GeneralizedLiftedStructure",
            "on photographs and drawings they end near the frozen trunk or below it",
            f"{_REALITY}, tuned: CUB 35.7 and 35.7, the trunk 36.4; Omniglot 21.0 and 21.2, the trunk 19.8, most "
            "others above 30; emoji 18.0 each, the trunk 18.6; on glyphs 22.1, the trunk 15.0, the best 27.7",
        ),
    ),
)


def _cost(s: Situation, columns: int, floors: float) -> str:
    megabytes = 4 * s.batch * columns / 1e6
    return f"{s.batch} x {columns} scores, {megabytes:.2g} MB; with large batches {floors} of the matrix products' time"
