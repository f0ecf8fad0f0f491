"""The arguments of an experiment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

from pml_ext.benchmark import losses
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.datasets import DATASETS

if TYPE_CHECKING:
    from pml_ext.benchmark.result import Result


@dataclass(frozen=True)
class Experiment:
    """Train the same network with several losses and compare retrieval on unseen classes.

    Every run is one loss with one seed. The runs of a seed share the initial weights, the batches and the number of
    steps; only the loss differs. On a CPU, the same arguments and number of threads give the same numbers.

    Args:
        losses: names of `pml_ext.catalog`, of `pml_ext.trainers.methods` (methods that are trainers, whose other
            networks keep the learning rates of their papers) or of PML losses, or "all", the whole catalog. Default:
            RAW and PML's ContrastiveLoss and TripletMarginLoss.
        dataset: a name of `pml_ext.datasets.DATASETS`. Default "glyphs".
        epochs: how often to go through the training set. Default 12.
        seeds: one run of each loss per seed. Default (0,).
        device: "cpu", "cuda", "cuda:1", ...; "auto" is cuda where there is one. Default "auto".
        out: the folder for everything that is written; None is `runs/<dataset>-<date>-<time>`. Default None.
        steps: training steps per epoch; None is one pass over the training set. Default None.
        batch_size: images per training step. Default 128.
        classes_per_batch: classes per training step, at most; each has batch_size / classes images. Default 32.
        learning_rate: of Adam, for the network. Default 0.003.
        loss_learning_rate: of Adam, for a loss that has weights of its own (proxies, centres). Default 0.03.
        embedding_size: dimension of the embeddings. Default 64.

    Raises:
        BenchmarkError: an unknown loss, dataset or device, or a number out of range. It is a ValueError.

    Example:
        >>> Experiment(losses=("RAW", "ContrastiveLoss"), dataset="digits", epochs=3).seeds
        (0,)
        >>> Experiment(epochs=0)
        Traceback (most recent call last):
        ...
        pml_ext.benchmark.errors.BenchmarkError: epochs must be a whole number of at least 1, got 0
    """

    losses: tuple[str, ...] = ("RAW", "ContrastiveLoss", "TripletMarginLoss")
    dataset: str = "glyphs"
    epochs: int = 12
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    out: str | None = None
    steps: int | None = None
    batch_size: int = 128
    classes_per_batch: int = 32
    learning_rate: float = 0.003
    loss_learning_rate: float = 0.03
    embedding_size: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.losses, str):
            object.__setattr__(self, "losses", (self.losses,))
        names = losses.catalog_names() if tuple(self.losses) == ("all",) else tuple(self.losses)
        object.__setattr__(self, "losses", names)
        object.__setattr__(self, "seeds", tuple(self.seeds))
        _distinct("losses", self.losses)
        _distinct("seeds", self.seeds)
        for name in self.losses:
            _known("loss", name, losses.names())
        _known("dataset", self.dataset, list(DATASETS))
        for name, least in (("epochs", 1), ("batch_size", 4), ("classes_per_batch", 2), ("embedding_size", 1)):
            _whole(name, getattr(self, name), least)
        if self.steps is not None:
            _whole("steps", self.steps, 1)
        for seed in self.seeds:
            _whole("each seed", seed, 0)
            if seed >= 2**32:  # numpy's limit
                raise BenchmarkError(f"each seed must be below {2**32}, got {seed}")
        for name in ("learning_rate", "loss_learning_rate"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise BenchmarkError(f"{name} must be a finite number above 0, got {value!r}")
        _device(self.device)

    def torch_device(self) -> torch.device:
        """The device that the experiment runs on."""
        return _device(self.device)

    def arguments(self) -> dict[str, Any]:
        """The arguments as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def run(self, *, resume: bool = False, say: Callable[[str], None] = lambda line: None) -> list[Result]:
        """Run the experiment: `pml_ext.benchmark.run`."""
        from pml_ext.benchmark.run import run

        return run(self, resume=resume, say=say)


def _distinct(name: str, values: tuple[Any, ...]) -> None:
    if not values:
        raise BenchmarkError(f"{name} must not be empty")
    if len(set(values)) < len(values):
        raise BenchmarkError(f"{name} must be different from each other, got {', '.join(map(str, values))}")


def _known(kind: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    by_lower = {word.lower(): word for word in known}
    near = [by_lower[word] for word in get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise BenchmarkError(f"unknown {kind} {name!r}; {hint}")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BenchmarkError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise BenchmarkError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BenchmarkError(f"device {name!r} asked for, but torch {torch.__version__} sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise BenchmarkError(f"device {name!r} asked for, but there are {torch.cuda.device_count()} CUDA devices")
    elif device.type != "cpu":
        raise BenchmarkError(f"device {name!r} is not supported; known: auto, cpu, cuda, cuda:0, ...")
    return device
