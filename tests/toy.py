"""Two small batches of points on the unit circle, on which the values of the specification were computed."""

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


def toy(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n points with their labels; 6 of two classes (T6) or 9 of three (T9)."""
    embeddings = torch.tensor([point for point, _ in _POINTS[:n]], dtype=torch.float64)
    return embeddings, torch.tensor([label for _, label in _POINTS[:n]])
