"""PML's cross-batch memory, for the losses and wrappers of this package too."""

from typing import Any, final

import pytorch_metric_learning.losses as pml
import torch
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.base import PairMiner
from pml_ext.pairs import DisjointMasks, PairMasks, label_masks, not_self
from pml_ext.relations import IndicesTuple
from pml_ext.wrappers.base import takes_masks, takes_references


@final
class CrossBatchMemory(pml.CrossBatchMemory):  # type: ignore[misc, unused-ignore]
    r"""Compares a batch with a queue of the embeddings of the last batches, the batch itself included.

        L = L'(x, y, pairs, references = the queue), without the pairs of a sample with itself

    Args:
        loss: a loss that takes references and pairs: all of this package do, of PML's those that it lists, of the
            wrappers those whose inner loss does.
        embedding_size: dimension of the embeddings.
        memory_size: length of the queue, at least the size of a batch.
        miner: None for all pairs, or a miner, ours or PML's. A miner of this package never sees the pair of a sample
            with itself; with a loss of this package pairs are masks of static size, not index tensors.

    Shape:
        embeddings [n, d], labels [n] -> a scalar. Optionally an `indices_tuple` of pairs within the batch, which are
        added, or an `enqueue_mask` [n] of the samples that are enqueued and are not anchors.

    Defaults:
        The distance and the reducer of the inner loss, a queue of 1024.

    Source:
        Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020, arXiv 1912.06798. A subclass of PML's,
        which differs in this: the position and the fill of the queue are part of `state_dict`, so that a resumed run
        goes on as if it had not stopped (for a state saved by PML they are taken from the rows that are not zero);
        an `indices_tuple` is shifted to the positions of the batch in the queue; a batch of one sample is not
        compared with itself; an empty one does not make the queue count as full; the queue is replaced, not written
        to, so that one backward pass may follow several batches.

    Raises:
        TypeError, ValueError: a loss that takes no references or no pairs, sizes that are not positive integers; in a
            call, more samples to enqueue than the queue holds, or arguments that do not fit.

    Example:
        >>> import torch
        >>> from pml_ext.losses import KNNSoftmaxLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss = CrossBatchMemory(KNNSoftmaxLoss(), embedding_size=2, memory_size=8)
        >>> loss(embeddings, labels), loss(embeddings, labels), loss.queue_idx
        (tensor(1.7737), tensor(0.0017), 0)
    """

    def __init__(
        self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: nn.Module | None = None
    ) -> None:
        if not takes_references(loss, self.supported_losses(), with_indices=True):
            raise TypeError(
                f"loss must take references and pairs, {type(loss).__name__} does not; "
                "a miner is given to CrossBatchMemory itself"
            )
        arguments.count("embedding_size", embedding_size)
        arguments.count("memory_size", memory_size)
        super().__init__(loss, embedding_size, memory_size, miner)

    @property
    def distance(self) -> Any:
        """The distance of the inner loss."""
        return self.loss.distance

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """PML's check by name; the loss itself was checked before."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: IndicesTuple | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch against the queue, into which it goes first."""
        arguments.batch(embeddings, labels, None, None)
        if labels is None:
            raise ValueError("labels must be given: the queue keeps them, got None")
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings must have embedding_size={self.embedding_size}, got {embeddings.shape[1]}")
        number = len(embeddings)
        if enqueue_mask is not None:
            if enqueue_mask.dtype != torch.bool or enqueue_mask.shape != labels.shape:
                raise ValueError(
                    f"enqueue_mask must be boolean, one for each of {number} embeddings, "
                    f"got {enqueue_mask.dtype} of shape {tuple(enqueue_mask.shape)}"
                )
            number = int(enqueue_mask.sum())
        if number > self.memory_size:
            raise ValueError(f"a batch must fit into the queue: got {number} samples, memory_size={self.memory_size}")
        loss: Tensor = super().forward(embeddings, labels, indices_tuple, enqueue_mask)
        return loss

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Put a batch into the queue."""
        if batch_size == 0:
            self.curr_batch_idx = torch.zeros(0, dtype=torch.long, device=labels.device)
            return
        self.embedding_memory: Tensor = self.embedding_memory.clone()
        super().add_to_memory(embeddings, labels, batch_size)

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,  # noqa: N803 - PML's name
        L_mem: Tensor,  # noqa: N803 - PML's name
        input_indices_tuple: IndicesTuple | None,
        do_remove_self_comparisons: bool,
    ) -> IndicesTuple:
        """The pairs of the batch with the queue, those of the miner or all, and those that were given."""
        place = self.curr_batch_idx  # of the batch in the queue
        pairs: IndicesTuple
        if self.miner is None or isinstance(self.miner, PairMiner):
            pos, neg = label_masks(labels, L_mem)
            if do_remove_self_comparisons:
                pos = pos & (torch.arange(len(L_mem), device=pos.device) != place.unsqueeze(-1))
            pairs = DisjointMasks(pos, neg)
            if self.miner is not None:
                pairs = self.miner.masks(embeddings, labels, E_mem, L_mem, pairs)
            if input_indices_tuple is None and takes_masks(self.loss):
                return pairs
            pairs = pairs.indices()
        else:
            pairs = self.miner(embeddings, labels, E_mem, L_mem)
            if do_remove_self_comparisons:
                a, p, *rest = pairs
                other = place[a] != p
                a, p = a[other], p[other]
                pairs = (a, p, rest[0][other]) if len(rest) == 1 else (a, p, *rest)
        if input_indices_tuple is None:
            return pairs
        if isinstance(input_indices_tuple, PairMasks):
            pos, neg = input_indices_tuple
            n = len(labels)
            given: Any = PairMasks(pos & not_self(0, n, n, pos.device), neg).indices()
        else:
            arguments.index_tuple(input_indices_tuple)
            given = input_indices_tuple
        if len(pairs) == 3:
            a, p, n = lmu.convert_to_triplets(given, labels)
            given = a, place[p], place[n]
        else:
            a, p, b, n = lmu.convert_to_pairs(given, labels)
            given = a, place[p], b, place[n]
        return tuple(torch.cat(both) for both in zip(pairs, given, strict=True))

    def get_extra_state(self) -> dict[str, Any]:
        """The position and the fill of the queue, for `state_dict`."""
        return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved queue stood."""
        self.queue_idx, self.has_been_filled = state["queue_idx"], state["has_been_filled"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A state saved by PML says nothing about the queue, which is filled from its beginning.
        memory = state_dict.get(f"{prefix}embedding_memory")
        if memory is not None and f"{prefix}_extra_state" not in state_dict:
            used = memory.any(dim=1).nonzero()
            fill = int(used.max()) + 1 if len(used) else 0
            queue = {"queue_idx": fill % self.memory_size, "has_been_filled": fill == self.memory_size}
            state_dict[f"{prefix}_extra_state"] = queue
        super()._load_from_state_dict(state_dict, prefix, *args)
