"""What a law is: a statement about a loss or a miner, which raises if a case breaks it."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from pml_ext import _pml, engine
from pml_ext.base import MatrixLoss, RowLoss, SampleLoss
from pml_ext.seeded import Seeded
from pml_ext.similarity import PairModule
from pml_ext.testing.cases import Batch
from pml_ext.wrappers.base import LossWrapper

Kind = Literal["rows", "batch", "once"]
# From cause to symptom: a law of a later stage may be broken because one of an earlier stage is.
Stage = Literal["function", "call", "closed form", "engine", "batch", "invariance", "contract", "use"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_STAGE_OF_KIND: dict[Kind, Stage] = {"rows": "function", "batch": "batch", "once": "contract"}
Subject = Literal["loss", "miner"]
Check = Callable[[Any, Any], None]
C = TypeVar("C", bound=Check)


class LawBroken(AssertionError):  # noqa: N818 - it reads as the sentence it stands for
    """A law does not hold. The cause is the assertion or the exception that showed it.

    Args:
        law: the name of the law.
        text: what is wrong, beginning with that name.
        case: that which shows it.
    """

    def __init__(self, law: str, text: str, case: Any = None) -> None:
        super().__init__(text)
        self.law: str = law
        self.case: Any = case


@dataclass(frozen=True)
class Law:
    """A statement that holds for every loss, or every miner, to which it applies.

    Args:
        name: the name of the function that states it.
        check: raises AssertionError if the subject breaks the law on the case.
        kind: what its cases are: "rows" a pair matrix, "batch" embeddings with labels, "once" one fixed batch.
        applies: whether the law applies to a subject; the first line of its docstring says to what.
        stage: its place in the order from cause to symptom.
        as_shipped_only: whether the law is tried with the shipped thresholds only, because others would show nothing
            new.
    """

    name: str
    check: Check
    kind: Kind
    applies: Callable[[Any], bool]
    stage: Stage
    as_shipped_only: bool = False

    @property
    def scope(self) -> str:
        """What the law is for, in words that can follow "only for"."""
        line = (self.applies.__doc__ or "").partition("\n")[0].rstrip(".")
        return line[:1].lower() + line[1:]

    def __call__(self, subject: Any, case: Any) -> None:
        """Check the law for the subject on one case."""
        try:
            self.check(subject, case)
        except LawBroken:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise LawBroken(self.name, f"{self.name}: {type(subject).__name__} on {case}: {reason}", case) from error


LOSS_LAWS: dict[str, Law] = {}
MINER_LAWS: dict[str, Law] = {}


def any_subject(subject: Any) -> bool:
    """Every loss or miner, PML's too."""
    return True


def is_ours(subject: Any) -> bool:
    """A loss, wrapper or miner on this package's shell."""
    return isinstance(subject, (PairModule, LossWrapper))


def is_pair_module(subject: Any) -> bool:
    """A loss or miner on this package's shell that wraps no other."""
    return isinstance(subject, PairModule)


def is_wrapper(subject: Any) -> bool:
    """A wrapper around a loss."""
    return isinstance(subject, LossWrapper)


def takes_pairs(subject: Any) -> bool:
    """A loss that compares samples with samples, and so can be told which; one with weights of its own does not."""
    return not isinstance(subject, (SampleLoss, _pml.ProxyLoss))


def labels_are_names(subject: Any) -> bool:
    """What needs no more of labels than which are equal; to others they are the numbers of weights or centers."""
    return not isinstance(subject, _pml.ProxyLoss) and not any(
        hasattr(part, "num_classes") for part in subject.modules()
    )


def is_row_loss(subject: Any) -> bool:
    """A loss that is a function of each row of the pair matrix."""
    return isinstance(subject, RowLoss)


def needs_both(subject: Any) -> bool:
    """A loss that is a function of each row, and needs a positive and a negative in it."""
    return is_row_loss(subject) and subject.needs == "both"


def is_matrix_loss(subject: Any) -> bool:
    """A loss that is a pure function of the pair matrix."""
    return isinstance(subject, MatrixLoss)


def is_random(subject: Any) -> bool:
    """A miner that draws at random."""
    return bool(getattr(subject, "is_random", False))


def is_repeatable(subject: Any) -> bool:
    """A miner that draws nothing at random."""
    return not is_random(subject)


def is_ours_or_repeatable(subject: Any) -> bool:
    """A miner of this package, or one that draws nothing at random."""
    return is_ours(subject) or is_repeatable(subject)


def is_ours_and_repeatable(subject: Any) -> bool:
    """A miner of this package that draws nothing at random."""
    return is_ours(subject) and is_repeatable(subject)


def is_seeded(subject: Any) -> bool:
    """A miner that draws from a seed of its own."""
    return isinstance(subject, Seeded)


def selects_by_rows(subject: Any) -> bool:
    """A miner of this package whose selection for an anchor is a function of that row."""
    return is_ours(subject) and bool(subject.is_row_function)


def law(
    subject: Subject,
    kind: Kind,
    applies: Callable[[Any], bool] = any_subject,
    *,
    stage: Stage | None = None,
    as_shipped_only: bool = False,
) -> Callable[[C], C]:
    """Enter the function decorated as a law, under its name; its stage follows from its kind if none is given."""

    def enter(check: C) -> C:
        laws = LOSS_LAWS if subject == "loss" else MINER_LAWS
        name = getattr(check, "__name__", "")
        laws[name] = Law(name, check, kind, applies, stage or _STAGE_OF_KIND[kind], as_shipped_only)
        return check

    return enter


def chosen(laws: dict[str, Law], skip: Iterable[str], only: Iterable[str] | None) -> list[Law]:
    """The laws less those in `skip`, or just those in `only`, from cause to symptom.

    Raises:
        ValueError: no law has a name that was given.
    """
    skip, names = frozenset(skip), frozenset(laws) if only is None else frozenset(only)
    check_names(laws, skip | names)
    ordered = sorted(laws.values(), key=lambda law: STAGES.index(law.stage))
    return [law for law in ordered if law.name in names - skip]


def check_names(laws: dict[str, Law], names: Iterable[str]) -> None:
    """Raise a ValueError if no law has one of the names."""
    unknown = sorted(frozenset(names) - frozenset(laws))
    if unknown:
        raise ValueError(f"no law is called {', '.join(unknown)}; there are {', '.join(laws)}")


class Outcome(NamedTuple):
    """The value of a loss and its gradient by the embeddings."""

    value: Tensor
    gradient: Tensor


def fresh(subject: Any) -> Any:
    """The subject as it is now: a copy if calling it could change it, so that every call starts from the same state."""
    has_state = any(True for _ in subject.parameters()) or any(True for _ in subject.buffers())
    has_state = has_state or any(isinstance(module, Seeded) for module in subject.modules())
    return copy.deepcopy(subject) if has_state else subject


def with_attributes(subject: Any, **attributes: Any) -> Any:
    """A copy of the subject with other attributes."""
    subject = copy.deepcopy(subject)
    for name, value in attributes.items():
        setattr(subject, name, value)
    return subject


class ByAutograd(nn.Module):
    """A loss or a miner that takes the plain path, without the engine and without closed forms."""

    def __init__(self, subject: Any) -> None:
        super().__init__()
        self.subject = subject

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the subject makes of it."""
        with engine.disabled():
            return self.subject(*args, **kwargs)


def by_autograd(subject: Any) -> ByAutograd:
    """The subject on the plain path."""
    return ByAutograd(subject)


def unreduced(loss: Any, *batch: Any) -> dict[str, dict[str, Any]]:
    """What a loss, a copy of it if it has a state, hands to its reducer, with its penalties."""
    if isinstance(loss, ByAutograd):
        with engine.disabled():
            return unreduced(loss.subject, *batch)
    return _pml.unreduced(fresh(loss), *batch)


def reseed() -> None:
    """Bring the global generator to where it is at the beginning of every call that a law makes."""
    # torch.manual_seed records the stack for devices that may follow: it takes longer than a loss.
    torch.default_generator.manual_seed(0)


def evaluate(loss: Any, embeddings: Tensor, *args: Any, **kwargs: Any) -> Outcome:
    """Value and gradient of a loss on a batch: a finite scalar and finite numbers, or an AssertionError.

    The random state is the same in every call, so that losses which draw at random draw the same.
    """
    reseed()
    embeddings = embeddings.detach().clone().requires_grad_()
    value = fresh(loss)(embeddings, *args, **kwargs)
    assert isinstance(value, Tensor), f"the loss is {value!r}, not a tensor"
    assert value.shape == (), f"the loss has shape {tuple(value.shape)}, not a scalar"
    assert bool(value.isfinite()), f"the loss is {value.item()}"
    (gradient,) = torch.autograd.grad(value, embeddings)
    assert bool(gradient.isfinite().all()), f"the gradient is not finite: {gradient}"
    return Outcome(value.detach(), gradient)


def outcome(loss: Any, case: Batch) -> Outcome:
    """Value and gradient of a loss on a batch with labels, which most laws compare with: computed once for a case."""
    return _once(loss, case, "labels", case.labels)


def outcome_by_references(loss: Any, case: Batch) -> Outcome:
    """The same of a batch compared with the references of the case; with itself if that has none."""
    if case.ref_emb is None:
        return outcome(loss, case)
    return _once(loss, case, "references", case.labels, None, case.ref_emb, case.ref_labels)


def _once(loss: Any, case: Batch, what: str, *given: Any) -> Outcome:
    known: dict[tuple[int, str], tuple[Any, Outcome]] = case.__dict__.setdefault("_outcomes", {})
    if (id(loss), what) not in known:
        known[id(loss), what] = loss, evaluate(loss, case.embeddings, *given)
    return known[id(loss), what][1]


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Equal up to `tolerance`, relative to the largest number expected or to 1."""
    assert actual.shape == expected.shape, f"{what}: shapes {tuple(actual.shape)} and {tuple(expected.shape)} differ"
    if actual.numel() == 0:
        return
    difference = (actual.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.double().abs().max().item())
    assert difference <= tolerance * scale, f"{what}: {actual} differs from {expected} by {difference:.3g}"


def assert_same(actual: Outcome, expected: Outcome, what: str, tolerance: float = 1e-9) -> None:
    """Equal values and equal gradients."""
    assert_close(actual.value, expected.value, f"value, {what}", tolerance)
    assert_close(actual.gradient, expected.gradient, f"gradient, {what}", tolerance)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for the choices of a law."""
    return torch.Generator().manual_seed(seed)


def modules_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have the same state_dict, tensor by tensor."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else str(a[k]) == str(b[k]) for k in a
    )
