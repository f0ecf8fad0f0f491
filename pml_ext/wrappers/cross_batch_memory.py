"""PML's cross-batch memory, for the losses and wrappers of this package too."""

from typing import Any, final

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.index_tuples import to_pairs, to_triplets
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import ByLabels, IndicesTuple, PairMasks, Pairs
from pml_ext.wrappers.base import handed_on, takes_masks, takes_pairs, takes_references
from pml_ext.wrappers.queue_pairs import (
    Queue,
    given_indices,
    given_masks,
    label_pairs,
    mined_indices,
    mined_masks,
    older_pairs,
)

# The label of a sample that was enqueued without one, which is nobody else's.
UNLABELED = -(2**63)


@final
class CrossBatchMemory(_pml.Memory):  # type: ignore[misc, unused-ignore]
    r"""Compares a batch with a queue of the embeddings of the last batches, the batch itself included.

        L = L'(x, y, pairs, references = the queue)

        P_i = the samples of class y_i in the queue, without i itself ,   N_i = those of the other classes

    where L' is the inner loss, and x and y are the embeddings and labels of the batch.

    Args:
        loss: a loss that takes references and pairs: every loss of this package that compares pairs, the losses that
            PML lists for its own wrapper, and wrappers of such a loss.
        embedding_size: dimension of the embeddings.
        memory_size: length of the queue, at least the size of a batch.
        miner: None for all pairs, or a miner, ours or PML's. It never gets the pair of a sample with itself. With a
            loss and a miner of this package, pairs are masks of static size, not index tensors. PML's
            `DistanceWeightedMiner` and user-defined miners get batch and queue as one batch, of which the pairs of the
            anchors are kept: time and memory then grow with the square of the queue length.
        start: the number of samples that are seen in training before the queue is used. Until then the queue stays
            empty, and the loss is that of each batch alone.

    Shape:
        embeddings [n, d], labels [n] -> a scalar. Optionally an `indices_tuple` of pairs within the batch, which are
        added, and an `enqueue_mask` [n] of the samples that are enqueued and are not anchors. Without labels
        (`labels=None`) the pairs within the batch are those of the `indices_tuple`, PML's or `PairMasks` [n, n], and
        all older samples in the queue are negatives. So two views of unlabeled samples are
        `memory(torch.cat((x, other)), None, pairs)`, and with a momentum encoder
        `memory(torch.cat((query, key)), None, pairs, enqueue_mask)`, with the mask true for the keys and (i, n + i) the
        positives. Without labels, a sample that is seen again while it is still in the queue becomes its own negative:
        keep the queue shorter than an epoch. `torch.compile(fullgraph=True)` captures it with labels, if loss and miner
        are of this package; the batch is then compared with the whole queue, where unused places have no pairs.

    Defaults:
        The distance and the reducer of the inner loss, memory_size=1024, start=0, no miner.

    Source:
        Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020, arXiv 1912.06798. This wrapper differs from
        PML 2's of that name as follows. Pairs of a sample with itself are removed before mining, where PML removes them
        after it. The position and the fill of the queue are part of `state_dict`, so that a resumed run continues as if
        it had not stopped (for a state saved by PML they are taken from the rows that are not zero). An `indices_tuple`
        is shifted to the positions of the batch in the queue, and may be combined with an `enqueue_mask`. A batch of
        one sample is not compared with itself, and an empty batch does not mark the queue as full. The queue is
        replaced, not written in place, so that one backward pass may follow several batches; it keeps the widest dtype
        that it was given, and does not change in eval mode. A sample that is not finite makes the loss NaN, and is not
        enqueued. The paper's code adds the loss of the batch alone, which is `loss(x, y)`.

    Raises:
        TypeError, ValueError: a loss that takes no references or no pairs, a miner that is not a PML miner or returns
            fixed pairs, sizes that are not positive integers; in a call, more samples to enqueue than the queue holds,
            neither labels nor pairs, a miner of PML without labels, or arguments that do not fit.

    Example:
        >>> import torch
        >>> from pml_ext.losses import KNNSoftmaxLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> loss = CrossBatchMemory(KNNSoftmaxLoss(), embedding_size=2, memory_size=8)
        >>> loss(embeddings, labels), loss(embeddings, labels), loss.queue_idx
        (tensor(1.7737), tensor(0.0017), 0)
    """

    memory_size: int
    embedding_memory: Tensor
    label_memory: Tensor
    curr_batch_idx: Tensor
    _enqueued: Tensor
    _seen: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: nn.Module | None = None,
        *,
        start: int = 0,
    ) -> None:
        if not takes_references(loss, with_indices=True):
            raise TypeError(
                f"loss must take references and pairs, {type(loss).__name__} does not; "
                "a miner is given to CrossBatchMemory itself"
            )
        if miner is not None and not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a PML miner (a BaseMiner), got {type(miner).__name__}")
        if isinstance(miner, _pml.miners_named("EmbeddingsAlreadyPackagedAsTriplets")):
            raise TypeError("miner must mine: EmbeddingsAlreadyPackagedAsTriplets returns fixed places of a batch")
        arguments.count("embedding_size", embedding_size)
        arguments.count("memory_size", memory_size)
        if start != 0:
            arguments.count("start", start)
        super().__init__()
        self.loss: Any = loss
        self.miner: Any = miner
        self.embedding_size: int = embedding_size
        self.memory_size: int = memory_size
        self.start: int = start
        self.reset_queue()
        _pml.record(self, ("embedding_size", "memory_size", "queue_idx", "start"))

    def reset_queue(self) -> None:
        """Forget all samples."""
        device = self._enqueued.device if "_enqueued" in self._buffers else torch.get_default_device()
        memory = torch.zeros(self.memory_size, self.embedding_size, device=device)
        self.register_buffer("embedding_memory", memory)
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.long, device=device))
        # Tensors, because torch.compile would compile anew for every number that it has not seen.
        for name in ("_enqueued", "_seen"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long, device=device), persistent=False)

    @property
    def queue_idx(self) -> int:
        """The place in the queue of the next sample."""
        return int(self._enqueued) % self.memory_size

    @property
    def has_been_filled(self) -> bool:
        """Whether all places in the queue are in use."""
        return int(self._enqueued) >= self.memory_size

    @property
    def seen(self) -> int:
        """The samples of the warm-up so far, at least `start` once it is over."""
        return int(self._seen)

    @property
    def distance(self) -> Any:
        """The distance of the inner loss."""
        return self.loss.distance

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch against the queue, into which it goes first; in eval mode the queue stays as it was."""
        self.check(embeddings, labels, indices_tuple, enqueue_mask)
        before = self.embedding_memory, self.label_memory, self._enqueued, self._seen
        try:
            return self.compared(embeddings, labels, indices_tuple, enqueue_mask)
        finally:
            if not self.training:
                self.embedding_memory, self.label_memory, self._enqueued, self._seen = before

    def check(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: IndicesTuple | None, enqueue_mask: Tensor | None
    ) -> None:
        """Raise an error for arguments of a call that do not fit."""
        arguments.batch(embeddings, labels, None, None)
        if labels is None and indices_tuple is None:
            raise ValueError("labels or an indices_tuple must be given, got None for both")
        if labels is None and self.miner is not None and not isinstance(self.miner, PairMiner):
            raise ValueError(f"labels must be given: {type(self.miner).__name__} mines by them, got None")
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings must have embedding_size={self.embedding_size}, got {embeddings.shape[1]}")
        number = len(embeddings)
        if enqueue_mask is not None:
            if enqueue_mask.dtype != torch.bool or enqueue_mask.shape != embeddings.shape[:1]:
                raise ValueError(
                    f"enqueue_mask must be boolean, one for each of {number} embeddings, "
                    f"got {enqueue_mask.dtype} of shape {tuple(enqueue_mask.shape)}"
                )
            number = int(enqueue_mask.sum())
        if number > self.memory_size:
            raise ValueError(f"a batch must fit into the queue: got {number} samples, memory_size={self.memory_size}")

    def compared(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        enqueue_mask: Tensor | None,
    ) -> Tensor:
        """The loss of a batch: the samples of the mask, or all, are enqueued, and the others, or all, are anchors."""
        device = embeddings.device
        every = torch.arange(len(embeddings), device=device)
        anchors = enqueued = every
        if enqueue_mask is not None:
            enqueue_mask = enqueue_mask.to(device)
            anchors, enqueued = every[~enqueue_mask], every[enqueue_mask]
        known = torch.full_like(every, UNLABELED) if labels is None else labels.to(device)
        rows = embeddings if enqueue_mask is None else embeddings[anchors]
        new = embeddings if enqueue_mask is None else embeddings[enqueued]
        before = self.embedding_memory, self.label_memory, self._enqueued
        self.add_to_memory(new, known[enqueued], len(enqueued))
        slots = torch.full_like(every, -1)
        slots[enqueued] = self.curr_batch_idx
        refs, ref_labels, fill = self.embedding_memory, self.label_memory, self._enqueued
        is_traced = torch.compiler.is_compiling()
        if self.start and (is_traced or self.seen < self.start):
            refs = self.warmed_up(new, before)
        there = None
        if is_traced:
            there = torch.arange(self.memory_size, device=device) < fill
        else:
            # The only number that is waited for on a GPU, where pairs are masks.
            used = min(int(fill), self.memory_size)
            refs, ref_labels = refs[:used], ref_labels[:used]
        # PML's losses and miners multiply matrices of one dtype only.
        narrow = refs.to(embeddings.dtype)
        queue = Queue(refs if isinstance(self.miner, PairMiner) else narrow, ref_labels, slots, anchors, there)
        pairs = self.pairs(embeddings, rows, None if labels is None else known[anchors], queue, indices_tuple)
        refs = refs if takes_masks(self.loss) else narrow
        of_batch: tuple[Tensor | None, Tensor | None] = known[anchors], ref_labels
        if labels is None:
            of_batch = (None, None) if takes_masks(self.loss) else _pml.labels_beside_pairs(rows, refs)
        loss: Tensor = self.loss(rows, of_batch[0], pairs, refs, of_batch[1])
        if not isinstance(loss, Tensor):
            return loss
        return loss + torch.where((self.curr_batch_idx >= 0).all(), 0.0, torch.nan).to(loss)

    def warmed_up(self, new: Tensor, before: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The references of a batch: the queue or, during the warm-up, the batch, which leaves the queue as it was."""
        now = self.embedding_memory, self.label_memory, self._enqueued
        with torch.inference_mode(False), torch.no_grad():
            self._seen = self._seen.to(new.device)
            is_over = self._seen >= self.start
            self._seen = self._seen + len(new) * ~is_over
            self.embedding_memory, self.label_memory, self._enqueued = (
                torch.where(is_over, after, old.to(after)) for after, old in zip(now, before, strict=True)
            )
        return torch.where(is_over, now[0], _written(now[0], self.curr_batch_idx, new))

    def pairs(
        self,
        batch: Tensor,
        embeddings: Tensor,
        labels: Tensor | None,
        queue: Queue,
        given: IndicesTuple | None,
    ) -> IndicesTuple | Pairs:
        """The pairs of the anchors with the queue, those of the miner or all, and those that are given."""
        if labels is not None and self.miner is not None and not isinstance(self.miner, PairMiner):
            found = mined_indices(self.miner, embeddings, labels, queue)
            return found if given is None else _joined(found, given_indices(given, batch, queue))
        pairs: PairMasks | ByLabels
        if labels is None:
            assert given is not None  # checked before
            pos, neg = given_masks(given, batch, queue)
            pairs, given = PairMasks(pos, neg | older_pairs(queue).neg), None
        else:
            pairs = label_pairs(labels, queue)
        if self.miner is not None:
            pairs = mined_masks(self.miner, embeddings, labels, queue, pairs)
        if given is None and takes_pairs(self.loss):
            return pairs if isinstance(pairs, ByLabels) else handed_on(pairs, self.loss)
        masks = pairs.masks(embeddings, 0) if isinstance(pairs, ByLabels) else pairs
        if given is None:
            return handed_on(masks, self.loss)
        if not takes_masks(self.loss):
            return _joined(masks.indices(), given_indices(given, batch, queue))
        # To be checked: what is given may contradict the labels.
        return PairMasks(*(a | b for a, b in zip(masks, given_masks(given, batch, queue), strict=True)))

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Put the samples that are finite into the queue; `curr_batch_idx` says where, and is -1 for the others."""
        device = embeddings.device
        # What is made in inference mode could not be saved for a backward pass later.
        with torch.inference_mode(False), torch.no_grad():
            dtype = torch.promote_types(self.embedding_memory.dtype, embeddings.dtype)
            memory = self.embedding_memory.to(device, dtype)
            known = self.label_memory.to(device, _wider(self.label_memory.dtype, labels.dtype))
            finite = embeddings.isfinite().all(1)
            if labels.is_floating_point():
                finite = finite & labels.isfinite()
            place = (self._enqueued.to(device) + finite.cumsum(0) - 1) % self.memory_size
            self.curr_batch_idx = torch.where(finite, place, -1)
            self.embedding_memory = _written(memory, self.curr_batch_idx, embeddings)
            self.label_memory = _written(known, self.curr_batch_idx, labels)
            self._enqueued = self._enqueued.to(device) + finite.sum()

    def get_extra_state(self) -> dict[str, Any]:
        """The position and the fill of the queue, and how far the warm-up is, for `state_dict`."""
        return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled, "seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved queue stood. A queue that is in use was warmed up."""
        enqueued = state["queue_idx"] + (self.memory_size if state["has_been_filled"] else 0)
        self._enqueued = torch.full_like(self._enqueued, enqueued)
        self._seen = torch.full_like(self._seen, state.get("seen", self.start if enqueued else 0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        memory, labels = (state_dict.get(f"{prefix}{name}_memory") for name in ("embedding", "label"))
        # A state is copied into the tensors that are there.
        if memory is not None:
            self.embedding_memory = self.embedding_memory.to(
                torch.promote_types(self.embedding_memory.dtype, memory.dtype)
            )
        if labels is not None:
            self.label_memory = self.label_memory.to(_wider(self.label_memory.dtype, labels.dtype))
        # A state saved by PML says nothing about the queue, which is filled from its beginning.
        if memory is not None and f"{prefix}_extra_state" not in state_dict:
            used = memory.any(dim=1).nonzero()
            fill = int(used.max()) + 1 if len(used) else 0
            queue = {"queue_idx": fill % self.memory_size, "has_been_filled": fill == self.memory_size}
            state_dict[f"{prefix}_extra_state"] = queue
        super()._load_from_state_dict(state_dict, prefix, *args)


def _written(memory: Tensor, place: Tensor, new: Tensor) -> Tensor:
    """The memory with new entries in these places; those whose place is -1 are in none."""
    spare = torch.cat((memory, memory[:1]))
    return spare.index_copy(0, torch.where(place < 0, len(memory), place), new.to(memory.dtype))[:-1]


def _wider(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """The dtype of labels of both: int64 for integers, and float64, which has all of them up to 2^53, if one is not."""
    return torch.float64 if first.is_floating_point or second.is_floating_point else torch.int64


def _joined(found: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Triplets where a miner finds triplets, and otherwise pairs."""
    convert: Any = to_triplets if len(found) == 3 else to_pairs
    return tuple(torch.cat(both) for both in zip(found, convert(given), strict=True))
