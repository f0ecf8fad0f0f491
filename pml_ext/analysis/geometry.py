"""Geometry of embeddings: lengths, number of directions in use, and separation of the classes."""

import torch
from torch import Tensor

from pml_ext.pairs import label_masks
from pml_ext.potential import log_mean_potential
from pml_ext.vectors import unit_vectors

NAN = float("nan")
# So many scores are compared at most, and so many pairs by their difference: of a larger set a part of the anchors.
_SCORES = 1 << 22
_PAIRS = 1 << 14
# Two embeddings that differ by less than this share of their length are those of one image.
_SAME = 1e-5


def geometry(embeddings: Tensor) -> dict[str, float]:
    """Lengths, spread, effective rank and uniformity of embeddings [n, d], as `Health` has them."""
    if len(embeddings) == 0:
        return dict.fromkeys(("norm_mean", "norm_std", "norm_max", "spread", "effective_rank", "uniformity"), 0.0)
    norms = embeddings.norm(dim=1)
    directions = unit_vectors(embeddings)
    centered = directions - directions.mean(0)
    rank = NAN
    if centered.isfinite().all():
        values = singular_values(centered)
        shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        rank = torch.special.entr(shares).sum().exp().item()
    return {
        "norm_mean": norms.mean().item(),
        "norm_std": norms.std(correction=0).item(),
        "norm_max": norms.max().item(),
        "spread": centered.square().sum(1).mean().item(),
        "effective_rank": rank,
        "uniformity": log_mean_potential(_some(directions), 2.0),
    }


def _some(x: Tensor) -> Tensor:
    """At most as many rows as have 2^22 pairs, at equal distances."""
    n, most = len(x), 1 << 11
    return x if n <= most else x[torch.linspace(0, n - 1, most, device=x.device).round().long()]


def singular_values(x: Tensor) -> Tensor:
    """The singular values of x [n, d], largest first; of many rows from their d x d products, in double precision."""
    if len(x) <= 8 * x.shape[1]:
        values: Tensor = torch.linalg.svdvals(x)
        return values
    products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in x.split(1 << 14):
        products += rows.double().T @ rows.double()
    squares: Tensor = torch.linalg.eigvalsh(products)
    return squares.clamp(min=0).sqrt().flip(0).to(x.dtype)


def pairs_of_classes(embeddings: Tensor, labels: Tensor | None) -> dict[str, float]:
    """How positive pairs compare with negative pairs, as in `Health`: embeddings [n, d], labels [n].

    - separation: the probability that a positive pair has a larger cosine than a negative one.
    - repeated: the share of the positive pairs with equal embeddings.
    """
    unknown = {"separation": NAN, "repeated": NAN}
    n = len(embeddings)
    if labels is None or n < 2 or not embeddings.isfinite().all():
        return unknown
    anchors = torch.linspace(0, n - 1, max(1, min(n, _SCORES // n)), device=embeddings.device).round().long()
    directions = unit_vectors(embeddings)
    scores = directions[anchors] @ directions.T
    pos, neg = label_masks(labels[anchors], labels)
    pos = pos & (torch.arange(n, device=pos.device) != anchors.unsqueeze(1))
    if not pos.any():
        return unknown
    row, other = pos.nonzero(as_tuple=True)
    some = torch.linspace(0, len(row) - 1, min(len(row), _PAIRS), device=row.device).round().long()
    x, y = embeddings[anchors[row[some]]], embeddings[other[some]]
    repeated = ((x - y).norm(dim=1) <= _SAME * x.norm(dim=1)).float().mean().item()
    if not neg.any():
        return unknown | {"repeated": repeated}
    nearer, found = scores[neg].sort().values, scores[pos].contiguous()
    below = torch.searchsorted(nearer, found) + torch.searchsorted(nearer, found, right=True)
    return {"separation": below.double().mean().item() / (2 * len(nearer)), "repeated": repeated}


def possible_rank(size: int, dimension: int, labels: Tensor | None) -> int:
    """How many dimensions the class centers of a batch can span."""
    classes = size if labels is None else len(labels.unique())
    return max(0, min(size - 1, dimension, classes - 1))
