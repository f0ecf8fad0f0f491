"""What processes tell each other before a call: that they mean the same, and how many samples each has."""

import re
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pml_ext import arguments
from pml_ext.pairs import PairMasks
from pml_ext.ranks import Group
from pml_ext.wrappers.distributed_batch import AllPairs, OwnPairs

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
# What must be the same on all processes, as an error names it.
_ALIKE = (
    "the dimension of embeddings",
    "the dtype of embeddings",
    "the dtype of labels",
    "the kind of indices_tuple",
    "the dtype of ref_emb",
    "the dtype of ref_labels",
    "the names of further arguments",
    "the loss and its miner",
)


class Call(NamedTuple):
    """The arguments of one call on this process, and what is called."""

    embeddings: Tensor
    labels: Any
    pairs: Any
    ref_emb: Any
    ref_labels: Any
    more: dict[str, Any]
    parts: tuple[nn.Module | None, ...]

    def check(self) -> None:
        """Raise an error for arguments that do not fit one another."""
        arguments.batch(self.embeddings, self.labels, self.ref_emb, self.ref_labels)
        for name, x in self.more.items():
            if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != len(self.embeddings):
                raise ValueError(f"{name} must be a tensor with one row for each of {len(self.embeddings)} samples")
        if isinstance(self.pairs, (list, tuple)) and not isinstance(self.pairs, (AllPairs, OwnPairs, PairMasks)):
            arguments.index_tuple(self.pairs)
        for x in (self.embeddings, self.labels, self.ref_emb, self.ref_labels):
            if x is not None and x.dtype not in _DTYPES:
                raise TypeError(f"embeddings and labels must be of a usual dtype, got {x.dtype}")

    def sizes(self) -> tuple[int, int]:
        """How many samples and references there are."""
        return len(self.embeddings), 0 if self.ref_emb is None else len(self.ref_emb)

    def kinds(self) -> tuple[int, ...]:
        """What must be the same on all processes, as numbers."""
        return (
            self.embeddings.shape[1],
            _dtype(self.embeddings),
            _dtype(self.labels),
            self._kind_of_pairs(),
            _dtype(self.ref_emb),
            _dtype(self.ref_labels),
            zlib.crc32(repr(sorted(self.more)).encode()),
            # Where an object lies in memory is no part of what it is.
            zlib.crc32(re.sub(r" at 0x[0-9a-f]+", "", repr(self.parts)).encode()),
        )

    def _kind_of_pairs(self) -> int:
        if self.pairs is None or isinstance(self.pairs, PairMasks):
            return 0 if self.pairs is None else 1
        return 2 if isinstance(self.pairs, (AllPairs, OwnPairs)) else len(self.pairs)


def agreed_sizes(group: Group, call: Call, *, equal_sizes: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the batches of all processes, and of their references.

    One small exchange, in which a process that was called with wrong arguments takes part: so the others do not wait
    for it in vain. With `equal_sizes` there is none.

    Raises:
        TypeError, ValueError: the arguments do not fit one another, or not those of the other processes.
        RuntimeError: another process has such an error.
    """
    try:
        call.check()
        sizes, kinds, wrong = call.sizes(), call.kinds(), None
    except (TypeError, ValueError) as error:
        sizes, kinds, wrong = (0, 0), (0,) * len(_ALIKE), error
    if equal_sizes:
        if wrong is not None:
            raise wrong
        return (sizes[0],) * group.size, (sizes[1],) * group.size
    device = call.embeddings.device if isinstance(call.embeddings, Tensor) else torch.device("cpu")
    every = group.all_gather(torch.tensor([int(wrong is None), *sizes, *kinds], device=device)).tolist()
    if wrong is not None:
        raise wrong
    failed = [rank for rank, (is_fine, *_) in enumerate(every) if not is_fine]
    if failed:
        raise RuntimeError(f"process {failed[0]} of {group.size} was called with wrong arguments, see its error")
    _, samples, references, *columns = zip(*every, strict=True)
    for name, values in zip(_ALIKE, columns, strict=True):
        if len(set(values)) > 1:
            raise ValueError(f"{name} must be the same on all processes, got {_told(name, values)}")
    return samples, references


def _dtype(x: Tensor | None) -> int:
    return -1 if x is None else _DTYPES.index(x.dtype)


def _told(name: str, values: tuple[int, ...]) -> str:
    """The values of all processes as a person reads them."""
    if "dtype" in name:
        return ", ".join("None" if value < 0 else str(_DTYPES[value]) for value in values)
    if "dimension" in name:
        return ", ".join(map(str, values))
    return f"another one on process {next(i for i, value in enumerate(values) if value != values[0])}"
