"""How embeddings lie on the sphere: how compact the classes are, and how evenly the sphere is used."""

import torch
from torch import Tensor

from pml_ext import arguments
from pml_ext.inputs import Array, checked_embeddings, checked_labels, class_ids
from pml_ext.potential import log_mean_potential, squared_distances
from pml_ext.vectors import unit_vectors


def alignment(embeddings: Array, labels: Array, *, alpha: float = 2) -> float:
    r"""Mean of the distances of positive pairs to the power of alpha, for embeddings of unit length.

    .. math:: A = \text{mean}_{i < j, y_i = y_j} \lVert x_i - x_j \rVert^\alpha

    Args:
        embeddings: [n, d]; they are normalized to unit length.
        labels: [n] numbers or strings.
        alpha: above 0 (default 2).

    Returns:
        0 if each class is one point; NaN if no class has two samples.

    Source:
        Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere", ICML 2020, arXiv 2005.10242, where the pairs are two views.

    Example:
        >>> round(alignment([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]], [0, 0, 1, 1]), 3)
        0.6
    """
    alpha = arguments.positive("alpha", alpha)
    x = directions("embeddings", embeddings)
    (classes,) = class_ids(checked_labels("labels", labels, len(x)))
    classes = classes.to(x.device)
    total, count = 0.0, 0
    for start, squares in squared_distances(x, x):
        same = (classes[start : start + len(squares), None] == classes).triu(start + 1)
        total += squares[same].double().pow(alpha / 2).sum().item()
        count += int(same.sum())
    return total / count if count else float("nan")


def uniformity(embeddings: Array, *, t: float = 2) -> float:
    r"""Logarithm of the mean Gaussian potential of all pairs, for embeddings of unit length: lower is more even.

    .. math:: U = \log \text{mean}_{i < j} \exp(-t \lVert x_i - x_j \rVert^2)

    Args:
        embeddings: [n, d]; they are normalized to unit length.
        t: above 0 (default 2).

    Returns:
        0 if all are equal, and for fewer than two; at best about -2t.

    Source:
        As :func:`alignment`. It is hardly sensitive to embeddings that lie in few dimensions; the effective rank of
        ``pml_ext.analysis`` is.

    Example:
        >>> round(uniformity([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]]), 3)
        -1.629
    """
    return log_mean_potential(directions("embeddings", embeddings), arguments.positive("t", t))


def directions(name: str, embeddings: Array) -> Tensor:
    """Embeddings [n, d] of unit length, in float32, or float64 if that is what they are in."""
    given = embeddings if isinstance(embeddings, Tensor) else torch.as_tensor(embeddings)
    checked = checked_embeddings(name, given, given.device)
    return unit_vectors(given.detach() if given.dtype == torch.float64 else checked)
