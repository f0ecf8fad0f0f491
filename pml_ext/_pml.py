"""PML's base classes as ours build on them: the one module that knows PML 2 from PML 3, by what they have.

Everybody else imports what PML exports (`pytorch_metric_learning.losses`, `.miners`, ...) and, where the two differ,
what stands here. Within this package the protocol is one: losses implement `loss_dict`, which is given the batch itself
as its references where there are none, and returns entries with a `reduction_type` and a `divisor`.
"""

import copy
import math
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn

LossDict: TypeAlias = dict[str, dict[str, Any]]

if TYPE_CHECKING:  # what a type checker is to know of PML's classes, which say nothing themselves

    class _Base(nn.Module):
        distance: Any
        collect_stats: bool

        def __init__(self, **kwargs: Any) -> None: ...
        def reset_stats(self) -> None: ...

    class _Loss(_Base):
        reducer: Any
        embedding_regularizer: Any
        embedding_reg_weight: float

        def forward(
            self,
            embeddings: Tensor,
            labels: Any = None,
            indices_tuple: Any = None,
            ref_emb: Any = None,
            ref_labels: Any = None,
        ) -> Any: ...
        def zero_losses(self) -> dict[str, Any]: ...
        def set_reducer(self, reducer: Any) -> None: ...
        def sub_loss_names(self) -> list[str]: ...
        def all_regularization_loss_names(self) -> list[str]: ...
        def add_embedding_regularization_to_loss_dict(self, loss_dict: Any, embeddings: Tensor) -> None: ...

    class _Miner(_Base):
        def mine(self, *given: Any, **more: Any) -> Any: ...
        def output_assertion(self, output: Any) -> None: ...

    class _Regularizer(_Base):
        reducer: Any

        def compute_loss(self, *given: Any, **more: Any) -> Any: ...

else:
    _Loss, _Miner, _Regularizer = losses.BaseMetricLossFunction, miners.BaseMiner, regularizers.BaseRegularizer

# A loss of PML 3 hands over terms, for which the references of a batch by itself are None and a divisor is one of
# DivisorReducer only; one of PML 2 a loss dict, in which they are the batch and everything has a divisor.
HAS_TERMS = hasattr(_Loss, "objective_terms")


def _named(module: Any, *names: str) -> tuple[type, ...]:
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


def losses_named(*names: str) -> tuple[type, ...]:
    """Those classes of PML's losses that there are."""
    return _named(losses, *names)


def miners_named(*names: str) -> tuple[type, ...]:
    """Those classes of PML's miners that there are."""
    return _named(miners, *names)


ProxyLoss: Any = getattr(losses, "BaseProxyLoss", None)
if ProxyLoss is None:
    ProxyLoss = import_module("pytorch_metric_learning.losses.mixins").WeightMixin

# Bases, which compute nothing by themselves.
ABSTRACT = (_Loss, _Miner, *losses_named("GenericPairLoss", "BaseProxyLoss"))

# Public in PML 3 under another path, and nothing is built on it there.
DistributedLossWrapper: Any = None
DistributedMinerWrapper: Any = None
if not HAS_TERMS:
    _distributed = import_module("pytorch_metric_learning.utils.distributed")
    DistributedLossWrapper, DistributedMinerWrapper = (
        _distributed.DistributedLossWrapper,
        _distributed.DistributedMinerWrapper,
    )

# Losses made of losses that are no `BaseMetricLossFunction`.
WRAPPERS = losses_named("CrossBatchMemory", "SelfSupervisedLoss", "MultipleLosses")
if hasattr(losses, "BaseLossWrapper"):
    WRAPPERS = (*WRAPPERS, losses.BaseLossWrapper)


class PairIndices(NamedTuple):
    """The pairs that a miner finds: positions in the batch, and in the references if there are any."""

    pos_anchors: Tensor
    positives: Tensor
    neg_anchors: Tensor
    negatives: Tensor


class TripletIndices(NamedTuple):
    """The triplets that a miner finds: positions in the batch, and in the references if there are any."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


if find_spec("pytorch_metric_learning.types") is not None and not TYPE_CHECKING:
    PairIndices, TripletIndices = (
        getattr(import_module("pytorch_metric_learning.types"), name) for name in ("PairIndices", "TripletIndices")
    )


def named(found: Any) -> Any:
    """What a miner found with a name for each of its three or four index tensors; masks as they are."""
    if type(found) is not tuple:
        return found
    return TripletIndices(*found) if len(found) == 3 else PairIndices(*found)


class Defaults:
    """The default distance and reducer under the names of both versions, of which a class overrides either.

    A distance, given or default, is one that says what PML 2's say of themselves.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of a module."""
        if name == "distance" and isinstance(value, nn.Module):
            describe(value)
        super().__setattr__(name, value)

    def default_distance(self) -> Any:
        """The distance without an argument of that name; the name in PML 3."""
        return self._default("distance", "get_default_distance")

    def get_default_distance(self) -> Any:
        """The same; the name in PML 2."""
        return self._default("distance", "default_distance")

    def default_reducer(self) -> Any:
        """The reducer without an argument of that name; the name in PML 3."""
        return self._default("reducer", "get_default_reducer")

    def get_default_reducer(self) -> Any:
        """The same; the name in PML 2."""
        return self._default("reducer", "default_reducer")

    def _default(self, kind: str, other: str) -> Any:
        """What a class says under the other name, or else what PML says."""
        if getattr(type(self), other) is not getattr(Defaults, other):
            return getattr(self, other)()
        parent: Any = super()
        name = f"default_{kind}" if hasattr(parent, f"default_{kind}") else f"get_default_{kind}"
        return getattr(parent, name)()


class Loss(Defaults, _Loss):
    """A loss of PML's. Subclasses implement `loss_dict`.

    PML 3 sees the batch only: pairs and references go past its `forward`, which would refuse masks, and what is one
    number already goes past its reducer.
    """

    if TYPE_CHECKING:  # what an editor knows of a call, which PML does not say

        def __call__(
            self,
            embeddings: Tensor,
            labels: Tensor | None = None,
            indices_tuple: Any = None,
            ref_emb: Tensor | None = None,
            ref_labels: Tensor | None = None,
            **kwargs: Any,
        ) -> Tensor:
            """A scalar."""

    if HAS_TERMS:
        collect_stats = False
        _terms: LossDict | None = None

    def loss_dict(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The losses before they are reduced; `ref_emb is embeddings` means the batch itself."""
        raise NotImplementedError

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> LossDict:
        """What PML calls."""
        if not HAS_TERMS:
            return self.loss_dict(embeddings, labels, indices_tuple, ref_emb, ref_labels)  # type: ignore[arg-type]
        if self._terms is not None:
            return self._terms
        found = self.loss_dict(embeddings, labels, indices_tuple, *_references(embeddings, labels, ref_emb, ref_labels))
        return {name: _term(self, name, entry) for name, entry in found.items() if isinstance(entry["losses"], Tensor)}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The loss of a batch, reduced and with its penalties."""
        if not HAS_TERMS or type(self).compute_loss is not Loss.compute_loss:
            return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        labels, ref_labels = (None if x is None else x.to(embeddings.device) for x in (labels, ref_labels))
        found = self.loss_dict(embeddings, labels, indices_tuple, *_references(embeddings, labels, ref_emb, ref_labels))
        return finish(self, found, embeddings, labels)

    def zero_losses(self) -> LossDict:
        """The loss dict where there is nothing to compute."""
        return {} if HAS_TERMS else super().zero_losses()

    def set_reducer(self, reducer: Any) -> None:
        """Take another reducer, a copy of it; None for the default."""
        if not HAS_TERMS:
            super().set_reducer(reducer)
        else:
            self.reducer: Any = self.default_reducer() if reducer is None else copy.deepcopy(reducer)

    def reset_stats(self) -> None:
        """Forget the statistics of the last call, if there are any."""
        if not HAS_TERMS and "_record_these_stats" in self.__dict__:  # for which PML looks in a slow way
            super().reset_stats()


class Miner(Defaults, _Miner):
    """A miner of PML's. Subclasses implement `mine`, which is given the batch itself if there are no references."""

    if TYPE_CHECKING:

        def __call__(
            self,
            embeddings: Tensor,
            labels: Tensor,
            ref_emb: Tensor | None = None,
            ref_labels: Tensor | None = None,
            **kwargs: Any,
        ) -> tuple[Tensor, ...]:
            """Pairs (anchors, positives, anchors, negatives), triplets, or `PairMasks`: a named tuple."""

    elif HAS_TERMS:
        collect_stats = False

        def __init__(self, *, tuples_per_anchor: int | None = None, **options: Any) -> None:
            if tuples_per_anchor is not None:
                raise TypeError(
                    f"{type(self).__name__} has no argument 'tuples_per_anchor': CappedMiner(miner, "
                    f"{tuples_per_anchor}) keeps so many pairs of an anchor"
                )
            super().__init__(**options)

        def __call__(self, embeddings: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
            """Call `forward`, with the arguments that have no name by the names that they have in PML 3."""
            names: tuple[str, ...] = ("indices_tuple", "ref_emb", "ref_labels")
            if args and isinstance(args[0], Tensor):
                names = names[1:]
            given = {name: value for name, value in zip(names, args, strict=False) if value is not None}
            return super().__call__(embeddings, labels, **given, **kwargs)

    def mined(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        **given: Any,
    ) -> Any:
        """What `mine` finds, checked, without a gradient."""
        self.reset_stats()
        with torch.no_grad():
            labels = labels.to(embeddings.device)
            if ref_emb is None:
                ref_emb, ref_labels = embeddings, labels
            elif ref_labels is not None:
                ref_labels = ref_labels.to(ref_emb.device)
            found = named(self.mine(embeddings, labels, ref_emb, ref_labels, **given))
        self.output_assertion(found)
        return found

    def reset_stats(self) -> None:
        """Forget the statistics of the last call, if there are any."""
        if not HAS_TERMS:
            super().reset_stats()

    def output_assertion(self, output: Any) -> None:
        """PML 2's check of what was mined, which counts it."""
        if not HAS_TERMS:
            super().output_assertion(output)


if not HAS_TERMS:

    class Regularizer(Defaults, _Regularizer):
        """A regularizer of PML's. Subclasses implement `compute_loss`."""

else:

    class Regularizer(Defaults, _Regularizer):  # type: ignore[no-redef]
        """A regularizer of PML's, which is the mean of what `compute_loss` returns. Subclasses implement that."""

        collect_stats = False

        def __init__(self, *, distance: Any = None) -> None:
            super().__init__()
            self.distance: Any = self.default_distance() if distance is None else distance

        def forward(self, embeddings: Tensor) -> Tensor:
            """The penalty of embeddings [n, d]."""
            penalty = embeddings[:0].sum()  # 0, of which there is a gradient
            for entry in self.compute_loss(embeddings).values():
                if isinstance(entry["losses"], Tensor):
                    penalty = penalty + entry["losses"].mean()
            return penalty


if TYPE_CHECKING:

    class Memory(_Base):
        def __call__(
            self,
            embeddings: Tensor,
            labels: Tensor | None = None,
            indices_tuple: Any = None,
            enqueue_mask: Tensor | None = None,
        ) -> Tensor: ...

elif HAS_TERMS:
    Memory = nn.Module
else:

    class Memory(losses.CrossBatchMemory):
        """Nothing of PML 2's queue but its name, which `DistributedLossWrapper` asks for."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.collect_stats = False


def _references(
    embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """References as PML 2 has them; in PML 3 those that are given are a set of their own, whatever they are."""
    if ref_emb is None:
        return embeddings, labels
    return (ref_emb.view_as(ref_emb) if ref_emb is embeddings else ref_emb), ref_labels


def _term(loss: Any, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a loss dict as PML 3 has it: one number as one sample's loss, a divisor where it is asked for."""
    values = entry["losses"]
    if entry["reduction_type"] == "already_reduced":
        return {"losses": values.reshape(1), "indices": torch.zeros(1, dtype=torch.long, device=values.device)}
    term = {"losses": values, "indices": entry["indices"]}
    if "divisor" in entry and divides(loss.reducer, name):
        # What is divided by none is 0.
        term["divisor"] = torch.as_tensor(entry["divisor"], device=values.device).clamp(min=1)
    return term


def finish(loss: Any, found: LossDict, embeddings: Tensor, labels: Tensor | None) -> Any:
    """What PML makes of a loss dict of one of our losses: reduced, with its penalties."""
    if not HAS_TERMS:
        loss.add_embedding_regularization_to_loss_dict(found, embeddings)
        return loss.reducer(found, embeddings, labels)
    numbers, terms = [], {}
    for name, entry in found.items():
        if entry["reduction_type"] != "already_reduced":
            terms[name] = _term(loss, name, entry)
        elif isinstance(entry["losses"], Tensor):
            numbers.append(entry["losses"])
    outer, loss._terms = loss._terms, terms
    try:
        reduced = _Loss.forward(loss, embeddings, labels)
    finally:
        loss._terms = outer
    return sum(numbers, reduced)


def divides(reducer: Any, name: str) -> bool:
    """Whether a reducer divides the losses of that name by their divisor."""
    if isinstance(reducer, reducers.MultipleReducers):
        reducer = dict(getattr(reducer, "reducers", {}).items()).get(name)
    return isinstance(reducer, reducers.DivisorReducer)


# The losses that PML 2's wrappers take.
_WITH_REFERENCES = losses_named(
    "AngularLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "GeneralizedLiftedStructureLoss",
    "IntraPairVarianceLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
)


def may_take_references(loss: Any, *, with_indices: bool) -> bool:
    """Whether PML, or in its version 3 the loss in its first call, says that a loss takes references, and pairs.

    A class of one's own may have the name of PML's in place of which it stands.
    """
    if HAS_TERMS:
        return isinstance(loss, _Loss)
    names = {each.__name__ for each in _WITH_REFERENCES} - (set() if with_indices else {"MarginLoss"})
    return any(base.__name__ in names for base in type(loss).__mro__)


_KINDS = {2: "pos_pair", 3: "triplet"}


def labels_beside_pairs(embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Labels of batch and references for PML's own losses where the pairs are given and nobody has labels.

    PML 3 may refuse references without labels: it is given such as no two samples share, which the pairs overrule.
    """
    if not HAS_TERMS:
        return None, None
    every = torch.arange(len(embeddings) + len(ref_emb), device=embeddings.device)
    return every[: len(embeddings)], every[len(embeddings) :]


def entries(
    loss: Any,
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: Any,
    ref_emb: Tensor,
    ref_labels: Tensor | None,
) -> LossDict:
    """The losses of any PML loss before they are reduced, without penalties, as PML 2 has them."""
    batch = embeddings, labels, indices_tuple
    if not HAS_TERMS:
        found: LossDict = loss.compute_loss(*batch, ref_emb, ref_labels)
        return found
    if type(loss).compute_loss is Loss.compute_loss:
        return loss.loss_dict(*batch, ref_emb, ref_labels)  # type: ignore[no-any-return]
    references = (None, None) if ref_emb is embeddings else (ref_emb, ref_labels)
    return {
        name: {"reduction_type": _kind(term)} | term for name, term in loss.objective_terms(*batch, *references).items()
    }


def _kind(term: dict[str, Any]) -> str:
    indices = term.get("indices")
    if indices is None:
        return "already_reduced"
    return "element" if isinstance(indices, Tensor) else _KINDS[len(indices)]


def add_penalties(loss: Any, found: LossDict, embeddings: Tensor) -> None:
    """Add the penalties of the embeddings that a PML loss has been given to its losses."""
    if not HAS_TERMS:
        loss.add_embedding_regularization_to_loss_dict(found, embeddings)
        return
    for name, penalty in loss.regularization_terms(embeddings).items():
        value = penalty["losses"].sum() if isinstance(penalty, dict) else penalty
        found[name] = {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def unreduced(loss: Any, *batch: Any) -> LossDict:
    """What any PML loss hands to its reducer, as PML 2 has it, with its penalties."""
    if not HAS_TERMS:
        loss = copy.deepcopy(loss)
        loss.set_reducer(reducers.DoNothingReducer())
        found: LossDict = loss(*batch)
        return found
    if type(loss).compute_loss is not Loss.compute_loss:
        return {name: {"reduction_type": _kind(term)} | term for name, term in loss.objective_terms(*batch).items()}
    kept: LossDict = {}

    def keep(*given: Any) -> LossDict:
        kept.update(type(loss).loss_dict(loss, *given))
        return kept

    loss.loss_dict = keep
    try:
        loss(*batch)
    finally:
        del loss.loss_dict
    add_penalties(loss, kept, batch[0])
    return kept


def set_reducer(loss: Any, reducer: Any) -> None:
    """Give any PML loss another reducer."""
    if hasattr(loss, "set_reducer"):
        loss.set_reducer(reducer)
    else:
        loss.reducer = reducer


def reset_stats(module: Any) -> None:
    """Let a loss or a miner of any kind forget the statistics of its last call, if it has any."""
    if hasattr(module, "reset_stats"):
        module.reset_stats()


def record(module: nn.Module, names: Iterable[str]) -> None:
    """Name attributes of a module, numbers or lists of them, that are to be logged: record-keeper looks for them."""
    known = getattr(module, "_record_these", [])
    module._record_these = [*known, *(name for name in names if name not in known)]  # type: ignore[assignment]


def record_stat(module: Any, name: str) -> None:
    """Name an attribute of a module that every call sets anew, if PML collects such."""
    if hasattr(module, "add_to_recordable_attributes"):
        module.add_to_recordable_attributes(name=name, is_stat=True)


def mine(
    miner: Any,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    **more: Any,
) -> Any:
    """What a PML miner of any kind finds in a batch and, if there are any, its references.

    Candidates and a matrix, `indices_tuple` and `mat`, are for those of this package and of PML 3.
    """
    more = {name: value for name, value in more.items() if value is not None}
    if more and not (HAS_TERMS or isinstance(miner, Miner)):
        raise ValueError(f"{type(miner).__name__} of PML 2 takes no {' and no '.join(more)}")
    if ref_emb is not None:
        more |= {"ref_emb": ref_emb, "ref_labels": ref_labels}
    return miner(embeddings, labels, **more)


def count_mined(miner: Any, found: tuple[Tensor, ...]) -> None:
    """Let a miner of PML count what was found in its name, if it counts."""
    reset_stats(miner)
    if hasattr(miner, "output_assertion"):
        miner.output_assertion(found)


def mined_without_diagonal(
    miner: Any, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
) -> tuple[Tensor, ...] | None:
    """What a miner of PML 2 finds where the pairs (i, i) of rows and columns do not exist; None if it cannot.

    Those that can take all their pairs from a table of the labels.
    """
    if HAS_TERMS or type(miner) not in _BY_TABLE:
        return None
    both = _RowsAndColumns(labels, ref_labels)
    miner.reset_stats()
    with torch.no_grad():
        found: tuple[Tensor, ...] = miner.mine(embeddings, both, ref_emb, both)
    miner.output_assertion(found)
    return found


_BY_TABLE = miners_named(
    "AngularMiner",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "HDCMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
    "UniformHistogramMiner",
)


class _RowsAndColumns:
    """Labels [n] of rows and [m] of columns in one object, n at most m.

    PML 2 compares labels by `labels.unsqueeze(1) == ref_labels.unsqueeze(0)`, and takes the diagonal for pairs of a
    sample with itself where the two are the same object.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.device, self.dtype = rows.device, torch.long

    def unsqueeze(self, dim: int) -> Tensor:
        """The rows as a column of a matrix, or the columns as a row of it."""
        return (self.rows if dim == 1 else self.columns).unsqueeze(dim)

    def __len__(self) -> int:
        return len(self.rows)


def has_own(distance: Any, method: str) -> bool:
    """Whether the class of a distance has another method of that name than PML's base class."""
    return getattr(type(distance), method, None) is not getattr(distances.BaseDistance, method, None)


def matrix_of(distance: Any, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
    """The matrix of a distance of vectors as they are, which it does not normalize."""
    if hasattr(distance, "compute_mat"):
        matrix: Tensor = distance.compute_mat(embeddings, ref_emb) ** distance.power
        return matrix
    of_plain: Tensor = with_facts(distance, normalize_embeddings=False)(embeddings, ref_emb)
    return of_plain


def with_facts(distance: Any, **facts: Any) -> Any:
    """A distance with another power, or that does not normalize, to which the same hooks listen.

    One that says nothing of itself is made anew; of a kind that is not PML's own it stays what it is.
    """
    kind = type(distance)
    if not getattr(distance, "_described", ()) or kind not in _KINDS_OF_DISTANCES:
        changed = copy.copy(distance)
        for name, value in facts.items():
            setattr(changed, name, value)
        return changed
    known = {name: getattr(distance, name) for name in ("normalize_embeddings", "p", "power")} | facts
    if kind is distances.CosineSimilarity:  # it always does
        kind = distances.CosineSimilarity if known.pop("normalize_embeddings") else distances.DotProductSimilarity
        known |= {} if kind is distances.CosineSimilarity else {"normalize_embeddings": False}
    usual = {"p": 2, "power": 1}
    made = kind(**{name: value for name, value in known.items() if name not in usual or value != usual[name]})
    vars(made).update({name: value for name, value in vars(distance).items() if "hook" in name})
    describe(made)
    return made


class Facts(NamedTuple):
    """What a distance of PML 2 says of itself."""

    is_inverted: bool
    normalize_embeddings: bool
    p: float
    power: float


def facts(distance: Any) -> Facts:
    """The facts of any distance, whether it says them or has to be asked; nothing is written down on it."""
    if all(hasattr(distance, name) for name in Facts._fields):
        return Facts(*(getattr(distance, name) for name in Facts._fields))
    asked = _facts(distance)
    return Facts(*(getattr(distance, name, asked[name]) for name in Facts._fields))


def sign(distance: Any) -> int:
    """1 if larger is closer, -1 if smaller is."""
    return 1 if facts(distance).is_inverted else -1


def describe(distance: Any) -> None:
    """Write down on a distance, where its class does not, what PML 2's say of themselves.

    That is `is_inverted`, `normalize_embeddings`, `p`, `power` and `collect_stats`, found by asking for some distances;
    `p` and `power` are PML's defaults where the distance is of a kind that is not known, and so is that it does not
    normalize where it cannot be asked with vectors of any size.
    """
    missing = [name for name in _FACTS if not hasattr(distance, name)]
    if missing:
        found = _facts(distance)
        for name in missing:
            setattr(distance, name, found[name])
        distance._described = tuple(missing)


_FACTS = (*Facts._fields, "collect_stats")
_KINDS_OF_DISTANCES = (
    distances.LpDistance,
    distances.SNRDistance,
    distances.CosineSimilarity,
    distances.DotProductSimilarity,
)


@torch.no_grad()
def _facts(distance: Any) -> dict[str, Any]:
    one, other = torch.eye(2, dtype=torch.float64, device="cpu").split(1)
    p, power = 2.0, 1.0
    if type(distance) is distances.LpDistance:
        # |e_1 - -e_1|^power and |e_1 - e_2|^power, of lengths 2 and 2^(1 / p).
        power = _log2(distance(one, -one))
        p = power / _log2(distance(one, other))
    elif type(distance) in (distances.CosineSimilarity, distances.DotProductSimilarity):
        both = one + other
        # <e_1, e_1 + e_2> and |e_1 + e_2|^2, of a vector of length 2^(1 / p) that is normalized, or is not.
        normalizes, of_both = _log2(distance(one, both)), _log2(distance(both, both))
        power = of_both - 2 * normalizes
        p = -power / normalizes if normalizes else 2
    vectors = torch.tensor([[0.6, -0.3, 0.2, 0.9], [-0.1, 0.8, 0.5, 0.4]], dtype=torch.float64, device="cpu")
    return {
        "is_inverted": bool(distance.margin(one.sum(), 0 * one.sum()) < 0),
        "normalize_embeddings": _normalizes(distance, vectors),
        "p": _whole(p),
        "power": _whole(power),
        "collect_stats": False,
    }


def _normalizes(distance: Any, vectors: Tensor) -> bool:
    one, other = vectors.split(1)  # which differ: of what is near 0 a small power has no digits
    try:
        return torch.allclose(distance(one, 3 * other), distance(one, other))
    except (RuntimeError, ValueError, TypeError, IndexError):  # one with weights takes vectors of its own size
        return False


def _log2(number: Tensor) -> float:
    return math.log2(number.item())


def _whole(number: float) -> float:
    """A number without its rounding errors, as an integer if it is one."""
    rounded = round(number, 9)
    return rounded if rounded % 1 else int(rounded)
