"""The network that keeps no activations: against the same network with all of them."""

import copy
import pickle
import warnings
import weakref
from itertools import pairwise

import pytest
import torch
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pml_ext import losses, miners
from pml_ext.trainers import Cached

N, D = 50, 8
X = torch.randn(N, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5
LABELS = torch.arange(N) % 9


def network(*, dropout=0.0, norm=None, dtype=torch.float64):
    torch.manual_seed(1)
    middle = [] if norm is None else [norm]
    parts = [nn.Linear(10, 16), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, D), nn.Dropout(dropout)]
    return nn.Sequential(*parts).to(dtype)


class InChunks(nn.Module):
    """The same chunks, with their activations."""

    def __init__(self, network, chunk_size):
        super().__init__()
        self.network, self.chunk_size = network, chunk_size

    def forward(self, x):
        number = -(-len(x) // self.chunk_size)
        bounds = [i * len(x) // number for i in range(number + 1)]
        return torch.cat([self.network(x[a:b]) for a, b in pairwise(bounds)])


def step(model, loss=None, miner=None, x=X, **autocast):
    """Value and gradients of one step, by the same random numbers in every call."""
    loss = losses.RAWLoss() if loss is None else copy.deepcopy(loss)
    torch.manual_seed(11)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(autocast)):
        embeddings = model(x)
        value = loss(embeddings, LABELS[: len(x)], None if miner is None else miner(embeddings, LABELS[: len(x)]))
        if autocast.get("backward") == "inside":
            value.backward()
    if autocast.get("backward") != "inside":
        value.backward()
    parameters = [*model.parameters(), *(p for p in loss.parameters())]
    return value.detach(), torch.cat([p.grad.flatten() for p in parameters])


def assert_same_step(model, reference, tolerance=1e-12, **how):
    (value, gradient), (expected, expected_gradient) = step(model, **how), step(reference, **how)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    assert expected_gradient.norm() > 0
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


LOSSES = {
    "RAW": (losses.RAWLoss, None),
    "MultiSimilarity with PML's miner": (pml_losses.MultiSimilarityLoss, pml_miners.MultiSimilarityMiner),
    "BatchAll": (losses.BatchAllTripletLoss, None),
    "Histogram": (losses.HistogramLoss, None),
    "PML's triplets": (pml_losses.TripletMarginLoss, pml_miners.TripletMarginMiner),
    "BinomialDeviance with a miner": (losses.BinomialDevianceLoss, miners.HardNegativePairMiner),
    "proxies": (lambda: pml_losses.SoftTripleLoss(9, D).double(), None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_full_batch(name):
    make_loss, make_miner = LOSSES[name]
    miner = None if make_miner is None else make_miner()

    def loss():
        torch.manual_seed(5)
        return make_loss()

    expected, expected_gradient = step(network(), loss(), miner)
    for chunk_size in (1, 7, 64):
        value, gradient = step(Cached(network(), chunk_size), loss(), miner)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        assert (gradient - expected_gradient).norm() <= 1e-12 * expected_gradient.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_dropout_drops_the_same_twice(name):
    make_loss, make_miner = LOSSES[name]
    miner = None if make_miner is None else make_miner()
    torch.manual_seed(5)
    loss = make_loss()
    model, reference = network(dropout=0.3), network(dropout=0.3)
    assert_same_step(Cached(model, 16), InChunks(reference, 16), loss=loss, miner=miner)
    assert_same_step(Cached(model, 64), reference, loss=loss, miner=miner)


def test_dropout_of_a_compiled_network_drops_the_same_twice():
    model, reference = network(dropout=0.3), network(dropout=0.3)
    compiled = torch.compile(model, backend="aot_eager")
    # Compiled, the same numbers may be drawn in another order.
    assert_same_step(Cached(compiled, 64), torch.compile(reference, backend="aot_eager"))


def test_it_may_stand_in_what_is_compiled():
    assert_same_step(torch.compile(Cached(network(), 16), backend="eager"), network())


def test_random_numbers_go_on_as_without():
    after = []
    for model in (Cached(network(dropout=0.3), 16), InChunks(network(dropout=0.3), 16)):
        step(model)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_several_calls_before_one_backward_pass():
    loss = losses.RAWLoss()
    gradients = []
    for model in (Cached(network(), 7), network()):
        (0.25 * loss(model(X), LABELS) + 0.5 * loss(model(X.flip(0)), LABELS)).backward()
        loss(model(X[:20]), LABELS[:20]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-12 * gradients[1].norm()


def test_gradients_may_be_scaled():
    scaled = []
    for model in (Cached(network(dtype=torch.float32), 16), network(dtype=torch.float32)):
        optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu")
        scaler.scale(losses.RAWLoss()(model(X.float()), LABELS)).backward()
        scaler.step(optimizer)
        scaled.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*scaled)


def test_statistics_of_batches_move_once():
    model, reference = network(norm=nn.BatchNorm1d(16)), network(norm=nn.BatchNorm1d(16))
    cached = Cached(model, 16)
    with pytest.warns(UserWarning, match="batch normalization sees chunks of 16 samples, not the batch: 1;"):
        value = cached(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        (losses.RAWLoss()(value, LABELS) + losses.RAWLoss()(cached(X), LABELS)).backward()
    chunks = InChunks(reference, 16)
    (losses.RAWLoss()(chunks(X), LABELS) + losses.RAWLoss()(chunks(X), LABELS)).backward()
    for (name, buffer), expected in zip(model.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert model[1].num_batches_tracked == 8
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_frozen_statistics_stay_as_they_are():
    model, reference = network(norm=nn.BatchNorm1d(16)), network(norm=nn.BatchNorm1d(16))
    model[1].eval(), reference[1].eval()
    before = [buffer.clone() for buffer in model.buffers()]
    assert_same_step(Cached(model, 7), reference)
    assert all(map(torch.equal, model.buffers(), before))


def test_a_buffer_that_moves_the_output_is_as_it_was():
    """The vectors of a spectral norm move in each call, and the weight with them."""

    def model():
        parts = network()
        parts[-2] = spectral_norm(parts[-2])
        return parts

    one, other = model(), model()
    assert_same_step(Cached(one, 16), InChunks(other, 16))
    assert all(map(torch.equal, one.buffers(), other.buffers()))


def test_statistics_of_all_processes_are_refused():
    with pytest.raises(ValueError, match="no SyncBatchNorm in training, 1 is one"):
        Cached(network(norm=nn.SyncBatchNorm(16)), 16)(X)


@pytest.mark.parametrize("backward", ["inside", "outside"])
def test_autocast_is_the_same_twice(backward):
    model, reference = network(dtype=torch.float32), network(dtype=torch.float32)
    chunks = InChunks(reference, 16)
    assert_same_step(Cached(model, 16), chunks, x=X.float(), tolerance=1e-6, backward=backward)


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, pair, *, flip, factor):
        first, (second, number) = self.network(pair["a"]), pair["b"]
        assert number == 3
        return {"sum": factor * (first - self.network(second)), "parts": (first.flip(1) if flip else first,)}


def test_nests_of_inputs_and_outputs():
    gradients = []
    for model in (Cached(TwoTowers(), 9), TwoTowers()):
        pair = {"a": X, "b": (X.flip(0), 3)}
        out = model(pair, flip=True, factor=torch.tensor(2.0, dtype=torch.float64))
        assert out["sum"].shape == out["parts"][0].shape == (N, D)
        (losses.RAWLoss()(out["sum"], LABELS) + out["parts"][0].square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-12 * gradients[1].norm()


def test_gradients_go_on_to_what_gave_the_inputs():
    inputs = [X.clone().requires_grad_() for _ in range(2)]
    for model, x in zip((Cached(network(), 16), network()), inputs, strict=True):
        losses.RAWLoss()(model(x), LABELS).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-12)


def test_a_frozen_network_is_no_matter():
    model = Cached(network().requires_grad_(False), 16)
    assert not model(X).requires_grad
    torch.testing.assert_close(model(X), network()(X).detach())


def test_without_a_gradient_it_embeds_in_chunks():
    sizes = []
    model = network()
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    with torch.no_grad():
        embeddings = Cached(model, 20)(X)
    assert sizes == [16, 17, 17]
    torch.testing.assert_close(embeddings, model(X).detach())


def test_an_empty_batch_is_an_empty_chunk():
    model = Cached(network(), 16)
    embeddings = model(X[:0])
    assert embeddings.shape == (0, D)
    embeddings.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


class Peak(TorchDispatchMode):
    """How many bytes of tensors lived at the same time."""

    def __init__(self):
        super().__init__()
        self.living, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.living:
                    self.living[key] = weakref.ref(storage, lambda _, key=key, size=size: self.ended(key, size))
                    self.now += size
                    self.most = max(self.most, self.now)
        return out

    def ended(self, key, size):
        self.now -= size
        del self.living[key]


def peak(model, images, labels):
    with Peak() as measured:
        losses.RAWLoss(chunk_size=64)(model(images), labels).backward()
    return measured.most


def test_memory_is_that_of_a_chunk():
    images = torch.randn(512, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, D))
    labels = torch.arange(512) % 64
    whole, cached = peak(model, images, labels), peak(Cached(model, 16), images, labels)
    assert cached < whole / 8, (cached, whole)


def test_copies_and_states():
    model = Cached(network(), 7)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_step(other, network())
    other = Cached(network(dtype=torch.float64), 3)
    other.load_state_dict(model.state_dict())
    assert repr(model).startswith("Cached(\n  chunk_size=7\n")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Cached(lambda x: x, 4), TypeError, "network must be a module, got function"),
        (lambda: Cached(network(), 0), ValueError, "chunk_size must be at least 1, got 0"),
        (lambda: Cached(network(), 4)(), ValueError, "one row for each sample of one batch, got no tensor"),
        (lambda: Cached(network(), 4)(X, X[:3]), ValueError, "one batch, got lengths 3, 50"),
        (lambda: Cached(nn.Flatten(0), 4)(X), ValueError, "one row for each of 3 samples, got shape"),
        (lambda: Cached(nn.LSTM(10, 4).double(), 4)(X), ValueError, r"of 3 samples, got shape \(1, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
