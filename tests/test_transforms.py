"""From images to the input of a network: with torchvision and without it the same."""

import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pml_ext.benchmark import transforms
from pml_ext.benchmark.preprocessing import Preprocessing
from pml_ext.benchmark.transforms import Augmentation, TestTransform, TrainTransform, random_box

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.fixture
def by_pillow(monkeypatch):
    monkeypatch.setattr(transforms, "torchvision_transforms", lambda: None)


def noise(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def ramp(width, height):
    """Red grows by one each pixel to the right, green by one each pixel down."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


# ---- test images ----


def test_pixels_become_numbers(by_pillow):
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    preprocessing = Preprocessing((4, 4), mean=(0.5, 0.25, 0.2), std=(0.5, 0.25, 2.0), crop=1)
    found = transforms.test_transform(preprocessing)(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1).expand(3, 4, 4))


@pytest.mark.parametrize(
    ("size", "target", "crop", "expected"),
    [
        # (width, height) of the image, (height, width) of the input; the pixels of the image that its corners show
        ((100, 60), (60, 60), 1.0, (20, 0, 80, 60)),
        ((60, 100), (60, 60), 1.0, (0, 20, 60, 80)),
        ((100, 60), (30, 30), 1.0, (20, 0, 80, 60)),
        ((100, 100), (50, 50), 0.5, (25, 25, 75, 75)),
        ((100, 60), (30, 50), 1.0, (0, 0, 100, 60)),
        ((90, 60), (20, 10), 1.0, (30, 0, 60, 60)),
        ((20, 20), (40, 40), 1.0, (0, 0, 20, 20)),
    ],
)
def test_the_center_is_shown_and_nothing_is_stretched(by_pillow, size, target, crop, expected):
    preprocessing = Preprocessing(target, crop=crop, **PLAIN)
    found = transforms.test_transform(preprocessing)(ramp(*size)) * 255
    assert found.shape == (3, *target)
    left, top, right, bottom = expected
    # Pixel i of a scaled ramp is the mean of the pixels that it covers, but for the filter's reach at the border.
    step_x, step_y = (right - left) / target[1], (bottom - top) / target[0]
    x = left - 0.5 + step_x * (torch.arange(target[1]) + 0.5)
    y = top - 0.5 + step_y * (torch.arange(target[0]) + 0.5)
    inner = slice(2, -2)
    torch.testing.assert_close(found[0, :, inner], x.expand(*target)[:, inner], atol=0.51, rtol=0)
    torch.testing.assert_close(found[1, inner], y[:, None].expand(*target)[inner], atol=0.51, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("make", [transforms.test_transform, transforms.train_transform])
def test_channels_are_those_of_the_network(by_pillow, make, channels, mode):
    preprocessing = Preprocessing((4, 6), (0.0,) * channels, (1.0,) * channels)
    assert make(preprocessing)(noise(10, 9, mode)).shape == (channels, 4, 6)


# ---- training images ----


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
)
def test_a_random_box_lies_inside(width, height, scale, ratio):
    left, top, right, bottom = random_box((width, height), scale, ratio)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_boxes_have_the_areas_and_shapes_asked_for():
    torch.manual_seed(0)
    boxes = torch.tensor([random_box((1000, 1000), (0.2, 0.5), (0.8, 1.25)) for _ in range(500)]).double()
    sides = boxes[:, 2:] - boxes[:, :2]
    area, shape = sides.prod(1) / 1e6, sides[:, 0] / sides[:, 1]
    assert 0.199 < area.min() < 0.21
    assert 0.49 < area.max() < 0.501
    assert abs(area.mean() - 0.35) < 0.02
    assert 0.799 < shape.min() < 0.81
    assert 1.23 < shape.max() < 1.252
    assert abs(shape.log().mean()) < 0.02
    assert boxes[:, :2].min() < 20


def test_a_box_of_an_image_too_long_is_its_center():
    assert random_box((100, 10), (1, 1), (0.5, 2)) == (40, 0, 60, 10)
    assert random_box((10, 100), (1, 1), (0.5, 2)) == (0, 40, 10, 60)


@pytest.mark.parametrize("by", ["pillow", "torchvision"])
@pytest.mark.parametrize("target", [(24, 32), (32, 24), (28, 28), (20, 60)])
def test_training_images_are_as_often_stretched_as_squeezed(request, monkeypatch, by, target):
    vision = request.getfixturevalue("torchvision") if by == "torchvision" else None
    monkeypatch.setattr(transforms, "torchvision_transforms", lambda: vision)
    height, width = target
    preprocessing, augmentation = Preprocessing(target, **PLAIN), Augmentation(scale=(0.08, 0.12), flip=0)
    transform = transforms.train_transform(preprocessing, augmentation)
    image = ramp(250, 250)
    torch.manual_seed(0)
    logs = []
    for _ in range(300):
        red, green, _ = transform(image) * 255
        # How many pixels of the image one of the input shows, across and down.
        across = (red[height // 2, -4] - red[height // 2, 3]) / (width - 7)
        down = (green[-4, width // 2] - green[3, width // 2]) / (height - 7)
        logs.append(math.log(down / across))
    # Evenly distributed in logarithms, from 3/4 to 4/3: of mean 0, and deviation log(4/3) / sqrt(3).
    edge = math.log(4 / 3)
    assert abs(np.mean(logs)) < 4 * edge / math.sqrt(3 * 300)
    assert np.std(logs) == pytest.approx(edge / math.sqrt(3), rel=0.1)
    assert -edge - 0.05 < min(logs) < -edge + 0.05
    assert edge - 0.05 < max(logs) < edge + 0.05


def test_a_whole_image_of_the_shape_of_the_input_stays_whole(by_pillow):
    image, preprocessing = noise(120, 40), Preprocessing((40, 120), crop=1, **PLAIN)
    found = transforms.train_transform(preprocessing, Augmentation(scale=(1, 1), flip=0))(image)
    assert torch.equal(found, transforms.test_transform(preprocessing)(image))


def test_half_of_the_training_images_are_mirrored(by_pillow):
    torch.manual_seed(0)
    whole = {"scale": (1, 1), "ratio": (1, 1)}
    image, preprocessing = ramp(16, 16), Preprocessing((16, 16), **PLAIN)
    plain = TestTransform(Preprocessing((16, 16), crop=1, **PLAIN))(image)
    for flip in (0.0, 0.3, 1.0):
        transform = transforms.train_transform(preprocessing, Augmentation(flip=flip, **whole))
        found = [transform(image) for _ in range(200)]
        mirrored = [torch.equal(one, plain.flip(2)) for one in found]
        assert all(torch.equal(one, plain) or is_mirrored for one, is_mirrored in zip(found, mirrored, strict=True))
        assert abs(np.mean(mirrored) - flip) < 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": (0.5, 0.2)}, r"scale must be 0 < least <= greatest <= 1, got \(0.5, 0.2\)"),
        ({"scale": (0.5, 1.2)}, "scale must be"),
        ({"ratio": (0, 1)}, r"ratio must be 0 < least <= greatest, got \(0, 1\)"),
        ({"ratio": (1, math.nan)}, "ratio must be"),
        ({"flip": 1.1}, r"flip must be in 0\.\.1, got 1.1"),
        ({"shorter_side": 0}, "shorter_side must be at least 1, got 0"),
    ],
)
def test_wrong_augmentation(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**wrong)


# ---- with torchvision and without ----

SIZES = [(32, 32), (64, 48), (37, 91), (20, 21), (150, 149), (300, 80)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision(torchvision, monkeypatch, size, interpolation):
    monkeypatch.setattr(transforms, "torchvision_transforms", lambda: torchvision)
    image = noise(*size)
    for target in ((32, 32), (28, 28)):
        for crop in (0.875, 1.0):
            preprocessing = Preprocessing(target, interpolation=interpolation, crop=crop)
            theirs = transforms.test_transform(preprocessing)
            assert not isinstance(theirs, TestTransform)
            assert torch.equal(TestTransform(preprocessing)(image), theirs(image))
    for shorter_side in (None, 40):
        for channels in (3, 1):
            mean, std = (0.4,) * channels, (0.2,) * channels
            preprocessing = Preprocessing((32, 24), mean, std, interpolation=interpolation)
            augmentation = Augmentation(shorter_side=shorter_side)
            theirs = transforms.train_transform(preprocessing, augmentation)
            assert not isinstance(theirs, TrainTransform)
            for seed in range(5):
                torch.manual_seed(seed)
                expected, state = theirs(image), torch.get_rng_state()
                torch.manual_seed(seed)
                assert torch.equal(TrainTransform(preprocessing, augmentation)(image), expected)
                assert torch.equal(torch.get_rng_state(), state)


def test_without_torchvision_pillow_does_it(monkeypatch):
    transforms.torchvision_transforms.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    try:
        assert isinstance(transforms.train_transform(Preprocessing()), TrainTransform)
        assert isinstance(transforms.test_transform(Preprocessing()), TestTransform)
    finally:
        transforms.torchvision_transforms.cache_clear()


def test_large_images_are_reduced_first_and_look_the_same(by_pillow):
    smooth = noise(40, 30).resize((1200, 900))
    preprocessing = Preprocessing((32, 32), **PLAIN)
    exact = smooth.resize((49, 37), Image.Resampling.BILINEAR).crop((8, 2, 40, 34))
    found = transforms.test_transform(preprocessing)(smooth) * 255
    difference = found - torch.from_numpy(np.array(exact)).permute(2, 0, 1)
    assert difference.abs().mean() < 2


# ---- workers ----


class Pictures(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.transform(ramp(40, 40))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_draw_numbers_of_their_own(by_pillow):
    transform = transforms.train_transform(Preprocessing((16, 16)))
    assert pickle.loads(pickle.dumps(transform)) == transform

    def epoch():
        torch.manual_seed(3)
        return torch.cat(list(DataLoader(Pictures(transform), batch_size=2, num_workers=2)))

    images = epoch()
    assert len({image.numpy().tobytes() for image in images}) == 8
    assert torch.equal(epoch(), images)
