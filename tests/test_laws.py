"""Everything exported keeps the laws; so do the methods of the catalog, as a whole."""

import pytest
import torch
from hypothesis import settings
from registry import DIMENSION, EXCEPTIONS, FAULTS, LOSSES, MINERS, RECIPES, STATEFUL, WRAPPERS, exceptions
from torch import nn

from pml_ext.catalog import required
from pml_ext.testing import LOSS_LAWS, MINER_LAWS, Batch, check_loss, check_miner
from pml_ext.testing.contract_laws import check_compiled
from pml_ext.testing.law import fresh, is_random
from pml_ext.wrappers import BranchLoss

ONCE = tuple(law.name for law in LOSS_LAWS.values() if law.kind == "once")
DRAWN = tuple(law.name for law in LOSS_LAWS.values() if law.kind != "once")
ALL_LOSSES = LOSSES | WRAPPERS
# All triplets of a few hundred samples take seconds by autograd: once is enough.
CUBIC = tuple(name for name in LOSSES if name.startswith("SoftTripletLoss("))
# The nightly profile leaves nothing out.
THOROUGH = settings().max_examples >= 1000
# Compiled below once a class, by the faster backend; it learns or not by its class, too.
ONCE_A_CLASS = ("compiles_as_one_graph", "it_learns")
# Of what a class hands on to its base, whatever the setting.
OF_A_CLASS = (
    "calls_leave_no_trace",
    "copies_are_equal",
    "every_dtype_of_labels_will_do",
    "hyperparameters_may_be_set_later",
    "labels_of_references_are_not_ignored",
    "loss_dict_is_well_formed",
    "losses_are_one_per_anchor",
    *(name for name, law in LOSS_LAWS.items() if law.check.__module__.endswith("state_laws")),
)
# What is tried beside "as shipped".
IN_TURN = ("with tiny thresholds", "as on a device")


def regimes(names, name):
    """All regimes for a class; for what shares its code, one of them, in turn."""
    number = list(names).index(name)
    return IN_TURN if THOROUGH or (names is ALL_LOSSES and "(" not in name) else IN_TURN[number % 2 :][:1]


def examples(name):
    """How many cases to draw: few, because so many laws see each of them; fewer of what is made of others."""
    return settings().max_examples if THOROUGH else 5 if name in RECIPES or "(" in name else 10


def dimension(subject):
    return getattr(subject, "embedding_size", None)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_loss_keeps_the_laws_of_one_batch(name):
    loss = ALL_LOSSES[name]()
    skip = ["large_batches_agree_with_autograd"] if name in CUBIC else []
    expected = exceptions(loss, name)
    if not THOROUGH:
        skip += [*ONCE_A_CLASS, *OF_A_CLASS] if "(" in name else ONCE_A_CLASS[:1]
        expected = {law: reason for law, reason in expected.items() if law not in skip}
    check_loss(loss, only=ONCE, skip=skip, expected_failures=expected, regimes=regimes(ALL_LOSSES, name))


@pytest.mark.parametrize("name", [name for name in ALL_LOSSES if "(" not in name])
def test_loss_compiles(name):
    loss = ALL_LOSSES[name]()
    if "compiles_as_one_graph" not in exceptions(loss, name):
        backend = "aot_eager" if name in ("RAWLoss", "SoftTripletLoss", "HistogramLoss", "CenterLoss") else "eager"
        check_compiled(loss, Batch((3, 4, 2), dimension(loss) or 4, seed=7), backend)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_loss_keeps_the_laws_of_any_batch(name):
    loss = ALL_LOSSES[name]()
    check_loss(loss, only=DRAWN, expected_failures=exceptions(loss, name), examples=examples(name))


@pytest.mark.parametrize("name", MINERS)
def test_miner_keeps_the_laws(name):
    check_miner(MINERS[name](), expected_failures=exceptions(MINERS[name](), name), examples=examples(name))


STATE = [name for name, law in LOSS_LAWS.items() if law.check.__module__.endswith("state_laws")]


@pytest.mark.parametrize("name", STATEFUL)
def test_what_remembers_keeps_the_laws_of_state(name):
    check_loss(STATEFUL[name](), only=STATE, dimension=DIMENSION)


class Method(nn.Module):
    """A recipe as one loss of embeddings and labels."""

    def __init__(self, recipe):
        super().__init__()
        self.loss, self.miner = recipe.loss, recipe.miner
        if hasattr(recipe.loss, "distance"):  # a sum of losses has none of its own
            self.distance = recipe.loss.distance

    def forward(self, embeddings, labels):
        mined = None if self.miner is None else self.miner(embeddings, labels)
        return self.loss(embeddings, labels, mined)


OF_A_METHOD = (
    "any_batch_has_a_finite_loss",
    "degenerate_batches_have_a_finite_loss",
    "empty_batch_costs_nothing",
    "half_precision_is_close",
    "copies_are_equal",
    "it_learns",
    "label_names_are_irrelevant",
    "every_dtype_of_labels_will_do",
    "every_default_device_will_do",
    "one_zero_vector_moves_no_mountains",
    "what_is_no_number_makes_the_loss_none",
    "evaluation_changes_no_state",
    "inference_before_training_does_no_harm",
)
# PML's own parts compute in the dtype that they are given, and for bfloat16 not at all or with other pairs; they divide
# by the length of a zero vector, and leave what is NaN out of their mean.
NOT_OF_PML = (
    "half_precision_is_close",
    "every_dtype_of_labels_will_do",
    "one_zero_vector_moves_no_mountains",
    "what_is_no_number_makes_the_loss_none",
)
PML_PARTS = ("pytorch_metric_learning.losses", "pytorch_metric_learning.miners")
OF_A_METHOD_WITHOUT_CHANCE = ("batch_order_is_irrelevant", "rotation_changes_nothing", "length_changes_nothing")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_keeps_the_laws(name):
    method = Method(RECIPES[name]())
    parts = [*method.modules()]
    laws = OF_A_METHOD if any(map(is_random, parts)) else (*OF_A_METHOD, *OF_A_METHOD_WITHOUT_CHANCE)
    if any(type(part).__module__.startswith(PML_PARTS) for part in parts):
        laws = tuple(law for law in laws if law not in NOT_OF_PML)
    faults = FAULTS.get(name, {})
    skip = exceptions(method.loss, name).keys() - faults
    check_loss(
        method,
        only=laws,
        skip=skip,
        expected_failures=faults,
        dimension=dimension_of(name),
        examples=examples(name),
        regimes=regimes(RECIPES, name),
    )


def dimension_of(name):
    if any(isinstance(part, BranchLoss) for part in Method(RECIPES[name]()).modules()):
        return 3 * DIMENSION  # three columns for each of up to four slices: of two, some vectors are all but equal
    return DIMENSION if "embedding_size" in required(name) else None


# Inductor itself uses what torch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_loss_compiles_with_inductor(name):
    loss = ALL_LOSSES[name]()
    if "compiles_as_one_graph" not in exceptions(loss):
        check_compiled(loss, Batch((3, 4, 2), dimension(loss) or 4, seed=7), "inductor")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_loss_on_cuda_is_that_on_cpu(name):
    loss, batch = ALL_LOSSES[name](), Batch((3, 4, 2), dimension(ALL_LOSSES[name]()) or 4, seed=7)
    expected = fresh(loss)(batch.embeddings, batch.labels)
    loss = loss.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = loss(embeddings := batch.embeddings.cuda(), labels := batch.labels.cuda())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual.cpu(), expected)
    assert embeddings.device == labels.device == actual.device


def test_exceptions_are_of_things_that_exist():
    names = {*ALL_LOSSES, *MINERS, *RECIPES}
    known = names | {name.split("(")[0] for name in names}
    assert {*EXCEPTIONS, *FAULTS} <= known
    for laws in (*EXCEPTIONS.values(), *FAULTS.values()):
        assert set(laws) <= set(LOSS_LAWS) | set(MINER_LAWS)
        assert all(laws.values()), "an exception without a reason"
