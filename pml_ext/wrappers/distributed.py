"""Losses and miners of a batch that is distributed over several processes."""

from typing import Any, Literal, final

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor, nn
from torch.func import functional_call

from pml_ext import _pml, arguments
from pml_ext.pairs import IndicesTuple
from pml_ext.ranks import Group, Ranks, gather, group_of, scaled, sum_of_parts, touched
from pml_ext.vectors import at_least_single
from pml_ext.wrappers.base import refuses_indices, runs_by_rows
from pml_ext.wrappers.distributed_batch import Set, Shard, of_all
from pml_ext.wrappers.distributed_call import Call, agreed_sizes
from pml_ext.wrappers.distributed_ring import Job, ring_losses, streamed
from pml_ext.wrappers.distributed_values import global_value, mined, of_anchors
from pml_ext.wrappers.distributed_views import VIEWS, as_batch
from pml_ext.wrappers.mined import mined_pairs

Gradients = Literal["averaged", "summed"]


@final
class DistributedLoss(nn.Module):
    r"""Computes the loss of the batch of all processes; each passes its own samples and does a share of the work.

        value on every process = L(x, y) ,   x = [x_0, x_1, .., x_(W-1)], the samples of the W processes in their order

    The value is the same number on every process, that of one process with the whole batch. So are the gradients of the
    network, once averaged over the processes as `DistributedDataParallel` does, and those of the loss's own parameters,
    with or without `DistributedDataParallel` around this loss; these parameters are initialized from the first process.
    No loss or gradient has to be multiplied or reduced by hand::

        model = DistributedDataParallel(network)
        loss = DistributedLoss(RAWLoss(chunk_size=256), miner=MultiSimilarityMiner())
        loss(model(images), labels).backward()

    A row loss, that is every `RowLoss` and the wrappers of one, is computed for the anchors of the own process (those
    whose samples it holds) against the samples of all processes: 1/W of the work and of the memory. So are those losses
    of PML that `accelerate` knows, which exchange sums of each row, and `HistogramLoss`, `LiftedStructureLoss` and
    `MeanGapLoss`, which consist of sums over rows, the last two only for batches whose memory matters (some 2,000
    samples or more). Any other loss is computed from all samples by every process, and so are the pairs of a miner that
    does not select row by row. Batches may have any size on each process, including 0. Without a process group, or in
    one process, this is the loss itself.

    Args:
        loss: any loss, of this package, of PML or user-defined, including wrappers and `MultipleLosses`. A
            `SelfSupervisedLoss` is called with views; the queue of a memory is the same on every process.
        miner: None, or a miner, which finds pairs of own samples with the samples of all. One that draws for each row
            draws independently on each process; one with a `seed` draws what it would draw in one process.
        group: None for all processes, or a group of `torch.distributed`.
        gradients: how the gradients of the network are combined over the processes: "averaged" (default), for example
            by `DistributedDataParallel`, or "summed".
        equal_sizes: whether the batches are known to have the same size on all processes: sizes and types are then
            exchanged and compared in the first call only. Default False.
        ring: whether the references are passed from process to process, so that none holds those of all: memory is
            linear in the number of own samples, and the results are the same. For `RAWLoss`, `MultiSimilarityLoss`,
            `BinomialDevianceLoss`, `AnchorContrastiveLoss`, `BatchHardTripletLoss`, `GeneralizedLiftedStructureLoss`,
            `LogSumExpPairLoss`, and `KNNSoftmaxLoss` with k=None, with labels. Default False.

    Shape:
        embeddings [n_r, d], labels [n_r] of the n_r samples of process r, its own samples -> a scalar. Optionally an
        `indices_tuple`: what a `DistributedMiner` returned, or indices or square `PairMasks` of own samples; ref_emb
        [m_r, d], ref_labels [m_r], own references; and other arguments of the loss by name, with one row for each own
        sample.

    Defaults:
        Those of the loss.

    Source:
        Ours, in place of PML's `DistributedLossWrapper`. That wrapper returns the loss times the number of processes,
        and puts own samples first, so that losses that depend on the order, draw at random or keep a state differ
        between the processes; it multiplies the gradient of the loss's own parameters by the number of processes; it
        needs batches of equal size; and every process computes everything. With `efficient=True` its gradients are not
        those of the whole batch.

    Raises:
        TypeError, ValueError: a loss that is not a module, a miner that is not a PML miner, an unknown value of
            `gradients`; in a call, processes with different dimensions, dtypes, arguments or losses.
        RuntimeError: another process failed or ended, reported within the time-out of the group.

    Example:
        >>> import torch
        >>> from pml_ext.losses import RAWLoss
        >>> from pml_ext.testing import run_as_ranks
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> def of_own_samples(group):  # two threads take the place of processes
        ...     own = slice(0, 3) if group.rank == 0 else slice(3, 4)
        ...     return DistributedLoss(RAWLoss(), group=group)(embeddings[own], labels[own])
        >>> RAWLoss()(embeddings, labels), *run_as_ranks(2, of_own_samples)
        (tensor(0.2795), tensor(0.2795), tensor(0.2795))
    """

    def __init__(
        self,
        loss: nn.Module,
        miner: nn.Module | None = None,
        *,
        group: Any = None,
        gradients: Gradients = "averaged",
        equal_sizes: bool = False,
        ring: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a loss (a torch module), got {type(loss).__name__}")
        if miner is not None and not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a PML miner (a BaseMiner), got {type(miner).__name__}")
        if miner is not None and (isinstance(loss, VIEWS) or refuses_indices(loss)):
            raise TypeError(f"loss must take an indices_tuple to have a miner, {type(loss).__name__} does not")
        if gradients not in ("averaged", "summed"):
            raise ValueError(f"gradients must be 'averaged' or 'summed', got {gradients!r}")
        self.loss: Any = loss
        self.miner: Any = miner
        self.group = group
        self.gradients: Gradients = gradients
        self.equal_sizes: bool = arguments.flag("equal_sizes", equal_sizes)
        self.ring: bool = arguments.flag("ring", ring)
        if ring:
            _check_streamed(loss, miner)
        self._is_alike = False

    def extra_repr(self) -> str:
        """How gradients are combined."""
        return f"gradients={self.gradients!r}, equal_sizes={self.equal_sizes}, ring={self.ring}"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *views: Tensor,
        **more: Tensor,
    ) -> Tensor:
        """The loss of the batch of all processes, given own samples."""
        group = group_of(self.group)
        if isinstance(self.loss, VIEWS):
            given: list[Any] = [x for x in (labels, indices_tuple, ref_emb, ref_labels, *views) if x is not None]
            if group is None:
                of_views: Any = self.loss
                value: Tensor = of_views(embeddings, *given, **more)
                return value
            return self._of_views(group, [embeddings, *given], more)
        if group is None:
            return self._alone(embeddings, labels, indices_tuple, ref_emb, ref_labels, more)
        return self._together(group, self.loss, (embeddings, labels, indices_tuple, ref_emb, ref_labels), more)

    def _alone(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        more: dict[str, Any],
    ) -> Tensor:
        if indices_tuple is None and self.miner is not None:
            if labels is None:
                raise ValueError("a miner needs labels, got None")
            indices_tuple = mined_pairs(self.miner, self.loss, embeddings, labels, ref_emb, ref_labels)
        given = () if indices_tuple is None and ref_emb is None else (indices_tuple,)
        refs = () if ref_emb is None else (ref_emb, ref_labels)
        value: Tensor = self.loss(embeddings, labels, *given, *refs, **more)
        return value

    def _of_views(self, group: Group, views: list[Tensor], more: dict[str, Any]) -> Tensor:
        loss: Any = self.loss
        batch, more = as_batch(group, views, loss.symmetric, more)
        return self._together(group, loss.loss, batch, more)

    def _together(self, group: Group, loss: nn.Module, given: tuple[Any, ...], more: dict[str, Any]) -> Tensor:
        embeddings, labels, pairs, ref_emb, ref_labels = given
        call = Call(embeddings, labels, pairs, ref_emb, ref_labels, more, (self.loss, self.miner))
        # Once they are compared in any case.
        sizes, ref_sizes = agreed_sizes(group, call, equal_sizes=self.equal_sizes and self._is_alike)
        if not self._is_alike:
            self._begin_alike(group)
        parameters = {name: p for name, p in self.named_parameters() if p.requires_grad}
        # The first of all, so that it is the last in the backward pass of each process.
        summed = sum_of_parts(list(parameters.values()), group) if parameters else []
        factor = group.size if self.gradients == "averaged" else 1

        if self.ring:
            return _in_a_ring(loss, scaled(embeddings, factor), labels, pairs, ref_emb, Ranks(group, sizes))

        def placed(x: Tensor, y: Tensor | None, ranks: Ranks) -> Set:
            own = scaled(x, factor)
            known = None if y is None else ranks.all_rows(y.to(x.device))
            return Set(ranks, own, gather(own, ranks), known)

        anchors = placed(embeddings, labels, Ranks(group, sizes))
        references = None if ref_emb is None else placed(ref_emb, ref_labels, Ranks(group, ref_sizes))
        own = anchors.given.to(anchors.rows.dtype)
        every = {name: anchors.ranks.all_rows(x) for name, x in more.items()}
        shard = Shard(anchors, own, references, every)
        value = functional_call(
            _Value(self, loss), {f"whole.{name}": p for name, p in zip(parameters, summed, strict=True)}, (shard, pairs)
        )
        reached = [anchors.rows, *([] if references is None else [references.rows])]
        return touched(value, *reached, *summed)

    def _begin_alike(self, group: Group) -> None:
        """Parameters and buffers as on the first process."""
        with torch.no_grad():
            for tensor in [*self.parameters(), *self.buffers()]:
                if tensor.numel():
                    tensor.copy_(group.of_first(tensor.detach()))
        self._is_alike = True


def _check_streamed(loss: Any, miner: Any) -> None:
    if not (runs_by_rows(loss) and streamed(loss) is not None):
        raise ValueError(f"ring supports only losses as DistributedLoss lists them, got {type(loss).__name__}")
    if miner is not None:
        raise ValueError(f"ring uses all pairs and takes no miner, got {type(miner).__name__}")
    if loss.embedding_regularizer is not None or any(p.requires_grad for p in loss.parameters()):
        raise ValueError("ring needs a loss without embedding_regularizer and without parameters")


def _in_a_ring(loss: Any, own: Tensor, labels: Any, pairs: Any, ref_emb: Any, ranks: Ranks) -> Tensor:
    """The loss of the batch of all, of which no process holds all."""
    if labels is None or pairs is not None or ref_emb is not None:
        raise ValueError("ring takes labels, and neither indices_tuple nor ref_emb")
    x, known = at_least_single(own), ranks.all_rows(labels.to(own.device))
    shard = Shard(Set(ranks, x, x, known), x, None, {})
    form = streamed(loss)
    assert form is not None
    _pml.reset_stats(loss)
    if ranks.n < (3 if loss.needs == "both" else 2):
        loss_dict = dict(loss.zero_losses())
    else:
        loss_dict = of_anchors(*ring_losses(Job(loss, form, ranks, known), x), shard)
    # What a reducer asks of the embeddings is a zero; PML 3 counts them too, one for each label.
    every = x[:0].sum().expand(len(known), 1) if _pml.HAS_TERMS else x
    return touched(torch.as_tensor(_pml.finish(loss, loss_dict, every, known), device=x.device), x)


class _Value(nn.Module):
    """What is computed while the parameters are replaced by those whose gradients are added up."""

    def __init__(self, whole: DistributedLoss, loss: nn.Module) -> None:
        super().__init__()
        self.whole, self.loss = whole, (loss,)

    def forward(self, shard: Shard, given: Any) -> Tensor:
        (loss,) = self.loss
        pairs = of_all(shard, given)
        if pairs is None and self.whole.miner is not None:
            pairs = mined(self.whole.miner, loss, shard)
        value: Tensor = global_value(loss, shard, pairs)
        return value


@final
class DistributedMiner(nn.Module):
    r"""Mines pairs of the samples of this process with those of all processes, for a `DistributedLoss`.

        loss(x, y, miner(x, y))   is   DistributedLoss(L)(x, y, DistributedMiner(M)(x, y)) ,   x and y own samples

    A miner that selects row by row selects for own anchors only. Any other miner mines the samples of all processes on
    every process, and finds what it finds in one process. A miner that is passed to the `DistributedLoss` itself needs
    less memory.

    Args:
        miner: a PML miner.
        group: None for all processes, or a group of `torch.distributed`.

    Shape:
        embeddings [n_r, d], labels [n_r], and optionally references [m_r, d] with [m_r] -> pairs for a
        `DistributedLoss`; in one process, what the miner returns.

    Defaults:
        Those of the miner.

    Source:
        Ours, instead of PML's `DistributedMinerWrapper`, whose order of samples differs between the processes.

    Raises:
        TypeError: a miner that is not a PML miner.
        ValueError: in a call, processes with different dimensions, dtypes, arguments or miners.

    Example:
        >>> import torch
        >>> from pml_ext.miners import HardNegativePairMiner
        >>> from pml_ext.testing import run_as_ranks
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> def of_own_samples(group):  # two threads take the place of processes
        ...     own = slice(0, 3) if group.rank == 0 else slice(3, 4)
        ...     return DistributedMiner(HardNegativePairMiner(epsilon=0), group=group)(embeddings[own], labels[own])
        >>> [pairs.neg.nonzero().tolist() for pairs in run_as_ranks(2, of_own_samples)]
        [[[1, 2]], []]
    """

    def __init__(self, miner: nn.Module, *, group: Any = None) -> None:
        super().__init__()
        if not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a PML miner (a BaseMiner), got {type(miner).__name__}")
        self.miner: Any = miner
        self.group: Any = group

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The pairs of own anchors, or of all."""
        group = group_of(self.group)
        if group is None:
            return _pml.mine(self.miner, embeddings, labels, ref_emb, ref_labels)
        call = Call(embeddings, labels, None, ref_emb, ref_labels, {}, (self.miner,))
        sizes, ref_sizes = agreed_sizes(group, call)

        def placed(x: Tensor, y: Tensor, ranks: Ranks) -> Set:
            return Set(ranks, x, gather(x, ranks), ranks.all_rows(y.to(x.device)))

        anchors = placed(embeddings, labels, Ranks(group, sizes))
        references = None
        if ref_emb is not None and ref_labels is not None:
            references = placed(ref_emb, ref_labels, Ranks(group, ref_sizes))
        # No loss whose scores it could share.
        return mined(self.miner, nn.Identity(), Shard(anchors, anchors.given.to(anchors.rows.dtype), references, {}))
