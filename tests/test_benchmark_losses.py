"""What a user may write for a loss, and what it is then."""

import sys
from types import SimpleNamespace

import pytest
import torch
from of_pml import DistanceWeightedMiner, LpDistance, TripletMarginMiner, needs
from of_pml import losses as pml

from pml_ext import catalog, losses, miners
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.losses import parse, parse_all, rehearse


def built(spec):
    return parse(spec).build(classes=5, embedding_size=8)


@pytest.mark.parametrize(
    ("text", "loss", "miner"),
    [
        ("RAW", losses.RAWLoss, None),
        ("RAWLoss", losses.RAWLoss, None),
        ("MultiSimilarityLoss", losses.MultiSimilarityLoss, None),
        ("HistogramLoss", losses.HistogramLoss, None),
        ("LiftedStructureLoss", losses.LiftedStructureLoss, None),
        ("GeneralizedLiftedStructureLoss", losses.GeneralizedLiftedStructureLoss, None),
        ("pml:MultiSimilarityLoss", pml.MultiSimilarityLoss, None),
        ("ContrastiveLoss", pml.ContrastiveLoss, None),
        ("pml:ArcFaceLoss", pml.ArcFaceLoss, None),
        ("BinDeviance2018", losses.BinomialDevianceLoss, miners.HardNegativePairMiner),
        ("pml:MarginLoss + pml:DistanceWeightedMiner", pml.MarginLoss, DistanceWeightedMiner),
        ("RAW + TripletMarginMiner(type_of_triplets='hard')", losses.RAWLoss, TripletMarginMiner),
        ("RAW+DistanceWeightedMiner", losses.RAWLoss, miners.DistanceWeightedMiner),
    ],
)
def test_a_text_means_a_loss(text, loss, miner):
    recipe = built(text)
    assert type(recipe.loss) is loss
    assert type(recipe.miner) is (miner or type(None))
    assert parse(text).name == text


def test_arguments_are_literals_with_names():
    recipe = built("RAW(gamma=0.3, alpha=4)")
    assert (recipe.loss.gamma, recipe.loss.alpha) == (0.3, 4)
    assert built("pml:TripletMarginLoss(margin=2)").loss.margin == 2
    assert built("RankedPullDevianceLoss(margins=[.1, .2], alphas=[1, 2])").loss.margins == [0.1, 0.2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RAWW", "unknown loss 'RAWW'; did you mean RAW"),
        ("pml:Triplet", "unknown PML loss 'Triplet'; did you mean TripletMarginLoss"),
        ("RAW + Distance", "unknown miner 'Distance'"),
        ("RAW(3)", "must have names"),
        ("RAW(**{})", "must have names"),
        ("RAW(gamma=", "cannot read the loss"),
        ("RAW(gamma=print(1))", "cannot read the loss"),
        ("RAW(gamma=1)(gamma=2)", "cannot read the loss"),
        ("KNNSoftmaxLoss(k=0)", "k must be"),
        ("RAW(gama=1)", "gama"),
        ("RAW + HardNegativePairMiner + HardNegativePairMiner", "one miner"),
        ("HDML-Triplet(beta=1)", "neither arguments nor a miner"),
        ("pml:GenericPairLoss", "unknown PML loss"),
        ("no_such_module:Loss", "cannot import the loss 'no_such_module:Loss'"),
        (3, "a loss must be a name, a loss, a loss with a miner"),
    ],
)
def test_a_mistake_is_one_line(text, message):
    with pytest.raises(BenchmarkError, match=message) as error:
        built(text)
    assert "\n" not in str(error.value)


def test_nothing_but_literals_is_evaluated(monkeypatch):
    monkeypatch.setitem(sys.modules, "trap", SimpleNamespace())
    for text in ("RAW(gamma=__import__('trap'))", "RAW(gamma=(lambda: 1)())", "RAW(gamma=[x for x in (1,)])"):
        with pytest.raises(BenchmarkError, match="cannot read the loss"):
            parse(text)


def test_a_class_of_ones_own(monkeypatch):
    class MyLoss(losses.RAWLoss):
        pass

    monkeypatch.setitem(sys.modules, "my_losses", SimpleNamespace(MyLoss=MyLoss, both=lambda: (MyLoss(), None), n=3))
    assert type(built("my_losses:MyLoss(gamma=0.2)").loss) is MyLoss
    assert type(built("my_losses:both").loss) is MyLoss
    for text, message in (("my_losses:Other", "has no 'Other'"), ("my_losses:n", "neither a class nor a function")):
        with pytest.raises(BenchmarkError, match=message):
            built(text)


def test_objects_get_names_that_tell_them_apart():
    specs = parse_all([losses.RAWLoss(gamma=0.3), losses.RAWLoss(gamma=0.3), losses.RAWLoss(), losses.RAWLoss, "RAW"])
    assert [spec.name for spec in specs] == [
        "RAWLoss(gamma=0.3)",
        "RAWLoss(gamma=0.3) (2)",
        "RAWLoss",
        "RAWLoss (2)",
        "RAW",
    ]
    assert [spec.in_memory for spec in specs] == [True, True, True, True, False]


def test_one_loss_is_a_list_of_one():
    miner = miners.KNearestNegativeMiner(k=3)
    for one in ("RAW", losses.RAWLoss(), (losses.RAWLoss(), miner), losses.RAWLoss):
        assert len(parse_all(one)) == 1
    (spec,) = parse_all((losses.RAWLoss(), miner))
    assert spec.name == "RAWLoss + KNearestNegativeMiner(k=3)"
    assert spec.build(classes=2, embedding_size=3).miner is miner


def test_a_recipe_and_a_function_are_losses():
    recipe = catalog.build("RAW")
    assert parse(recipe).build(classes=2, embedding_size=3) is recipe

    def squares(embeddings, labels):
        return embeddings.square().sum()

    spec = parse(squares)
    loss = spec.build(classes=2, embedding_size=3).loss
    assert spec.name == "squares"
    assert loss(torch.ones(2, 3), torch.arange(2)) == 6


def test_names_twice_are_refused_and_all_is_the_catalog():
    with pytest.raises(BenchmarkError, match="got RAW twice"):
        parse_all(["RAW", "RAW"])
    assert [spec.name for spec in parse_all("all")] == list(catalog.recipes)
    with pytest.raises(BenchmarkError, match="must not be empty"):
        parse_all([])


def test_the_name_of_an_object_is_the_class_with_what_differs():
    assert parse(pml.TripletMarginLoss(margin=0.3)).name == "TripletMarginLoss(margin=0.3)"
    assert parse(pml.TripletMarginLoss()).name == "TripletMarginLoss"
    assert parse(losses.RAWLoss(distance=LpDistance())).name == "RAWLoss(distance=LpDistance())"


def test_a_loss_that_cannot_be_trained_is_known_before():
    needs("VICRegLoss", "ProxyNCALoss")
    with pytest.raises(BenchmarkError, match="VICRegLoss cannot be trained on labeled batches"):
        rehearse(parse("VICRegLoss"), classes=4, embedding_size=8, images_per_class=2)
    assert rehearse(parse("RAW"), classes=4, embedding_size=8, images_per_class=2) == 0
    assert rehearse(parse("pml:ProxyNCALoss"), classes=4, embedding_size=8, images_per_class=2) == 4 * 8
