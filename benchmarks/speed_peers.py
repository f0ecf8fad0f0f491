"""Our losses beside what other packages have of the same formula, in one run: `python benchmarks/speed.py --peers`.

Whoever is installed takes part: pytorch-metric-learning, sentence-transformers and open-metric-learning (the extra
`peers`), and the dense formulation that a user would write, compiled by torch.compile. All get the same unit vectors.
On a GPU each loss also runs with TF32 products, with bfloat16 embeddings, as a CUDA graph and, ours, in chunks of up to
65,536 anchors. One line of peers.jsonl for each contender, a page that says where we are not first, and its picture:
`speed_peers_page.py`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dense import DENSE
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from speed_jobs import Setting, Step, batch, build, floor, set_chunk_size
from speed_measure import Times, times
from speed_peers_page import OURS, Found, head, write
from torch import Tensor

from pml_ext import wrappers

ROWS = ("RAW", "MultiSimilarity", "BatchAll", "BatchHard", "SemiHard", "NCA", "Contrastive2018")
SETTINGS = tuple(Setting(*each) for each in product((64, 128, 256, 1024, 4096), (128, 512), (4, 32)))
# Of a queue of eight batches, compared with two products of the batch and the queue.
QUEUES = (Setting(64, 128, 4), Setting(512, 128, 4), Setting(512, 512, 4))
QUEUE_LENGTH = 8
CHUNKED = (Setting(16_384, 128, 4), Setting(65_536, 128, 4))
# Numbers of triplets that take PML or sentence-transformers some gigabytes.
MOST_TRIPLETS, MOST_CUBE = 3e7, 4e8
KINDS = ("float32", "tf32", "bfloat16", "graph")
# Beyond this batch half precision takes hours on a CPU that has no arithmetic for it.
KINDS_ON_CPU, LARGEST_OF_ALL_KINDS = ("float32", "bfloat16"), 1024
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """Somebody's loss of one task.

    Args:
        task: what is computed: the name of ours, and how pairs are given.
        whose: the package.
        make: of embeddings and labels, the loss.
        kind: how it is run, one of ``KINDS``.
    """

    task: str
    whose: str
    make: Callable[[Tensor, Tensor], Loss]
    kind: str = "float32"

    @property
    def key(self) -> str:
        """A name of its own."""
        return f"{self.task} | {self.whose} | {self.kind}"

    def step(self, setting: Setting, x: Tensor, labels: Tensor) -> Step:
        """One forward and backward pass, ready to be run again and again."""
        x = x.to(torch.bfloat16) if self.kind == "bfloat16" else x.clone()
        loss, x = self.make(x, labels), x.requires_grad_()
        if self.kind == "graph":
            loss = torch.cuda.make_graphed_callables(_Module(loss, labels), (x,))

        def step() -> None:
            x.grad = None
            with _products_in_tf32(self.kind == "tf32"):
                (loss(x) if self.kind == "graph" else loss(x, labels)).backward()

        return step


class _Module(torch.nn.Module):
    """A loss of embeddings alone, to be captured."""

    def __init__(self, loss: Loss, labels: Tensor) -> None:
        super().__init__()
        self.loss, self.labels = loss, labels

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(x, self.labels)


@contextmanager
def _products_in_tf32(yes: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = yes
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def always(make: Callable[[], Loss]) -> Callable[[Tensor, Tensor], Loss]:
    """A loss that nothing is prepared for."""
    return lambda x, labels: make()


def by_labels(setting: Setting) -> Iterator[Contender]:
    """All losses that are given labels."""
    for name in ROWS:
        yield Contender(name, OURS, always(lambda name=name: build(name, setting)))
    stock: dict[str, tuple[Any, Any]] = {
        "RAW": (pml_losses.MultiSimilarityLoss(), pml_miners.MultiSimilarityMiner()),
        "MultiSimilarity": (pml_losses.MultiSimilarityLoss(), None),
        "BatchHard": (pml_losses.TripletMarginLoss(margin=0.2), pml_miners.BatchHardMiner()),
        "NCA": (pml_losses.NCALoss(softmax_scale=16), None),
        "Contrastive2018": (pml_losses.ContrastiveLoss(0.6, 1.2), None),
    }
    if setting.triplets < MOST_TRIPLETS:
        stock["BatchAll"] = (pml_losses.TripletMarginLoss(margin=0.02), None)
    for name, (loss, miner) in stock.items():
        yield Contender(name, "PML", always(lambda loss=loss, miner=miner: _mined(loss, miner)))
    yield from sentence_transformers(setting)
    yield from open_metric_learning()


def _mined(loss: Any, miner: Any) -> Loss:
    return loss if miner is None else lambda x, labels: loss(x, labels, miner(x, labels))


def sentence_transformers(setting: Setting) -> Iterator[Contender]:
    """Those that compare all of a batch."""
    losses = _imported("sentence_transformers.sentence_transformer.losses")
    if losses is None:
        return
    kinds = {"BatchHard": ("BatchHardTripletLoss", 0.2), "SemiHard": ("BatchSemiHardTripletLoss", 1.0)}
    if setting.n**3 < MOST_CUBE:
        kinds["BatchAll"] = ("BatchAllTripletLoss", 0.02)
    for name, (theirs, margin) in kinds.items():
        loss = getattr(losses, theirs)(model=torch.nn.Identity(), margin=margin)
        yield Contender(
            name,
            "sentence-transformers",
            always(lambda loss=loss: lambda x, labels: loss.compute_loss_from_embeddings([x], labels)),
        )


def open_metric_learning() -> Iterator[Contender]:
    """Its triplet loss with the hardest triplet of each anchor."""
    losses = _imported("oml.losses.triplet")
    miners = losses and _imported("oml.miners.inbatch_hard_tri")
    if not miners:
        return
    loss = losses.TripletLossWithMiner(margin=0.2, miner=miners.HardTripletsMiner())
    yield Contender("BatchHard", "OML", always(lambda: lambda x, labels: loss(x, labels)))


@cache
def _imported(name: str) -> Any:
    """A module, or None, said once, where it is not installed or cannot be imported."""
    # Not from this folder, in which a script is called as a package that sentence-transformers asks for.
    before = list(sys.path)
    sys.path[:] = [folder for folder in before if Path(folder).resolve() != Path(__file__).resolve().parent]
    try:
        return import_module(name)
    except Exception as error:  # whatever happens in there
        print(f"    without {name.split('.')[0]}: {type(error).__name__}: {error}")
        return None
    finally:
        sys.path[:] = before


def compiled(seconds: dict[str, float]) -> Iterator[Contender]:
    """Dense formulations; how long the first call takes is written into the dictionary."""

    def made(name: str) -> Callable[[Tensor, Tensor], Loss]:
        def make(x: Tensor, labels: Tensor) -> Loss:
            loss = torch.compile(DENSE[name], fullgraph=True, dynamic=False)
            start = time.perf_counter()
            with torch.compiler.config.patch(force_disable_caches=True):  # those of earlier runs, on the disk
                loss(x.detach().clone().requires_grad_(), labels).backward()
            seconds[name] = time.perf_counter() - start
            return loss

        return make

    for name in DENSE:
        yield Contender(name, "dense, torch.compile", made(name))


def by_tuples(setting: Setting) -> Iterator[Contender]:
    """The loss alone, given the index tuples of a stock miner."""
    miners = {
        "MultiSimilarity": (pml_miners.MultiSimilarityMiner(), pml_losses.MultiSimilarityLoss()),
        "BatchAll": (pml_miners.TripletMarginMiner(0.02, "semihard"), pml_losses.TripletMarginLoss(margin=0.02)),
        "BatchHard": (pml_miners.BatchHardMiner(), pml_losses.TripletMarginLoss(margin=0.2)),
    }
    if setting.triplets > MOST_TRIPLETS:
        del miners["BatchAll"]  # its miner makes all triplets first

    def given(loss: Any, miner: Any) -> Callable[[Tensor, Tensor], Loss]:
        def make(x: Tensor, labels: Tensor) -> Loss:
            found = miner(x.detach().to(torch.promote_types(x.dtype, torch.float32)), labels)
            return lambda x, labels: loss(x, labels, found)

        return make

    for name, (miner, stock) in miners.items():
        ours = build(name, setting).loss
        task = f"{name}, tuples of {type(miner).__name__}"
        yield Contender(task, OURS, given(ours, miner))
        yield Contender(task, "PML", given(stock, miner))


def of_queue(setting: Setting) -> Iterator[Contender]:
    """A queue that is full."""
    length = QUEUE_LENGTH * setting.n

    def filled(make: Callable[[], Any]) -> Callable[[Tensor, Tensor], Loss]:
        def make_filled(x: Tensor, labels: Tensor) -> Loss:
            queue = make().to(x.device)
            for _ in range(QUEUE_LENGTH):
                queue(torch.nn.functional.normalize(x.detach() + 0.1 * torch.randn_like(x)), labels)
            return queue

        return make_filled

    for name in ("RAW", "BatchHard", "BatchAll", "MultiSimilarity"):
        yield Contender(
            f"{name}, queue",
            OURS,
            filled(lambda name=name: wrappers.CrossBatchMemory(build(name, setting).loss, setting.d, length)),
        )
    yield Contender(
        "MultiSimilarity, queue",
        "PML",
        filled(lambda: pml_losses.CrossBatchMemory(pml_losses.MultiSimilarityLoss(), setting.d, length)),
    )


def queue_floor(setting: Setting, device: str) -> Step:
    """Two products: the queue has no gradient."""
    x, _ = batch(setting, device)
    queue, _ = batch(setting._replace(n=QUEUE_LENGTH * setting.n), device)
    grad = torch.randn(len(x), len(queue), device=device)

    def step() -> None:
        leaf = x.clone().requires_grad_()
        (leaf @ queue.t()).backward(grad)

    return step


def chunked() -> Iterator[Contender]:
    """Ours, in chunks, where the matrix of pairs would be 17 GB."""
    for name in ("RAW", "BatchAll", "NCA"):

        def make(x: Tensor, labels: Tensor, name: str = name) -> Loss:
            loss = build(name, Setting(*x.shape, 4))
            set_chunk_size(loss, 4096)
            return loss

        yield Contender(f"{name}, chunk_size=4096", OURS, make)


def measured(
    setting: Setting, contenders: Iterable[Contender], device: str, base: Step, rounds: int, seconds: float
) -> Iterator[Found]:
    """All contenders in one run."""
    contenders = list(contenders)
    results = times(contenders, setting, device, rounds=rounds, budget=seconds, base=base)
    for one in contenders:
        got = results[one.key]
        if isinstance(got, Times):
            yield Found(one.task, one.whose, one.kind, *setting, round(got.ratio, 4), round(got.seconds, 9))
        else:
            note = f"{type(got).__name__}: {got}".splitlines()[0][:160]
            yield Found(one.task, one.whose, one.kind, *setting, None, None, note)


def kinds_of(contenders: Sequence[Contender], device: str, n: int) -> list[Contender]:
    """The same in half precision too; on a GPU with TF32 and as graphs, besides."""
    of_cpu = KINDS_ON_CPU if n <= LARGEST_OF_ALL_KINDS else KINDS_ON_CPU[:1]
    return [
        Contender(one.task, one.whose, one.make, kind)
        for kind in (of_cpu if device == "cpu" else KINDS)
        for one in contenders
    ]


def run(options: Any) -> None:
    """Measure, write the lines as they come, and the page."""
    device, compiles = options.device, not options.no_compile
    path = options.out / "peers.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = product(options.n or (), options.d or [512], options.per_class or [4])
    settings = [Setting(*each) for each in chosen] or SETTINGS
    found: list[Found] = []

    def add(lines: Iterable[Found]) -> None:
        for line in lines:
            found.append(line)
            path.write_text("".join(json.dumps(each._asdict()) + "\n" for each in found), encoding="utf-8")
            print("   ", line.task, line.whose, line.kind, line.ratio, line.note, flush=True)

    rounds, seconds = (3, 0.0) if options.quick else (options.rounds, options.seconds)
    wanted = set(options.entries or ())
    for setting in settings:
        print(f"n = {setting.n}, d = {setting.d}, {setting.per_class} per class", flush=True)
        spent: dict[str, float] = {}
        contenders = [*by_labels(setting), *by_tuples(setting)]
        if compiles:
            torch._dynamo.reset()
            contenders += compiled(spent)
        contenders = [one for one in contenders if not wanted or one.task.split(",")[0] in wanted]
        contenders = kinds_of(contenders, device, setting.n)
        lines = measured(setting, contenders, device, floor(setting, device), rounds, seconds)
        add(_with_compilation(line, spent) for line in lines)
    for setting in () if options.n else QUEUES:
        add(measured(setting, of_queue(setting), device, queue_floor(setting, device), rounds, seconds))
    for setting in CHUNKED if device == "cuda" and not options.n else ():
        add(measured(setting, chunked(), device, floor(Setting(4096, setting.d, 4), device), rounds, seconds))
    write(found, head(device), options.out)


def _with_compilation(line: Found, seconds: dict[str, float]) -> Found:
    is_compiled = "torch.compile" in line.whose and line.ratio is not None
    return line._replace(note=f"compiled in {seconds[line.task]:.0f} s") if is_compiled else line
