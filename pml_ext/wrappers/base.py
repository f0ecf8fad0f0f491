"""The part that every loss made of another loss shares."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor, nn

from pml_ext import _pml, arguments
from pml_ext.base import BatchLoss, MatrixLoss, RowLoss, SampleLoss
from pml_ext.hyperparameters import Configured
from pml_ext.pairs import ByMasks, IndicesTuple, PairMasks, Pairs, own_set
from pml_ext.reducer import already_reduced
from pml_ext.similarity import PairModule, has_own_shapes
from pml_ext.vectors import in_full


class LossWrapper(Configured, _pml.Loss):
    """A loss that is made from another loss, ours or PML's. Subclasses implement `loss_dict`.

    The inner loss keeps its own distance, reducer and regularizers; the wrapper shares its distance.

    Attributes:
        takes_references: whether a `ref_emb` is passed to the inner loss.
        takes_indices: whether an `indices_tuple` is passed to the inner loss.

    Args:
        loss: a PML loss, that is a `BaseMetricLossFunction`.
        kwargs: `embedding_regularizer`, `embedding_reg_weight`, `collect_stats` of the wrapper itself. A `distance` or
            a `reducer` is refused, because those of the inner loss are used.
    """

    has_own_distance: ClassVar[bool] = False
    takes_references: ClassVar[bool] = True
    takes_indices: ClassVar[bool] = True

    def __init__(self, loss: nn.Module, **kwargs: Any) -> None:
        if not isinstance(loss, BaseMetricLossFunction):
            raise TypeError(f"loss must be a PML loss (a BaseMetricLossFunction), got {type(loss).__name__}")
        for name in ("distance", "reducer"):
            if kwargs.pop(name, None) is not None:
                raise TypeError(
                    f"{name} of {type(self).__name__} is that of its loss: give it to {type(loss).__name__}"
                )
        super().__init__(distance=loss.distance, **kwargs)
        self.loss: Any = loss

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; the arguments are those of every PML loss."""
        arguments.batch(embeddings, labels, ref_emb, ref_labels, any_shape=has_own_shapes(self.distance))
        embeddings, ref_emb = in_full(embeddings, own_set(embeddings, labels, ref_emb, ref_labels))
        if isinstance(indices_tuple, PairMasks) and self.takes_indices and not takes_masks(self.loss):
            refs = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
            indices_tuple = Pairs.of(embeddings, labels, indices_tuple, *refs).masks(embeddings, 0).indices()
        loss: Tensor = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return loss

    @staticmethod
    def reduced(loss: Tensor) -> dict[str, Any]:
        """PML's loss dict of a value that the inner loss has reduced already."""
        return already_reduced(loss)


def runs_by_rows(loss: nn.Module) -> bool:
    """Whether the loss is a row loss that computes its scores as the base class does."""
    return isinstance(loss, RowLoss) and _inherits(loss, RowLoss, "compute_loss", "loss_dict", "similarity")


def _inherits(loss: Any, base: type, *names: str) -> bool:
    return all(getattr(type(loss), name) is getattr(base, name) for name in names)


def has_only_directions(loss: nn.Module) -> bool:
    """Whether a loss of ours, with all that is in it, brings the embeddings to unit length itself."""
    ours = (MatrixLoss, SampleLoss, LossWrapper)
    return all(
        getattr(part, "normalize_embeddings", True) is not False
        and (isinstance(part, ours) or not isinstance(part, (BaseMetricLossFunction, BaseRegularizer)))
        and getattr(type(part), "similarity", PairModule.similarity) is PairModule.similarity
        for part in loss.modules()
    )


def takes_masks(loss: Any) -> bool:
    """Whether a loss takes `PairMasks` as its `indices_tuple`."""
    if isinstance(loss, LossWrapper):
        return loss.takes_indices and takes_masks(loss.loss)
    return isinstance(loss, MatrixLoss)


def takes_pairs(loss: Any) -> bool:
    """Whether a loss takes the `Pairs` of a call as its `indices_tuple` and passes them on unchanged."""
    if isinstance(loss, LossWrapper):
        return loss.takes_indices and takes_pairs(loss.loss)
    kind = RowLoss if isinstance(loss, RowLoss) else BatchLoss
    return isinstance(loss, MatrixLoss) and _inherits(loss, kind, "compute_loss", "loss_dict")


def handed_on(masks: PairMasks, loss: Any) -> IndicesTuple | Pairs:
    """Masks made by this package, which need no check, in the form that a loss takes."""
    if takes_pairs(loss):
        return ByMasks(masks)
    return masks if takes_masks(loss) else masks.indices()


def refuses_indices(loss: Any) -> bool:
    """Whether a loss, which need not be one of ours, is known to take no `indices_tuple`."""
    if isinstance(loss, LossWrapper):
        return not loss.takes_indices or refuses_indices(loss.loss)
    return isinstance(loss, (SampleLoss, *_WITHOUT_INDICES))


_WITHOUT_INDICES = _pml.losses_named("InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss", "VICRegLoss")


def refuses_references(loss: Any) -> bool:
    """Whether a loss, which need not be one of ours, is known to take no `ref_emb`."""
    parameters = inspect.signature(loss.forward).parameters
    if "ref_emb" not in parameters and not any(each.kind == each.VAR_POSITIONAL for each in parameters.values()):
        return True
    if isinstance(loss, LossWrapper):
        return not loss.takes_references or refuses_references(loss.loss)
    return has_proxies(loss) or isinstance(loss, (SampleLoss, *_WITHOUT_REFERENCES))


_WITHOUT_REFERENCES = _pml.losses_named(
    "FastAPLoss",
    "HistogramLoss",
    "InstanceLoss",
    "ManifoldLoss",
    "NPairsLoss",
    "P2SGradLoss",
    "PNPLoss",
    "RankedListLoss",
    "SmoothAPLoss",
    "VICRegLoss",
)


def has_proxies(loss: Any) -> bool:
    """Whether a loss of PML compares embeddings with learned vectors of the classes, not with one another."""
    return isinstance(loss, _pml.ProxyLoss)


def takes_references(loss: Any, *, with_indices: bool) -> bool:
    """Whether a loss can compare a batch with references, on given pairs if `with_indices`.

    PML's own losses do not declare it. One that compares embeddings with its proxies may have a base class that takes
    references.
    """
    if has_proxies(loss):
        return False
    if isinstance(loss, LossWrapper):
        able = loss.takes_references and (loss.takes_indices or not with_indices)
        return able and takes_references(loss.loss, with_indices=with_indices)
    return isinstance(loss, MatrixLoss) or _pml.may_take_references(loss, with_indices=with_indices)


def checked_sizes(sizes: int | Sequence[int]) -> int | tuple[int, ...]:
    """Return the sizes of column slices (an integer of at least 1 for each), or the number of slices, after a check."""
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        if not sizes:
            raise ValueError("sizes must not be empty")
        return tuple(arguments.count("sizes", size) for size in sizes)
    number: int = arguments.count("sizes", sizes)
    return number


def slice_sizes(sizes: int | tuple[int, ...], dimension: int) -> list[int]:
    """The sizes of the column slices of embeddings of that dimension; of B slices, b ends at floor(b dimension / B)."""
    if isinstance(sizes, int):
        if sizes > dimension:
            raise ValueError(f"sizes must be at most the dimension of the embeddings, got {sizes} and {dimension}")
        return [(b + 1) * dimension // sizes - b * dimension // sizes for b in range(sizes)]
    if sum(sizes) != dimension:
        raise ValueError(
            f"sizes must add up to the dimension of the embeddings, got {sizes} with sum {sum(sizes)} and {dimension}"
        )
    return list(sizes)
