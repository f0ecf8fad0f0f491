"""Scores of some rows of a data set against all references, and their exact order.

A product of matrices rounds a score in one way here and in another there, so that copies of one reference differ by the
place where they stand. The pairs that are chosen are scored again, each by itself, in double precision; whatever the
product may have put on the wrong side of the cut is looked at too.
"""

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
from torch import Tensor

from pml_ext.similarity import scores_by
from pml_ext.vectors import unit_vectors

# So many numbers of gathered vectors at a time.
_GATHERED = 1 << 18
# The k largest of a row are looked for in groups of so many columns first.
_GROUP = 16
# Roundings by which a product of unit vectors is off at the most; each of its terms may be off by one.
_ROUNDINGS = 2


class Scores:
    """The scores of a distance, larger is closer: of blocks of rows, and of single pairs.

    Args:
        distance: a PML distance.
        embeddings: [n, d].
        references: [m, d], or None for the embeddings themselves.
    """

    def __init__(self, distance: Any, embeddings: Tensor, references: Tensor | None) -> None:
        self.distance = distance
        kinds = (CosineSimilarity, DotProductSimilarity)
        self.is_product = type(distance) in kinds and distance.power == 1 and distance.p == 2
        if self.is_product and distance.normalize_embeddings:
            embeddings = unit_vectors(embeddings)
            references = None if references is None else unit_vectors(references)
        self.embeddings = embeddings
        self.references = embeddings if references is None else references
        self.error = 0.0
        if self.is_product and len(self.embeddings) and len(self.references):
            longest = (torch.linalg.vector_norm(x, dim=1).amax() for x in (self.embeddings, self.references))
            size = embeddings.shape[1] * _ROUNDINGS * torch.finfo(embeddings.dtype).eps
            self.error = size * float(torch.stack(tuple(longest)).prod())

    def block(self, rows: Tensor) -> Tensor:
        """Scores of some rows against all references, [b, m]."""
        if self.is_product:
            return self.embeddings[rows] @ self.references.T
        return scores_by(self.distance, self.embeddings[rows], self.references)

    def pairs(self, rows: Tensor, columns: Tensor, block: Tensor | None = None) -> Tensor:
        """Scores of references [b, k] of rows [b]; those of other distances than products come from a block."""
        if block is not None and not self.is_product:
            return block.gather(1, columns)
        size = max(1, _GATHERED // max(1, columns.shape[1] * self.embeddings.shape[1]))
        parts = zip(rows.split(size), columns.split(size), strict=True)
        dtype = self.embeddings.dtype
        return torch.cat([self._pairs(*part) for part in parts]).to(dtype) if len(rows) else columns.to(dtype)

    def _pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        if not self.is_product:
            each = [
                scores_by(self.distance, self.embeddings[row : row + 1], self.references[places])
                for row, places in zip(rows.tolist(), columns, strict=True)
            ]
            return torch.cat(each)
        one = self.embeddings[rows].double().unsqueeze(1)
        return (one * self.references[columns].double()).sum(2)

    def nearest(self, rows: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest of each row of a block and their columns [b, k], falling, equals by column.

        Entries of minus infinity are none: they come last, in any order.
        """
        m = block.shape[1]
        k = min(k, m)
        found, columns = block.new_full((len(rows), k), -torch.inf), rows.new_zeros(len(rows), k)
        left, wide = torch.arange(len(rows), device=rows.device), k
        while len(left) and k:
            wide = min(wide + max(8, wide // 8) if wide == k else 2 * wide, m)
            some = block[left] if len(left) < len(block) else block
            fast, places = _topk(some, wide)
            exact = self.pairs(rows[left], places, some).masked_fill(fast == -torch.inf, -torch.inf)
            # By column first, then stably by score.
            places, order = places.sort(1)
            exact, order = exact.gather(1, order).sort(dim=1, descending=True, stable=True)
            places = places.gather(1, order)
            # Whoever is not among these is at most as large as the last of them, but for the error of the product.
            last = fast[:, -1]
            sure = (last < exact[:, k - 1] - 2 * self.error) | (last == -torch.inf) | (wide == m)
            found[left[sure]], columns[left[sure]] = exact[sure, :k], places[sure, :k]
            left = left[~sure]
        return found, columns


def _topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [b, m], falling, and their columns: `topk`, faster where k is small."""
    width = x.shape[1] // _GROUP
    if k * _GROUP > width:
        values, columns = x.topk(k)
        return values, columns
    # Column c is in group c % width: the k largest are in the k groups with the largest maxima, or in the remainder.
    whole = _GROUP * width
    groups = x[:, :whole].unflatten(1, (_GROUP, width)).amax(1).topk(k, sorted=False).indices
    members = groups.unsqueeze(2) + torch.arange(0, whole, width, device=x.device)
    remainder = torch.arange(whole, x.shape[1], device=x.device).expand(len(x), -1)
    candidates = torch.cat((members.flatten(1), remainder), 1)
    values, places = x.gather(1, candidates).topk(k)
    return values, candidates.gather(1, places)
