"""Batches of mined tuples."""

from typing import Any, final

import torch

from pml_ext import arguments
from pml_ext.mining.draws import stream
from pml_ext.mining.epochs import EpochBatches
from pml_ext.mining.tuples import MinedTuples


@final
class MinedBatchSampler(EpochBatches):
    """Batches of anchors with their mined positives and negatives, with every anchor once in an epoch.

    Anchors come in random order. Each is added to the batch with its positives and its first negatives, as long as all
    of them fit; a sample that is already in the batch is not added again. A mined negative has a positive in the batch
    only by chance, so it is rarely an anchor of a loss that uses labels; `partners` adds a positive. With
    ``mined.local(batch)`` as `indices_tuple`, a loss uses the mined pairs only.

    Args:
        mined: the result of `mine`, called without references; incomplete anchors are left out.
        batch_size: the largest number of samples in a batch.
        negatives: how many negatives of each anchor to use, default 1.
        partners: whether to add, with each mined negative that was an anchor itself, the nearest positive that was
            mined for it; default False.
        fill: whether to fill up each batch with samples of the next anchors, so that all batches have the same size;
            default False.
        shuffle: whether anchors come in random order (default) or in that of the tuples.
        seed: seed of the order, the same on every process.
        num_replicas: the number of processes; each has its own batches, the same number for all.
        rank: the number of this process, from 0.

    Raises:
        TypeError, ValueError: arguments of other types; a batch size smaller than a tuple.

    Example:
        >>> import torch
        >>> from pml_ext.mining import mine
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> mined = mine(embeddings, torch.tensor([0, 0, 1, 1]), num_negatives=1)
        >>> list(MinedBatchSampler(mined, 3, shuffle=False))
        [[0, 1, 2], [2, 3, 1]]
    """

    def __init__(
        self,
        mined: MinedTuples,
        batch_size: int,
        *,
        negatives: int = 1,
        partners: bool = False,
        fill: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(seed=seed, num_replicas=num_replicas, rank=rank)
        if not isinstance(mined, MinedTuples):
            raise TypeError(f"mined must be MinedTuples, got {type(mined).__name__}")
        self.batch_size: int = int(arguments.count("batch_size", batch_size))
        self.negatives: int = int(arguments.count("negatives", negatives))
        self.partners: bool = arguments.flag("partners", partners)
        self.fill: bool = arguments.flag("fill", fill)
        self.shuffle: bool = arguments.flag("shuffle", shuffle)
        self.refresh(mined)

    def refresh(self, mined: MinedTuples) -> None:
        """Use newly mined tuples from the next epoch on; call it between two epochs."""
        anchors = mined.anchors.tolist()
        partner = dict(zip(anchors, mined.positives[:, :1].flatten().tolist(), strict=False)) if self.partners else {}
        tuples = []
        complete, positives, negatives = (x.tolist() for x in (mined.complete, mined.positives, mined.negatives))
        for anchor, is_complete, near, far in zip(anchors, complete, positives, negatives, strict=True):
            if is_complete:
                far = [j for j in far if j >= 0][: self.negatives]
                group = [anchor, *near, *far, *(partner.get(j, -1) for j in far)]
                tuples.append([j for j in dict.fromkeys(group) if j >= 0])
        largest = max(map(len, tuples), default=0)
        if largest > self.batch_size:
            raise ValueError(f"batch_size must be at least {largest}, the size of a tuple, got {self.batch_size}")
        self._tuples = tuples
        self._forget()

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch for all processes together."""
        tuples = list(self._tuples)
        if self.shuffle:
            stream(self.seed, epoch, "tuples").shuffle(tuples)
        batches: list[list[int]] = []
        at = 0
        while at < len(tuples):
            batch: dict[int, None] = {}
            while at < len(tuples) and len(batch.keys() | tuples[at]) <= self.batch_size:
                batch |= dict.fromkeys(tuples[at])
                at += 1
            if self.fill:
                self._fill(batch, tuples, at)
            batches.append(list(batch))
        return batches

    def _fill(self, batch: dict[int, None], tuples: list[list[int]], at: int) -> None:
        """Add samples of the tuples from a place on, round to the first again."""
        for place in range(len(tuples)):
            for sample in tuples[(at + place) % len(tuples)]:
                if len(batch) == self.batch_size:
                    return
                batch[sample] = None

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """The position in the epoch, with the tuples."""
        tuples = {
            "samples": torch.tensor(
                [sample for each in self._tuples for sample in each], dtype=torch.int64, device="cpu"
            ),
            "sizes": torch.tensor([len(each) for each in self._tuples], dtype=torch.int64, device="cpu"),
        }
        return super().state_dict(consumed=consumed) | tuples

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, with its tuples."""
        self._tuples = [each.tolist() for each in state["samples"].split(state["sizes"].tolist())]
        super().load_state_dict(state)
