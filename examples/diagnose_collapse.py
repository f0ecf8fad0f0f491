"""Is my run learning, and if not, why? A run that collapses, caught and named, and the same run mended.

Batch-hard triplet loss with a hinge, trained too fast, maps every image to the same point: the loss then stays at the
margin, which looks like a plateau. Here on letters and digits, a few of the training classes of `Glyphs`.
"""

from pathlib import Path

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import nn

from pml_ext.analysis import EmbeddingHealth
from pml_ext.analysis.plots import budget
from pml_ext.datasets import Glyphs
from pml_ext.losses import BatchHardTripletLoss, RAWLoss


def train(loss: BaseMetricLossFunction, learning_rate: float, steps: int, classes: int = 32) -> EmbeddingHealth:
    torch.manual_seed(0)
    glyphs = Glyphs("train")
    images = torch.stack([glyphs[i][0] for i in range(16 * classes)])
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 32)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    health = EmbeddingHealth(loss, every=5)
    for iteration in range(steps):
        index = (16 * torch.randperm(classes)[:8].unsqueeze(1) + torch.randint(16, (8, 4))).flatten()
        optimizer.zero_grad()
        loss(network(images[index]), glyphs.labels[index]).backward()
        optimizer.step()
        health.step(iteration)  # in PML's trainers: end_of_iteration_hook=health.end_of_iteration_hook
    return health


def main(folder: Path = Path(), steps: int = 81) -> tuple[str, str]:
    runs = {
        "batch-hard, learning rate 0.03": train(BatchHardTripletLoss(margin=0.2), 0.03, steps),
        "RAW, learning rate 0.003": train(RAWLoss(), 0.003, steps),
    }
    for number, (name, health) in enumerate(runs.items()):
        first = next((i for i, measured in health.history.items() if measured.failure), None)
        print(f"{name}: {health.failure or 'healthy'}" + (f", first seen at step {first}" if first is not None else ""))
        out = folder / f"health_{number}.png"
        budget(health.history, title=name).savefig(out, dpi=120)
        print(f"  pull, push, effective pairs and rank drawn in {out}")
    collapsed, healthy = (health.failure for health in runs.values())
    return collapsed, healthy


if __name__ == "__main__":
    main()
