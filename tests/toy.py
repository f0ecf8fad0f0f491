"""Two small batches of points on the unit circle, on which the values of the specification were computed; others."""

import torch

_POINTS = (
    ((1, 0), 0),
    ((0.96, 0.28), 0),
    ((0.28, 0.96), 0),
    ((0.6, 0.8), 1),
    ((-0.352, 0.936), 1),
    ((-0.8, 0.6), 1),
    ((0, -1), 2),
    ((0.6, -0.8), 2),
    ((-0.936, -0.352), 2),
)


def toy(n):
    """The first n points with their labels; 6 of two classes (T6) or 9 of three (T9)."""
    embeddings = torch.tensor([point for point, _ in _POINTS[:n]], dtype=torch.float64)
    return embeddings, torch.tensor([label for _, label in _POINTS[:n]])


def random_batch(sizes, seed=0):
    """Points [n, 3] in any order of their classes, so many of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return torch.randn(len(labels), 3, generator=generator, dtype=torch.float64), labels


def gradient_of(loss, embeddings, labels, *args):
    """The gradient of a loss by the embeddings."""
    embeddings = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(embeddings, labels, *args), embeddings)[0]


def all_pairs(labels):
    """All pairs of a batch by itself, as anchors, positives, anchors, negatives."""
    alike = labels.unsqueeze(1) == labels
    positive = alike & ~torch.eye(len(labels), dtype=torch.bool)
    return *positive.nonzero(as_tuple=True), *(~alike).nonzero(as_tuple=True)
