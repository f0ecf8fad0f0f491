"""Which classes are near which, in bounded memory."""

from typing import Literal, get_args

import torch
from torch import Tensor

from pml_ext import arguments
from pml_ext.inputs import Array, checked_labels, class_ids
from pml_ext.mining.checks import as_tensor
from pml_ext.mining.decks import members_of
from pml_ext.mining.draws import stream
from pml_ext.mining.search import mine

Representative = Literal["mean", "random", "all"]


@torch.no_grad()
def class_graph(
    embeddings: Array,
    labels: Array,
    k: int,
    *,
    representative: Representative = "mean",
    seed: int = 0,
    chunk_size: int | None = None,
) -> Tensor:
    """The k nearest other classes of each class, the nearest first, equals in the order of the classes.

    Classes are numbered in the order of their sorted labels. Memory grows with the classes, not with their square.

    Args:
        embeddings: [n, d], compared by their cosine.
        labels: [n], numbers or strings.
        k: how many neighbors; all other classes if there are fewer.
        representative: what represents a class: the ``"mean"`` of its normalized embeddings (default), a ``"random"``
            one of them as in Graph Sampling (Liao and Shao, CVPR 2022, arXiv 2104.01546), or ``"all"``: then two
            classes are as near as their nearest two samples.
        seed: seed of the random representatives.
        chunk_size: the number of rows at a time, see `mine`.

    Returns:
        Numbers of classes, [c, k] of int32.

    Raises:
        TypeError, ValueError: arguments of other types or shapes.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> class_graph(embeddings, ["a", "b", "c", "d"], 1).flatten().tolist()
        [1, 0, 1, 2]
    """
    k = int(arguments.count("k", k))
    if representative not in get_args(Representative):
        raise ValueError(f"representative must be 'mean', 'random' or 'all', got {representative!r}")
    x = as_tensor(embeddings)
    x = x if x.dtype == torch.float64 else x.float()
    (ids,) = class_ids(checked_labels("labels", labels, len(x)))
    ids = ids.to(x.device)
    classes = int(ids.amax()) + 1 if len(ids) else 0
    k = min(k, max(classes - 1, 0))
    if k == 0:
        return torch.empty(classes, 0, dtype=torch.int32, device="cpu")
    if representative == "all":
        return _of_all(x, ids, classes, k, chunk_size)
    if representative == "mean":
        sums = x.new_zeros(classes, x.shape[1]).index_add_(0, ids, torch.nn.functional.normalize(x, dim=1))
        x = sums / torch.bincount(ids, minlength=classes).unsqueeze(1)
    else:
        rng = stream(seed, "representatives")
        x = x[[rng.choice(members) for members in members_of(ids.tolist())]]
    every = torch.arange(classes, device="cpu")
    near: Tensor = mine(x, every, num_positives=0, num_negatives=k, chunk_size=chunk_size).negatives
    return near.int().cpu()


def _of_all(x: Tensor, ids: Tensor, classes: int, k: int, chunk_size: int | None) -> Tensor:
    # In the order of the classes, as equals go by index. A class that is among the k nearest of another one is so for
    # that sample of it which is nearest.
    order = ids.argsort(stable=True)
    x, ids = x[order], ids[order]
    mined = mine(x, ids, num_positives=0, num_negatives=k, one_per_class=True, chunk_size=chunk_size)
    there = mined.negatives >= 0
    own = ids.unsqueeze(1).expand_as(there)[there]
    other = ids[mined.negatives[there]]
    pair, place = (own * classes + other).unique(return_inverse=True)
    score = mined.negative_scores.new_full((len(pair),), -torch.inf)
    score.scatter_reduce_(0, place, mined.negative_scores[there], "amax")
    # By class, then by falling score, then by the other class, in whose order they stand.
    order = score.argsort(dim=0, descending=True, stable=True)
    order = order[(pair[order] // classes).argsort(dim=0, stable=True)]
    own, other = pair[order] // classes, pair[order] % classes
    sizes = torch.bincount(own, minlength=classes)
    rank = torch.arange(len(own), device=own.device) - (sizes.cumsum(0) - sizes)[own]
    kept = rank < k
    graph: Tensor = other[kept].view(classes, k).int().cpu()
    return graph
