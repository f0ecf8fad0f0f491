"""Losses as code of the literature often computes them: a Python loop over anchors, to measure ours against.

Every loop takes an anchor's row of the distance or similarity matrix, selects its positives and negatives by boolean
masks and builds the anchor's loss from these few numbers. The formulas and hyperparameters are those of the catalog's
entry of the same name, with value and gradient equal to ours (`test_speed_benchmark.py`).
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Loop = Callable[[Tensor, Tensor], Tensor]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Similarities [n, m] of unit vectors."""
    return x @ y.t()


def squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances [n, m]."""
    return x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.t()


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances [n, m], with a zero gradient at zero."""
    return squared(x, y).clamp(min=1e-12).sqrt()


def anchors(matrix: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The row of each anchor, cut into its positives and its negatives."""
    for i in range(len(labels)):
        same = labels == labels[i]
        other = ~same
        same[i] = False
        yield matrix[i][same], matrix[i][other]


def multi_similarity_of(pos: Tensor, neg: Tensor) -> Tensor:
    """Multi-Similarity loss of an anchor's similarities."""
    pull = torch.log(1 + torch.exp(-2 * (pos - 0.5)).sum()) / 2
    return pull + torch.log(1 + torch.exp(50 * (neg - 0.5)).sum()) / 50


def multi_similarity(x: Tensor, labels: Tensor) -> Tensor:
    """Multi-Similarity loss without mining."""
    x = F.normalize(x)
    losses = [multi_similarity_of(pos, neg) for pos, neg in anchors(cosine(x, x), labels)]
    return torch.stack(losses).mean()


def raw(x: Tensor, labels: Tensor) -> Tensor:
    """RAW loss: Multi-Similarity on the informative pairs."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(cosine(x, x), labels):
        hard_pos, hard_neg = pos[pos < neg.max() + 0.1], neg[neg > pos.min() - 0.1]
        if len(hard_pos) and len(hard_neg):
            losses.append(multi_similarity_of(hard_pos, hard_neg))
    return torch.stack(losses).sum() / len(x) if losses else x.sum() * 0


def binomial_deviance(x: Tensor, labels: Tensor) -> Tensor:
    """Binomial deviance over all pairs."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(cosine(x, x), labels):
        pull = torch.log(1 + torch.exp(-2 * (pos - 0.5))).mean()
        losses.append(pull + 0.04 * torch.log(1 + torch.exp(50 * (neg - 0.5))).mean())
    return torch.stack(losses).mean()


def hard_binomial_deviance(x: Tensor, labels: Tensor) -> Tensor:
    """Binomial deviance over all positives and the negatives nearer than the farthest of them and a little more."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(cosine(x, x), labels):
        hard = neg[neg > pos.min() - 0.05]
        if len(hard):
            pull = torch.log(1 + torch.exp(-2 * (pos - 0.5))).mean()
            losses.append(pull + 0.04 * torch.log(1 + torch.exp(50 * (hard - 0.5))).mean())
    return torch.stack(losses).sum() / len(x) if losses else x.sum() * 0


def contrastive(x: Tensor, labels: Tensor) -> Tensor:
    """Contrastive loss of distances, averaged per anchor."""
    x = F.normalize(x)
    losses = [
        torch.relu(pos - 0.6).mean() + torch.relu(1.2 - neg).mean() for pos, neg in anchors(euclidean(x, x), labels)
    ]
    return torch.stack(losses).mean()


def batch_all(x: Tensor, labels: Tensor) -> Tensor:
    """Triplet margin loss, averaged over the triplets that violate the margin."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(euclidean(x, x), labels):
        triplets = pos.unsqueeze(1) - neg + 0.02
        losses.append(triplets[triplets > 0])
    active = torch.cat(losses)
    return active.sum() / max(1, len(active))


def batch_hard(x: Tensor, labels: Tensor) -> Tensor:
    """Triplet margin loss of the farthest positive and the nearest negative."""
    x = F.normalize(x)
    return torch.stack(
        [torch.relu(pos.max() - neg.min() + 0.2) for pos, neg in anchors(euclidean(x, x), labels)]
    ).mean()


def nca(x: Tensor, labels: Tensor) -> Tensor:
    """NCA on the 32 nearest references."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(squared(x, x), labels):
        others = torch.cat([pos, neg])
        threshold = others.kthvalue(33).values if len(others) > 32 else math.inf
        near_pos, near_neg = pos[pos < threshold], neg[neg < threshold]
        if len(near_pos) == 0:
            near_pos = pos.min().unsqueeze(0)
        pull, push = torch.exp(-16 * near_pos).sum(), torch.exp(-16 * near_neg).sum()
        losses.append(-torch.log(pull / (pull + push)))
    return torch.stack(losses).mean()


def center_nca(x: Tensor, labels: Tensor) -> Tensor:
    """NCA against the means of the classes, which are constants."""
    x = F.normalize(x)
    classes = labels.unique()
    centers = torch.stack([x[labels == each].mean(0) for each in classes]).detach()
    dist = squared(x, centers)
    losses = []
    for i in range(len(x)):
        own = classes == labels[i]
        pull, push = torch.exp(-16 * dist[i][own]).sum(), torch.exp(-16 * dist[i][~own]).sum()
        losses.append(-torch.log(pull / (pull + push)))
    return torch.stack(losses).mean()


def a_hard_pair(x: Tensor, labels: Tensor) -> Tensor:
    """Log-sum-exp of the pairs of an anchor, weighted by how near its negatives are."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(euclidean(x, x), labels):
        near_pos, near_neg = torch.exp(-40 * pos.detach()).sum(), torch.exp(-40 * neg.detach()).sum()
        pull = torch.log(torch.exp(20 * (pos - 0.8)).sum())
        push = torch.log(torch.exp(20 * (1.1 - neg)).sum())
        losses.append(near_neg / (near_pos + near_neg) * (pull + push))
    return torch.stack(losses).mean()


def soft_triplet(x: Tensor, labels: Tensor) -> Tensor:
    """Softplus of the triplets, averaged over those of an anchor above a threshold."""
    x = F.normalize(x)
    losses = []
    for pos, neg in anchors(euclidean(x, x), labels):
        triplets = torch.log(1 + torch.exp(4 * (pos.unsqueeze(1) - neg)))
        kept = triplets[triplets > 0.7]
        if len(kept):
            losses.append(kept.mean())
    return torch.stack(losses).mean() if losses else x.sum() * 0


def dist_weight_neighbour(x: Tensor, labels: Tensor, drawn: Tensor | None = None) -> Tensor:
    """Binomial deviance of the three nearest positives and those of the drawn negatives that are as near.

    Args:
        x: embeddings [n, d].
        labels: [n].
        drawn: None, or the negatives that an anchor has drawn, a mask [n, n].
    """
    x = F.normalize(x)
    dist = euclidean(x, x)
    losses = []
    for i in range(len(x)):
        same = labels == labels[i]
        negatives = (~same).nonzero().squeeze(1)
        same[i] = False
        positives = dist[i][same]
        if drawn is None:
            found = dist[i][negatives].detach()
            z = (found - found.mean()) / found.std(correction=0)
            weights = torch.exp(z.square() / 2)
            chosen = negatives[torch.multinomial(weights, min(len(positives), len(weights)))]
        else:
            chosen = drawn[i].nonzero().squeeze(1)
        near = positives.sort().values[:3]
        neg = dist[i][chosen]
        hard = neg[neg < near.max() + 0.05]
        if len(hard):
            pull = torch.log(1 + torch.exp(2 * (near - 1))).mean() / 2
            losses.append(pull + torch.log(1 + torch.exp(20 * (1 - hard))).mean() / 20)
    return torch.stack(losses).sum() / len(x) if losses else x.sum() * 0


loops: Mapping[str, Loop] = {
    "RAW": raw,
    "MultiSimilarity": multi_similarity,
    "BinomialDevianceLoss": binomial_deviance,
    "BinDeviance2018": hard_binomial_deviance,
    "Contrastive2018": contrastive,
    "BatchAll": batch_all,
    "BatchHard": batch_hard,
    "NCA": nca,
    "CenterNCA": center_nca,
    "AHardPair": a_hard_pair,
    "SoftTriplet": soft_triplet,
    "DistWeightNeighbour": dist_weight_neighbour,
}
