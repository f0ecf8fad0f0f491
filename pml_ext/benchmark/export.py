"""A kept model for other runtimes: as ONNX, or as a program of torch.export; checked from files to embeddings."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pml_ext.benchmark import files
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.saved import EmbeddingModel

# Numbers of images with which an exported model is compared: one, two, and one that no batch size divides.
CHECKED = (1, 2, 7)
# Of embeddings of unit length, in float32.
TOLERANCE = 1e-4


def export(model: EmbeddingModel, path: str | Path, images: Sequence[Any] = ()) -> float:
    """Write a model as `.onnx`, or as `.pt2` (torch.export), for batches of any size, and check it.

    The network's input is a prepared image; how to prepare one is written beside the file, as `NAME.json`.

    Args:
        model: a loaded model.
        path: the file; its suffix says the format.
        images: files or PIL images to check with; random inputs where there are fewer than needed. Default none.

    Returns:
        the largest difference between embeddings of the model and of the file, for 1, 2 and 7 images.

    Raises:
        BenchmarkError: another suffix, a package that is missing, or a file that does not give the same embeddings.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise BenchmarkError(f"the file must end in .onnx or .pt2, got {path.name!r}")
    shape = model.description.image_shape
    prepared = [model._input(image) for image in images[: max(CHECKED)]]
    random = torch.randn(max(CHECKED) - len(prepared), *shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.stack([*prepared, *random])
    # A program's file keeps no tensors whose channels lie last. The model that was given stays as it is.
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    run = (_as_onnx if path.suffix == ".onnx" else _as_program)(model, path, inputs[:2])
    difference = _difference(model, run, inputs)
    if not difference <= TOLERANCE:
        path.unlink(missing_ok=True)
        raise BenchmarkError(f"the exported model's embeddings differ by {difference:.2g}: {path} was not kept")
    preprocessing = model.description.preprocessing
    files.write_json(
        path.with_suffix(".json"),
        {
            "input": list(shape),
            "output": model.description.embedding_size,
            "unit_length": True,
            "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
            "classes": list(model.classes),
        },
    )
    return difference


def _difference(model: EmbeddingModel, run: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    with torch.inference_mode():
        return max(float((run(inputs[:n]) - model(inputs[:n])).abs().max()) for n in CHECKED)


def _as_program(model: EmbeddingModel, path: Path, example: Tensor) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        out: Tensor = module(images)
        return out

    return run


def _as_onnx(model: EmbeddingModel, path: Path, example: Tensor) -> Callable[[Tensor], Tensor]:
    for package in ("onnx", "onnxscript"):
        _needed(package)
    runtime = _needed("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of what it deprecates in itself
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            external_data=False,
            verbose=False,
        )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise BenchmarkError("an ONNX file needs other packages: pip install onnx onnxscript onnxruntime") from None
