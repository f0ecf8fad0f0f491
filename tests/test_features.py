"""Features of a frozen trunk: computed once, resumed, never taken from a damaged file; the head that PCA starts."""

import re
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pml_ext.benchmark import features
from pml_ext.benchmark.errors import BenchmarkError

IMAGES = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(IMAGES, torch.arange(50))
IDENTITY = {"data": "abc", "transform": "none"}


class Counting(nn.Module):
    def __init__(self, factor=1.0, fail_at=None):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen, self.fail_at = 0, fail_at

    def forward(self, images):
        self.seen += len(images)
        if self.fail_at is not None and self.seen > self.fail_at:
            raise KeyboardInterrupt
        return images.flatten(1) * self.factor


def compute(trunk, folder, **arguments):
    return features.cached(trunk, DATA, folder, IDENTITY, batch_size=8, show=False, **arguments)


def test_features_are_computed_once(tmp_path):
    trunk = Counting().train()
    first = compute(trunk, tmp_path)
    assert torch.equal(first, IMAGES.flatten(1).half())
    assert trunk.training
    assert torch.equal(compute(trunk, tmp_path), first)
    assert trunk.seen == 50
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


def test_two_processes_compute_the_same_features_once(tmp_path):
    begun, told, seen = threading.Event(), threading.Event(), []

    class Slow(Counting):
        def forward(self, images):
            begun.set()
            assert told.wait(30)
            return super().forward(images)

    def second():
        assert begun.wait(30)
        # A lock of a thread of its own stands for that of a process: the file is opened anew.
        other = Counting()
        seen.append(compute(other, tmp_path, say=lambda line: (lines.append(line), told.set())))
        seen.append(other.seen)

    lines = []
    thread = threading.Thread(target=second)
    thread.start()
    first = compute(Slow(), tmp_path)
    thread.join(30)
    assert torch.equal(seen[0], first)
    assert seen[1] == 0
    assert len(lines) == 1
    assert re.match(r"waiting for another process that makes .*\.npy$", lines[0])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


def test_other_weights_are_other_features(tmp_path):
    compute(Counting(), tmp_path)
    assert torch.equal(compute(Counting(2.0), tmp_path), (2 * IMAGES.flatten(1)).half())


def test_an_interrupted_computation_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_KEPT_EVERY", 8)
    with pytest.raises(KeyboardInterrupt):
        compute(Counting(fail_at=30), tmp_path)
    trunk = Counting()
    assert torch.equal(compute(trunk, tmp_path), IMAGES.flatten(1).half())
    assert trunk.seen == 50 - 24


@pytest.mark.parametrize("damage", ["cut", "changed", "note", "garbage"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    compute(Counting(), tmp_path)
    (path,), (note,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-7])
        case "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "note":
            note.write_text("{")
        case "garbage":
            path.write_bytes(b"<html>")
    trunk = Counting()
    assert torch.equal(compute(trunk, tmp_path), IMAGES.flatten(1).half())
    assert trunk.seen == 50


@pytest.mark.parametrize(("rows", "shape"), [("900", (50, 48)), ("x", (50, 48)), ("8", (40, 48)), ("-8", (50, 48))])
def test_an_unusable_start_is_not_gone_on_with(tmp_path, monkeypatch, rows, shape):
    monkeypatch.setattr(features, "_KEPT_EVERY", 8)
    with pytest.raises(KeyboardInterrupt):
        compute(Counting(fail_at=30), tmp_path)
    (part,) = tmp_path.glob("*.part.npy")
    np.save(part, np.ones(shape, np.float16))
    part.with_suffix(".rows").write_text(rows)
    assert torch.equal(compute(Counting(), tmp_path), IMAGES.flatten(1).half())


@pytest.mark.parametrize("factor", [float("nan"), 1e6])
def test_features_that_float16_cannot_hold_are_refused(tmp_path, factor):
    with pytest.raises(BenchmarkError, match="not in float16"):
        compute(Counting(factor), tmp_path)


def test_the_head_starts_as_the_projection_on_principal_components():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 7, 1, 1, 0.1, 0.1]) + 3
    x = x.float()
    projected = features.principal_head(x, 2)(x)
    # Independently: by the singular vectors of the centered features.
    u, s, _ = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    expected = (u[:, :2] * s[:2]).float()
    torch.testing.assert_close(projected.abs(), expected.abs(), atol=1e-4, rtol=1e-4)
    assert projected.mean(0).abs().max() < 1e-4


@pytest.mark.parametrize("n", [4, 200])
def test_more_dimensions_than_there_are_components_are_refused(n):
    with pytest.raises(BenchmarkError, match=f"embedding_size 7 is above the {min(n, 6)} principal components"):
        features.principal_head(torch.rand(n, 6), 7)
