"""Features of a frozen trunk: computed once, kept on disk, and the head that starts from their principal components."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from pml_ext.benchmark import files, lock
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.models import evaluating
from pml_ext.benchmark.progress import tqdm, watched

# Rows between two notes of how far the work has come.
_KEPT_EVERY = 1024


def cached(
    trunk: nn.Module,
    images: Dataset[Any],
    folder: Path,
    identity: Mapping[str, Any],
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    show: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """Features [n, features] of images by a trunk, in float16, computed unless they are in the folder already.

    An interrupted computation goes on where it stood; a file that is damaged, or of other images or weights, is
    computed again. Of several processes that want the same features one computes them, the others wait for it.

    Args:
        trunk: images [n, channels, height, width] -> features [n, features]; it is run in evaluation mode.
        images: samples (image, label), always the same ones in the same order.
        folder: where the file lies, named by what it is of.
        identity: what the features depend on beside the weights, as JSON has it: data, trunk, transform.
        batch_size: images at a time. Default 64.
        workers: processes that read images. Default 0.
        device: on which the trunk runs. Default "cpu".
        show: whether to draw a bar. Default True.
        say: takes a line that says that another process is waited for. Default: nothing is said.

    Raises:
        BenchmarkError: a feature is not a number, or too large for float16.
    """
    identity = {**identity, "weights": digest(trunk), "images": len(images)}  # type: ignore[arg-type]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    done, part, note = folder / f"{name}.npy", folder / f"{name}.part.npy", folder / f"{name}.json"
    known = _kept(done, note)
    if known is None:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.alone(done, say):
            known = _kept(done, note)
            if known is None:
                _compute(trunk, images, part, batch_size, workers, torch.device(device), show)
                known = np.load(part, allow_pickle=False)
                files.write(note, json.dumps({**identity, "sha256": _sha256(known)}, indent=1).encode())
                part.replace(done)
                _progress_note(part).unlink(missing_ok=True)
    return torch.from_numpy(known)


def digest(module: nn.Module) -> str:
    """A digest of the weights and buffers of a module."""
    whole = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:24]


def _sha256(features: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()


def _kept(path: Path, note: Path) -> Any:
    """The features in a file, or None if it is not there or not what its note says."""
    try:
        features = np.load(path, allow_pickle=False)
        expected = json.loads(note.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return features if _sha256(features) == expected else None


def _progress_note(part: Path) -> Path:
    return part.with_suffix(".rows")


def _started(part: Path, n: int) -> tuple[Any, int]:
    """The file of an interrupted computation and the number of its rows that are done."""
    try:
        rows = int(_progress_note(part).read_text())
        features = np.lib.format.open_memmap(part, mode="r+")
    except (OSError, ValueError):
        return None, 0
    fits = features.ndim == 2 and len(features) == n and features.dtype == np.float16 and 0 <= rows <= n
    return (features, rows) if fits else (None, 0)


def _compute(
    trunk: nn.Module,
    images: Dataset[Any],
    part: Path,
    batch_size: int,
    workers: int,
    device: torch.device,
    show: bool,
) -> None:
    n: int = len(images)  # type: ignore[arg-type]
    out, start = _started(part, n)
    loader = DataLoader(Subset(images, range(start, n)), batch_size, num_workers=workers)
    row, kept = start, start
    trunk = trunk.to(device)
    with (
        evaluating(trunk),
        torch.inference_mode(),
        tqdm(
            total=n, initial=start, desc="features", unit="image", leave=False, disable=not (show and watched())
        ) as bar,
    ):
        for batch, *_ in loader:
            features = trunk(batch.to(device)).float().cpu()
            _check(features, row)
            if out is None:
                shape = (n, features.shape[1])
                out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
            out[row : row + len(features)] = features.numpy().astype(np.float16)
            row += len(features)
            bar.update(len(features))
            if row - kept >= _KEPT_EVERY:
                out.flush()
                files.write(_progress_note(part), str(row).encode())
                kept = row
    out.flush()
    files.write(_progress_note(part), str(row).encode())


def _check(features: Tensor, row: int) -> None:
    largest = features.abs().amax(1)
    wrong = ~(largest <= torch.finfo(torch.float16).max)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise BenchmarkError(f"the trunk's features of image {row + i} reach {largest[i].item()}: not in float16")


def principal_head(features: Tensor, embedding_size: int) -> nn.Linear:
    """A linear head that starts as the projection on the principal components of features [n, f].

    Raises:
        BenchmarkError: more dimensions than the features, or than images, have.
    """
    from sklearn.decomposition import PCA

    most = min(features.shape)
    if embedding_size > most:
        raise BenchmarkError(
            f"embedding_size {embedding_size} is above the {most} principal components of {features.shape[0]} images "
            f"with {features.shape[1]} features: choose a smaller one, or head=random"
        )
    pca = PCA(embedding_size, svd_solver="covariance_eigh" if features.shape[0] >= features.shape[1] else "full")
    pca.fit(features.double().numpy())
    head = nn.Linear(features.shape[1], embedding_size)
    components = torch.from_numpy(np.ascontiguousarray(pca.components_))
    with torch.no_grad():
        head.weight.copy_(components)
        head.bias.copy_(-components @ torch.from_numpy(pca.mean_))
    return head
