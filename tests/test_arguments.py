"""Wrong arguments are refused before anything is computed, by an error that names the argument and shows the value."""

import inspect
import re

import pytest
import torch
from registry import ARGUMENTS, LOSSES, MINERS, make

from pml_ext.base import PairMatrixLoss, SampleLoss
from pml_ext.catalog import all_losses, all_miners
from pml_ext.losses import RAWLoss
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner
from pml_ext.pairs import PairMasks

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


NUMBERS = [param for cls in CLASSES for param in numbers(cls)]


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_must_be_finite(cls, name, value):
    with pytest.raises((ValueError, TypeError), match=rf"{name}.*{re.escape(repr(value))}"):
        make(cls, **{name: value})


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["0.5", [0.5], True])
def test_a_number_must_be_a_number(cls, name, value):
    with pytest.raises(TypeError, match=rf"{name}.*{re.escape(repr(value))}"):
        make(cls, **{name: value})


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


@pytest.mark.parametrize("cls", [cls for cls in all_losses() if issubclass(cls, PairMatrixLoss)])
@pytest.mark.parametrize("value", [2.5, "3", True])
def test_chunk_size_is_a_count(cls, value):
    with pytest.raises(TypeError, match=f"chunk_size.*{value!r}"):
        make(cls, chunk_size=value)


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match=f"seed.*{seed!r}"):
        InverseDensityMiner(seed=seed)


# (what is wrong, arguments, error, what its text holds)
BAD_BATCHES = [
    ("list of embeddings", (X.tolist(), Y), TypeError, "embeddings.*list"),
    ("integer embeddings", (torch.ones(4, 3, dtype=torch.long), Y), TypeError, "embeddings.*torch.int64"),
    ("flat embeddings", (X[:, 0], Y), ValueError, r"embeddings.*\(4,\)"),
    ("embeddings of three dimensions", (X.unsqueeze(0), Y), ValueError, r"embeddings.*\(1, 4, 3\)"),
    ("list of labels", (X, Y.tolist()), TypeError, "labels.*list"),
    ("too few labels", (X, Y[:3]), ValueError, r"labels.*4 embeddings.*\(3,\)"),
    ("labels of two dimensions", (X, Y.unsqueeze(1)), ValueError, r"labels.*\(4, 1\)"),
]
BAD_PAIRS = [
    ("no labels", (X,), ValueError, "labels or an indices_tuple"),
    ("references without labels", (X, Y, None, X), ValueError, "ref_emb was given without ref_labels"),
    ("labels of no references", (X, Y, None, None, Y), ValueError, "ref_labels was given without ref_emb"),
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


@pytest.mark.parametrize(("arguments", "error", "text"), [case[1:] for case in BAD_BATCHES], ids=lambda x: None)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_refuses_a_batch(name, arguments, error, text):
    with pytest.raises(error, match=text):
        LOSSES[name]()(*arguments)


@pytest.mark.parametrize(("what", "arguments", "error", "text"), BAD_PAIRS, ids=[case[0] for case in BAD_PAIRS])
def test_a_loss_refuses_pairs(what, arguments, error, text):
    with pytest.raises(error, match=text):
        RAWLoss()(*arguments)


@pytest.mark.parametrize(("what", "arguments", "error", "text"), BAD_BATCHES, ids=[case[0] for case in BAD_BATCHES])
@pytest.mark.parametrize("name", MINERS)
def test_a_miner_refuses_a_batch(name, what, arguments, error, text):
    with pytest.raises(error, match=text):
        MINERS[name]()(*arguments)


@pytest.mark.parametrize("name", [name for name in LOSSES if isinstance(LOSSES[name](), SampleLoss)])
def test_a_loss_of_samples_refuses_pairs_and_references(name):
    with pytest.raises(ValueError, match="indices_tuple"):
        LOSSES[name]()(torch.randn(4, 4), Y, (Y, Y, Y))
    with pytest.raises(ValueError, match="ref_emb"):
        LOSSES[name]()(torch.randn(4, 4), Y, None, torch.randn(4, 4), Y)
