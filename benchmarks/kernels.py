"""What a step costs on a GPU, counted without one: kernels, bytes that they read and write, and waits for the device.

    python benchmarks/kernels.py                        a table of the losses that most people use
    python benchmarks/kernels.py --entries RAW NCA      of others
    python benchmarks/kernels.py --calls RAW            every kernel of one of them, with the line that calls it
    python benchmarks/kernels.py --labels-on-host       of labels as a data loader gives them
    python benchmarks/kernels.py --compiled             of losses under torch.compile, which fuses them
    python benchmarks/kernels.py --device cuda          the same on a GPU, to see that it is the same

A forward and backward pass is watched operator by operator. Views and allocations cost nothing, every other operator is
one kernel or, for a sort or an index, a few; it reads its tensors and writes its results once, a broadcast one once for
what is stored of it. Copies of labels from the host are not counted. On the CPU the losses are told that looking at a
number is not free, that blocks are those of a GPU and that no product is halved, which is all by which they choose: the
operators are a GPU's. Traffic is counted in matrices of n x n float32, the products apart. A wait is what makes the
host read a number of the device. Of a compiled loss the schedule is counted that inductor makes here: what it
has fused is one kernel, and reads and writes each tensor once.
"""

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dense
import pytorch_metric_learning
import torch
from dense import DENSE
from speed_jobs import Setting, batch, build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pml_ext
from pml_ext import thresholds
from pml_ext.pairs import pairs_from_host

USUAL = ("RAW", "MultiSimilarity", "BatchHard", "BatchAll", "SemiHard", "NCA", "Contrastive2018")
# Of which the host waits for the result.
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2", "bincount"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
NOTHING = {"detach", "alias", "lift_fresh", "_has_same_storage_numel", "resize_", "set_", "_reshape_alias"}
FOLDERS = tuple(str(Path(each.__file__).parent) for each in (pml_ext, pytorch_metric_learning))


@dataclass(frozen=True)
class Call:
    """One operator: its name, the bytes that it reads and writes, those of its largest tensor, and who called it."""

    name: str
    bytes: int
    largest: int
    where: str

    @property
    def is_product(self) -> bool:
        """Whether it is a product of matrices."""
        return self.name in PRODUCTS


@dataclass
class Watch(TorchDispatchMode):
    """Writes down every operator that is a kernel."""

    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and write it down."""
        given = dict(kwargs or {})
        result = func(*args, **given)
        name = func.overloadpacket.__name__
        if not (func.is_view or name in NOTHING or name.startswith(("empty", "new_empty"))):
            out = [x for x in tree_leaves(given.pop("out", None)) if isinstance(x, Tensor)]
            read = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
            # Of several tensors in place nothing is returned.
            written = out or [x for x in tree_leaves(args[0] if result is None else result) if isinstance(x, Tensor)]
            if name.rstrip("_") in ("fill", "zero", "copy") and read:
                read = read[1:]  # is only written to
            sizes = [stored_bytes(x) for x in (*read, *written)]
            self.calls.append(Call(name.rstrip("_") or name, sum(sizes), max(sizes, default=0), caller()))
        return result

    @property
    def products(self) -> int:
        """How many products of matrices there were."""
        return sum(call.is_product for call in self.calls)

    @property
    def kernels(self) -> int:
        """How many other kernels there were."""
        return len(self.calls) - self.products

    @property
    def waits(self) -> int:
        """How often the host waited."""
        return sum(call.name in WAITS for call in self.calls)

    def large(self, size: int) -> int:
        """How many kernels but products touched a tensor of so many bytes."""
        return sum(call.largest >= size and not call.is_product for call in self.calls)

    def traffic(self) -> int:
        """The bytes that were read and written, by all but products."""
        return sum(call.bytes for call in self.calls if not call.is_product)


def stored_bytes(x: Tensor) -> int:
    """The bytes that a tensor reads: each number once, however often it is broadcast."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * x.element_size()


def caller() -> str:
    """The innermost line of a loss that led here."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(FOLDERS) or path == dense.__file__:
            return f"{Path(path).parent.name}/{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd"


def as_on_a_gpu() -> AbstractContextManager[None]:
    """The choices of a GPU on the CPU: nothing is looked at, long blocks, no half of a symmetric matrix."""
    return thresholds.replaced(LOOKS=False, BLOCK_CPU=thresholds.BLOCK_GPU, SYMMETRIC_ROWS=1 << 30)


def watched(function: Any, setting: Setting, device: str, labels_on_host: bool = False) -> Watch:
    """The kernels of the second forward and backward pass."""
    x, labels = batch(setting, device)
    x.requires_grad_()

    def step(watch: Watch) -> Watch:
        x.grad = None
        # What a loss makes of labels on the host: here they are where the embeddings are.
        pairs = pairs_from_host(labels.cpu(), x.device) if labels_on_host else None
        with nullcontext() if device == "cuda" else as_on_a_gpu(), watch:
            (function(x, labels) if pairs is None else function.loss(x, labels, pairs)).backward()
        return watch

    step(Watch())
    return step(Watch())


def table(names: Sequence[str], setting: Setting, device: str, labels_on_host: bool = False) -> Iterator[str]:
    """The lines of a table in Markdown."""
    matrix = 4 * setting.n**2
    where = ", still on the host" if labels_on_host else ""
    yield f"n = {setting.n}, d = {setting.d}, {setting.per_class} per class, labels{where}; a step of a loss"
    yield ""
    yield "| | kernels | of these on n x n | n x n matrices read and written | products | waits |"
    yield "|---|---:|---:|---:|---:|---:|"
    jobs = [(name, build(name, setting)) for name in names]
    jobs += [(f"{name}, dense by autograd", DENSE[name]) for name in names if name in DENSE]
    for name, function in jobs:
        found = watched(function, setting, device, labels_on_host and "dense" not in name)
        cells = (
            found.kernels,
            found.large(matrix // 4),
            f"{found.traffic() / matrix:.1f}",
            found.products,
            found.waits,
        )
        yield f"| {name} | {' | '.join(map(str, cells))} |"


def scheduled(function: Any, setting: Setting, device: str) -> tuple[int, float, int]:
    """What inductor schedules for a forward and backward pass: kernels, n x n matrices that they move, products."""
    x, labels = batch(setting, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own parts
        from torch._inductor import compile_fx, config, metrics

        log = compile_fx.inductor_metrics_log  # nothing is counted that would not be written down
        log.setLevel(logging.INFO)
        log.addFilter(_drop)
        torch._dynamo.reset()
        metrics.reset()
        try:
            with config.patch(force_disable_caches=True):
                torch.compile(function, fullgraph=True)(x.requires_grad_(), labels).backward()
        finally:
            log.setLevel(logging.NOTSET)
            log.removeFilter(_drop)
    products = [4 * size for node, size in metrics.nodes_num_elem if _is_product(node)]
    kernels = len(metrics.nodes_num_elem) - len(products)
    return kernels, (metrics.num_bytes_accessed - sum(products)) / (4 * setting.n**2), len(products)


def _drop(_: logging.LogRecord) -> bool:
    return False


def _is_product(node: Any) -> bool:
    """Whether a node of inductor's schedule is a product of matrices."""
    names = [getattr(each.node, "python_kernel_name", None) or "" for each in getattr(node, "snodes", [node])]
    return any(name.rpartition(".")[2] in PRODUCTS for name in names)


def compiled(names: Sequence[str], setting: Setting, device: str) -> Iterator[str]:
    """The lines of a table of compiled losses in Markdown."""
    yield f"n = {setting.n}, d = {setting.d}, {setting.per_class} per class, labels; a step of torch.compile(loss)"
    yield ""
    yield "| | kernels | n x n matrices read and written | products |"
    yield "|---|---:|---:|---:|"
    for name in names:
        kernels, matrices, products = scheduled(build(name, setting).loss, setting, device)
        yield f"| {name} | {kernels} | {matrices:.1f} | {products} |"


def listed(name: str, setting: Setting, device: str, labels_on_host: bool = False) -> Iterator[str]:
    """Every kernel of one loss, and how many come from which line."""
    matrix = 4 * setting.n**2
    watch = watched(build(name, setting), setting, device, labels_on_host)
    for call in watch.calls:
        yield f"{call.bytes / matrix:8.3f}  {call.name:24} {call.where}"
    yield ""
    lines = Counter(call.where for call in watch.calls if not call.is_product)
    for where, count in lines.most_common():
        spent = sum(call.bytes for call in watch.calls if call.where == where and not call.is_product) / matrix
        yield f"{count:4} kernels {spent:8.2f} matrices  {where}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", nargs="+", default=USUAL, metavar="NAME", help="methods or losses")
    parser.add_argument("--calls", metavar="NAME", help="list the kernels of one")
    parser.add_argument(
        "--compiled", action="store_true", help="losses under torch.compile, which needs a C++ compiler"
    )
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--labels-on-host", action="store_true", help="labels that have not been moved to the device")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting = Setting(options.n, options.d, options.per_class)
    given = setting, options.device, options.labels_on_host
    lines = listed(options.calls, *given) if options.calls else table(options.entries, *given)
    for line in compiled(options.entries, *given[:2]) if options.compiled else lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
