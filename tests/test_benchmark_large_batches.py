"""Large batches of the benchmark: steps of several batches, and batches whose activations are not kept."""

import copy

import pytest
import torch
from torch import nn

from pml_ext.benchmark import BenchmarkError, Experiment
from pml_ext.benchmark.learning import LossLearner
from pml_ext.benchmark.models import Network
from pml_ext.losses import RAWLoss
from pml_ext.miners import HardNegativePairMiner

LABELS = torch.arange(8) // 2


def learner(steps, miner=None, **given):
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(6, 5), nn.Dropout(given.pop("dropout", 0))), nn.Linear(5, 4))
    experiment = Experiment(optimizer="sgd", momentum=0, learning_rate=0.1, epochs=1, **given)
    rest = {"pretrained": False, "total": steps, "device": torch.device("cpu")}
    made = LossLearner(network, RAWLoss(), miner, experiment, **rest)
    made.begin(1)
    return made


def batches(number):
    return torch.randn(number, 8, 6, generator=torch.Generator().manual_seed(1))


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


def test_the_gradients_of_several_batches_are_averaged_for_a_step():
    made, reference = learner(5, accumulate=2), learner(5)
    x = batches(5)
    optimizer = torch.optim.SGD(reference.network.parameters(), 0.1)
    # The fifth batch is alone at the end of the epoch.
    for group in (x[0:2], x[2:4], x[4:5]):
        optimizer.zero_grad()
        torch.stack([RAWLoss()(reference.network(each), LABELS) for each in group]).mean().backward()
        optimizer.step()
    before = weights(made)
    made.step(x[0], LABELS, 0)
    assert torch.equal(weights(made), before)
    for i in range(1, 5):
        value = made.step(x[i], LABELS, i)
        assert not value.requires_grad
    torch.testing.assert_close(weights(made), weights(reference))


def test_the_average_of_weights_follows_steps_not_batches():
    made = learner(4, accumulate=2, ema=0.5)
    for i, x in enumerate(batches(4)):
        made.step(x, LABELS, i)
    assert made.average.n_averaged == 2


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_have_the_pairs_of_the_whole_batch(chunk):
    miner = HardNegativePairMiner(epsilon=0)
    made, whole = (learner(2, copy.deepcopy(miner), cached_chunk=each) for each in (chunk, None))
    for i, x in enumerate(batches(2)):
        assert torch.allclose(made.step(x, LABELS, i), whole.step(x, LABELS, i))
    torch.testing.assert_close(weights(made), weights(whole))
    assert set(made.parts()["models"]) == {"trunk", "embedder"}


def test_chunks_train_with_dropout_and_test_without():
    made = learner(1, cached_chunk=4, dropout=0.5)
    x = batches(1)[0]
    made.step(x, LABELS, 0)
    assert made.network.training
    made.tested().eval()
    assert torch.equal(made.network(x), made.network(x))


@pytest.mark.parametrize("given", [{"accumulate": 0}, {"cached_chunk": 0}, {"accumulate": 1.5}])
def test_a_number_that_is_none_is_refused(given):
    with pytest.raises(BenchmarkError, match=next(iter(given))):
        Experiment(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"accumulate": 2}, "accumulate"), ({"cached_chunk": 8}, "cached_chunk"), ({"accelerate": True}, "accelerate")],
)
def test_a_method_with_a_trainer_of_its_own_does_not_heed_them(given, said, tmp_path):
    with pytest.raises(BenchmarkError, match=f"HDML-Triplet trains in its own way, without {said}"):
        Experiment(data="digits", losses="HDML-Triplet", out=tmp_path / "a", **given).run()
