"""What a user would write: losses over the whole pair matrix by masks and autograd, to be compared and compiled."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Dense = Callable[[Tensor, Tensor], Tensor]


def _scores_and_masks(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = F.normalize(x)
    same = labels[:, None] == labels
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    return x @ x.t(), same & ~own, ~same


def _soft(exponents: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum of the exponentials in the mask) of each row [n]."""
    return F.softplus(exponents.masked_fill(~mask, torch.finfo(exponents.dtype).min).logsumexp(1))


def raw(x: Tensor, labels: Tensor) -> Tensor:
    """RAW with its defaults."""
    s, pos, neg = _scores_and_masks(x, labels)
    hardest_pos = s.masked_fill(~pos, torch.inf).amin(1, keepdim=True)
    hardest_neg = s.masked_fill(~neg, -torch.inf).amax(1, keepdim=True)
    kept_pos, kept_neg = pos & (s < hardest_neg + 0.1), neg & (s > hardest_pos - 0.1)
    losses = _soft(-2 * (s - 0.5), kept_pos) / 2 + _soft(50 * (s - 0.5), kept_neg) / 50
    return torch.where(pos.any(1) & neg.any(1), losses, 0.0).mean()


def multi_similarity(x: Tensor, labels: Tensor) -> Tensor:
    """The Multi-Similarity loss with PML's defaults."""
    s, pos, neg = _scores_and_masks(x, labels)
    return (_soft(-2 * (s - 0.5), pos) / 2 + _soft(50 * (s - 0.5), neg) / 50).mean()


def batch_hard(x: Tensor, labels: Tensor) -> Tensor:
    """The hinge of the hardest triplet of each anchor, margin 0.2, of Euclidean distances of unit vectors."""
    s, pos, neg = _scores_and_masks(x, labels)
    distances = (2 - 2 * s).clamp_min(1e-12).sqrt()
    farthest = distances.masked_fill(~pos, -torch.inf).amax(1)
    nearest = distances.masked_fill(~neg, torch.inf).amin(1)
    return torch.relu(farthest - nearest + 0.2).mean()


DENSE: Mapping[str, Dense] = {"RAW": raw, "MultiSimilarity": multi_similarity, "BatchHard": batch_hard}
"""By the name of ours in the catalog."""
