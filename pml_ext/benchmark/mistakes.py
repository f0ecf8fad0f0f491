"""The worst retrievals of a model: whose nearest neighbor is of another class, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from pml_ext import shown
from pml_ext.benchmark.report import retrievals

BLOCK = 1 << 24  # similarities at a time


@dataclass(frozen=True)
class Mistake:
    """A query, and the nearest sample, which is of another class.

    Args:
        query: its position among the test samples.
        label: the name of its class.
        found: the position of the nearest sample.
        found_label: the name of that one's class.
        similarity: their cosine.
        right: the position of the nearest sample of the right class; None where there is none.
        right_similarity: the cosine with that one; NaN where there is none.
        path: the file of the query, "" if it came from none.
    """

    query: int
    label: str
    found: int
    found_label: str
    similarity: float
    right: int | None
    right_similarity: float
    path: str = ""

    def __repr__(self) -> str:
        which = self.path or f"test sample {self.query}"
        return shown.one_line(
            f"{self.label} taken for {self.found_label}: {which} (similarity {self.similarity:.3f}, "
            f"with its own class {self.right_similarity:.3f})",
            shown.LONGEST,
        )


@dataclass(frozen=True, repr=False, eq=False)
class Mistakes(Sequence[Mistake]):
    """The worst mistakes, the worst first.

    Args:
        of: name of the model.
        total: how many queries have a nearest of another class.
        queries: how many queries there are.
        worst: the mistakes that are listed.
        test: the test samples, whose images are shown; None if they are none.
    """

    of: str
    total: int
    queries: int
    worst: tuple[Mistake, ...]
    test: Any = None

    def __len__(self) -> int:
        return len(self.worst)

    @overload
    def __getitem__(self, key: int) -> Mistake: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[Mistake]: ...

    def __getitem__(self, key: int | slice) -> Mistake | Sequence[Mistake]:
        return self.worst[key]

    def __iter__(self) -> Iterator[Mistake]:
        return iter(self.worst)

    def _line(self) -> str:
        return f"{self.of}: the nearest is of another class for {self.total:,} of {self.queries:,} test samples"

    def __repr__(self) -> str:
        lines = [self._line(), *map(repr, self.worst)]
        return shown.on_a_screen("\n".join(lines), "ask for fewer")

    def _repr_html_(self) -> str:
        picture = None if self.test is None else retrievals.pictures(self.test)

        def cell(index: int | None, label: str, similarity: float) -> shown.Html:
            if index is None:
                return shown.Html("-")
            image = "" if picture is None else picture(index)
            with_score = "" if similarity != similarity else f' <span class="muted">{similarity:.3f}</span>'
            return shown.Html(f'{image}<span class="name">{shown.text(label)}</span>{with_score}')

        rows = [
            (
                cell(one.query, one.label, float("nan")),
                cell(one.found, one.found_label, one.similarity),
                cell(one.right, one.label, one.right_similarity),
                one.path or f"test sample {one.query}",
            )
            for one in self.worst
        ]
        head = ("query", "nearest, wrong", "nearest of its class", "which")
        return shown.table(head, rows, caption=self._line())


def worst(test: Any, vectors: Tensor, k: int, of: str, *, pictured: bool = True) -> Mistakes:
    """The k queries whose nearest wrong sample is closest in comparison with their nearest right one.

    Args:
        test: the test samples: `labels`, `classes`, and `query`, `gallery`, `sequences` where there are any.
        vectors: their embeddings [n, d], normalized.
        k: how many.
        of: which model, for people.
        pictured: whether the samples are images. Default True.
    """
    vectors, labels = vectors.float(), test.labels
    asked = getattr(test, "query", None)
    queries = torch.arange(len(vectors)) if asked is None else asked.nonzero()[:, 0]
    found: list[tuple[Tensor, ...]] = []
    for rows in queries.split(max(1, BLOCK // len(vectors))):
        scores = vectors[rows] @ vectors.T
        allowed = _allowed(test, rows, len(vectors))
        same = labels[rows, None] == labels[None, :]
        nearest = (scores.masked_fill(~(allowed & mask), -torch.inf).max(1) for mask in (same, ~same))
        found.append((rows, *(each for pair in nearest for each in pair)))
    asks, right_score, right, wrong_score, wrong = (torch.cat(each) for each in zip(*found, strict=True))
    counted = right_score.isfinite()  # a query without a match cannot be right
    gap = torch.where(counted, wrong_score - right_score, -torch.inf)
    mistaken = gap > 0
    order = gap.argsort(descending=True, stable=True)[: min(k, int(mistaken.sum()))]
    paths = _paths(test)

    told = tuple(
        Mistake(
            query=int(asks[i]),
            label=retrievals.class_of(test, int(asks[i])),
            found=int(wrong[i]),
            found_label=retrievals.class_of(test, int(wrong[i])),
            similarity=float(wrong_score[i]),
            right=int(right[i]),
            right_similarity=float(right_score[i]),
            path=paths[int(asks[i])] if paths else "",
        )
        for i in order.tolist()
    )
    return Mistakes(of, int(mistaken.sum()), int(counted.sum()), told, test if pictured else None)


def _allowed(test: Any, rows: Tensor, n: int) -> Tensor:
    """Who may answer these queries [r, n]: of the gallery, not itself, not of its own sequence."""
    allowed = torch.ones(len(rows), n, dtype=torch.bool)
    gallery, sequences = getattr(test, "gallery", None), getattr(test, "sequences", None)
    if gallery is not None:
        allowed &= gallery
    if sequences is not None:
        allowed &= sequences[rows, None] != sequences[None, :]
    allowed[torch.arange(len(rows)), rows] = False
    return allowed


def _paths(test: Any) -> list[str] | None:
    samples, index = getattr(test, "samples", None), getattr(test, "index", None)
    if samples is None or index is None or samples.paths is None:
        return None
    return [samples.paths[i] for i in index.tolist()]
