"""What the package knows of PML itself: what a distance says of itself, and the names of both versions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from of_pml import distances, lmu, losses, miners, reducers
from torch import nn

from pml_ext import _pml
from pml_ext.index_tuples import all_triplets, to_pairs, to_triplets
from pml_ext.losses import BinomialDevianceLoss
from pml_ext.miners import HardNegativePairMiner

# Each with is_inverted, normalize_embeddings, p and power.
DISTANCES = [
    (distances.LpDistance(), (False, True, 2, 1)),
    (distances.LpDistance(normalize_embeddings=False), (False, False, 2, 1)),
    (distances.LpDistance(p=1, power=2), (False, True, 1, 2)),
    (distances.LpDistance(p=3, power=0.5, normalize_embeddings=False), (False, False, 3, 0.5)),
    (distances.CosineSimilarity(), (True, True, 2, 1)),
    (distances.CosineSimilarity(power=3), (True, True, 2, 3)),
    (distances.DotProductSimilarity(normalize_embeddings=False), (True, False, 2, 1)),
    (distances.DotProductSimilarity(normalize_embeddings=False, power=2), (True, False, 2, 2)),
    (distances.DotProductSimilarity(normalize_embeddings=True, p=4), (True, True, 4, 1)),
]


@pytest.mark.parametrize(("distance", "said"), DISTANCES, ids=str)
def test_a_distance_is_found_out(distance, said):
    assert _pml._facts(distance) == {**_pml.Facts(*said)._asdict(), "collect_stats": False}
    assert _pml.facts(distance) == said


@pytest.mark.parametrize("normalize", [True, False])
def test_of_an_unknown_distance_direction_and_normalization_are_found_out(normalize):
    found = _pml._facts(distances.SNRDistance(normalize_embeddings=normalize))
    assert found == {
        "is_inverted": False,
        "normalize_embeddings": normalize,
        "p": 2,
        "power": 1,
        "collect_stats": False,
    }


def test_what_a_distance_says_itself_is_left_alone():
    class Taciturn(nn.Module):
        p = 7  # which no look at its numbers would give

        def forward(self, x, ref):
            return 1 - nn.functional.normalize(x) @ nn.functional.normalize(ref).T

        def margin(self, x, y):
            return x - y

    distance = Taciturn()
    _pml.describe(distance)
    assert (distance.p, distance.power) == (7, 1)
    assert (distance.is_inverted, distance.normalize_embeddings, distance.collect_stats) == (False, True, False)


class Old(_pml.Loss):
    def get_default_distance(self):
        return distances.LpDistance(power=2)

    def get_default_reducer(self):
        return reducers.SumReducer()


class New(_pml.Loss):
    def default_distance(self):
        return distances.LpDistance(power=2)

    def default_reducer(self):
        return reducers.SumReducer()


@pytest.mark.parametrize(("cls", "power"), [(Old, 2), (New, 2)])
def test_defaults_go_by_either_name(cls, power):
    loss = cls()
    assert (loss.distance.power, type(loss.reducer)) == (power, reducers.SumReducer)
    for distance in (loss.default_distance(), loss.get_default_distance()):
        assert _pml.facts(distance).power == power
    assert type(loss.default_reducer()) is type(loss.get_default_reducer()) is reducers.SumReducer


@pytest.mark.pml2("its default distance")
def test_defaults_without_an_override_are_those_of_pml():
    loss = _pml.Loss()
    assert type(loss.distance) is type(losses.BaseMetricLossFunction().distance)
    assert type(loss.reducer) is reducers.MeanReducer


def test_what_is_recorded_is_named_once():
    module = nn.Module()
    _pml.record(module, ["a", "b"])
    _pml.record(module, ["b", "c"])
    assert module._record_these == ["a", "b", "c"]
    assert "alpha" in BinomialDevianceLoss()._record_these


def test_a_miner_of_any_kind_is_given_references_by_name():
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    for miner in (HardNegativePairMiner(), miners.MultiSimilarityMiner()):
        by_name = miner(embeddings, labels, ref_emb=embeddings.clone(), ref_labels=labels.clone())
        found = _pml.mine(miner, embeddings, labels, embeddings.clone(), labels.clone())
        assert all(map(torch.equal, found, by_name))


labelled = st.lists(st.integers(0, 3), max_size=9).map(lambda x: torch.tensor(x, dtype=torch.long))


@given(labels=labelled, refs=st.none() | labelled)
def test_all_triplets_are_those_of_pml(labels, refs):
    expected = lmu.get_all_triplets_indices(labels, refs)
    found = all_triplets(labels, refs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@given(labels=labelled, block=st.sampled_from([1, 30, 200]))
def test_all_triplets_in_blocks(labels, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pml_ext.index_tuples._BLOCK", block)
        found = all_triplets(labels)
    assert all(map(torch.equal, found, all_triplets(labels)))


@given(labels=labelled)
def test_pairs_and_triplets_turn_into_one_another_as_in_pml(labels):
    pairs = lmu.get_all_pairs_indices(labels)
    triplets = to_triplets(pairs)
    for found, expected in (
        (triplets, lmu.convert_to_triplets(pairs, labels)),
        (to_pairs(triplets), lmu.convert_to_pairs(triplets, labels)),
        (to_pairs(pairs), pairs),
        (to_triplets(triplets), triplets),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
