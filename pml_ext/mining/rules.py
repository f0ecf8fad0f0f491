"""Rules that select the classes of a batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any, final

import torch
from torch import Tensor

from pml_ext import arguments
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.mining.checks import as_tensor
from pml_ext.mining.decks import Deck
from pml_ext.mining.draws import stream
from pml_ext.mining.graph import Representative, class_graph

Shuffler = Callable[[str], Random]


@dataclass(frozen=True)
class Classes:
    """The classes that a rule selects from.

    Args:
        members: the samples of each class.
        per_batch: how many different classes a batch has.
        per_class: how many samples a batch has of each.
    """

    members: list[list[int]]
    per_batch: int
    per_class: int

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.members)


class ClassRule(ABC):
    """A rule that selects the classes of a batch: a pure function of its state and of the generators that it gets."""

    @abstractmethod
    def usual(self, classes: Classes) -> int:
        """The number of batches in an epoch, unless it is given."""

    @abstractmethod
    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """The classes of each batch, `per_batch` different ones; `random` gives a generator for each purpose."""

    def check(self, classes: Classes) -> None:  # noqa: B027 - most have nothing to check
        """Raise a ValueError if the rule cannot choose among these classes."""

    def refresh(  # noqa: B027 - not every rule looks at embeddings
        self, classes: Classes, embeddings: Tensor, representative: Representative, seed: int
    ) -> None:
        """Use new embeddings of the data set; rules that use embeddings choose at random until then."""

    def state(self) -> dict[str, Tensor]:
        """The results of `refresh`."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - as above
        """Use the results of another rule's `refresh`."""


@final
class Uniform(ClassRule):
    """Random classes; a class is repeated only after all others were used."""

    def usual(self, classes: Classes) -> int:
        """As many batches as are needed for all samples."""
        samples = sum(map(len, classes.members))
        return -(-samples // (classes.per_batch * classes.per_class))

    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """Classes from shuffled lists."""
        deck = Deck(list(range(classes.count)), lambda turn: random(f"uniform {turn}"))
        return [deck.hand(classes.per_batch) for _ in range(batches)]


class _WithGraph(ClassRule):
    """A rule that follows a graph of classes."""

    def __init__(self, graph: Tensor | None = None) -> None:
        self.graph: Tensor | None = graph

    def check(self, classes: Classes) -> None:
        """Check the graph that was given."""
        if self.graph is not None:
            self.graph = _checked_graph(self.graph, classes.count)

    def state(self) -> dict[str, Tensor]:
        """The graph."""
        return {} if self.graph is None else {"graph": self.graph}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take a graph, or none."""
        self.graph = state.get("graph")


def _checked_graph(graph: Any, count: int) -> Tensor:
    graph = as_tensor(graph).cpu()
    if graph.ndim != 2 or len(graph) != count or graph.is_floating_point():
        raise ValueError(f"graph must be integers, one row for each of {count} classes, got {tuple(graph.shape)}")
    if graph.numel() and not 0 <= int(graph.min()) <= int(graph.max()) < count:
        raise ValueError(f"graph must hold classes in 0..{count - 1}, got {int(graph.min())} and {int(graph.max())}")
    own = (graph == torch.arange(count, device="cpu").unsqueeze(1)).any(1)
    if own.any():
        raise ValueError(f"graph must not hold a class as its own neighbor, got class {int(own.nonzero()[0])}")
    checked: Tensor = graph.int()
    return checked


def _seeds(classes: Classes, batches: int, random: Shuffler) -> list[int]:
    """A first class for each batch; a class is repeated only after all others were used."""
    return Deck(list(range(classes.count)), lambda turn: random(f"seeds {turn}")).hand(batches)


def _filled(batch: list[int], classes: Classes, rng: Random, cards: list[int] | None = None) -> list[int]:
    """The batch with random classes of the cards, of all by default, until it is full or there are no more."""
    cards = list(range(classes.count)) if cards is None else cards
    wanted = classes.per_batch - len(batch)
    if wanted <= 0:
        return batch
    # At most all that are there already are drawn in vain.
    drawn = rng.sample(cards, min(len(cards), wanted + len(batch)))
    there = set(batch)
    return batch + [each for each in drawn if each not in there][:wanted]


@final
class Neighbors(_WithGraph):
    """A class and the classes nearest to it, one batch for each class, as in Graph Sampling.

    Args:
        graph: [c, k], of `class_graph`; None (default) until `refresh` computes it. Missing classes of a batch are
            random.

    Source:
        Liao and Shao, CVPR 2022, arXiv 2104.01546, where a class is represented by a random sample of it.
    """

    def usual(self, classes: Classes) -> int:
        """One batch for each class."""
        return classes.count

    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """Seed classes in random order, each with its nearest."""
        near = [[]] * classes.count if self.graph is None else self.graph[:, : classes.per_batch - 1].tolist()
        rng = random("neighbors")
        return [_filled([seed, *near[seed]], classes, rng) for seed in _seeds(classes, batches, random)]

    def refresh(self, classes: Classes, embeddings: Tensor, representative: Representative, seed: int) -> None:
        """Make the graph anew."""
        k = max(classes.per_batch - 1, 1)
        self.graph: Tensor | None = _graph_of(classes, embeddings, k, representative, seed)


@final
class Doubles(_WithGraph):
    """Random classes, each with one of its nearest: a batch of pairs.

    Args:
        graph: [c, k], of `class_graph`; None (default) until `refresh` computes it.
        k: the second class of a pair is drawn from the k nearest classes of the first, default 5.

    Source:
        After Smirnov et al., Doppelganger Mining, ICCVW 2017, whose lists of near classes come from the classifier in
        training.
    """

    def __init__(self, graph: Tensor | None = None, *, k: int = 5) -> None:
        super().__init__(graph)
        self.k: int = int(arguments.count("k", k))

    def check(self, classes: Classes) -> None:
        """Batches of pairs have an even number of classes."""
        super().check(classes)
        if classes.per_batch % 2:
            raise ValueError(f"classes_per_batch must be even for Doubles, got {classes.per_batch}")

    def usual(self, classes: Classes) -> int:
        """As many batches as are needed for every class to be the first of a pair once."""
        return -(-classes.count // (classes.per_batch // 2))

    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """Half of the classes from shuffled lists, each with a near class that is not in the batch yet."""
        deck = Deck(list(range(classes.count)), lambda turn: random(f"seeds {turn}"))
        near = [[]] * classes.count if self.graph is None else self.graph[:, : self.k].tolist()
        rng = random("doubles")
        chosen = []
        for _ in range(batches):
            batch: list[int] = []
            for first in deck.hand(classes.per_batch // 2):
                if first not in batch:
                    batch.append(first)
                left = [each for each in near[first] if each not in batch]
                if left:
                    batch.append(rng.choice(left))
            chosen.append(_filled(batch, classes, rng))
        return chosen

    def refresh(self, classes: Classes, embeddings: Tensor, representative: Representative, seed: int) -> None:
        """Make the graph anew."""
        self.graph: Tensor | None = _graph_of(classes, embeddings, self.k, representative, seed)


def _graph_of(classes: Classes, embeddings: Tensor, k: int, representative: Representative, seed: int) -> Tensor:
    labels = torch.repeat_interleave(torch.tensor([len(each) for each in classes.members], device="cpu"))
    rows = torch.tensor([sample for each in classes.members for sample in each], device="cpu")
    return class_graph(embeddings[rows], labels, k, representative=representative, seed=seed)


@final
class Greedy(ClassRule):
    """A class, to which those of a random pool are added one by one that most violate the ranking with a chosen one.

        V_ij = <a_i, p_j> - <a_i, p_i>,   next: argmax_j max_{i chosen} V_ij

    for two samples a_i, p_i of each class i; ties are broken by the order of the classes.

    Args:
        pool: the number of random classes to choose from for each batch, default 1000; memory grows with its square.

    Source:
        Sohn, NIPS 2016, hard class mining for the N-pair loss, which does not say what is compared.
    """

    def __init__(self, *, pool: int = 1000) -> None:
        self.pool: int = int(arguments.count("pool", pool))
        self.anchors: Tensor | None = None
        self.positives: Tensor | None = None

    def check(self, classes: Classes) -> None:
        """A batch comes out of the pool."""
        if self.pool < classes.per_batch:
            raise ValueError(f"pool must be at least classes_per_batch = {classes.per_batch}, got {self.pool}")

    def usual(self, classes: Classes) -> int:
        """One batch for each class."""
        return classes.count

    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """Seed classes in random order, each with what is greedily added from a pool of its own."""
        rng = random("greedy")
        chosen = []
        for seed in _seeds(classes, batches, random):
            if self.anchors is None or self.positives is None:
                chosen.append(_filled([seed], classes, rng))
                continue
            others = [each for each in rng.sample(range(classes.count), min(self.pool, classes.count)) if each != seed]
            pool = sorted([seed, *others[: self.pool - 1]])
            places = greedy(self.anchors[pool], self.positives[pool], classes.per_batch, first=pool.index(seed))
            chosen.append([pool[place] for place in places])
        return chosen

    def refresh(self, classes: Classes, embeddings: Tensor, representative: Representative, seed: int) -> None:
        """Draw two samples of each class anew, or its only one twice."""
        rng = stream(seed, "greedy pairs")
        pairs = [rng.sample(each, 2) if len(each) > 1 else each * 2 for each in classes.members]
        unit = torch.nn.functional.normalize(embeddings[torch.tensor(pairs, device="cpu").T.flatten()], dim=1)
        self.anchors, self.positives = unit[: len(pairs)], unit[len(pairs) :]

    def state(self) -> dict[str, Tensor]:
        """The two samples of each class."""
        if self.anchors is None or self.positives is None:
            return {}
        return {"anchors": self.anchors, "positives": self.positives}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take samples, or none."""
        self.anchors, self.positives = state.get("anchors"), state.get("positives")


def greedy(anchors: Tensor, positives: Tensor, count: int, *, first: int) -> list[int]:
    """Classes one after another, each the one that violates most: two samples of each class [c, d] -> [count].

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0], [0.0, 1.0]])
        >>> greedy(x, x, 3, first=0)
        [0, 1, 3]
    """
    products = anchors @ positives.T
    violation = products - products.diagonal().unsqueeze(1)
    chosen = [first]
    most = violation[first].clone()
    while len(chosen) < min(count, len(anchors)):
        most[chosen[-1]] = -torch.inf
        chosen.append(int(most.argmax()))
        # Those that are chosen stay at minus infinity.
        most = torch.where(most == -torch.inf, most, torch.maximum(most, violation[chosen[-1]]))
    return chosen


@final
class Groups(ClassRule):
    """Classes of a few super-classes, where every combination of super-classes occurs equally often.

    Args:
        groups: the super-class of each sample, [n], numbers or strings; the same for all samples of a class.
        per_batch: the number of super-classes in a batch, default 2.
        batches_per_tuple: how many batches each combination has, default 4.

    Source:
        Cakir et al., Deep Metric Learning to Rank, CVPR 2019: the classes of a super-class are used in turn. PML's
        `HierarchicalSampler` draws independently for each batch, and gives short batches where a super-class has too
        few classes; here classes of the other super-classes of the combination fill the batch, then any.
    """

    def __init__(self, groups: Array, *, per_batch: int = 2, batches_per_tuple: int = 4) -> None:
        (ids,) = class_ids(checked_labels("groups", groups, len(groups)))
        self.groups: list[int] = ids.tolist()
        self.per_batch: int = int(arguments.count("per_batch", per_batch))
        self.batches_per_tuple: int = int(arguments.count("batches_per_tuple", batches_per_tuple))

    def check(self, classes: Classes) -> None:
        """Every class belongs to one super-class, and there are enough of these."""
        last = max(max(each) for each in classes.members)
        if last >= len(self.groups):
            raise ValueError(f"groups must be one for each sample, got {len(self.groups)} and sample {last}")
        for each in classes.members:
            if len({self.groups[sample] for sample in each}) > 1:
                raise ValueError(f"the samples of a class must be of one group, got samples {each[:5]} of several")
        count = len(self._by_group(classes))
        if not self.per_batch <= min(count, classes.per_batch):
            raise ValueError(
                f"per_batch must be at most the {count} groups and the {classes.per_batch} classes of a batch, "
                f"got {self.per_batch}"
            )

    def _by_group(self, classes: Classes) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for number, each in enumerate(classes.members):
            found.setdefault(self.groups[each[0]], []).append(number)
        return [found[group] for group in sorted(found)]

    def usual(self, classes: Classes) -> int:
        """The number of combinations times `batches_per_tuple`."""
        return math.comb(len(self._by_group(classes)), self.per_batch) * self.batches_per_tuple

    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """Combinations in random order; each super-class gives an equal part of the classes, in turn."""
        by_group = self._by_group(classes)
        decks = [
            Deck(each, lambda turn, group=group: random(f"group {group} {turn}"))  # type: ignore[misc]
            for group, each in enumerate(by_group)
        ]
        tuples = list(combinations(range(len(by_group)), self.per_batch)) * self.batches_per_tuple
        order = Deck(list(range(len(tuples))), lambda turn: random(f"tuples {turn}")).hand(batches)
        rng = random("groups")
        chosen = []
        for each in order:
            groups = list(tuples[each])
            rng.shuffle(groups)  # the first ones give one more where the parts are unequal
            batch: list[int] = []
            for place, group in enumerate(groups):
                part = -(-(classes.per_batch - len(batch)) // (len(groups) - place))
                batch += decks[group].hand(min(part, len(by_group[group])))
            members = [number for group in groups for number in by_group[group]]
            chosen.append(_filled(_filled(batch, classes, rng, members), classes, rng))
        return chosen


@final
class Mixed(ClassRule):
    """Another rule, with a share of random classes in every batch: a remedy for hubs and wrong labels.

    Args:
        rule: the other rule.
        share: the share of the classes of a batch that is random, in 0..1, default 0.25; rounded to whole classes.
    """

    def __init__(self, rule: ClassRule, *, share: float = 0.25) -> None:
        if not isinstance(rule, ClassRule):
            raise TypeError(f"rule must be a ClassRule, got {type(rule).__name__}")
        self.rule = rule
        self.share: float = arguments.fraction("share", share)

    def check(self, classes: Classes) -> None:
        """The checks of the other rule."""
        self.rule.check(classes)

    def usual(self, classes: Classes) -> int:
        """The number of the other rule."""
        return self.rule.usual(classes)

    def choose(self, classes: Classes, batches: int, random: Shuffler) -> list[list[int]]:
        """The batches of the other rule, the last classes of each replaced by random ones."""
        kept = classes.per_batch - round(self.share * classes.per_batch)
        rng = random("mixed")
        return [_filled(batch[:kept], classes, rng) for batch in self.rule.choose(classes, batches, random)]

    def refresh(self, classes: Classes, embeddings: Tensor, representative: Representative, seed: int) -> None:
        """Refresh the other rule."""
        self.rule.refresh(classes, embeddings, representative, seed)

    def state(self) -> dict[str, Tensor]:
        """That of the other rule."""
        return self.rule.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the other rule."""
        self.rule.restore(state)
