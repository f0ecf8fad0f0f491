"""From Python: objects in the place of names, the same folder, the same numbers."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from pml_ext.benchmark import BenchmarkError, Experiment, evaluate, features, plots, result, transforms, trunks
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.saved import load
from pml_ext.losses import RAWLoss

BUDGET: dict[str, Any] = {"epochs": 2, "steps": 2, "batch_size": 12, "embedding_size": 4, "device": "cpu"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors(classes=16, per_class=5):
    labels = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(centers[labels] + 0.3 * noise, labels)


@pytest.fixture
def photos(tmp_path):
    """A folder of 12 classes of 3 pictures, each class of one color."""
    draw = np.random.default_rng(0)
    for label in range(12):
        (tmp_path / "photos" / f"class {label}").mkdir(parents=True)
        color = draw.integers(0, 200, 3)
        for i in range(3):
            pixels = np.clip(color + draw.integers(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class {label}" / f"{i}.png")
    return tmp_path / "photos"


class Trunk(nn.Module):
    """Counts the images that it has seen."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, images):
        Trunk.seen += len(images)
        found: torch.Tensor = self.norm(self.layer(images)).mean((2, 3))
        return found


def test_objects_for_data_and_losses_and_what_they_become(tmp_path):
    proxies = pml_losses.SoftTripleLoss(5, 4)
    start = [each.detach().clone() for each in proxies.parameters()]
    given: tuple[Any, ...] = (
        RAWLoss(gamma=0.3),
        (pml_losses.TripletMarginLoss(), pml_miners.MultiSimilarityMiner()),
        proxies,
        "RAW(gamma=0.3)",
    )
    out = tmp_path / "out"
    experiment = Experiment(data=vectors(), losses=given, seeds=(0, np.int64(1)), out=out, **BUDGET)
    results = experiment.run()
    assert all(map(torch.equal, proxies.parameters(), start)), "the object is copied, every seed starts with the same"
    by_name = {one.key: one for one in results}
    assert by_name["RAWLoss(gamma=0.3)", 1, None].history[-1]["loss"] == pytest.approx(
        by_name["RAW(gamma=0.3)", 1, None].history[-1]["loss"]
    )
    names = list(dict.fromkeys(one.loss for one in results if one.trained))
    assert json.loads((out / "experiment.json").read_text())["losses"] == names
    assert [one.loss for one in results if not one.trained] == ["frozen trunk", "untrained head"], "PCA has no seed"
    grown = replace(experiment, losses=(*given, "NCA")).run(resume=True)
    assert [one for one in grown if one.loss != "NCA"] == results, "objects find their names again"
    assert sum(one.loss == "NCA" for one in grown) == 2


def test_vectors_that_are_good_stay_good_under_principal_components():
    data = Data.of(Experiment(data=vectors(), **BUDGET))
    assert data.pretrained
    head = features.principal_head(data.train.vectors, 4)
    centered = data.train.vectors - data.train.vectors.mean(0)
    kept = head(data.train.vectors).detach().square().sum() / centered.square().sum()
    values = torch.linalg.svdvals(centered).square()
    assert float(kept) == pytest.approx(float(values[:4].sum() / values.sum()), rel=1e-4)


def test_a_trunk_of_ones_own_on_a_folder_is_kept_and_used(photos, tmp_path):
    trunk = Trunk()
    start = [value.clone() for value in trunk.state_dict().values()]
    out = tmp_path / "out"
    experiment = Experiment(data=photos, trunk=trunk, losses=("RAW",), image_size=(16, 20), out=out, **BUDGET)
    results = experiment.run()
    assert [one.loss for one in results] == ["untrained", "RAW"]
    assert all(torch.equal(a, b) for a, b in zip(start, trunk.state_dict().values(), strict=True)), "it is copied"
    model = load(out / "best", trunk=Trunk())
    image = next(photos.rglob("*.png"))
    embedding = model.embed([image])
    assert embedding.shape == (1, 4)
    assert json.loads((out / "best" / "model.json").read_text())["preprocessing"]["image_size"] == [16, 20]


def test_images_are_scaled_to_a_shorter_side_before_they_are_cut(photos):
    size = {"image_size": (16, 12), "trunk": Trunk(), "data": photos}
    data = Data.of(Experiment(shorter_side=15, **size))
    assert data.preprocessing is not None
    assert data.preprocessing.resized == (20, 15)
    image = data.test.image(0)  # of 24 x 20 pixels: covers 20 x 15 at 24 x 20
    left, top = round((24 - 12) / 2), round((20 - 16) / 2)
    cut = transforms.numbers(image.crop((left, top, left + 12, top + 16)), data.preprocessing)
    assert torch.equal(data.test[0][0], cut)
    torch.manual_seed(0)
    augmentation = transforms.Augmentation(shorter_side=15)
    wanted = transforms.train_transform(data.preprocessing, augmentation)(data.train.image(0))
    torch.manual_seed(0)
    assert torch.equal(data.train[0][0], wanted)
    whole = Data.of(Experiment(shorter_side=12, **size)).preprocessing
    assert whole is not None
    assert whole.resized == whole.image_size
    with pytest.raises(BenchmarkError, match="shorter_side must be at least 12, that of the image size, got 11"):
        Data.of(Experiment(shorter_side=11, **size))


def test_crop_and_flip_of_training_images(photos):
    size: dict[str, Any] = {"image_size": (16, 12), "trunk": Trunk(), "data": photos}
    data = Data.of(Experiment(crop_scale=0.5, flip=1, **size))
    assert data.preprocessing is not None
    augmentation = transforms.Augmentation(scale=(0.5, 1.0), flip=1.0)
    wanted = transforms.train_transform(data.preprocessing, augmentation)
    for i in range(3):
        torch.manual_seed(i)
        expected = wanted(data.train.image(i))
        torch.manual_seed(i)
        assert torch.equal(data.train[i][0], expected)
    # Whole, and never mirrored: the same every time.
    still = Data.of(Experiment(crop_scale=1, flip=0, **size)).train
    assert torch.equal(still[0][0], still[0][0])
    assert not torch.equal(data.train[0][0], data.train[0][0])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"flip": 0}, None),
        ({"flip": 0, "frozen": True}, "flip: without effect on features of a frozen trunk"),
        ({"crop_scale": 1, "flip": 0, "data": "digits"}, "crop_scale and flip: without effect on digits as it comes"),
        ({"crop_scale": 1, "data": "digits", "image_size": 16}, None),
        ({"flip": 1, "data": "vectors"}, "flip: without effect on vectors"),
        ({"weights": "w.pt", "data": "vectors"}, "weights: without effect on vectors"),
        ({"frozen": True}, None),
    ],
)
def test_flags_of_training_images_without_effect_are_named(photos, arguments, line):
    given = {"data": photos} | arguments
    if given["data"] == "vectors":
        given["data"] = (torch.randn(60, 5), [i // 4 for i in range(60)])
    experiment = Experiment(**given)
    assert [each for each in Data.of(experiment).warnings(experiment) if "without effect" in each] == [line][
        : bool(line)
    ]


def test_chance_is_said_of_each_set_of_classes(photos):
    data = Data.of(Experiment(data=photos))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 6, 18]
    # Two of the five others, or of the seventeen, are of the same class.
    assert data.chance() == (
        "by chance: recall@1 40.0 %, MAP@R 32.5 % on the validation classes; "
        "recall@1 11.8 %, MAP@R 9.0 % on the test classes"
    )


def test_features_of_a_frozen_trunk_are_computed_once(photos, tmp_path):
    trunk = Trunk()
    experiment = Experiment(
        data=photos,
        trunk=trunk,
        frozen=True,
        cache=tmp_path / "cache",
        image_size=16,
        **(BUDGET | {"embedding_size": 3}),
    )
    Trunk.seen = 0
    first = replace(experiment, losses=("RAW", "NCA"), seeds=(0, 1), out=str(tmp_path / "a")).run()
    assert Trunk.seen == 36, "all images once, whatever is trained"
    second = replace(experiment, losses=("NCA",), seeds=(1,), out=str(tmp_path / "b")).run()
    assert Trunk.seen == 36
    numbers = [one.metrics for one in first if one.key == ("NCA", 1, None)]
    assert [one.metrics for one in second if one.trained] == numbers
    assert [one.loss for one in second if not one.trained] == ["untrained"], "this trunk had no weights"
    assert load(tmp_path / "a" / "best", trunk=Trunk()).embed([next(photos.rglob("*.png"))]).shape == (1, 3)
    kept = {one.key: load(run_folder(tmp_path / "a", *one.key) / "best", trunk=Trunk()) for one in first if one.trained}
    assert len(kept) == 4
    for (loss, seed, _), model in kept.items():
        assert (model.description.arguments["loss"], model.description.arguments["seed"]) == (loss, seed)
        assert all(torch.equal(a, b) for a, b in zip(model.network.trunk.parameters(), trunk.parameters(), strict=True))
    heads = [kept[loss, 0, None].network.embedder.weight for loss in ("RAW", "NCA")]
    assert not torch.equal(*heads)
    test = Data.of(replace(experiment, losses=("RAW",))).test
    for key, model in kept.items():
        embeddings = model.embed([test.image(i) for i in range(len(test))])
        measured = evaluate.measure(embeddings, test, recall_at=(1,), device=torch.device("cpu"), clusters=False)
        wanted = next(one.metrics for one in first if one.key == key)
        assert measured["mean_average_precision_at_r"] == pytest.approx(wanted["mean_average_precision_at_r"], abs=0.02)
    names = [path.stat().st_ino for path in (tmp_path / "a").rglob("trunk*.pt")]
    assert (len(names), len(set(names))) == (6, 1), "the weights of the trunk lie there once"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen": True}, "frozen needs images and a pretrained trunk, and .* is of vectors"),
        ({"frozen": True, "data": "digits"}, "frozen needs images and a pretrained trunk: give weights"),
        ({"head": "pca", "embedding_size": 64}, "embedding_size 64 is above the 6 principal components"),
        (
            {"losses": ("HDML-NPair",), "amp": "bf16", "clip": 1.0},
            "HDML-NPair trains in its own way, without clip, amp",
        ),
        ({"losses": (3,)}, "must be a name or an object"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_run(changes, said, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BenchmarkError, match=said) as caught:
        Experiment(**({"data": vectors(), "losses": ("RAW",), "out": out} | BUDGET | changes)).run()
    assert "\n" not in str(caught.value)
    assert not (out / "results.jsonl").exists()
    assert result.read(out / "results.jsonl") == []


def test_weights_are_heeded_on_a_set_of_the_package_too(tmp_path):
    weights = trunks.build("conv4", (3, 64, 64)).module.state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    data = Data.of(Experiment(data="digits", losses=("RAW",), weights=tmp_path / "weights.pt"))
    assert data.pretrained
    assert all(value.equal(weights[name]) for name, value in data.trunk.module.state_dict().items())
    torch.save(trunks.build("conv4", (1, 32, 32)).module.state_dict(), tmp_path / "gray.pt")
    with pytest.raises(BenchmarkError, match="weights of another network"):
        Data.of(Experiment(data="digits", losses=("RAW",), weights=tmp_path / "gray.pt"))
