"""The cases on which the laws are tried: pair matrices and batches, each built from a few numbers that name it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pml_ext.pairs import PairMasks, label_masks

Scores = Literal["random", "grid", "equal"]
Layout = Literal["random", "duplicates", "collapsed", "zeros"]


@dataclass(frozen=True)
class Rows:
    """A pair matrix: scores, positives, negatives, each [n, m], in float64.

    Args:
        n: anchors.
        m: references, at least 2.
        scores: "random"; "grid", multiples of 1/4, among which many are equal; or "equal", all the same.
        density: the share of pairs that are selected.
        balance: the share of positives among these.
        inverted: the scores are similarities in [-1, 1]; if not, negated distances in [-2, 0].
        seed: seed of the random numbers.
    """

    n: int
    m: int
    scores: Scores = "random"
    density: float = 0.9
    balance: float = 0.5
    inverted: bool = True
    seed: int = 0

    @property
    def has_ties(self) -> bool:
        """Whether two scores of a row may be equal."""
        return self.scores != "random"

    @cached_property
    def matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """sim, pos and neg."""
        generator = torch.Generator().manual_seed(self.seed)
        sim, selected, side = torch.rand(3, self.n, self.m, generator=generator, dtype=torch.float64)
        sim = 2 * sim - 1
        if self.scores == "grid":
            sim = (sim * 4).round() / 4
        elif self.scores == "equal":
            sim = torch.zeros_like(sim)
        if not self.inverted:
            sim = sim - 1
        pos = (selected < self.density) & (side < self.balance)
        return sim, pos, (selected < self.density) & ~pos


@dataclass(frozen=True)
class Batch:
    """Embeddings [n, d] with labels [n], and maybe references [m, d] with labels [m], in float64.

    Args:
        sizes: how many samples each class has; their order in the batch is drawn.
        dimension: dimension of the embeddings.
        layout: "random"; "duplicates", every second embedding is that of its predecessor; "collapsed", all are the
            same; or "zeros", every second one is the zero vector.
        scale: factor of the embeddings.
        ref_sizes: how many references each class has; empty for none.
        seed: seed of the random numbers.
    """

    sizes: tuple[int, ...]
    dimension: int = 4
    layout: Layout = "random"
    scale: float = 1.0
    ref_sizes: tuple[int, ...] = ()
    seed: int = 0

    @property
    def has_ties(self) -> bool:
        """Whether two distances may be equal, up to rounding: then a threshold may fall on either side."""
        return self.layout != "random"

    @property
    def embeddings(self) -> Tensor:
        """Embeddings [n, d]."""
        return self._tensors[0]

    @property
    def labels(self) -> Tensor:
        """Labels [n]."""
        return self._tensors[1]

    @property
    def ref_emb(self) -> Tensor | None:
        """References [m, d], or None."""
        return self._tensors[2] if self.ref_sizes else None

    @property
    def ref_labels(self) -> Tensor | None:
        """Labels of the references [m], or None."""
        return self._tensors[3] if self.ref_sizes else None

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return (*self._points(self.sizes, generator), *self._points(self.ref_sizes, generator))

    def _points(self, sizes: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n = sum(sizes)
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
        labels = labels[torch.randperm(n, generator=generator)]
        points = torch.randn(n, self.dimension, generator=generator, dtype=torch.float64) * self.scale
        if self.layout == "duplicates":
            points = points[torch.arange(n) // 2 * 2]
        elif self.layout == "collapsed":
            points = points[:1].expand(n, -1).clone()
        elif self.layout == "zeros":
            points = points * (torch.arange(n) % 2).unsqueeze(-1)
        return points, labels


def all_pairs(labels: Tensor) -> PairMasks:
    """Every pair of a batch without self-pairs: [n, n] each."""
    pos, neg = label_masks(labels, labels)
    return PairMasks(pos & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), neg)


def as_pairs(masks: PairMasks) -> tuple[Tensor, ...]:
    """(anchors, positives, anchors, negatives)."""
    return (*masks.pos.nonzero(as_tuple=True), *masks.neg.nonzero(as_tuple=True))


def as_triplets(masks: PairMasks) -> tuple[Tensor, ...]:
    """(anchors, positives, negatives) of every triplet."""
    return (masks.pos.unsqueeze(2) & masks.neg.unsqueeze(1)).nonzero(as_tuple=True)
