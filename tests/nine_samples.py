"""Nine samples of three classes on the circle: the worked values of mining are theirs."""

import torch

X9 = torch.tensor(
    [
        (1, 0),
        (0.96, 0.28),
        (0.28, 0.96),
        (0.6, 0.8),
        (-0.352, 0.936),
        (-0.8, 0.6),
        (0, -1),
        (0.6, -0.8),
        (-0.936, -0.352),
    ],
    dtype=torch.float64,
)
Y9 = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
