"""The gallery that answers: order, other back ends, files that are damaged or of strangers."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.index import Index

GALLERY = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(4)), dim=1)
NAMES = tuple(f"<{i}> & é.jpg" for i in range(30))
LABELS = tuple(f"class {i % 3}" for i in range(30))


@pytest.fixture(params=["faiss", "torch"])
def index(request, monkeypatch):
    if request.param == "torch":
        real = builtins.__import__

        def without_faiss(name, *rest):
            if name == "faiss":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without_faiss)
        monkeypatch.setattr("pml_ext.benchmark.index._BLOCK", 60)  # two queries at a time
    return Index(GALLERY, NAMES, LABELS)


def test_the_nearest_come_first(index):
    asked = 3 * torch.randn(5, 5, generator=torch.Generator().manual_seed(5))
    for row, query in zip(index.search(asked, k=4), asked, strict=True):
        scores = [float(query @ g / query.norm()) for g in GALLERY]
        expected = sorted(range(30), key=lambda i: -scores[i])[:4]
        assert [match.position for match in row] == expected
        assert [match.path for match in row] == [NAMES[i] for i in expected]
        assert [match.label for match in row] == [LABELS[i] for i in expected]
        assert [match.similarity for match in row] == pytest.approx([scores[i] for i in expected], abs=1e-6)


def test_fewer_than_k_are_all(index):
    assert len(index.search(GALLERY[:1], k=100)[0]) == 30


def test_what_is_saved_is_loaded(index, tmp_path):
    index.save(tmp_path / "gallery")
    again = Index.load(tmp_path / "gallery")
    assert torch.equal(again.embeddings, index.embeddings)
    assert (again.paths, again.labels) == (NAMES, LABELS)


def test_a_damaged_index_is_one_line(tmp_path):
    folder: Path = tmp_path / "gallery"

    def refused():
        with pytest.raises(BenchmarkError) as error:
            Index.load(folder)
        return str(error.value)

    assert refused() == f"{folder} has no index: No such file or directory"
    index = Index(GALLERY, NAMES)
    index.save(folder)
    (folder / "index.json").write_text("{}")
    assert "is damaged: 'paths'" in refused()
    (folder / "index.json").write_text(json.dumps({"paths": [1], "labels": []}))
    assert "must be lists of text" in refused()
    (folder / "index.json").write_text(json.dumps({"paths": ["a"], "labels": [], "model": ""}))
    assert refused() == "the index has 30 embeddings, but 1 paths"
    index.save(folder)
    content = (folder / "embeddings.npy").read_bytes()
    (folder / "embeddings.npy").write_bytes(content[:-3])
    assert "is damaged" in refused()
    np.save(folder / "embeddings.npy", np.array([{"a": 1}]), allow_pickle=True)
    assert "is damaged: Object arrays cannot be loaded" in refused()


@pytest.mark.parametrize(
    ("asked", "k", "message"),
    [
        (GALLERY[:2], 0, "k must be a whole number of at least 1, got 0"),
        (torch.rand(2, 4), 1, r"embeddings of 5 dimensions, got \[2, 4\]"),
    ],
)
def test_a_wrong_question_is_one_line(asked, k, message):
    with pytest.raises(BenchmarkError, match=message):
        Index(GALLERY).search(asked, k)


def test_an_empty_or_infinite_index_is_refused():
    with pytest.raises(BenchmarkError, match="an index needs embeddings"):
        Index(torch.empty(0, 3))
    with pytest.raises(BenchmarkError, match="not finite"):
        Index(torch.full((2, 3), torch.nan))
