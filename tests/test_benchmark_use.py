"""The commands that use a kept model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pml_ext.benchmark import models, use
from pml_ext.benchmark.__main__ import main
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.preprocessing import Preprocessing
from pml_ext.benchmark.saved import Description, load, save

SIZE = (16, 16)


@pytest.fixture
def model(tmp_path):
    prepared = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, crop=1.0)
    torch.manual_seed(5)
    network = models.build("conv4", torch.rand(2, 3, *SIZE), 6, preprocessing=prepared)
    save(tmp_path / "best", network, Description("conv4", True, (3, *SIZE), 64, 6, prepared))
    return str(tmp_path / "best")


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for name, color in {"re\x1b[1md": (200, 30, 30), "green": (30, 200, 30)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.clip(np.array(color) + generator.integers(-20, 20, (20, 20, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_gallery_is_asked(model, photos, tmp_path, capsys):
    asked = str(photos / "green" / "1.png")
    command = ["query", "--model", model, "--image", asked, "-k", "3", "--index", str(tmp_path / "kept")]
    assert main([*command, "--gallery", str(photos)]) == 0
    first = capsys.readouterr().out
    lines = first.splitlines()
    assert lines[0] == asked
    assert len(lines) == 4
    assert lines[1].split()[0] == "1"
    assert asked not in "".join(lines[1:])  # which would be the first of them
    assert main(command) == 0  # from what was kept
    assert capsys.readouterr().out == first
    assert main([*command, "--gallery", str(photos)]) == 2
    assert "kept holds an index: leave out --gallery" in capsys.readouterr().err


def test_a_copy_of_the_image_that_is_asked_for_is_found(model, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    shutil.copy(photos / "green" / "1.png", photos / "green" / "copy.png")
    asked = ["--image", "green/1.png", str(photos / "green" / "2.png"), "-k", "5"]  # one path is not as in the gallery
    assert main(["query", "--model", model, *asked, "--gallery", str(photos)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "1.000", "green", str(photos / "green" / "copy.png")]
    assert [line.split()[0] for line in lines] == [asked[1], *"12345", asked[2], *"12345"]
    assert not any(line.endswith("/1.png") and "green" in line for line in lines[1:6])
    assert not any(line.endswith("/2.png") and "green" in line for line in lines[7:])


def test_an_index_of_another_model_is_refused(model, photos, tmp_path):
    kept = load(model).index(photos, show=False)
    other = load(model)
    with torch.no_grad():
        other.network.embedder.bias.add_(1)
    with pytest.raises(BenchmarkError, match="made by another model"):
        other.query(photos / "green" / "1.png", kept)


def test_names_of_strangers_cannot_move_the_cursor(model, photos, capsys):
    asked = photos / "re\x1b[1md" / "0.png"
    assert main(["query", "--model", model, "--image", str(asked), "--gallery", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"re\x1b[1md" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --model, --image"),
        (["--model", "nowhere", "--image", "a.jpg"], "nowhere has no model that can be read"),
        (["--model", "MODEL", "--image", "a.jpg", "-k", "0"], "-k must be a whole number of at least 1, got 0"),
        (["--model", "MODEL", "--image", "a.jpg"], "give the images to search by --gallery"),
        (["--model", "MODEL", "--image", "a.jpg", "--gallery", "nowhere/"], "nowhere"),
        (["--model", "MODEL", "--image", "a.jpg", "--gallery", "PHOTOS"], "'a.jpg' cannot be read"),
    ],
)
def test_a_mistake_is_one_line(model, photos, capsys, arguments, message):
    words = {"MODEL": model, "PHOTOS": str(photos)}
    try:
        code = main(["query", *(words.get(word, word) for word in arguments)])
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pml_ext.benchmark query: ")
    assert message in error


def test_a_model_is_exported(model, photos, tmp_path, capsys):
    target = tmp_path / "net.pt2"
    images = [str(path) for path in sorted(photos.rglob("*.png"))]
    assert main(["export", "--model", model, "--to", str(target), "--image", *images]) == 0
    assert "embeddings of 1, 2 and 7 images within" in capsys.readouterr().out
    assert json.loads((tmp_path / "net.json").read_text())["input"] == [3, *SIZE]
    assert main(["export", "--model", model, "--to", str(tmp_path / "net.pb")]) == 2
    assert "must end in .onnx or .pt2" in capsys.readouterr().err


def test_another_word_is_no_command():
    assert set(use.COMMANDS) == {"export", "query"}
