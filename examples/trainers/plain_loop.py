"""A loop of your own: a loss is called with embeddings and labels; its parameters, if it has any, are trained too."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from pml_ext.datasets import Digits
from pml_ext.losses import RAWLoss
from pml_ext.mining import BalancedBatchSampler


def main(epochs: int = 3) -> list[float]:
    torch.manual_seed(0)
    digits = Digits("train")
    batches = BalancedBatchSampler(digits.labels, classes_per_batch=5, samples_per_class=8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    loss = RAWLoss()
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=1e-2)
    values = []
    for _ in range(epochs):
        for images, labels in DataLoader(digits, batch_sampler=batches):
            optimizer.zero_grad()
            value = loss(network(images), labels)
            value.backward()
            optimizer.step()
            values.append(value.item())
    print(f"loss {values[0]:.3f}, after {len(values)} steps {values[-1]:.3f}")
    return values


if __name__ == "__main__":
    main()
