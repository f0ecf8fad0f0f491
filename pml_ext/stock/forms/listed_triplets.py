"""TripletMarginLoss of a list of triplets, each computed with the block of distances of its anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext.stock.forms.form import Form, Rows


class Found(NamedTuple):
    """Some triplets of a list: rows and flat indices of their pairs in a block, losses, and derivatives."""

    rows: Tensor
    near: Tensor
    far: Tensor
    losses: Tensor
    kept: Tensor
    active: Tensor


class ListedTriplets(Form):
    """Sum over a list of `act(D_ip - D_in + margin)`; a triplet counts as often as it occurs."""

    def take(self, triplets: Sequence[Tensor], like: Tensor) -> None:
        """Set the list: anchors, positives, negatives; `like` is a tensor on the device of the scores."""
        stacked = torch.stack([each.to(device=like.device, dtype=torch.long) for each in triplets])
        self._triplets = stacked[:, torch.argsort(stacked[0])]
        anchors = torch.arange(len(self.incidence.positives) + 1, device=like.device)
        self._first: list[int] = torch.searchsorted(self._triplets[0].contiguous(), anchors).tolist()

    def is_empty(self) -> bool:
        return not self._triplets.shape[1]

    def summarize(self, distances: Tensor, start: int, *, keep: bool) -> Rows:
        found = self._of(distances, start)
        sums, kept, counts = distances.new_zeros(3, len(distances))
        sums.index_add_(0, found.rows, found.losses * found.kept)
        kept.index_add_(0, found.rows, found.kept)
        counts.index_add_(0, found.rows, torch.ones_like(found.kept))
        return sums, kept, counts

    def combine(self, rows: Rows) -> dict[str, Tensor]:
        sums, kept, counts = rows
        value, self._pull = self.reductions["loss"].rows(sums, kept, counts, counts)
        return {"loss": value}

    def gradient(self, distances: Tensor, start: int, *, kept: bool) -> Tensor:
        found = self._of(distances, start)
        by_near = self._pull[start : start + len(distances)][found.rows] * found.active * found.kept
        out = torch.zeros_like(distances)
        out.view(-1).index_add_(0, found.near, by_near).index_add_(0, found.far, -by_near)
        return out

    def _of(self, distances: Tensor, start: int) -> Found:
        rows, positives, negatives = self._triplets[:, self._first[start] : self._first[start + len(distances)]]
        rows = rows - start
        near, far = rows * distances.shape[1] + positives, rows * distances.shape[1] + negatives
        inside = (distances.take(near) - distances.take(far)) + self.loss.margin
        if self.loss.smooth_loss:
            losses = torch.nn.functional.softplus(inside)
            active = torch.where(inside > 20, 1, inside.sigmoid())  # where softplus is the identity
        else:
            losses = inside.relu()
            active = losses.sign()
        keep = self.reductions["loss"].keep(losses)
        kept = torch.ones_like(losses) if keep is None else keep.to(losses.dtype)
        return Found(rows, near, far, losses, kept, active)
