"""A model that is kept: round trip, damaged and foreign files, what a gallery answers, PML's InferenceModel, export."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pml_ext.benchmark import models, saved
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.export import export
from pml_ext.benchmark.preprocessing import Preprocessing
from pml_ext.benchmark.saved import Description, load, save

SIZE = (24, 20)
PREPARED = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, crop=1.0)


def description(**changes):
    values = {
        "trunk": "conv4",
        "rebuildable": True,
        "image_shape": (3, *SIZE),
        "features": 64,
        "embedding_size": 6,
        "preprocessing": PREPARED,
        "classes": ("<b>", "wren & co", "鳥"),
        "metrics": {"recall_at_1": 0.5},
        "arguments": {"losses": ["RAW"]},
    }
    return Description(**(values | changes))


def network(trunk="conv4"):
    torch.manual_seed(5)
    return models.build(trunk, torch.rand(2, 3, *SIZE), 6, preprocessing=PREPARED)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "best", network(), description())
    return tmp_path / "best"


@pytest.fixture
def gallery(tmp_path):
    """Three colors, four images of each."""
    generator = np.random.default_rng(0)
    for name, color in {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            noise = generator.integers(-20, 20, (30, 40, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_what_is_saved_is_loaded(folder):
    model = load(folder)
    images = torch.rand(3, 3, *SIZE)
    expected = torch.nn.functional.normalize(network().eval()(images), dim=1)
    assert torch.equal(model(images), expected)
    assert not model.training
    assert model.classes == description().classes
    assert model.metrics == {"recall_at_1": 0.5}
    assert model.description.arguments == {"losses": ["RAW"]}
    assert model.description.versions["torch"] == torch.__version__


def test_files_images_and_tensors_are_embedded_alike(folder, gallery):
    model = load(folder)
    paths = sorted(gallery.rglob("*.png"))
    by_path = model.embed(paths)
    assert by_path.shape == (12, 6)
    assert torch.allclose(by_path.norm(dim=1), torch.ones(12))
    images = [Image.open(path) for path in paths]
    assert torch.equal(model.embed(images), by_path)
    assert torch.equal(model.embed([model.prepare(image) for image in images]), by_path)
    assert torch.allclose(model.embed(paths[3]), by_path[3:4], atol=1e-6)
    assert by_path.requires_grad_().sum().backward() is None  # an ordinary tensor


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path.with_name("turned.jpg"), exif=exif)
    return path.with_name("turned.jpg")


def transparent(path):
    image = Image.open(path).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path.with_name("transparent.png"))
    return path.with_name("transparent.png")


def of_sixteen_bits(path):
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(path.with_name("sixteen.png"))
    return path.with_name("sixteen.png")


@pytest.mark.parametrize("kind", [turned, transparent, of_sixteen_bits])
def test_an_open_image_is_seen_as_its_file_is(folder, gallery, kind):
    model = load(folder)
    path = kind(gallery / "red" / "0.png")
    of_file = model.embed([path])
    assert torch.equal(model.embed([Image.open(path)]), of_file)
    assert torch.equal(model.embed([model.prepare(Image.open(path))]), of_file)
    as_it_lies = Image.fromarray(np.asarray(Image.open(path).convert("RGB")))
    assert not torch.allclose(model.embed([as_it_lies]), of_file, atol=1e-3)


def test_a_gallery_answers(folder, gallery, tmp_path):
    model = load(folder)
    index = model.index(gallery, show=False)
    assert sorted(set(index.labels)) == ["blue", "green", "red"]
    asked = gallery / "green" / "2.png"
    answers = model.query(asked, index, k=3)
    assert answers[0].path == str(asked)
    assert answers[0].label == "green"
    assert answers[0].similarity == pytest.approx(1, abs=1e-5)
    index.save(tmp_path / "index")
    assert model.query(asked, saved.Index.load(tmp_path / "index"), k=3) == answers
    listed = model.index(sorted(gallery.rglob("*.png"))[:5], show=False)
    assert (len(listed), listed.labels) == (5, ())


def test_a_model_of_vectors(tmp_path):
    torch.manual_seed(1)
    whole = models.Network(nn.Identity(), nn.Linear(9, 6))
    save(
        tmp_path / "best",
        whole,
        description(trunk=saved.VECTORS, image_shape=(9,), features=9, preprocessing=None),
    )
    model = load(tmp_path / "best")
    vectors = torch.rand(4, 9)
    assert torch.equal(model(vectors), torch.nn.functional.normalize(whole(vectors), dim=1))
    assert torch.equal(model.embed(vectors.numpy()), model(vectors))
    with pytest.raises(BenchmarkError, match="takes vectors, not images"):
        _ = model.prepare


class Own(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 24 * 20, 64))


@pytest.mark.parametrize("name", ["my_code:net", "timm:hf-hub:someone/something", "Own"])
def test_code_is_not_run_on_the_word_of_a_file(tmp_path, name):
    save(tmp_path / "best", network(Own()), description(trunk=name, rebuildable=name != "Own"))
    with pytest.raises(BenchmarkError, match=f"'{name}', is code that runs only if you name it yourself"):
        load(tmp_path / "best")
    model = load(tmp_path / "best", trunk=Own())
    assert model(torch.rand(2, 3, *SIZE)).shape == (2, 6)


def test_a_damaged_model_is_one_line(folder, tmp_path):
    def refused():
        with pytest.raises(BenchmarkError) as error:
            load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    good = json.loads((folder / "model.json").read_text())
    for changes in (
        {"format": 2},
        {"features": "many"},
        {"classes": 3},
        {"preprocessing": {"crop": 7}},
        {"trunk": None},
    ):
        (folder / "model.json").write_text(json.dumps(good | changes))
        assert str(folder / "model.json") in refused() or "unknown trunk" in refused() or "is code that" in refused()
    (folder / "model.json").write_text("{")
    assert "model.json is damaged" in refused()
    (folder / "model.json").unlink()
    assert refused() == f"{folder} has no model that can be read: model.json: No such file or directory"
    (folder / "model.json").write_text(json.dumps(good | {"embedding_size": 7}))
    assert "does not fit the network of model.json" in refused()
    (folder / "model.json").write_text(json.dumps(good))
    (folder / "weights.pt").write_bytes(b"PK\x03\x04")
    assert "weights.pt" in refused()


def test_pml_2_takes_it_as_a_trunk(folder, gallery):
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    model = load(folder)
    images = torch.stack([model.prepare(Image.open(path)) for path in sorted(gallery.rglob("*.png"))])
    finder = inference.InferenceModel(trunk=model)
    finder.train_knn(images)
    _, indices = finder.get_nearest_neighbors(images, k=1)
    assert indices.flatten().tolist() == list(range(12))


def test_an_exported_program_gives_the_same_embeddings(folder, gallery, tmp_path):
    model = load(folder)
    path = tmp_path / "model.pt2"
    assert export(model, path, sorted(gallery.rglob("*.png"))) < 1e-5
    program = torch.export.load(path).module()
    images = torch.rand(5, 3, *SIZE)
    assert torch.allclose(program(images), model(images), atol=1e-5)
    beside = json.loads((tmp_path / "model.json").read_text())
    assert Preprocessing.from_dict(beside["preprocessing"]) == PREPARED


def test_an_exported_onnx_file_gives_the_same_embeddings(folder, gallery, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX is no dependency; CI installs it for this test")
    assert export(load(folder), tmp_path / "model.onnx", sorted(gallery.rglob("*.png"))) < 1e-5


def test_an_export_that_cannot_be_is_one_line(folder, tmp_path, monkeypatch):
    model = load(folder)
    with pytest.raises(BenchmarkError, match=r"must end in .onnx or .pt2, got 'model.pb'"):
        export(model, tmp_path / "model.pb")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(BenchmarkError, match="pip install onnx onnxscript onnxruntime"):
        export(model, tmp_path / "model.onnx")


def test_an_export_with_other_embeddings_is_not_kept(folder, tmp_path, monkeypatch):
    model = load(folder)
    monkeypatch.setattr("pml_ext.benchmark.export._difference", lambda *_: float("nan"))
    with pytest.raises(BenchmarkError, match="was not kept"):
        export(model, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
