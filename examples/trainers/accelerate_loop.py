"""Hugging Face accelerate: prepare network, optimizer and batches; the loss needs no preparation.

`python accelerate_loop.py`, or `accelerate launch --num_processes 2 accelerate_loop.py`, where `DistributedLoss` gives
the loss of the batches of all processes together.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from pml_ext.datasets import Digits
from pml_ext.losses import RAWLoss
from pml_ext.mining import BalancedBatchSampler
from pml_ext.wrappers import DistributedLoss


def main(epochs: int = 3) -> list[float]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    digits = Digits("train")
    batches = BalancedBatchSampler(digits.labels, classes_per_batch=5, samples_per_class=8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    loss = DistributedLoss(RAWLoss())
    network, optimizer, loader = accelerator.prepare(
        network, torch.optim.Adam(network.parameters(), lr=1e-2), DataLoader(digits, batch_sampler=batches)
    )
    values = []
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            value = loss(network(images), labels)
            accelerator.backward(value)
            optimizer.step()
            values.append(value.item())
    accelerator.print(f"loss {values[0]:.3f}, after {len(values)} steps {values[-1]:.3f}")
    return values


if __name__ == "__main__":
    main()
