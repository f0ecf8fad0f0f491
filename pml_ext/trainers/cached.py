"""Large batches in little memory: a network that keeps no activations and embeds in chunks."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as nests
from torch.utils.checkpoint import checkpoint

from pml_ext import arguments


@final
class Cached(nn.Module):
    r"""A network that embeds a batch in chunks, keeps no activations, and computes each chunk again in backward.

        forward:   x = [f(chunk 1), f(chunk 2), ..]                 only inputs and outputs are kept
        backward:  for each chunk  f(chunk) once more, dL/dtheta += df/dtheta^T dL/dx[chunk]

    The loss sees one batch of embeddings with a gradient, as from any network: any loss, miner, trainer, `GradScaler`,
    `DistributedLoss`, accumulation over several calls works with it unchanged. Memory grows with the chunk and not with
    the batch, at the cost of one more forward pass. A chunk is computed again with the same random numbers, under the
    same autocast, and from the buffers as they were; buffers, such as running statistics, are updated once and not
    twice.

    In several processes `DistributedDataParallel` may be outside or inside: it gets one call and reduces gradients once
    in a step, however many chunks a process has. A step without samples is one empty chunk.

    To compile, compile the network: `Cached(torch.compile(network), 32)`. Compiling the `Cached` would compile nothing.

    Args:
        network: any module that treats samples independently of one another.
        chunk_size: the largest number of samples that are embedded at a time, at least 1; chunks have near-equal sizes.
            Small chunks are as slow as small batches.

    Shape:
        Inputs: those of the network, tensors with one row for each sample, also nested in tuples, lists and dicts;
        tensors without dimensions are passed to every chunk unchanged. Outputs: tensors with one row for each sample,
        or nested ones.

    Source:
        Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, arXiv
        2101.06983 (GradCache), here as a module instead of a training step, built on `torch.utils.checkpoint`.

    Raises:
        TypeError, ValueError: a network that is not a module, a chunk size that is not a positive integer; in a call,
            inputs without a tensor or of different lengths, outputs that have no row for each sample, a `SyncBatchNorm`
            in training, whose processes would wait for each other's chunks.

    Warns:
        UserWarning: once, if a batch normalization in training takes its statistics from each chunk, not from the
            batch.

    Example:
        >>> import torch
        >>> from pml_ext.losses import RAWLoss
        >>> network = Cached(torch.nn.Linear(8, 2), chunk_size=16)
        >>> images, labels = torch.randn(64, 8), torch.arange(64) % 8
        >>> RAWLoss()(network(images), labels).backward()
        >>> network.network.weight.grad.shape
        torch.Size([2, 8])
    """

    def __init__(self, network: nn.Module, chunk_size: int) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a module, got {type(network).__name__}")
        self.network = network
        self.chunk_size: int = arguments.count("chunk_size", chunk_size)
        self._has_warned = False

    def extra_repr(self) -> str:
        """The size of a chunk."""
        return f"chunk_size={self.chunk_size}"

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the network for the batch."""
        self._look_for_batch_statistics()
        if not isinstance(self.network, DistributedDataParallel):
            return embed_in_chunks(self.network, self.chunk_size, args, kwargs)
        # It must see one call in a step: each one begins a round of communication.
        inner = self.network.module
        self.network.module = _Chunks(inner, self.chunk_size)
        try:
            return self.network(*args, **kwargs)
        finally:
            self.network.module = inner

    def _look_for_batch_statistics(self) -> None:
        norms = [
            (name, module)
            for name, module in self.network.named_modules()
            if isinstance(module, _BatchNorm) and module.training
        ]
        for name, module in norms:
            if isinstance(module, nn.SyncBatchNorm):
                raise ValueError(f"network must have no SyncBatchNorm in training, {name} is one: freeze it (.eval())")
        if norms and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"batch normalization sees chunks of {self.chunk_size} samples, not the batch: "
                f"{', '.join(name or 'the network' for name, _ in norms[:3])}; freeze it (.eval()), or use another "
                "normalization",
                stacklevel=3,
            )


class _Chunks(nn.Module):
    """A placeholder for the network while `DistributedDataParallel` calls it."""

    def __init__(self, network: nn.Module, chunk_size: int) -> None:
        super().__init__()
        self.network, self.chunk_size = network, chunk_size

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return embed_in_chunks(self.network, self.chunk_size, args, kwargs)


def embed_in_chunks(network: nn.Module, chunk_size: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outputs of a network, chunk by chunk; with a gradient, each chunk is computed again in backward."""
    leaves, structure = nests.tree_flatten((args, kwargs))
    rows = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves]
    lengths = sorted({len(leaf) for leaf, cut in zip(leaves, rows, strict=True) if cut})
    if len(lengths) != 1:
        found = "no tensor" if not lengths else f"lengths {', '.join(map(str, lengths))}"
        raise ValueError(f"the inputs must have one row for each sample of one batch, got {found}")
    learns = torch.is_grad_enabled()
    buffers = _Buffers(network)
    # Checkpoint keeps the random states of the devices that it finds among its arguments.
    places: list[Tensor] = list({parameter.device: parameter for parameter in network.parameters()}.values())
    parts = []
    # Of near-equal sizes: no last chunk of one sample, which has no variance. An empty batch is an empty chunk.
    number = max(1, -(-lengths[0] // chunk_size))
    bounds = [i * lengths[0] // number for i in range(number + 1)]
    for start, stop in pairwise(bounds):
        chunk = [x[start:stop] if cut else x for x, cut in zip(leaves, rows, strict=True)]
        run = _Run(network, structure, stop - start, buffers.now() if learns else {})
        output = run(*chunk) if not learns else _checkpointed(run, chunk, places)
        parts.append(output)
    return _joined(parts)


def _checkpointed(run: Callable[..., Any], chunk: list[Any], places: list[Tensor]) -> Any:
    def of_chunk(_: list[Tensor], *leaves: Any) -> Any:
        return run(*leaves)

    return checkpoint(of_chunk, places, *chunk, use_reentrant=False)


class _Run:
    """A network on one chunk: the first time as it is, and then once more from the buffers as they were."""

    def __init__(self, network: nn.Module, structure: Any, size: int, before: dict[str, Tensor]) -> None:
        self.network, self.structure, self.size, self.before = network, structure, size, before
        self.is_first = True

    def __call__(self, *leaves: Any) -> Any:
        args, kwargs = nests.tree_unflatten(leaves, self.structure)
        if self.is_first or not self.before:
            self.is_first = False
            output = self.network(*args, **kwargs)
        else:
            # Copies, which may move on a second time.
            again = {name: buffer.clone() for name, buffer in self.before.items()}
            output = functional_call(self.network, again, args, kwargs)
        for leaf in nests.tree_leaves(output):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != self.size:
                found = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(f"the network must return one row for each of {self.size} samples, got {found}")
        return output


class _Buffers:
    """Copies of a network's buffers, chunk by chunk; those that nothing has written to are copied once."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.known: dict[str, tuple[Tensor, int, Tensor]] = {}

    def now(self) -> dict[str, Tensor]:
        copies = {}
        for name, buffer in self.network.named_buffers():
            known = self.known.get(name)
            # Batch normalization writes to its statistics without a trace. They change nothing of its output.
            if known is None or known[0] is not buffer or known[1] != buffer._version:
                known = self.known[name] = (buffer, buffer._version, buffer.detach().clone())
            copies[name] = known[2]
        return copies


def _joined(parts: list[Any]) -> Any:
    """Outputs of the chunks, nests of tensors of one form, one after another."""
    leaves = [nests.tree_leaves(part) for part in parts]
    _, structure = nests.tree_flatten(parts[0])
    return nests.tree_unflatten([torch.cat(same) for same in zip(*leaves, strict=True)], structure)
