"""Wrong arguments are refused before anything is computed, by an error that names the argument and shows the value."""

import inspect
import re
import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance
from registry import ARGUMENTS, LOSSES, MINERS, all_wrappers, make

from pml_ext import _pml, losses, miners, wrappers
from pml_ext.base import RowLoss, SampleLoss
from pml_ext.catalog import all_losses, all_miners
from pml_ext.hyperparameters import _parameters, reach
from pml_ext.losses import (
    AnchorContrastiveLoss,
    CenterLoss,
    DecoupledNCALoss,
    MultiSimilarityLoss,
    RAWLoss,
    SigmoidPairLoss,
)
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner
from pml_ext.pairs import PairMasks
from pml_ext.wrappers.base import LossWrapper

CLASSES = (*all_losses(), *all_miners())
X, Y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])


def numbers(cls):
    """The parameters that are numbers by default, and those that may be None instead."""
    for parameter in inspect.signature(cls).parameters.values():
        annotation = str(parameter.annotation)
        is_number = re.search(r"\b(int|float)\b", annotation)
        is_number = is_number and not re.search("Sequence|Generator|str|Literal", annotation)
        if is_number and parameter.name not in ARGUMENTS:
            yield pytest.param(cls, parameter.name, id=f"{cls.__name__}.{parameter.name}")


def whole(name):
    """A whole number that the parameter may be: 1, unless that is the bound which it must stay below."""
    return 0 if name == "tau_plus" else 1


NUMBERS = [param for cls in CLASSES for param in numbers(cls)]


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
def test_a_number_must_be_finite_and_a_number(cls, name):
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises((ValueError, TypeError), match=rf"{name}.*{re.escape(repr(value))}"):
            make(cls, **{name: value})
    for value in ("0.5", [0.5], True):
        with pytest.raises(TypeError, match=rf"{name}.*{re.escape(repr(value))}"):
            make(cls, **{name: value})


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
def test_a_number_may_come_from_numpy_or_torch(cls, name):
    expected = getattr(make(cls, **{name: whole(name)}), name)
    kinds = [np.int64, torch.tensor]
    if "int" in str(inspect.signature(cls).parameters[name].annotation):
        with pytest.raises(TypeError, match=name):
            make(cls, **{name: np.float32(whole(name))})
    else:
        kinds.append(np.float32)
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            make(cls, **{name: np.float32("nan")})
    for as_given in kinds:
        actual = getattr(make(cls, **{name: as_given(whole(name))}), name)
        assert actual == expected, as_given
        assert type(actual) in (int, float), as_given


def test_a_number_of_classes_may_be_one_more_than_the_largest_label():
    assert CenterLoss(Y.max() + 1, 4).centers.centers.shape == (2, 4)


@pytest.mark.parametrize(
    "value", [torch.ones(1), torch.tensor(True), np.True_, torch.tensor(1.0, requires_grad=True), torch.tensor(1j)]
)
def test_a_tensor_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="alpha must be a number"):
        RAWLoss(alpha=value)


FLAGS = [
    pytest.param(cls, parameter.name, id=f"{cls.__name__}.{parameter.name}")
    for cls in (*CLASSES, *all_wrappers())
    for parameter in inspect.signature(cls).parameters.values()
    if str(parameter.annotation).removesuffix(" | None").removeprefix("<class '").removesuffix("'>") == "bool"
    and cls.__module__.startswith("pml_ext.")
]


@pytest.mark.parametrize(("cls", "name"), FLAGS)
def test_a_flag_must_be_true_or_false(cls, name):
    for value in ("no", 1, torch.tensor(True)):
        with pytest.raises(TypeError, match=rf"{name} must be True or False, got {re.escape(repr(value))}"):
            make(cls, **{name: value})


@pytest.mark.parametrize("cls", CLASSES)
def test_a_flag_that_all_have_must_be_true_or_false(cls):
    for name in ("collect_stats", "as_masks"):
        if name in dir(make(cls)) and not (name == "collect_stats" and _pml.HAS_TERMS):  # which has none
            with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
                make(cls, **{name: "no"})


def test_there_are_flags():
    assert {param.values[1] for param in FLAGS} >= {"average", "sharp", "bounded", "normalize", "leave_one_out"}


@pytest.mark.parametrize(
    ("name", "value"), [("distance", "cosine"), ("distance", CosineSimilarity), ("reducer", "mean"), ("reducer", 3)]
)
def test_a_part_must_be_one_of_pml(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be a PML {name} \(a Base.*{re.escape(repr(value))}"):
        RAWLoss(**{name: value})


@pytest.mark.parametrize(
    ("cls", "typo", "meant"),
    [
        (RAWLoss, "alhpa", "alpha"),
        (RAWLoss, "chunksize", "chunk_size"),
        (AnchorContrastiveLoss, "negmargin", "neg_margin"),
        (DecoupledNCALoss, "distnace", "distance"),
        (InverseDensityMiner, "num_negative", "num_negatives"),
        (InverseDensityMiner, "Seed", "seed"),
        pytest.param(
            HardNegativePairMiner, "collect_stat", "collect_stats", marks=pytest.mark.pml2("it collects statistics")
        ),
    ],
)
def test_a_typo_is_told_from_what_was_meant(cls, typo, meant):
    with pytest.raises(TypeError, match=f"^{cls.__name__} has no argument '{typo}': did you mean {meant}\\?$"):
        cls(**{typo: 1})


def test_a_name_that_is_like_no_other_is_answered_with_all():
    with pytest.raises(TypeError, match=r"RAWLoss has no argument 'qqq': known: alpha, beta, chunk_size, .*, reducer"):
        RAWLoss(qqq=1)


@pytest.mark.parametrize("name", [*LOSSES, *MINERS])
def test_hyperparameters_are_shown(name):
    made = (LOSSES | MINERS)[name]()
    text = repr(made)
    for each in made._hyperparameter_names:
        value = getattr(made, each)
        assert f"{each}={getattr(value, '__name__', repr(value))}" in text


def test_other_arguments_are_shown_where_they_are_not_at_their_default():
    assert repr(RAWLoss()).splitlines()[1].strip() == "alpha=2, beta=50, gamma=0.5, epsilon=0.1"
    assert "chunk_size=8" in repr(RAWLoss(chunk_size=8))
    text = repr(InverseDensityMiner(seed=3, as_masks=True))
    assert "seed=3" in text
    assert "as_masks=True" in text


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
def test_a_number_set_later_is_checked(cls, name):
    made = make(cls)
    before = getattr(made, name)
    for value in (float("nan"), "0.5", True):
        with pytest.raises((ValueError, TypeError, AttributeError), match=name):
            setattr(made, name, value)
        assert getattr(made, name) == before


@pytest.mark.parametrize(
    ("cls", "name"), [param for param in NUMBERS if param.values[0] not in (CenterLoss, SigmoidPairLoss)]
)
def test_a_number_set_later_is_that_of_a_new_object(cls, name):
    made = make(cls)
    setattr(made, name, np.int64(whole(name)))
    assert repr(made) == repr(make(cls, **{name: whole(name)}))
    assert made.hyperparameters() == make(cls, **{name: whole(name)}).hyperparameters()


def test_what_parts_were_made_with_cannot_be_set_later():
    with pytest.raises(AttributeError, match="alpha cannot be set later: make a new CenterLoss"):
        CenterLoss(3, 4).alpha = 0.1


def test_other_arguments_set_later_are_checked():
    loss, miner = RAWLoss(), InverseDensityMiner(seed=0)
    with pytest.raises(TypeError, match="chunk_size"):
        loss.chunk_size = "3"
    with pytest.raises(ValueError, match="seed"):
        miner.seed = -1
    with pytest.raises(TypeError, match="as_masks"):
        miner.as_masks = "no"
    loss.chunk_size, miner.seed = np.int32(3), torch.tensor(5)
    assert (loss.chunk_size, miner.seed) == (3, 5)


def test_a_level_out_of_reach_is_told_once():
    text = "neg_margin=1.2 of AnchorContrastiveLoss lies outside -1..1, what its CosineSimilarity can reach"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loss = AnchorContrastiveLoss(distance=CosineSimilarity())
        loss(X, Y)
        loss(X, Y)
    assert [str(each.message) for each in told] == [text]
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("distance", "base"),
    [(CosineSimilarity(), 1), (LpDistance(), 2), (LpDistance(power=2), 4), (SNRDistance(), 9)],
    ids=lambda x: type(x).__name__,
)
def test_a_level_in_reach_is_not_told(distance, base):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MultiSimilarityLoss(distance=distance, base=base)


@pytest.mark.parametrize(
    "distance",
    [
        *(kind(power=power) for kind in (CosineSimilarity, DotProductSimilarity) for power in (1, 2, 3)),
        DotProductSimilarity(normalize_embeddings=False),
        *(LpDistance(p=p, power=power) for p in (0.5, 1, 2, 3) for power in (1, 2)),
        LpDistance(normalize_embeddings=False),
        SNRDistance(),
    ],
    ids=repr,
)
def test_no_distance_goes_beyond_its_reach(distance):
    x = torch.randn(40, 3, dtype=torch.float64)
    x = torch.cat((x, -x, torch.eye(3, dtype=torch.float64)))
    _pml.describe(distance)
    least, greatest = reach(distance)
    values = distance(x, x[:-1])
    assert values.min() >= least - 1e-6
    assert values.max() <= greatest + 1e-6


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (RAWLoss, {"alpha": 0}),
        (RAWLoss, {"beta": -1.5}),
        (RAWLoss, {"epsilon": -0.25}),
        (RAWLoss, {"chunk_size": 0}),
        (HardNegativePairMiner, {"epsilon": -2}),
        (InverseDensityMiner, {"num_negatives": 0}),
        (InverseDensityMiner, {"max_z": 0.0}),
        (InverseDensityMiner, {"seed": -1}),
        (InverseDensityMiner, {"seed": 2**31}),
    ],
)
def test_a_number_must_be_in_range(cls, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=rf"{name}.*{re.escape(repr(value))}"):
        cls(**arguments)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_argument_is_an_error(cls):
    with pytest.raises(TypeError, match="no_such_argument"):
        make(cls, no_such_argument=1)


@pytest.mark.parametrize("cls", [cls for cls in all_losses() if issubclass(cls, RowLoss)])
def test_chunk_size_is_a_count(cls):
    for value in (2.5, "3", True):
        with pytest.raises(TypeError, match=f"chunk_size.*{value!r}"):
            make(cls, chunk_size=value)


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match=f"seed.*{seed!r}"):
        InverseDensityMiner(seed=seed)


# (what is wrong, arguments, error, what its text holds)
BAD_BATCHES = [
    ("list of embeddings", (X.tolist(), Y), TypeError, "embeddings.*a list of 4: torch.tensor makes one"),
    ("list of tensors", ([X], Y), TypeError, "embeddings.*a list of 1: torch.cat or torch.stack makes one"),
    ("numpy embeddings", (X.numpy(), Y), TypeError, r"embeddings.*a numpy array of shape \(4, 3\): torch.from_numpy"),
    ("numpy labels", (X, Y.numpy()), TypeError, r"labels.*a numpy array of shape \(4,\): torch.from_numpy makes one"),
    ("integer embeddings", (torch.ones(4, 3, dtype=torch.long), Y), TypeError, "embeddings.*torch.int64"),
    ("flat embeddings", (X[:, 0], Y), ValueError, r"embeddings.*\(4,\)"),
    ("embeddings of three dimensions", (X.unsqueeze(0), Y), ValueError, r"embeddings.*\(1, 4, 3\)"),
    ("list of labels", (X, Y.tolist()), TypeError, "labels.*list"),
    ("too few labels", (X, Y[:3]), ValueError, r"labels.*4 embeddings.*\(3,\)"),
    ("labels of two dimensions", (X, Y.unsqueeze(1)), ValueError, r"labels.*\(4, 1\)"),
]
BAD_PAIRS = [
    ("no labels", (X,), ValueError, "labels or an indices_tuple"),
    ("references without labels", (X, Y, None, X), ValueError, "ref_emb needs ref_labels"),
    ("labels of no references", (X, Y, None, None, Y), ValueError, "ref_labels needs ref_emb, got None"),
    ("references of another dimension", (X, Y, None, X[:, :2], Y), ValueError, "got 2 and 3"),
    ("too few reference labels", (X, Y, None, X, Y[:2]), ValueError, r"ref_labels.*\(2,\)"),
    ("pairs of two tensors", (X, Y, (Y, Y)), ValueError, "indices_tuple.*length 2"),
    ("pairs that are a tensor", (X, Y, Y), ValueError, "indices_tuple.*Tensor"),
    ("pairs that are lists", (X, Y, ([0], [1], [2])), TypeError, r"1-D tensors.*\[0\]"),
    ("pairs that are floats", (X, Y, (Y.float(),) * 3), TypeError, "torch.float32"),
    ("pairs that are masks", (X, Y, (Y.bool(),) * 3), TypeError, "torch.bool"),
    ("pairs of other lengths", (X, Y, (Y, Y[:2], Y, Y)), ValueError, r"\[4, 2, 4, 4\]"),
    ("triplets of other lengths", (X, Y, (Y, Y, Y[:1])), ValueError, r"\[4, 4, 1\]"),
    ("indices out of range", (X, Y, (Y, Y + 3, Y)), ValueError, r"positive indices 3..4, allowed is 0..3"),
    ("negative indices", (X, Y, (Y - 1, Y, Y)), ValueError, r"anchor indices -1..0, allowed is 0..3"),
    ("a pair that is both", (X, Y, (Y[:1], Y[3:], Y[:1], Y[3:])), ValueError, "both as positive and as negative"),
    ("masks of numbers", (X, Y, PairMasks(torch.ones(4, 4), torch.zeros(4, 4))), TypeError, "pos.*torch.float32"),
    (
        "masks of another shape",
        (X, Y, PairMasks(torch.eye(3).bool(), torch.eye(3).bool())),
        ValueError,
        r"\(4, 4\), got \(3, 3\)",
    ),
    ("masks that overlap", (X, Y, PairMasks(~torch.eye(4).bool(), ~torch.eye(4).bool())), ValueError, "disjoint"),
]


@pytest.mark.parametrize("name", [*LOSSES, *MINERS])
def test_a_batch_is_refused(name):
    made = (LOSSES | MINERS)[name]()
    for _, arguments, error, text in BAD_BATCHES:
        with pytest.raises(error, match=text):
            made(*arguments)


@pytest.mark.parametrize(("what", "arguments", "error", "text"), BAD_PAIRS, ids=[case[0] for case in BAD_PAIRS])
def test_a_loss_refuses_pairs(what, arguments, error, text):
    with pytest.raises(error, match=text):
        RAWLoss()(*arguments)


@pytest.mark.parametrize("name", [name for name in LOSSES if isinstance(LOSSES[name](), SampleLoss)])
def test_a_loss_of_samples_refuses_pairs_and_references(name):
    with pytest.raises(ValueError, match="indices_tuple"):
        LOSSES[name]()(torch.randn(4, 4), Y, (Y, Y, Y))
    with pytest.raises(ValueError, match="ref_emb"):
        LOSSES[name]()(torch.randn(4, 4), Y, None, torch.randn(4, 4), Y)


def keywords(cls):
    """To a type checker, the keyword arguments that a constructor hands on; None where it does not say."""
    annotation = inspect.signature(cls).parameters["kwargs"].annotation
    return next(iter(get_args(annotation)), None)


@pytest.mark.pml2("the arguments of its classes, which have no types themselves")
@pytest.mark.parametrize(
    "cls",
    [
        cls
        for module in (losses, miners, wrappers)
        for cls in map(vars(module).get, module.__all__)
        if "kwargs" in inspect.signature(cls).parameters and keywords(cls) is not None
    ],
)
def test_a_type_checker_takes_what_the_constructor_takes(cls):
    named = set(inspect.signature(cls).parameters)
    # Those of a wrapper are those of its loss.
    refused = {"loss", "distance", "reducer"} if issubclass(cls, LossWrapper) else set()
    assert set(keywords(cls).__annotations__) == set(_parameters(cls)) - named - refused
