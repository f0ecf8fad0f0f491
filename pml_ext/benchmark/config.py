"""The arguments of an experiment: a frozen dataclass whose fields are also the flags of the command line.

Nothing heavy is imported here: a mistake is known, and `--help` printed, before torch is.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_ext.benchmark import names
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.kinds import Anything, Kind, Number, Several, Switch, Text, Whole, did_you_mean
from pml_ext.shown import on_a_screen, table, wrapped

if TYPE_CHECKING:
    from pml_ext.benchmark.results import Results

PROTOCOLS = Path(__file__).resolve().parent / "protocols"
# What may be given anew when an experiment is continued: it grows, or runs elsewhere.
GROWING = ("losses", "seeds", "epochs")
MOVING = ("device", "workers", "cache", "out")


def _flag(default: Any, kind: Kind, text: str, *, group: str, metavar: str = "N", none: str | None = None) -> Any:
    """A field and its flag. `none` says what None, the default then, stands for."""
    return field(
        default=default, metadata={"kind": kind, "help": text, "group": group, "metavar": metavar, "none": none}
    )


@dataclass(frozen=True, repr=False)
class Experiment:
    """Train the same network with several losses and compare retrieval on unseen classes.

    Every run is one loss with one seed (and one fold). The runs of a seed share the initial weights, the batches and
    the number of steps; only the loss differs. On a CPU, the same arguments and number of threads give the same
    numbers. The model is chosen on validation classes, which are split off from the training classes; the test classes
    are used only after training.

    Every argument is a flag of `python -m pml_ext.benchmark` too, with hyphens; `--help` describes each.

    Args:
        data: what to train and test on: "glyphs" or "digits", a folder with a sub-folder per class, a list (.csv), an
            official layout ("cub:FOLDER", also cars196, sop, in_shop, omniglot), a file of vectors (.npy, .npz, .pt),
            or a Dataset object. Default "glyphs".
        losses: names of `pml_ext.catalog`, with arguments or without ("RAW", "RAW(gamma=0.3)"), of
            `pml_ext.trainers.methods`, class names of `pml_ext.losses` or of PML ("pml:TripletMarginLoss"),
            "module:name" of your own, or losses, pairs of a loss and a miner, recipes, and functions of embeddings and
            labels; "all" is the whole catalog. Default: RAW and PML's ContrastiveLoss and TripletMarginLoss.
        seeds: one run of each loss per seed; from Python, one number n stands for the n seeds from 0: 3 is (0, 1, 2).
            Default (0,).
        folds: split the training classes into this many parts, and train as many times, each time with another part as
            validation classes; None is one run with one set of validation classes. Default None.
        validation: share of the training classes on which the best epoch is chosen; 0 takes the last epoch. None is the
            validation split of the data set, if it has one, otherwise a third if there are at least 6 training classes.
            Default None.
        trunk: "conv4", "efficientnet_lite0", "timm:NAME", "torchvision:NAME", "module:factory" or a module.
            Default "conv4".
        weights: a file of weights for the trunk, also that of a kept model. Default None: its own pretrained weights.
        head: initialization of the embedding layer: "random" or "pca" (of the features); None is "pca" with `frozen` or
            if the data are vectors, else "random". Default None.
        embedding_size: dimension of the embeddings. Default 64.
        image_size: one number, or height and width, in pixels. None is the input size of the trunk. Default None.
        shorter_side: pixels to which the shorter side of an image is scaled before it is cropped to `image_size`, at
            random for training and at the center for tests; at least the shorter side of `image_size`, which crops a
            test image least. None is that of the trunk for tests, and no scaling for training. Default None.
        frozen: compute the features of the trunk once and train the head alone. Default False.
        freeze_batch_norm: keep the running statistics of batch normalization fixed; None is True if the trunk is
            pretrained. Default None.
        epochs: number of epochs. Default 12.
        steps: training steps per epoch; None is one pass over the training set. Default None.
        batch_size: images per training step. Default 128.
        classes_per_batch: the largest number of classes per training step; each has batch_size / classes images.
            Default 32.
        sampler: how the classes of a batch are selected: "classes", at random; "neighbors", a class with the nearest
            ones; "doubles", random classes, each with a near one; "greedy", one by one the class that most violates the
            ranking; "mixed", "neighbors" with a quarter of random classes; "groups", classes of a few groups of the
            data. "mined" batches are anchors with their hardest negatives instead of classes. Default "classes".
        refresh: number of epochs after which the sampler gets new embeddings; a network without pretrained weights
            trains one epoch before; 0 is never. Default 1.
        optimizer: "adam", "adamw", "sgd" or "rmsprop". Default "adam".
        learning_rate: learning rate of the head, and of a trunk that is trained from scratch. Default 0.003.
        trunk_learning_rate: learning rate of the trunk; None is `learning_rate`, or a tenth of it if the trunk is
            pretrained. Default None.
        loss_learning_rate: learning rate of the parameters of a loss (proxies, centers). Default 0.03.
        weight_decay: weight decay of trunk and head. Default 0.
        momentum: momentum of sgd and rmsprop. Default 0.9.
        schedule: schedule of all learning rates: "constant", "cosine" (down to 0) or "steps" (a tenth after 60 and 85 %
            of the training). Default "constant".
        warmup: number of steps in which the learning rates rise from 0. Default 0.
        clip: the norm to which the gradient of trunk and head is clipped; None does not clip. Default None.
        amp: "none", "bf16" or "fp16": the type that the network computes in. Default "none".
        ema: test an exponential moving average of the weights with this decay; 0 tests the weights. Default 0.
        accumulate: number of batches whose gradients are averaged for one step of the optimizers, fewer at the end of
            an epoch; pairs are those within a batch. Default 1.
        cached_chunk: number of images that are embedded at a time, without keeping activations, which are computed
            again in the backward pass: for batches that do not fit into memory, with all their pairs. Batch
            normalization uses the statistics of a chunk. Default None: all images at once.
        accelerate: compute PML's own losses and miners without tuples, by :func:`pml_ext.accelerate`: the same numbers,
            in less time. Default False.
        recall_at: the k of recall@k. Default (1, 2, 4, 8).
        workers: number of processes that load images. Default 0: none.
        cache: the folder for features of frozen trunks; None is pml_ext in the user's cache. Default None.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is cuda where there is one. Default "auto".
        out: the folder for everything that is written; None is a folder under `runs`: on the command line with date and
            time in its name, from Python one that the same experiment finds again. Default None.
        protocol: a protocol of the literature, by name: the defaults of all other arguments. Default None.
        config: a JSON file of arguments: the defaults of all other arguments, before the protocol's. Default None.
        crop_scale: the smallest area of the random crop of a training image, as a share of the image; the largest is 1.
            Its width / height is 3/4 to 4/3 times that of `image_size`. Default 0.16.
        flip: probability with which a training image is mirrored; 0 if left and right matter, as in writing. Default
            0.5.
        dataset: the old name of `data`.

    Raises:
        BenchmarkError: an unknown name, or a value out of range. It is a ValueError.

    Example:
        >>> Experiment(losses=("RAW", "ContrastiveLoss"), data="digits", epochs=3).seeds
        (0,)
        >>> Experiment(epochs=0)
        Traceback (most recent call last):
        ...
        pml_ext.benchmark.errors.BenchmarkError: epochs must be a whole number of at least 1, got 0
    """

    data: Any = _flag(
        "glyphs",
        Anything(),
        "glyphs or digits; a folder with a sub-folder per class; a list (.csv); cub:, cars196:, sop:, in_shop: or "
        "omniglot: and the folder it was unpacked to; vectors (.npy, .npz, .pt)",
        group="data",
        metavar="SOURCE",
    )
    losses: Any = _flag(
        ("RAW", "ContrastiveLoss", "TripletMarginLoss"),
        Several(Anything()),
        "names of pml_ext.catalog, with arguments or without: RAW 'RAW(gamma=0.3)'; class names of pml_ext.losses and "
        "of PML; pml:NAME; module:NAME; HDML-Triplet, HDML-NPair and their kin; 'all' is the whole catalog",
        group="losses",
        metavar="NAME",
    )
    seeds: Any = _flag((0,), Several(Whole(0, below=2**32)), "one run of each loss per seed", group="losses")
    folds: int | None = _flag(
        None,
        Whole(2),
        "train on all but one of N parts of the training classes, and choose the model on that one; N times",
        group="data",
        none="one run",
    )
    validation: float | None = _flag(
        None,
        Number(least=0, below=1),
        "share of the training classes on which the best epoch is chosen; 0 takes the last epoch",
        group="data",
        metavar="SHARE",
        none="the validation split of the data, or a third of 6 classes or more",
    )
    trunk: Any = _flag(
        "conv4",
        Anything(),
        "conv4, efficientnet_lite0, timm:NAME, torchvision:NAME or module:factory",
        group="network",
        metavar="NAME",
    )
    weights: str | os.PathLike[str] | None = _flag(
        None, Text(), "a file of weights for the trunk", group="network", metavar="FILE", none="its own"
    )
    head: str | None = _flag(
        None,
        Text(("random", "pca")),
        "initialization of the embedding layer: random, or pca (of the features)",
        group="network",
        metavar="NAME",
        none="pca with --frozen, otherwise random",
    )
    embedding_size: int = _flag(64, Whole(1), "dimension of the embeddings", group="network")
    image_size: Any = _flag(
        None,
        Several(Whole(1), distinct=False, most=2),
        "one number, or height and width",
        group="network",
        none="that of the trunk",
    )
    shorter_side: int | None = _flag(
        None,
        Whole(1),
        "scale images to N pixels of their shorter side, before they are cropped to the image size",
        group="network",
        none="that of the trunk, for tests",
    )
    frozen: bool = _flag(
        False, Switch(), "compute the features of the trunk once, and train the head alone", group="network"
    )
    freeze_batch_norm: bool | None = _flag(
        None,
        Switch(),
        "keep the running statistics of batch norm fixed",
        group="network",
        none="if the trunk is pretrained",
    )
    epochs: int = _flag(12, Whole(1), "number of epochs", group="training")
    steps: int | None = _flag(
        None, Whole(1), "training steps per epoch", group="training", none="one pass over the training set"
    )
    batch_size: int = _flag(128, Whole(4), "images per training step", group="training")
    classes_per_batch: int = _flag(32, Whole(2), "largest number of classes per training step", group="training")
    optimizer: str = _flag(
        "adam",
        Text(("adam", "adamw", "sgd", "rmsprop")),
        "adam, adamw, sgd or rmsprop",
        group="training",
        metavar="NAME",
    )
    learning_rate: float = _flag(
        0.003,
        Number(above=0),
        "learning rate of the head, and of a trunk that is trained from scratch",
        group="training",
        metavar="RATE",
    )
    trunk_learning_rate: float | None = _flag(
        None,
        Number(least=0),
        "learning rate of the trunk",
        group="training",
        metavar="RATE",
        none="that of the head, a tenth of it if the trunk is pretrained",
    )
    loss_learning_rate: float = _flag(
        0.03, Number(above=0), "learning rate of the parameters of a loss", group="training", metavar="RATE"
    )
    weight_decay: float = _flag(0.0, Number(least=0), "weight decay of trunk and head", group="training", metavar="X")
    momentum: float = _flag(0.9, Number(least=0, below=1), "momentum of sgd and rmsprop", group="training", metavar="X")
    schedule: str = _flag(
        "constant",
        Text(("constant", "cosine", "steps")),
        "schedule of the learning rates: constant, cosine, or steps (a tenth after 60 and after 85 %% of the training)",
        group="training",
        metavar="NAME",
    )
    warmup: int = _flag(0, Whole(0), "steps in which the learning rates rise from 0", group="training")
    clip: float | None = _flag(
        None,
        Number(above=0),
        "norm to which the gradient is clipped",
        group="training",
        metavar="X",
        none="it is not clipped",
    )
    amp: str = _flag(
        "none",
        Text(("none", "bf16", "fp16")),
        "the type that the network computes in: none, bf16 or fp16",
        group="training",
        metavar="TYPE",
    )
    ema: float = _flag(
        0.0,
        Number(least=0, below=1),
        "decay of a moving average of the weights, which is then tested; 0: none",
        group="training",
        metavar="X",
    )
    recall_at: Any = _flag((1, 2, 4, 8), Several(Whole(1)), "the k of recall@k", group="data")
    workers: int = _flag(0, Whole(0), "processes that load images", group="running")
    cache: str | os.PathLike[str] | None = _flag(
        None,
        Text(),
        "where features of frozen trunks are kept",
        group="running",
        metavar="DIR",
        none="pml_ext in the user's cache",
    )
    device: str = _flag("auto", Text(), "cpu, cuda, cuda:1, ...; auto is cuda where there is one", group="running")
    out: str | os.PathLike[str] | None = _flag(
        None, Text(), "where everything is written", group="running", metavar="DIR", none="runs/<data>-<date>-<time>"
    )
    protocol: str | None = _flag(
        None,
        Text(),
        "take the defaults of all other flags from a protocol of the literature",
        group="running",
        metavar="NAME",
        none="none",
    )
    config: str | None = _flag(
        None,
        Text(),
        "take the defaults of all other flags from a JSON file, before the protocol's",
        group="running",
        metavar="FILE",
        none="none",
    )
    sampler: str = _flag(
        "classes",
        Text(("classes", "neighbors", "greedy", "doubles", "groups", "mixed", "mined")),
        "how the classes of a batch are selected: classes (at random), neighbors, greedy, doubles, groups, mixed; or "
        "mined: anchors with their hardest negatives",
        group="training",
        metavar="NAME",
    )
    refresh: int = _flag(
        1, Whole(0), "number of epochs after which the sampler gets new embeddings; 0: never", group="training"
    )
    crop_scale: float = _flag(
        0.16,
        Number(above=0, most=1),
        "smallest area of the random crop of a training image, as a share of the image",
        group="training",
        metavar="SHARE",
    )
    flip: float = _flag(
        0.5,
        Number(least=0, most=1),
        "probability with which a training image is mirrored; 0 if left and right matter, as in writing",
        group="training",
        metavar="SHARE",
    )
    accumulate: int = _flag(
        1,
        Whole(1),
        "average the gradients of N batches for each step of the optimizers; pairs are those within a batch",
        group="training",
    )
    cached_chunk: int | None = _flag(
        None,
        Whole(1),
        "embed N images at a time without keeping their activations, for large batches with all their pairs",
        group="training",
        none="all at once",
    )
    accelerate: bool = _flag(
        False,
        Switch(),
        "compute PML's own losses and miners without tuples: the same numbers, sooner",
        group="training",
    )
    dataset: InitVar[Any] = None

    def __post_init__(self, dataset: Any) -> None:
        for each in flags():
            value = getattr(self, each.name)
            # A path is as good as its text, and JSON has lists for tuples.
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            if each.name == "seeds" and isinstance(value, int) and not isinstance(value, bool):
                value = range(value)
            if each.name == "losses" and _is_pair(value):
                value = (value,)
            if value is not None or each.default is not None:
                object.__setattr__(self, each.name, each.metadata["kind"].check(each.name, value))
        if self.losses == (names.ALL,):
            object.__setattr__(self, "losses", names.catalog())
        for loss in self.losses:
            if isinstance(loss, str):
                names.check_loss(loss)
        if isinstance(self.data, str):
            names.check_data(self.data)
        object.__setattr__(self, "recall_at", tuple(sorted(self.recall_at)))
        kind = self.device.partition(":")
        if kind[0] not in ("auto", "cpu", "cuda") or (kind[1] and not (kind[0] == "cuda" and kind[2].isdigit())):
            raise BenchmarkError(f"unknown device {self.device!r}; known: auto, cpu, cuda, cuda:0, ...")

    def arguments(self) -> dict[str, Any]:
        """The arguments as JSON values; an object is replaced by its name in the results."""
        return {each.name: _plain(getattr(self, each.name)) for each in flags()}

    def run(
        self,
        *,
        resume: bool | None = None,
        say: Callable[[str], None] | None = None,
        callbacks: Iterable[Callable[[Any], object]] = (),
    ) -> Results:
        """Run the experiment, or the rest of it, and return its results, which are shown as a table.

        The same experiment, run again, continues where it stopped, or returns its results at once if it was finished;
        with other arguments it gets another folder. If it is interrupted, by the button of a notebook or by Ctrl-C, it
        returns the results so far. A run that fails gets a line under the table, and the other runs go on.

        Args:
            resume: True continues what is in `out`, and adds losses, seeds and epochs; False refuses a folder that
                holds an experiment. Default None: as above.
            say: called with each line about data and plan, for example `print`. Default: only important lines are
                printed.
            callbacks: each is called with every event of `pml_ext.benchmark.events`: a run has started, an epoch or a
                run has ended. One that raises is not called again. Default ().

        Raises:
            BenchmarkError: data, losses or arguments that cannot be used, or a folder that holds something else.
        """
        from pml_ext.benchmark.runs import run

        try:
            return run(self, resume=resume, say=say, callbacks=callbacks, from_python=True)
        except BenchmarkError as error:
            raise BenchmarkError(_FLAG.sub(lambda flag: flag[1].replace("-", "_"), str(error))) from error.__cause__

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in self._given().items())
        return on_a_screen(wrapped(f"Experiment({', '.join(given)})", indent=" " * 11), "its fields have all")

    def _repr_html_(self) -> str:
        given = self._given()
        left = ", ".join(name for name in self.arguments() if name not in given)
        return table(("argument", "value"), given.items(), caption="Experiment", notes=[f"as by default: {left}"])

    def _given(self) -> dict[str, Any]:
        """The arguments that are not those by default."""
        return {
            each.name: value
            for each, value in zip(flags(), self.arguments().values(), strict=True)
            if each.name in ("data", "losses", "seeds") or getattr(self, each.name) != each.default
        }


_FLAG = re.compile(r"--([a-z][a-z-]*)")


def _is_pair(value: Any) -> bool:
    """Whether it is a loss with its miner; neither is imported for that."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and not isinstance(value[0], str)
        and any(each.__name__ == "BaseMiner" for each in type(value[1]).__mro__)
    )


def flags() -> tuple[Any, ...]:
    """The fields of an experiment: name, default, and metadata with kind, help, group and metavar."""
    return fields(Experiment)


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the protocol and the configuration file of an experiment say about arguments that are not given."""
    told: dict[str, Any] = {}
    source = str(given.get("data") or "glyphs")
    if given.get("protocol") is not None:
        told |= _protocol(str(given["protocol"]), source.partition(":")[0])
    if given.get("config") is not None:
        path = Path(str(given["config"]))
        told |= _arguments_in(path, read_json(path))
    return {name: value for name, value in told.items() if name not in given}


def protocols() -> tuple[str, ...]:
    """The names of the protocols."""
    return tuple(sorted(path.stem for path in PROTOCOLS.glob("*.json")))


def _protocol(name: str, data: str) -> dict[str, Any]:
    if name not in protocols():
        raise BenchmarkError(did_you_mean("protocol", name, protocols()))
    path = PROTOCOLS / f"{name}.json"
    document = read_json(path)
    own = document.get("data", {}).get(data, {})
    return _arguments_in(path, document["arguments"]) | _arguments_in(path, own)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; BenchmarkError says in one line why there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise BenchmarkError(f"{path} is not JSON") from None
    if not isinstance(document, dict):
        raise BenchmarkError(f"{path} must hold a JSON object of arguments")
    return document


def _arguments_in(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    known = [each.name for each in flags() if each.name != "config"]
    for name in document:
        if name not in known:
            raise BenchmarkError(f"{path}: {did_you_mean('argument', name, known)}")
    return dict(document)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return display_name(value)


def display_name(value: Any) -> str:
    """What an object is called in results: its own `name`, or that of its function or class."""
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) and name else type(value).__name__


def _with_defaults(init: Callable[..., None]) -> Callable[..., None]:
    """Let the arguments that are not given come from the old name, the protocol and the configuration file."""
    positions = [each.name for each in fields(Experiment)]

    @wraps(init)
    def __init__(self: Experiment, *args: Any, **given: Any) -> None:  # noqa: N807
        given = dict(zip(positions, args, strict=False)) | given
        old = given.pop("dataset", None)
        if old is not None:
            warnings.warn("dataset is called data now", DeprecationWarning, stacklevel=2)
            if "data" in given:
                raise BenchmarkError(f"data and dataset are the same: give data alone, got dataset={old!r}")
            given["data"] = old
        init(self, **(defaults(given) | given))

    return __init__


Experiment.__init__ = _with_defaults(Experiment.__init__)  # type: ignore[method-assign]
