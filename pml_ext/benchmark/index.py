"""A gallery of embedded images, which finds those that are most similar to an image."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pml_ext.benchmark import files
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.kinds import Whole
from pml_ext.shown import LONGEST, Html, on_a_screen, one_line, picture, table

SHOWN, SIDE = 50, 96  # answers in a notebook, and pixels of a picture
_BESIDE = ("paths", "labels", "model")
EMBEDDINGS, NAMES = "embeddings.npy", "index.json"
# Embeddings compared at a time: bounds the memory of a search without faiss.
_BLOCK = 1 << 18


class Match(NamedTuple):
    """An image of the index that was found.

    Args:
        path: the file of the image, "" if it came from no file.
        label: the name of its class, "" if that is not known.
        similarity: cosine similarity with the query.
        position: position of the image in the index.
    """

    path: str
    label: str
    similarity: float
    position: int


class Matches(list[Match]):
    """The images that were found, the nearest first: a list that is shown with pictures if the files exist."""

    def __repr__(self) -> str:
        lines = [
            one_line(
                f"{rank:3}  {each.similarity:6.3f}  {each.label}  {each.path or f'sample {each.position}'}", LONGEST
            )
            for rank, each in enumerate(self, 1)
        ]
        return on_a_screen("\n".join(lines), "ask for fewer") or "no answers"

    def _repr_html_(self) -> str:
        rows = (
            (f"{rank}", _thumbnail(each), f"{each.similarity:.3f}", each.label, each.path or f"sample {each.position}")
            for rank, each in enumerate(self[:SHOWN], 1)
        )
        notes = [f"{len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return table(("", "image", "similarity", "class", "which"), rows, notes=notes)


def _thumbnail(match: Match) -> Html:
    if not match.path:
        return Html("-")
    from pml_ext.datasets.images import ImageFiles

    try:
        image = ImageFiles((match.path,))(0)
    except (OSError, ValueError):
        return Html("-")
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "png")
    return picture(stream.getvalue(), match.label)


@dataclass(frozen=True, eq=False)
class Index:
    """Embeddings of unit length, with the files and labels of their images.

    Args:
        embeddings: [n, d] float32, each of length 1.
        paths: the file of each, or none.
        labels: the class of each, or none.
        model: a digest of the model that embedded them, "" if it is not known.

    Raises:
        BenchmarkError: lengths that do not fit, or embeddings that are not finite.

    Example:
        >>> index = Index(torch.eye(3), labels=("cat", "dog", "cow"))
        >>> [match.label for match in index.search(torch.tensor([[0.6, 0.8, 0.0]]), k=2)[0]]
        ['dog', 'cat']
    """

    embeddings: Tensor
    paths: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    model: str = ""

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or not len(self.embeddings):
            raise BenchmarkError(f"an index needs embeddings [n, d], got {list(self.embeddings.shape)}")
        for name in ("paths", "labels"):
            value = getattr(self, name)
            if value and len(value) != len(self.embeddings):
                raise BenchmarkError(f"the index has {len(self.embeddings)} embeddings, but {len(value)} {name}")
        if not bool(self.embeddings.isfinite().all()):
            raise BenchmarkError("the index has embeddings that are not finite")

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, embeddings: Tensor, k: int = 8) -> list[Matches]:
        """The k most similar images for each embedding [q, d], the nearest first; all if there are fewer."""
        Whole(1).check("k", k)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embeddings.shape[1]:
            raise BenchmarkError(
                f"the index has embeddings of {self.embeddings.shape[1]} dimensions, got {list(embeddings.shape)}"
            )
        unit = torch.nn.functional.normalize(embeddings.detach().float().cpu(), dim=1)
        scores, positions = self._nearest(unit, min(k, len(self)))
        return [
            Matches(self._match(position, score) for position, score in zip(row_positions, row_scores, strict=True))
            for row_positions, row_scores in zip(positions.tolist(), scores.tolist(), strict=True)
        ]

    def _nearest(self, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        try:
            import faiss
        except ImportError:
            return self._nearest_by_torch(unit, k)
        flat = faiss.IndexFlatIP(self.embeddings.shape[1])
        flat.add(np.ascontiguousarray(self.embeddings.numpy()))
        scores, positions = flat.search(np.ascontiguousarray(unit.numpy()), k)
        return torch.from_numpy(scores), torch.from_numpy(positions)

    def _nearest_by_torch(self, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        rows = max(1, _BLOCK // len(self))
        found = [(block @ self.embeddings.t()).topk(k, dim=1) for block in unit.split(rows)]
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])

    def _match(self, position: int, score: float) -> Match:
        path = self.paths[position] if self.paths else ""
        label = self.labels[position] if self.labels else ""
        return Match(path, label, score, position)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder: an array of numpy and a JSON file, no pickle."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / EMBEDDINGS, _array_bytes(self.embeddings.numpy()))
        files.write_json(folder / NAMES, {"format": 1, **{name: getattr(self, name) for name in _BESIDE}})

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Read what `save` wrote.

        Raises:
            BenchmarkError: there is no index, or it is damaged.
        """
        folder = Path(folder)
        try:
            embeddings = np.load(folder / EMBEDDINGS, allow_pickle=False)
            names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
            paths, labels, model = _texts(names["paths"]), _texts(names["labels"]), str(names["model"])
            tensor = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
        except OSError as error:
            raise BenchmarkError(f"{folder} has no index: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, EOFError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BenchmarkError(f"the index in {folder} is damaged: {reason}") from None
        return cls(tensor, paths, labels, model)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError("paths and labels must be lists of text")
    return tuple(value)


def _array_bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
