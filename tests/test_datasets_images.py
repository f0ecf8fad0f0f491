"""Image files: what a person would see, or one line that names the file."""

import pickle
import re

import numpy as np
import pytest
from PIL import Image

from pml_ext.datasets import images
from pml_ext.datasets.images import ImageFiles, look, unreadable
from pml_ext.datasets.samples import DataError


def corner():
    """An image of 8 x 12 whose upper left quarter is red, the rest blue."""
    image = Image.new("RGB", (8, 12), "blue")
    image.paste("red", (0, 0, 4, 6))
    return image


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return str(path)


def read(*paths, mode="RGB", boxes=None):
    return ImageFiles(tuple(map(str, paths)), mode, boxes)(0)


# How a camera that stores `stored` wants it turned: EXIF's eight orientations, by their definition.
TURNS = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: np.swapaxes(upright, 0, 1),
    6: lambda upright: np.rot90(upright, 1),  # the camera's right side is up: stored a quarter to the left
    7: lambda upright: np.swapaxes(np.rot90(upright, 2), 0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("extension", ["png", "tiff", "jpg"])
def test_images_are_upright(tmp_path, orientation, extension):
    upright = np.asarray(corner())
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if extension == "jpg" else {}
    image = read(save(tmp_path / f"a.{extension}", stored, exif=exif, **options))
    assert image.size == (8, 12)
    np.testing.assert_allclose(np.asarray(image, dtype=float), upright, atol=3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's
def test_a_broken_exif_block_leaves_the_picture(tmp_path):
    path = save(tmp_path / "a.jpg", corner(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff junk")
    assert read(path).size == (8, 12)


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, extension):
    pixels = np.array([[0, 257, 4112], [32896, 65278, 65535]], dtype=np.uint16)
    image = read(save(tmp_path / f"a.{extension}", Image.fromarray(pixels)))
    assert image.mode == "RGB"
    assert np.asarray(image)[..., 0].tolist() == [[0, 1, 16], [128, 254, 255]]


def test_twelve_bits_are_scaled_by_their_range(tmp_path):
    # Pillow writes no such TIFF: the tag of a 16-bit one is changed in place, and Pillow unpacks 12 bits a pixel.
    path = save(tmp_path / "a.tiff", Image.fromarray(np.zeros((2, 4), np.uint16)))
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    entry = content.index(b"\x02\x01\x03\x00\x01\x00\x00\x00")  # tag 258, one short
    content[entry + 8] = 12
    with Image.open(path) as file:
        offset = file.tag_v2[273][0]
    content[offset : offset + 12] = bytes.fromhex("000fff 800100 000fff 800100")
    (tmp_path / "a.tiff").write_bytes(content)
    assert np.asarray(read(path))[..., 0].tolist() == [[0, 255, 128, 16]] * 2


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 51, 255]], np.float32), [0, 51, 255]),
        (np.array([[-1000, 0, 1000]], np.float32), [0, 128, 255]),
        (np.array([[0, 50, 70000]], np.int32), [0, 0, 255]),
        (np.array([[-5, 0, 5]], np.int32), [0, 128, 255]),
        (np.array([[7, 7, 7]], np.int32) * 10000, [0, 0, 0]),
    ],
)
def test_wide_pixels_are_scaled_by_their_range(tmp_path, pixels, expected):
    assert np.asarray(read(save(tmp_path / "a.tiff", Image.fromarray(pixels))))[0, :, 0].tolist() == expected


def test_pixels_that_are_no_numbers(tmp_path):
    path = save(tmp_path / "a.tiff", Image.fromarray(np.array([[0, np.nan]], np.float32)))
    with pytest.raises(DataError, match=r"a\.tiff' has pixels that are not finite"):
        read(path)


def test_what_is_transparent_lies_on_white(tmp_path):
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    gray = Image.new("LA", (2, 1), (0, 0))
    for name, image, options in (("rgba", clear, {}), ("p", palette, {"transparency": 0}), ("la", gray, {})):
        pixels = np.asarray(read(save(tmp_path / f"{name}.png", image, **options)))
        assert pixels[0, 0].tolist() == [255, 255, 255], name
    assert np.asarray(read(tmp_path / "rgba.png"))[0, 1].tolist() == [255, 0, 0]
    assert np.asarray(read(tmp_path / "p.png"))[0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["1", "L", "RGB", "RGBA", "CMYK", "P", "LAB"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_comes_in_one_mode(tmp_path, kind, mode):
    path = save(tmp_path / "a.tiff", Image.new(kind, (3, 2)))
    assert read(path, mode=mode).mode == mode


def test_a_box_is_cut_from_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", corner().rotate(90, expand=True), exif=exif)
    assert read(path).size == (8, 12)
    red = read(path, boxes=((0.0, 0.0, 4.0, 6.0),))
    assert (red.size, red.getcolors()) == ((4, 6), [(24, (255, 0, 0))])
    with pytest.raises(DataError, match=r"a\.png'.* \(0, 0, 9, 6\) is not inside the image of 8 x 12"):
        read(path, boxes=((0, 0, 9, 6),))


def test_a_worker_gets_a_copy(tmp_path):
    files = ImageFiles((save(tmp_path / "a.png", corner()),))
    assert pickle.loads(pickle.dumps(files))(0).size == (8, 12)


# ---- what is no image ----


def broken(folder):
    """One file of each kind that cannot be read, and the words that its message must have."""
    whole = save(folder / "whole.png", Image.effect_noise((64, 64), 50))
    content = (folder / "whole.png").read_bytes()
    save(folder / "whole.jpg", Image.effect_noise((64, 64), 50).convert("RGB"))
    jpeg = (folder / "whole.jpg").read_bytes()
    damaged = bytearray(content)
    damaged[200:300] = b"\0" * 100
    files = {
        "truncated.png": (content[:1000], "truncated"),
        "truncated.jpg": (jpeg[:1000], "truncated"),
        "damaged.png": (bytes(damaged), "not a readable image"),
        "empty.jpg": (b"", "it is empty"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "it is not a JPEG"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not a JPEG"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    words = {name: word for name, (_, word) in files.items()} | {"gone.jpg": "No such file"}
    return whole, {str(folder / name): word for name, word in words.items()}


def test_an_unreadable_file_is_one_line_with_its_name(tmp_path):
    _, words = broken(tmp_path)
    for path, word in words.items():
        with pytest.raises(DataError, match=f"{re.escape(repr(path))}.*{word}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_all_unreadable_files_at_once(tmp_path):
    whole, words = broken(tmp_path)
    lines = unreadable(ImageFiles((whole, *words, whole)))
    assert len(lines) == len(words)
    for line, path in zip(lines, words, strict=True):
        assert repr(path) in line


def test_a_look_at_the_headers_finds_what_is_no_image(tmp_path):
    whole, words = broken(tmp_path)
    strangers = [path for path, word in words.items() if "it is" in word]
    converted, lines = look(ImageFiles((whole, *strangers)))
    assert converted == ("1 gray, converted to RGB",)
    assert [path for path, line in zip(strangers, lines, strict=True) if repr(path) in line] == strangers


def test_a_look_at_the_headers_says_what_is_converted(tmp_path):
    paths = []
    for number, kind in enumerate(["L"] * 20 + ["RGBA"] * 15 + ["LA"] * 5 + ["RGB", "I;16", "1"]):
        paths.append(save(tmp_path / f"{number}.png", Image.new(kind, (2, 2))))
    paths.append(save(tmp_path / "c.jpg", Image.new("CMYK", (2, 2))))
    files = tuple(paths)
    assert look(ImageFiles(files))[0] == ("21 gray, 20 with alpha, 1 with 16 bits, 1 CMYK, converted to RGB",)
    assert look(ImageFiles(files, "L"))[0] == ("1 RGB, 20 with alpha, 1 with 16 bits, 1 CMYK, converted to gray",)
    assert look(ImageFiles(files[:20], "L")) == ((), ())
    assert look(ImageFiles(files[40:41])) == ((), ())


def test_a_look_at_very_many_headers_says_that_it_was_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LOOKED_AT", 4)
    paths = tuple(save(tmp_path / f"{i}.png", Image.new("L", (2, 2))) for i in range(10))
    assert look(ImageFiles(paths))[0] == ("4 gray, converted to RGB (of 4 looked at)",)


def test_the_key_follows_the_files(tmp_path):
    import os

    path = save(tmp_path / "a.png", corner())
    keys = {ImageFiles((path,)).key(), ImageFiles((path,), "L").key(), ImageFiles((path,), boxes=((0, 0, 1, 1),)).key()}
    assert ImageFiles((path,)).key() in keys
    os.utime(path, ns=(1, 1))
    keys.add(ImageFiles((path,)).key())
    save(tmp_path / "a.png", corner().resize((4, 4)))
    os.utime(path, ns=(1, 1))
    keys.add(ImageFiles((path,)).key())
    assert len(keys) == 5
