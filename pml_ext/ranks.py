"""Several processes: who has which samples of a batch, and five operations between them that autograd follows.

A value v that every process computes is the same number on each, while its gradient on process r is a part of the
whole one: the parts of all processes add up to it. Whatever is made of such values is one again, for d h(v) = h'(v) dv
is linear in dv. Five operations make such values of one's own samples, and of their gradients what optimizers want:

    gather(x)          the rows of all; backward: the parts of the gradient are added up, each process gets its own
    gather_same(x)     the same where every process computes the same of it: backward: its own rows, nothing to add up
    add_up(h)          the sum over the processes; backward: nothing to do
    scaled(x, f)       the same number; backward: f times the gradient
    sum_of_parts(p)    the same number; backward: the parts of the gradient are added up

Every process must run the same of them in the same order, whatever its samples are, and though it has none: a value
that is made of no sample is `touched` by what was gathered, so that its backward pass runs there too.

Processes are a `Group`: those of `torch.distributed`, or threads in their place (`pml_ext.testing.threads`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pml_ext.vectors import at_least_single


class Group(ABC):
    """Processes that compute one loss. Subclasses say how they exchange tensors of equal shapes.

    Attributes:
        rank: which of them this is.
        size: how many there are.
    """

    rank: int
    size: int

    @abstractmethod
    def all_gather(self, x: Tensor) -> Tensor:
        """The tensors of all: [...] -> [size, ...]."""

    @abstractmethod
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of the tensors of all."""

    @abstractmethod
    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Of the sum of the tensors of all, [size, ...], the part with the number of this process."""

    @abstractmethod
    def of_first(self, x: Tensor) -> Tensor:
        """The tensor of the first process."""

    @abstractmethod
    def pass_on(self, x: Tensor, to: int, out: Tensor, source: int) -> "Pending":
        """Send x to one process while `out` is filled with what another one sends; both are done after `wait`."""

    def alone(self) -> AbstractContextManager[Any]:
        """While this lasts nobody else of the group in the same memory uses the global generators."""
        return nullcontext()


class Pending(ABC):
    """An exchange under way."""

    @abstractmethod
    def wait(self) -> None:
        """Return when it is done."""


class Processes(Group):
    """The processes of a group of `torch.distributed`; None for all."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(f"group does not hold this process, number {dist.get_rank()} of {dist.get_world_size()}")

    def all_gather(self, x: Tensor) -> Tensor:
        """The tensors of all, by one all-gather."""
        x = x.contiguous()
        out = x.new_empty(self.size, *x.shape)
        if x.numel():
            with self._together("all_gather"):
                _ALL_GATHER(out.view(-1), x.view(-1), group=self.group)
        return out

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum, by one all-reduce."""
        x = x.contiguous().clone()
        if x.numel():
            with self._together("all_reduce"):
                dist.all_reduce(x, group=self.group)
        return x

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This one's part of the sum, by one reduce-scatter."""
        x = x.contiguous()
        out = x.new_empty(x.shape[1:])
        if x.numel():
            with self._together("reduce_scatter"):
                _REDUCE_SCATTER(out.view(-1), x.view(-1), group=self.group)
        return out

    def of_first(self, x: Tensor) -> Tensor:
        """The tensor of the first, by one broadcast."""
        x = x.contiguous().clone()
        if x.numel():
            with self._together("broadcast"):
                dist.broadcast(x, self._number(0), group=self.group)
        return x

    def pass_on(self, x: Tensor, to: int, out: Tensor, source: int) -> "Pending":
        """By one message to each neighbor."""
        x, to, source = x.contiguous(), self._number(to), self._number(source)
        messages = [
            dist.P2POp(dist.isend, x, to, group=self.group),
            dist.P2POp(dist.irecv, out, source, group=self.group),
        ]
        with self._together("message"):
            return _Messages(self, dist.batch_isend_irecv([each for each in messages if each.tensor.numel()]), x)

    def _number(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.size} waited in vain for the others ({what}): one of them ended, raised "
                "an error, see its output, or computes something else"
            ) from error


class _Messages(Pending):
    def __init__(self, processes: Processes, requests: list[Any], sent: Tensor) -> None:
        self.processes, self.requests, self.sent = processes, requests, sent

    def wait(self) -> None:
        with self.processes._together("message"):
            for request in self.requests:
                request.wait()


# Renamed in torch 2.13.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", getattr(dist, "reduce_scatter_tensor", None))


def group_of(given: Any) -> Group | None:
    """The processes that are meant: a `Group`, one of `torch.distributed`, or None for all there are; None if one."""
    if not isinstance(given, Group):
        if not (dist.is_available() and dist.is_initialized()):
            return None
        given = Processes(given)
    return given if given.size > 1 else None


class Ranks(NamedTuple):
    """Who has how many rows of a batch, which holds those of the first process, those of the second, and so on.

    Args:
        group: the processes.
        sizes: how many rows each has.
    """

    group: Group
    sizes: tuple[int, ...]

    @property
    def offset(self) -> int:
        """The number of this process's first row."""
        return sum(self.sizes[: self.group.rank])

    @property
    def own(self) -> slice:
        """The rows of this process."""
        return slice(self.offset, self.offset + self.sizes[self.group.rank])

    @property
    def n(self) -> int:
        """The rows of all."""
        return sum(self.sizes)

    def padded(self, x: Tensor) -> Tensor:
        """Own rows, or rows of all, as each process exchanges them: all have as many."""
        most = max(self.sizes)
        if len(x) == most:
            return x
        out = x.new_zeros(most, *x.shape[1:])
        out[: len(x)] = x
        return out

    def all_rows(self, x: Tensor) -> Tensor:
        """The rows of all in the order of the ranks, without a gradient."""
        x = x.detach()
        # Not every backend sends booleans.
        sent = x.byte() if x.dtype == torch.bool else x
        every = self.group.all_gather(self.padded(sent))
        if min(self.sizes) == max(self.sizes):
            rows = every.flatten(0, 1)
        else:
            rows = torch.cat([part[:size] for part, size in zip(every, self.sizes, strict=True)])
        return rows.bool() if x.dtype == torch.bool else rows

    def own_rows_of_sum(self, x: Tensor) -> Tensor:
        """The sum over the processes of the rows of this one: [n, ...] -> [n_r, ...]."""
        parts = torch.stack([self.padded(part) for part in x.split(self.sizes)])
        return self.group.reduce_scatter(parts)[: self.sizes[self.group.rank]]


def gather(x: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all in at least single precision; each process contributes a part of their gradient."""
    rows: Tensor = _Gather.apply(x, ranks)
    return rows


def gather_same(x: Tensor, ranks: Ranks, rows: Tensor | None = None) -> Tensor:
    """The rows of all, of which every process computes the same; `rows` are they if they have been gathered already."""
    same: Tensor = _GatherSame.apply(x, ranks, rows)
    return same


def add_up(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes, of which every process computes the same."""
    total: Tensor = _AddUp.apply(x, group)
    return total


def total(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes, with which each goes on by itself: the gradients of all come back to each."""
    (same,) = sum_of_parts([add_up(x, group)], group)
    return same


def scaled(x: Tensor, factor: float) -> Tensor:
    """The same numbers with a multiple of their gradient. A view: who writes to it writes to x."""
    return x if factor == 1 else _hooked(x, lambda grad: grad * factor)


def sum_of_parts(tensors: list[Tensor], group: Group) -> list[Tensor]:
    """The same tensors, whose gradients are the sums of the parts of all processes. Views, as of `scaled`."""
    return [_hooked(x, group.all_reduce) for x in tensors]


def _hooked(x: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(hook)
    return x


def touched(value: Tensor, *tensors: Tensor) -> Tensor:
    """The same value, which depends on the tensors with a derivative of 0, so that their backward pass is run."""
    learned = [x for x in tensors if x.requires_grad]
    same: Tensor = _Touched.apply(value, *learned) if learned else value
    return same


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.dtype = ranks, x.dtype
        # Sent as they are; the parts of their gradient are added up in the precision in which they were computed.
        return at_least_single(ranks.all_rows(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.own_rows_of_sum(grad).to(ctx.dtype), None


class _GatherSame(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, rows: Tensor | None) -> Tensor:
        ctx.own, ctx.dtype = ranks.own, x.dtype
        return ranks.all_rows(x) if rows is None else rows.detach().view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.own].to(ctx.dtype), None, None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Touched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.like = [(x.shape, x.dtype, x.device) for x in tensors]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        # One number, which costs no memory.
        zeros = (torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)
        return grad, *zeros


@contextmanager
def same_random_numbers(group: Group, device: torch.device) -> Iterator[None]:
    """What is drawn here from the global generators every process draws as the first does; no exchange in here."""
    with group.alone():
        kept = _random_states(device)
    first = [group.of_first(state) for state in kept]
    with group.alone():
        before = _random_states(device)
        _set_random_states(device, first)
        try:
            yield
        finally:
            # The first goes on from there, as if it were alone; the others where they were.
            if group.rank:
                _set_random_states(device, before)


@contextmanager
def own_random_numbers(group: Group, device: torch.device) -> Iterator[None]:
    """What is drawn here from the global generators differs between processes, though all were given one seed."""
    with group.alone():
        number = int(torch.randint(2**62, (), device="cpu"))
        before = _random_states(device)
        digest = hashlib.sha256(f"{number} {group.rank}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        try:
            yield
        finally:
            _set_random_states(device, before)


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1].cpu(), device)
